using Platform;

namespace EndToEnd;

/// <summary>One process of a pool, killed with SIGKILL.</summary>
internal static class Victim
{
    private const int Sigkill = 9;
    private static readonly TimeSpan DriverLimit = TimeSpan.FromSeconds(2);

    /// <param name="victim">xapi (started again, as an init system would), xenopsd (its xapi starts it again), tapdisk, or driver: whichever runs next.</param>
    /// <returns>False when there was none.</returns>
    public static async Task<bool> KillAsync(ServedPools pools, string victim, ServedPool pool)
    {
        switch (victim)
        {
            case "xapi":
                await pools.KillAndRestartAsync(pool.Name);
                return true;
            case "driver":
                return await KillDriverAsync(pool);
            default:
                return ProcessTable.Ids().Where(id => IsOf(pool, id, victim)).Take(1).Any(static id => Posix.TryKill(id, Sigkill));
        }
    }

    private static bool IsOf(ServedPool pool, int id, string program)
    {
        IReadOnlyList<string> command = ProcessTable.CommandLineOf(id);
        return command.Count > 1 && Path.GetFileName(command[0]) == program && command.Any(word => word.Contains(pool.Folder + "/", StringComparison.Ordinal));
    }

    private static async Task<bool> KillDriverAsync(ServedPool pool)
    {
        DateTime end = DateTime.UtcNow + DriverLimit;
        string state = Path.Combine(pool.Folder, "state");
        while (DateTime.UtcNow < end)
        {
            foreach (int id in ProcessTable.WithVariable(StorageAccess.OrphanedCalls.Mark, value => value == state))
            {
                string command = string.Join(' ', ProcessTable.CommandLineOf(id));
                bool isDriver = command.Contains("/sm/", StringComparison.Ordinal) || command.Contains("/storage-scripts/", StringComparison.Ordinal);
                if (isDriver && Posix.TryKill(id, Sigkill))
                    return true;
            }

            await Task.Delay(5);
        }

        return false;
    }
}
