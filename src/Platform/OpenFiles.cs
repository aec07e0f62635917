// Which processes have files of a folder open, as /proc tells it. What belongs to other users is seen by root only.
using System.Globalization;

namespace Platform;

public static class OpenFiles
{
    /// <summary>Open files below a folder (its one true path), with the process that has each.</summary>
    public static IReadOnlyList<(string Path, int ProcessId, string ProcessName)> Under(string folder)
    {
        string prefix = folder.TrimEnd('/') + "/";
        List<(string Path, int ProcessId, string ProcessName)> found = [];
        foreach (string process in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(process), NumberStyles.None, CultureInfo.InvariantCulture, out int processId))
                continue;
            foreach (string path in OpenBy(process).Where(path => path.StartsWith(prefix, StringComparison.Ordinal)))
                found.Add((path, processId, NameOf(process)));
        }

        return found;
    }

    private static List<string> OpenBy(string process)
    {
        try
        {
            return [.. Directory.EnumerateFileSystemEntries(Path.Combine(process, "fd")).Select(TargetOf).OfType<string>()];
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

    private static string NameOf(string process)
    {
        try
        {
            return File.ReadAllText(Path.Combine(process, "comm")).TrimEnd('\n');
        }
        catch (IOException)
        {
            return "?";
        }
    }
}
