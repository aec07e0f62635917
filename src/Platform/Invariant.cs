using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Platform;

/// <summary>
/// Our own logic is wrong. Never caught below the process boundary: the process logs, stops, and recovers from its journals.
/// </summary>
public sealed class InvariantException(string message) : Exception(message);

public static class Invariant
{
    /// <summary>Kept in release builds.</summary>
    public static void Holds(
        [DoesNotReturnIf(false)] bool condition, string because, [CallerArgumentExpression(nameof(condition))] string expression = "")
    {
        if (!condition)
            throw new InvariantException($"{because} (expected {expression})");
    }

    /// <summary>The process boundary: nothing that this process does next can be trusted, so it ends here. Written as <c>throw Stop(e)</c>.</summary>
    [DoesNotReturn]
    public static Exception Stop(InvariantException e)
    {
        Environment.FailFast($"our own logic is wrong: {e.Message}", e);
        throw e;
    }
}
