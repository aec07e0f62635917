namespace Xe.Grammar;

/// <summary>What scripts may rely on.</summary>
internal static class ExitCodes
{
    public const int Done = 0;

    /// <summary>The pool refused, or what was asked for failed.</summary>
    public const int Refused = 1;

    public const int BadCommandLine = 2;

    /// <summary>Nobody answers there, or somebody else than the pool that was meant.</summary>
    public const int Unreachable = 3;

    public const int Credentials = 4;

    /// <summary>SIGINT or SIGTERM; what became of the work is told.</summary>
    public const int Interrupted = 130;
}

/// <summary>The one exception that a verb ends with: the field's code and parameters, a sentence, and how the process ends.</summary>
/// <param name="code">The pool's own (VM_BAD_POWER_STATE), or one of ours for what no pool was asked.</param>
/// <param name="detail">What the code cannot say; "" when there is nothing more.</param>
internal sealed class XeException(int exitCode, string code, IReadOnlyList<string> parameters, string detail) : Exception($"{code}: {detail}")
{
    public int ExitCode { get; } = exitCode;

    public string Code { get; } = code;

    public IReadOnlyList<string> Parameters { get; } = parameters;

    public string Detail { get; } = detail;

    public static XeException BadCommandLine(string why) => new(ExitCodes.BadCommandLine, "BAD_COMMAND_LINE", [], why);

    public static XeException Unreachable(string where, string why) => new(ExitCodes.Unreachable, "CANNOT_REACH", [where], why);

    /// <summary>The pool's ErrorDescription.</summary>
    public static XeException Refused(IReadOnlyList<string> description, string detail = "")
    {
        string code = description.Count == 0 ? "INTERNAL_ERROR" : description[0];
        int exitCode = code is "SESSION_AUTHENTICATION_FAILED" or "SESSION_INVALID" ? ExitCodes.Credentials : ExitCodes.Refused;
        return new XeException(exitCode, code, [.. description.Skip(1)], detail);
    }
}
