namespace SrCheck.Plugins;

/// <summary>One run of the plugin's program, as it can be written down and shown.</summary>
/// <param name="NoAnswer">Why there is none (the deadline, too much output, not startable); null when the program ended by itself.</param>
internal sealed record PluginCall(
    string Name, string Program, IReadOnlyList<string> Arguments, string StandardInput, IReadOnlyDictionary<string, string> Environment,
    int ExitCode, string StandardOutput, string StandardError, string? NoAnswer, TimeSpan Took)
{
    private const int ShownLimit = 400;

    /// <summary>What the program printed, short enough for one line of a report.</summary>
    public string Shown => Cut(StandardOutput.ReplaceLineEndings(" "));

    public static string Cut(string text) => text.Length <= ShownLimit ? text : text[..ShownLimit] + "…";
}

/// <summary>The plugin said no, in the form in which its API says no.</summary>
/// <param name="number">The field's error number, or null where the code has none.</param>
internal sealed class PluginRefusalException(string call, string code, int? number, string message)
    : Exception($"{call} was refused: {code}: {PluginCall.Cut(message)}")
{
    public string Call { get; } = call;

    public string Code { get; } = code;

    public int? Number { get; } = number;

    public string Text { get; } = message;
}

/// <summary>The plugin gave no answer, or one of another form than its API's.</summary>
internal sealed class PluginBrokenException(string call, string what) : Exception($"{call}: {what}")
{
    public string Call { get; } = call;
}
