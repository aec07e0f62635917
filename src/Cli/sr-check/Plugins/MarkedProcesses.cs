// Everything that a plugin starts inherits its environment, and a mark in it: whatever detaches itself, changes its name or loses its
// parent is still found, and ended, by that mark.
using Platform;

namespace SrCheck.Plugins;

internal static class MarkedProcesses
{
    public const string Variable = "SR_CHECK_MARK";

    private const int Kill = 9;

    /// <summary>Live processes whose mark starts like this.</summary>
    public static IReadOnlyList<int> Find(string mark) =>
    [
        .. ProcessTable.WithVariable(Variable, value => value.StartsWith(mark, StringComparison.Ordinal))
            .Where(static id => id != Environment.ProcessId),
    ];

    public static void End(string mark)
    {
        foreach (int processId in Find(mark))
            Posix.TryKill(processId, Kill);
    }

    public static string NameOf(int processId) =>
        ProcessTable.CommandLineOf(processId) is { Count: > 0 } command ? string.Join(' ', command) : "(ended)";
}
