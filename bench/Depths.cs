// What a long chain and a further disk cost a tapdisk.
using System.Globalization;
using System.Text.Json.Nodes;

namespace Bench;

internal sealed class Depths(Tapdisks tapdisks, Workloads workloads, int rounds, TextWriter log)
{
    private const int Depth = 30;
    private const int FurtherDisks = 4;

    private static readonly Load[] Reads = [new("4K read, depth 1", "randread", "4k", 1), new("4K read, depth 16", "randread", "4k", 16)];

    public async Task<JsonNode> RunAsync(bool isSmall)
    {
        log.WriteLine($"\na chain of {Depth} beside one image, and further disks");
        JsonObject measured = [];
        Chains(await ChainAsync(isSmall), measured, isSmall);
        await FurtherAsync(measured, isSmall);
        return new JsonObject { ["title"] = "a long chain, further disks", ["measured"] = measured };
    }

    /// <summary>The disk of the other loads, half of it filled, under 29 children with half a percent each.</summary>
    private async Task<(string Base, string Leaf)> ChainAsync(bool isSmall)
    {
        string bottom = tapdisks.Disk("deep-0", isSmall), leaf = bottom;
        for (int depth = 1; depth < Depth; depth++)
            leaf = await workloads.ChildAsync($"deep-{depth}.vhd", leaf, writes: 0.005, hot: 0.25, seed: 300 + depth);
        return (bottom, leaf);
    }

    private void Chains((string Base, string Leaf) images, JsonObject measured, bool isSmall)
    {
        // A parent that a child of it has open is read by both.
        Served deep = tapdisks.Start(images.Leaf), flat = tapdisks.Start(tapdisks.Disk("flat", isSmall));
        foreach (Load load in Reads)
        {
            List<double> ratios = [];
            for (int round = 0; round <= rounds; round++)
            {
                FioRun[] runs = [.. new[] { deep, flat }.Select(served => Fio.Run(served.Uri, load, isSmall ? 0.2 : 0.8, tapdisks.SizeBytes(isSmall)))];
                if (round > 0)
                    ratios.Add(runs[1].PerSecond / runs[0].PerSecond);
            }

            ratios.Sort();
            Report($"{load.Name}: time at chain depth {Depth}, of depth 1", ratios[ratios.Count / 2], 1.15, "x", measured);
        }

        Report($"peak memory with a chain of {Depth}", Tapdisks.PeakMiB(deep.ProcessId), null, "MiB", measured);
        tapdisks.Stop(deep);
        tapdisks.Stop(flat);
        foreach (string image in Directory.GetFiles(Path.GetDirectoryName(images.Leaf)!, "deep-*.vhd").Append(flat.Image))
            File.Delete(image); // Room for the further disks.
    }

    private async Task FurtherAsync(JsonObject measured, bool isSmall)
    {
        Served first = tapdisks.Start(tapdisks.Disk("first", isSmall));
        Use(first.Uri, isSmall);
        double one = Tapdisks.PeakMiB(first.ProcessId);
        for (int disk = 0; disk < FurtherDisks; disk++)
        {
            int minor = await tapdisks.Control.AllocateMinorAsync(CancellationToken.None);
            await tapdisks.Control.AttachAsync(first.ProcessId, minor, CancellationToken.None);
            Served further = first with { Minor = minor, Image = tapdisks.Disk($"further-{disk}", isSmall) };
            tapdisks.TapCtl("open", further, $"-a 'vhd:{further.Image}'");
            Use("nbd+unix:///?socket=" + tapdisks.Control.NbdSocketPath(further.ProcessId, minor), isSmall);
        }

        double all = Tapdisks.PeakMiB(first.ProcessId);
        Report("peak memory with one disk", one, 40, "MiB", measured);
        Report("for each further disk in the same process", (all - one) / FurtherDisks, 8, "MiB", measured);
    }

    private void Use(string uri, bool isSmall)
    {
        foreach (Load load in (Load[])[.. Reads, new("4K write", "randwrite", "4k", 16), new("1M write", "write", "1M", 4)])
            Fio.Run(uri, load, isSmall ? 0.1 : 0.4, tapdisks.SizeBytes(isSmall));
    }

    private void Report(string what, double value, double? limit, string unit, JsonObject measured)
    {
        string goal = limit is { } most
            ? string.Create(CultureInfo.InvariantCulture, $", goal {most:f2}: {(value <= most ? "pass" : "MISS")}")
            : "";
        log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  {what,-56}{value,9:f3} {unit}{goal}"));
        measured[what] = value;
    }
}
