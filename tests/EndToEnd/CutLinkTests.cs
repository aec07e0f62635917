// The link between two pools is cut, for real (the kernel resets the mirror's connections), while a disk is copied: the job goes on where it was.
// MIGRATION_CUTS says how often (20 for the record).
using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Demo;
using Platform;
using StorageAccess.Wire;
using Support;
using Xunit.Abstractions;

namespace EndToEnd;

public partial class CutLinkTests(ITestOutputHelper output)
{
    private static readonly CancellationToken None = CancellationToken.None;

    /// <summary>Chunks of 64 KiB that a target may hold unflushed: what a cut can cost (src/Replication/ChunkMap.cs).</summary>
    private const long CheckpointBytes = 1024 * 64L * 1024;

    private const int DefaultCuts = 6;
    private const long DiskBytes = 256 << 20;
    private const int DataBytes = 96 << 20;

    [SkippableFact]
    public async Task A_migration_whose_link_is_cut_again_and_again_finishes_and_sends_less_than_one_checkpoint_again_for_each_cut()
    {
        Skip.IfNot(Environment.IsPrivilegedProcess, "cutting a connection needs root");
        Skip.IfNot(Tool.Exists("ss"), Tool.Missing("ss"));
        int cuts = int.Parse(Environment.GetEnvironmentVariable("MIGRATION_CUTS") ?? $"{DefaultCuts}", CultureInfo.InvariantCulture);
        ServedPools pools = new();
        await pools.InitializeAsync();
        try
        {
            MovingVm vm = await MovingVm.FindAsync(pools);
            await AddDiskAsync(pools.A, vm);
            string task = await vm.BeginMoveTaskAsync(48 << 20);
            int cut = 0;
            for (int looks = 0; cut < cuts; looks++)
            {
                Assert.True(looks < 4000, $"only {cut} cuts could be made");
                await Task.Delay(25);
                RpcStruct state = (await pools.A.Api.CallAsync("task.get_record", None, task)).AsStruct();
                Assert.True(state.Get("status").AsString() == "pending", $"after {cut} cuts: {Describe(state)}");
                if (await CutAsync(pools.A))
                    cut++;
            }

            RpcStruct record = await vm.AwaitTaskAsync(task);
            Assert.True(record.Get("status").AsString() == "success", Describe(record));
            JsonNode receipt = JsonNode.Parse(record.Get("other_config").AsMap()["receipt"])!;
            long sent = (long)receipt["sent_bytes"]!;
            output.WriteLine($"{cuts} cuts; the disks hold some {DataBytes >> 20} MiB and more; {sent >> 20} MiB were sent in all; limit of re-sending {cuts * CheckpointBytes >> 20} MiB");
            Assert.InRange(sent, DataBytes, DataBytes * 2 + (cuts * CheckpointBytes));
            Assert.Equal("Running", await pools.B.Api.RefAsync("VM.get_power_state", None, await pools.B.Api.ByNameAsync("VM", Journey.VmName, None)));
        }
        finally
        {
            await pools.DisposeAsync();
        }
    }

    private static string Describe(RpcStruct task) =>
        $"{task.Get("status").AsString()}: {string.Join(": ", task.Get("error_info").AsArray().Select(static v => v.AsString()))}; "
        + string.Join("; ", task.Get("other_config").AsMap().Select(static e => $"{e.Key}={e.Value}"));

    private static async Task AddDiskAsync(ServedPool pool, MovingVm vm)
    {
        string storage = await pool.Api.ByNameAsync("SR", "pool A's storage", None);
        string file = Path.Combine(pool.Folder, "sr", $"{Guid.NewGuid()}.vhd");
        string raw = file + ".raw";
        await using (FileStream stream = new(raw, FileMode.Create))
        {
            stream.SetLength(DiskBytes);
            byte[] block = new byte[1 << 20];
            Random random = new(3);
            for (long at = 0; at < DataBytes; at += block.Length)
            {
                random.NextBytes(block);
                await stream.WriteAsync(block);
            }
        }

        ChildResult made = await ChildProcess.RunAsync(
            Path.Combine(ServedPools.Out, "vhd-util"), ["convert", "-f", "raw", "-O", "vhd", raw, file], "", new Dictionary<string, string?>(), TimeSpan.FromMinutes(1), 1 << 16, None);
        Assert.True(made.ExitCode == 0, made.StandardError);
        File.Delete(raw);
        await pool.Api.CallAsync("SR.scan", None, storage);
        await vm.AddDiskAsync(Path.GetFileNameWithoutExtension(file));
    }

    /// <summary>Resets every TCP connection that a tapdisk of this pool has to another machine's port.</summary>
    private static async Task<bool> CutAsync(ServedPool pool)
    {
        HashSet<int> tapdisks = [.. Leftovers.Processes(pool.Folder).Where(static p => p.Command == "tapdisk").Select(static p => p.Pid)];
        bool isCut = false;
        foreach (Match line in Connections().Matches(await SsAsync("-tnpH", "state", "established")))
        {
            if (!tapdisks.Contains(int.Parse(line.Groups["pid"].Value, CultureInfo.InvariantCulture)))
                continue;
            await SsAsync("-K", "sport", "=", $":{line.Groups["port"].Value}");
            isCut = true;
        }

        return isCut;
    }

    private static async Task<string> SsAsync(params string[] arguments) =>
        (await ChildProcess.RunAsync("ss", arguments, "", new Dictionary<string, string?>(), TimeSpan.FromSeconds(10), 1 << 20, None)).StandardOutput;

    [GeneratedRegex(@"\S+:(?<port>\d+)\s+\S+:\d+\s+users:\(\(""tapdisk"",pid=(?<pid>\d+)")]
    private static partial Regex Connections();
}
