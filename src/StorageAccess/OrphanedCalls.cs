// Driver calls that outlived the daemon that made them. A daemon that was killed leaves its drivers running; one of them may still attach a
// disk after the next daemon has looked. They are told by a mark in their environment and by what they run, given a little time to end, and
// ended then with all they started, except what serves disks.
using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace StorageAccess;

public static class OrphanedCalls
{
    /// <summary>In the environment of each driver call: the state folder of the daemon that made it.</summary>
    public const string Mark = "STORAGE_CALL_OF";

    private static readonly TimeSpan Look = TimeSpan.FromMilliseconds(50);

    /// <summary>Waits for the calls of an earlier daemon on this state folder, and kills those that do not end.</summary>
    /// <param name="programs">Folders of the drivers and plugins: a process is a call when it runs a file of theirs.</param>
    /// <param name="serving">Processes that serve disks; they carry the mark too when a driver started them.</param>
    /// <returns>One sentence for each that was killed.</returns>
    public static async Task<IReadOnlyList<string>> EndAsync(
        string stateDirectory, IReadOnlyList<string> programs, IReadOnlySet<int> serving, TimeSpan patience, TimeProvider time,
        CancellationToken cancellationToken)
    {
        byte[] mark = Encoding.UTF8.GetBytes($"{Mark}={stateDirectory}");
        DateTimeOffset end = time.GetUtcNow() + patience;
        List<(int Id, string Program)> left;
        while ((left = Find(mark, programs, serving)).Count != 0 && time.GetUtcNow() < end)
            await Task.Delay(Look, time, cancellationToken);
        List<string> killed = [];
        foreach ((int id, string program) in left)
        {
            Kill(id, serving);
            killed.Add($"{program} (process {id}), called by the daemon that ran before, did not end in {patience.TotalSeconds:0.#} s and was killed");
        }

        return killed;
    }

    private static List<(int Id, string Program)> Find(byte[] mark, IReadOnlyList<string> programs, IReadOnlySet<int> serving)
    {
        List<(int, string)> found = [];
        foreach (string folder in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(folder), NumberStyles.None, CultureInfo.InvariantCulture, out int id) || serving.Contains(id))
                continue;
            try
            {
                if (!Entries(File.ReadAllBytes(folder + "/environ")).Any(entry => entry.AsSpan().SequenceEqual(mark)))
                    continue;
                // A script's interpreter comes first, the script behind it.
                string? program = Entries(File.ReadAllBytes(folder + "/cmdline")).Take(3).Select(Encoding.UTF8.GetString)
                    .FirstOrDefault(argument => programs.Any(each => argument.StartsWith(each + "/", StringComparison.Ordinal)));
                if (program is not null)
                    found.Add((id, program));
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // It ended, or is not ours to look at.
            }
        }

        return found;
    }

    private static void Kill(int id, IReadOnlySet<int> serving)
    {
        foreach (int child in Children(id).Where(child => !serving.Contains(child)))
            Kill(child, serving);
        try
        {
            using Process process = Process.GetProcessById(id);
            process.Kill();
            process.WaitForExit(1000);
        }
        catch (Exception e) when (e is ArgumentException or InvalidOperationException or System.ComponentModel.Win32Exception)
        {
            // It ended by itself.
        }
    }

    private static List<int> Children(int id)
    {
        try
        {
            return [.. File.ReadAllText($"/proc/{id}/task/{id}/children").Split(' ', StringSplitOptions.RemoveEmptyEntries)
                .Select(static text => int.Parse(text, CultureInfo.InvariantCulture))];
        }
        catch (IOException)
        {
            return [];
        }
    }

    private static IEnumerable<byte[]> Entries(byte[] text)
    {
        int from = 0;
        for (int at = 0; at <= text.Length; at++)
        {
            if (at < text.Length && text[at] != 0)
                continue;
            if (at > from)
                yield return text[from..at];
            from = at + 1;
        }
    }
}
