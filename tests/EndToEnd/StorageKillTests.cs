// kill -9 of the daemon at a random moment while its storage layer is at work, over and over: after each restart what it believes is what is
// really attached, and no driver of the dead one runs on. STORAGE_KILLS says how often (300 for the record).
using System.Globalization;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess;
using StorageAccess.Tap;
using StorageAccess.Wire;
using Xunit.Abstractions;

namespace EndToEnd;

public class StorageKillTests(ITestOutputHelper output)
{
    private const int WorkersPerPool = 3;
    private const int DefaultKills = 4;
    private const long DiskBytes = 16 << 20;
    private static readonly CancellationToken None = CancellationToken.None;

    [Fact]
    public async Task A_daemon_killed_at_any_moment_believes_the_truth_after_its_restart_and_leaves_no_orphan()
    {
        int kills = int.Parse(Environment.GetEnvironmentVariable("STORAGE_KILLS") ?? $"{DefaultKills}", CultureInfo.InvariantCulture);
        int seed = int.Parse(Environment.GetEnvironmentVariable("STORAGE_SEED") ?? "11", CultureInfo.InvariantCulture);
        Random random = new(seed);
        ServedPools pools = new();
        await pools.InitializeAsync();
        long steps = 0, refusals = 0;
        try
        {
            Dictionary<string, Worker[]> workers = [];
            foreach (ServedPool pool in (ServedPool[])[pools.A, pools.B])
                workers[pool.Name] = await WorkersAsync(pool, random.Next());
            for (int kill = 0; kill < kills; kill++)
            {
                string name = kill % 2 == 0 ? "A" : "B";
                using CancellationTokenSource stop = new();
                Task working = Task.WhenAll(workers[name].Select(worker => worker.RunAsync(stop.Token)));
                await Task.Delay(random.Next(20, 900));
                await pools.KillAndRestartAsync(name);
                await stop.CancelAsync();
                await working;
                ServedPool pool = name == "A" ? pools.A : pools.B;
                string situation = $"seed {seed}, kill {kill} of pool {name}";
                Assert.True(OrphanedCalls(pool).Count == 0, $"{situation}: {string.Join(", ", OrphanedCalls(pool))}");
                (SortedSet<string> believed, SortedSet<string> served) = await SeeAsync(pool);
                Assert.True(
                    believed.SetEquals(served), $"{situation}: believed {string.Join(" ", believed)}; served {string.Join(" ", served)}");
            }

            foreach (Worker worker in workers.Values.SelectMany(static all => all))
                await worker.EndAsync();
            foreach (ServedPool pool in (ServedPool[])[pools.A, pools.B])
            {
                (SortedSet<string> believed, SortedSet<string> served) = await SeeAsync(pool);
                Assert.Equal(believed, served);
                Assert.True(served.Count <= 1, "only the VM's disk is left"); // It runs in A.
            }

            steps = workers.Values.SelectMany(static all => all).Sum(static worker => worker.Steps);
            refusals = workers.Values.SelectMany(static all => all).Sum(static worker => worker.Refusals);
        }
        finally
        {
            await pools.DisposeAsync();
        }

        output.WriteLine($"{kills} kills, {steps} storage calls answered, {refusals} refused or cut off; no orphan, no wrong belief; seed {seed}");
        Assert.True(steps > kills);
    }

    private static async Task<Worker[]> WorkersAsync(ServedPool pool, int seed)
    {
        using JsonRpcClient rpc = Rpc(pool);
        StorageClient storage = new(rpc);
        SrId sr = Assert.Single(await storage.SrListAsync("kill", None));
        List<Worker> workers = [];
        for (int number = 0; number < WorkersPerPool; number++)
        {
            VdiInfo made = await storage.VdiCreateAsync(
                "kill", sr, new VdiInfo { Vdi = new VdiId(""), NameLabel = $"worker {number}", VirtualSizeBytes = DiskBytes }, None);
            workers.Add(new Worker(pool, sr, made.Vdi, new Random(seed + number)));
        }

        return [.. workers];
    }

    private static JsonRpcClient Rpc(ServedPool pool) => new(Path.Combine(pool.Folder, "run", "storage"), TimeSpan.FromSeconds(60));

