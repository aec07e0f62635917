namespace Migration;

public enum MigrationSide
{
    Source,
    Destination,
}

/// <summary>
/// Why a migration ended without moving the VM: what failed, on which side, in which phase. <see cref="Code"/> and its parameters are what an
/// API client is told; the message is for a person.
/// </summary>
public sealed class MigrationException(
    string code, IReadOnlyList<string> parameters, MigrationSide side, string message, Exception? innerException = null)
    : Exception(message, innerException)
{
    public string Code { get; } = code;

    public IReadOnlyList<string> Parameters { get; } = parameters;

    public MigrationSide Side { get; } = side;

    public MigrationFailure ToFailure(string phase) => new(Code, Parameters, Side, phase, Message);
}

/// <summary>The same as a value, for records and replies.</summary>
public sealed record MigrationFailure(string Code, IReadOnlyList<string> Parameters, MigrationSide Side, string Phase, string Message)
{
    public MigrationException ToException() => new(Code, Parameters, Side, $"{Message} (on the {Side.ToString().ToLowerInvariant()}, in {Phase})");
}
