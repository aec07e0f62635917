// Which processes have files of a folder open, as /proc tells it. What belongs to other users is seen by root only.
namespace Platform;

public static class OpenFiles
{
    /// <summary>Open files below a folder (its one true path), with the process that has each.</summary>
    public static IReadOnlyList<(string Path, int ProcessId, string ProcessName)> Under(string folder)
    {
        string prefix = folder.TrimEnd('/') + "/";
        List<(string Path, int ProcessId, string ProcessName)> found = [];
        foreach (int processId in ProcessTable.Ids())
        {
            foreach (string path in OpenBy(processId).Where(path => path.StartsWith(prefix, StringComparison.Ordinal)))
                found.Add((path, processId, ProcessTable.NameOf(processId)));
        }

        return found;
    }

    private static List<string> OpenBy(int processId)
    {
        try
        {
            return [.. Directory.EnumerateFileSystemEntries($"/proc/{processId}/fd").Select(TargetOf).OfType<string>()];
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return []; // It ended, or is not ours to look at.
        }
    }

    private static string? TargetOf(string descriptor)
    {
        try
        {
            return new FileInfo(descriptor).LinkTarget;
        }
        catch (IOException)
        {
            return null; // Closed since it was listed.
        }
    }
}
