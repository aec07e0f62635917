// Everything that a plugin starts inherits its environment, and a mark in it: whatever detaches itself, changes its name or loses its
// parent is still found, and ended, by that mark.
using System.Text;
using Platform;

namespace SrCheck.Plugins;

internal static class MarkedProcesses
{
    public const string Variable = "SR_CHECK_MARK";

    private const int Kill = 9;

    /// <summary>Live processes whose mark starts like this.</summary>
    public static IReadOnlyList<int> Find(string mark)
    {
        byte[] wanted = Encoding.UTF8.GetBytes($"{Variable}={mark}");
        List<int> found = [];
        foreach (string folder in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(folder), out int processId) || processId == Environment.ProcessId)
                continue;
            if (EnvironmentOf(folder).AsSpan().IndexOf(wanted) >= 0 && !IsZombie(folder))
                found.Add(processId);
        }

        return found;
    }

    public static void End(string mark)
    {
        foreach (int processId in Find(mark))
            Posix.TryKill(processId, Kill);
    }

    public static string NameOf(int processId)
    {
        try
        {
            return File.ReadAllText($"/proc/{processId}/cmdline").Replace('\0', ' ').Trim();
        }
        catch (IOException)
        {
            return "(ended)";
        }
    }

    private static byte[] EnvironmentOf(string folder)
    {
        try
        {
            return File.ReadAllBytes(Path.Combine(folder, "environ"));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return []; // It ended meanwhile, or belongs to somebody else.
        }
    }

    private static bool IsZombie(string folder)
    {
        try
        {
            string stat = File.ReadAllText(Path.Combine(folder, "stat"));
            int state = stat.LastIndexOf(')') + 2;
            return state < stat.Length && stat[state] is 'Z' or 'X';
        }
        catch (IOException)
        {
            return true;
        }
    }
}
