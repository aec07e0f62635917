namespace Xapi;

/// <summary>
/// The one exception that becomes an answer's ErrorDescription: the field's code and parameters (research: xapi.md 1.5, 3.7).
/// </summary>
public sealed class XapiException(string code, params IReadOnlyList<string> parameters)
    : Exception($"{code} [{string.Join("; ", parameters)}]")
{
    public string Code { get; } = code;

    public IReadOnlyList<string> Parameters { get; } = parameters;

    /// <summary>Code and parameters in one list, as ErrorDescription and task.error_info hold them.</summary>
    public IReadOnlyList<string> Description => [Code, .. Parameters];
}
