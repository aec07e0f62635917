// What /proc tells of the processes of this machine. Anything may end while it is looked at: then it is as if it had not been there.
using System.Globalization;

namespace Platform;

public static class ProcessTable
{
    /// <summary>A process may start another while its session is being ended; then the session is looked at again.</summary>
    private const int KillRounds = 5;
    private const int Sigkill = 9;
    private const int StateField = 0;
    private const int SessionField = 3;

    /// <summary>All processes, zombies too.</summary>
    public static IEnumerable<int> Ids() => Directory.EnumerateDirectories("/proc")
        .Select(static folder => int.TryParse(Path.GetFileName(folder), NumberStyles.None, CultureInfo.InvariantCulture, out int id) ? id : 0)
        .Where(static id => id != 0);

    /// <summary>Not for a zombie: it holds nothing any more.</summary>
    public static bool IsAlive(int processId) => StatOf(processId) is { } stat && stat[StateField] is not "Z" and not "X";

    /// <summary>The program's short name; <c>?</c> when it has ended.</summary>
    public static string NameOf(int processId) => Read(processId, "comm") is { } name ? name.TrimEnd('\n') : "?";

    /// <summary>Empty when it has ended.</summary>
    public static IReadOnlyList<string> CommandLineOf(int processId) => Entries(processId, "cmdline");

    /// <summary>Whether it lives and was started with a variable whose value <paramref name="isMeant"/> accepts. Others' are seen by root only.</summary>
    public static bool HasVariable(int processId, string name, Func<string, bool> isMeant) =>
        Entries(processId, "environ").Any(entry => entry.StartsWith(name + "=", StringComparison.Ordinal) && isMeant(entry[(name.Length + 1)..]))
        && IsAlive(processId);

    public static IEnumerable<int> WithVariable(string name, Func<string, bool> isMeant) => Ids().Where(id => HasVariable(id, name, isMeant));

    /// <summary>0 when it has ended.</summary>
    public static int SessionOf(int processId) =>
        StatOf(processId) is { } stat ? int.Parse(stat[SessionField], CultureInfo.InvariantCulture) : 0;

    /// <summary>Ends the living processes of a session that <paramref name="isMeant"/> accepts; all of them without it.</summary>
    public static void KillSession(int session, Func<int, bool>? isMeant = null)
    {
        for (int round = 0; round < KillRounds; round++)
        {
            List<int> members = [.. Ids().Where(id => SessionOf(id) == session && isMeant?.Invoke(id) != false && IsAlive(id))];
            if (members.Count == 0)
                return;
            members.ForEach(static id => Posix.TryKill(id, Sigkill));
        }
    }

    /// <summary>The fields of /proc/PID/stat behind the name, which may hold anything: state, parent, group, session, …</summary>
    private static string[]? StatOf(int processId) =>
        Read(processId, "stat") is { } stat && stat.LastIndexOf(')') + 2 is var at && at < stat.Length ? stat[at..].Split(' ') : null;

    private static string[] Entries(int processId, string file) =>
        Read(processId, file)?.Split('\0', StringSplitOptions.RemoveEmptyEntries) ?? [];

    private static string? Read(int processId, string file)
    {
        try
        {
            return File.ReadAllText($"/proc/{processId}/{file}");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