    /// <summary>The disks that the layer says are active, and the images that tapdisks have open.</summary>
    private static async Task<(SortedSet<string> Believed, SortedSet<string> Served)> SeeAsync(ServedPool pool)
    {
        using JsonRpcClient rpc = Rpc(pool);
        SortedSet<string> believed = [];
        foreach (JsonNode? row in (await rpc.CallAsync("DP.list", [], None))!.AsArray())
        {
            if (((string)row!["state"]!).StartsWith("Activated", StringComparison.Ordinal))
                believed.Add((string)row["vdi"]!);
        }

        TapControl control = new(Path.Combine(pool.Folder, "run", "blktap"));
        SortedSet<string> served = [];
        foreach (TapEntry entry in await control.ListAsync(None))
        {
            if (entry.Arguments is { } image)
                served.Add(Path.GetFileNameWithoutExtension(image));
        }

        return (believed, served);
    }

    /// <summary>Driver and plugin processes that carry the mark of the pool's daemon; nobody has called one since it started.</summary>
    private static List<string> OrphanedCalls(ServedPool pool) =>
    [
        .. ProcessTable.WithVariable(StorageAccess.OrphanedCalls.Mark, value => value == Path.Combine(pool.Folder, "state"))
            .Select(static id => string.Join(' ', ProcessTable.CommandLineOf(id)))
            .Where(static command => command.Contains("/sm/", StringComparison.Ordinal) || command.Contains("/storage-scripts/", StringComparison.Ordinal)),
    ];

    /// <summary>One user of one disk, with two datapaths, who does anything in any order.</summary>
    private sealed class Worker(ServedPool pool, SrId sr, VdiId vdi, Random random)
    {
        public long Steps { get; private set; }

        public long Refusals { get; private set; }

        public async Task RunAsync(CancellationToken stop)
        {
            using JsonRpcClient rpc = Rpc(pool);
            StorageClient storage = new(rpc);
            while (!stop.IsCancellationRequested)
            {
                try
                {
                    await StepAsync(storage, new DatapathId($"kill/{vdi}/{random.Next(2)}")); // Never cut short by us: only by the kill.
                    Steps++;
                }
                catch (Exception e) when (e is StorageException or IOException or OperationCanceledException)
                {
                    Refusals++; // Refused, or its daemon died: both are what this test makes happen.
                    await Task.Delay(5, None);
                }
            }
        }

        public async Task EndAsync()
        {
            using JsonRpcClient rpc = Rpc(pool);
            StorageClient storage = new(rpc);
            (_, IReadOnlyDictionary<DatapathId, VdiState> datapaths) = await storage.DpStatVdiAsync("kill", sr, vdi, None);
            // Readers first: the last writer does not leave under one.
            foreach ((DatapathId datapath, _) in datapaths.OrderBy(static datapath => datapath.Value.Access))
                await storage.DestroyAsync("kill", datapath, allowLeak: false, None);
            await storage.VdiDestroyAsync("kill", sr, vdi, None);
        }

        private async Task StepAsync(StorageClient storage, DatapathId datapath)
        {
            switch (random.Next(7))
            {
                case 0:
                    await storage.AttachAsync("kill", datapath, sr, vdi, "0", random.Next(2) == 0 ? VdiAccess.ReadOnly : VdiAccess.ReadWrite, None);
                    break;
                case 1 or 2:
                    await storage.AttachAsync("kill", datapath, sr, vdi, "0", VdiAccess.ReadWrite, None);
                    await storage.ActivateAsync("kill", datapath, sr, vdi, "0", None);
                    break;
                case 3:
                    await storage.DeactivateAsync("kill", datapath, sr, vdi, "0", None);
                    break;
                case 4:
                    await storage.DetachAsync("kill", datapath, sr, vdi, "0", None);
                    break;
                case 5:
                    await storage.DestroyAsync("kill", datapath, allowLeak: random.Next(4) == 0, None);
                    break;
                default:
                    await storage.VdiStatAsync("kill", sr, vdi, None);
                    break;
            }
        }
    }
}
