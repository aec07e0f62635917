// What is there that a migration could leave behind, seen from outside: processes, sockets, files, and the pool's own lists.
using Platform;
using System.Text.Json.Nodes;
using StorageAccess.Wire;

namespace Demo;

internal static class Leftovers
{
    /// <summary>Everything of one pool that a migration makes: VDIs, volumes, datapaths, tapdisk processes, sockets, tasks' resources.</summary>
    /// <param name="folder">The pool's, as <see cref="Pool"/> lays it out.</param>
    public static async Task<SortedSet<string>> SeeAsync(string pool, string folder, XenApi api, CancellationToken cancellationToken)
    {
        SortedSet<string> seen = new(StringComparer.Ordinal);
        foreach ((string _, RpcValue record) in (await api.CallAsync("VDI.get_all_records", cancellationToken)).AsStruct().Members)
            seen.Add($"{pool}: VDI {record.AsStruct().Get("location").AsString()}");
        foreach ((string _, RpcValue record) in (await api.CallAsync("VM.get_all_records", cancellationToken)).AsStruct().Members)
            seen.Add($"{pool}: VM {record.AsStruct().Get("uuid").AsString()}");
        foreach (string file in Directory.EnumerateFiles(Path.Combine(folder, "sr"), "*.vhd*", SearchOption.AllDirectories))
            seen.Add($"{pool}: volume {Path.GetFileName(file)}");
        foreach (string datapath in await DatapathsAsync(folder, cancellationToken))
            seen.Add($"{pool}: datapath {datapath}");
        foreach ((int pid, string command) in Processes(folder))
            seen.Add($"{pool}: process {pid} {command}");
        foreach (string socket in Sockets(Path.Combine(folder, "run")))
            seen.Add($"{pool}: socket {socket}");
        return seen;
    }

    /// <summary>Processes whose command line names the folder: the pool's daemons, its tapdisks, and its guests ("guest UUID").</summary>
    public static IEnumerable<(int Pid, string Command)> Processes(string folder)
    {
        foreach (int pid in ProcessTable.Ids().Where(static id => id != Environment.ProcessId))
        {
            IReadOnlyList<string> command = ProcessTable.CommandLineOf(pid);
            if (command.Any(word => word.Contains(folder + "/", StringComparison.Ordinal)))
                yield return (pid, command is [_, "guest", string record, ..] ? $"guest {Path.GetFileNameWithoutExtension(record)}" : Path.GetFileName(command[0]));
        }
    }

    private static IEnumerable<string> Sockets(string folder) =>
        Directory.EnumerateFileSystemEntries(folder, "*", SearchOption.AllDirectories)
            .Where(static path => !Directory.Exists(path) && !path.EndsWith(".log", StringComparison.Ordinal))
            .Select(path => Path.GetRelativePath(folder, path));

    private static async Task<IEnumerable<string>> DatapathsAsync(string folder, CancellationToken cancellationToken)
    {
        using JsonRpcClient storage = new(Path.Combine(folder, "run", "storage"), TimeSpan.FromSeconds(30));
        JsonNode? rows = await storage.CallAsync("DP.list", new JsonObject { ["dbg"] = "demo" }, cancellationToken);
        return rows!.AsArray().Select(static row => (string)row!["dp"]!);
    }
}
