// ./dev bench mirror: tapdisk as an NBD server beside qemu-storage-daemon (the same VHD) and nbdkit (a raw file), its mirror beside itself, and
// what happens when the mirror's target stops, dies, or is filled while the guest writes. The client is fio, whose figures are taken as they are.
using System.Globalization;
using System.Text.Json.Nodes;

namespace Bench;

internal sealed class TapdiskBench(Workloads workloads, string folder, string bin, int rounds, bool isSmall, TextWriter log) : IDisposable
{
    private static readonly Load[] Loads =
    [
        new("4K write, depth 1", "randwrite", "4k", 1), new("4K write, depth 16", "randwrite", "4k", 16),
        new("4K read, depth 1", "randread", "4k", 1), new("4K read, depth 16", "randread", "4k", 16),
        new("1M write, depth 4", "write", "1M", 4), new("1M read, depth 4", "read", "1M", 4),
    ];

    private static readonly Limit[] Limits =
    [
        new("4K write, depth 1", "tapdisk", "qemu-storage-daemon", 1.8), new("4K write, depth 16", "tapdisk", "qemu-storage-daemon", 7),
        new("4K read, depth 1", "tapdisk", "qemu-storage-daemon", 1.1), new("4K read, depth 16", "tapdisk", "qemu-storage-daemon", 2.4),
        new("1M write, depth 4", "tapdisk", "qemu-storage-daemon", 2.5), new("1M read, depth 4", "tapdisk", "qemu-storage-daemon", 1.5),
        new("4K write, depth 1", "mirrored", "tapdisk", 0.65, 1.5), new("4K write, depth 16", "mirrored", "tapdisk", 0.55, 2.2),
        new("1M write, depth 4", "mirrored", "tapdisk", 0.55, 2.0),
    ];

    private readonly Tapdisks tapdisks = new(folder, bin);
    private readonly double seconds = isSmall ? 0.2 : 0.8;

    public async Task<IReadOnlyList<JsonNode>> RunAsync()
    {
        if (!Child.Exists("fio"))
            throw new InvalidOperationException("fio with its nbd engine is not installed; it is the client of this bench");
        Served source = tapdisks.Start(tapdisks.Disk("plain", isSmall));
        Served mirrored = tapdisks.Start(tapdisks.Disk("mirrored", isSmall));
        Served target = tapdisks.Start(tapdisks.Disk("target", isSmall));
        tapdisks.Mirror(mirrored, target);
        List<Server> servers = [new("tapdisk", source.Uri, [source.ProcessId]), new("mirrored", mirrored.Uri, [mirrored.ProcessId, target.ProcessId])];
        servers.AddRange(tapdisks.StartPeers(isSmall));
        List<JsonNode> results = [Race(servers)];
        log.WriteLine($"  peak memory: tapdisk {Tapdisks.PeakMiB(source.ProcessId):f1} MiB, mirrored {Tapdisks.PeakMiB(mirrored.ProcessId):f1}, its target "
            + $"{Tapdisks.PeakMiB(target.ProcessId):f1}");
        results.Add(await new TargetFaults(tapdisks, log).RunAsync(mirrored, target, isSmall));
        tapdisks.Stop(source);
        results.Add(await new Depths(tapdisks, workloads, rounds, log).RunAsync(isSmall));
        return results;
    }

    public void Dispose() => tapdisks.Dispose();

    private JsonObject Race(List<Server> servers)
    {
        JsonObject all = [];
        foreach (Load load in Loads)
        {
            Dictionary<string, List<FioRun>> runs = servers.ToDictionary(static s => s.Name, static _ => new List<FioRun>());
            for (int round = 0; round <= rounds; round++)
            {
                foreach (Server server in round % 2 == 0 ? servers : Enumerable.Reverse(servers))
                {
                    double before = Tapdisks.CpuSeconds(server.ProcessIds);
                    FioRun run = Fio.Run(server.Uri, load, seconds, tapdisks.SizeBytes(isSmall));
                    if (round > 0)
                        runs[server.Name].Add(run with { CpuSeconds = Tapdisks.CpuSeconds(server.ProcessIds) - before });
                }
            }

            all[load.Name] = Print(load, runs);
        }

        return new JsonObject { ["title"] = "tapdisk and its mirror", ["measured"] = all };
    }

    private JsonObject Print(Load load, Dictionary<string, List<FioRun>> runs)
    {
        log.WriteLine($"\n{load.Name}");
        log.WriteLine($"  {"",-24}{"requests/s",12}{"p50 us",9}{"p99 us",9}{"CPU s/100k",12}");
        JsonObject measured = [];
        foreach ((string name, List<FioRun> list) in runs)
        {
            measured[name] = new JsonArray([.. list.Select(static run => (JsonNode)run.PerSecond)]);
            log.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"  {name,-24}{Median(list.Select(static r => r.PerSecond)),12:f0}{Median(list.Select(static r => r.P50)),9:f0}"
                + $"{Median(list.Select(static r => r.P99)),9:f0}{Median(list.Select(static r => r.CpuSeconds / r.Requests * 1e5)),12:f2}"));
        }

        foreach (Limit limit in Limits.Where(limit => limit.Load == load.Name && !isSmall && runs.ContainsKey(limit.Peer)))
        {
            double[] ratios = [.. runs[limit.Ours].Zip(runs[limit.Peer], static (ours, peer) => ours.PerSecond / peer.PerSecond)];
            double p99 = Median(runs[limit.Ours].Zip(runs[limit.Peer], static (ours, peer) => ours.P99 / peer.P99));
            log.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"  {(Median(ratios) >= limit.Rate ? "pass" : "MISS")} {Median(ratios):f2} ({ratios.Min():f2}..{ratios.Max():f2}) of {limit.Peer}, "
                + $"goal {limit.Rate:f2}: {limit.Ours}; p99 {p99:f2} x{(limit.P99 is { } most ? $", goal {most:f1}: {(p99 <= most ? "pass" : "MISS")}" : "")}"));
        }

        return measured;
    }

    private static double Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return (sorted[(sorted.Length - 1) / 2] + sorted[sorted.Length / 2]) / 2;
    }

    private sealed record Limit(string Load, string Ours, string Peer, double Rate, double? P99 = null);
}

internal sealed record Server(string Name, string Uri, int[] ProcessIds);
