// Driver calls that outlived the daemon that made them. A daemon that was killed leaves its drivers running; one of them may still attach a
// disk after the next daemon has looked. They are told by a mark in their environment and by what they run, given a little time to end, and
// ended then with all that is marked in their sessions, except what serves disks.
using Platform;

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
        DateTimeOffset end = time.GetUtcNow() + patience;
        List<(int Id, string Program)> left;
        while ((left = Find(stateDirectory, programs, serving)).Count != 0 && time.GetUtcNow() < end)
            await Task.Delay(Look, time, cancellationToken);
        List<string> killed = [];
        foreach ((int id, string program) in left)
        {
            // Only what carries the mark: a call that did not get as far as a session of its own is in somebody else's.
            ProcessTable.KillSession(
                ProcessTable.SessionOf(id), member => !serving.Contains(member) && ProcessTable.HasVariable(member, Mark, value => value == stateDirectory));
            killed.Add($"{program} (process {id}), called by the daemon that ran before, did not end in {patience.TotalSeconds:0.#} s and was killed");
        }

        return killed;
    }

    private static List<(int Id, string Program)> Find(string stateDirectory, IReadOnlyList<string> programs, IReadOnlySet<int> serving)
    {
        List<(int, string)> found = [];
        foreach (int id in ProcessTable.WithVariable(Mark, value => value == stateDirectory).Where(id => !serving.Contains(id)))
        {
            // A script's interpreter comes first, the script behind it.
            string? program = ProcessTable.CommandLineOf(id).Take(3)
                .FirstOrDefault(argument => programs.Any(folder => argument.StartsWith(folder + "/", StringComparison.Ordinal)));
            if (program is not null)
                found.Add((id, program));
        }

        return found;
    }
}
