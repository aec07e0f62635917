// The collector killed at every operation: in ./test for a bounded time; STORAGE_CRASH_POINTS=1000000 runs until so many were opened and
// compared.
using System.Diagnostics;
using System.Globalization;

namespace Unit.VhdCollectTests;

public sealed class CollectCrashTests(Xunit.Abstractions.ITestOutputHelper output)
{
    private static readonly TimeSpan DefaultShare = TimeSpan.FromSeconds(15);

    [Fact]
    public async Task A_collector_that_dies_at_any_operation_leaves_every_disk_as_it_was()
    {
        string? asked = Environment.GetEnvironmentVariable("STORAGE_CRASH_POINTS");
        long wanted = asked is null ? long.MaxValue : long.Parse(asked, CultureInfo.InvariantCulture);
        Stopwatch watch = Stopwatch.StartNew();
        long[] counts = new long[CollectScenario.Kinds];
        for (int seed = 0; counts.Sum() < wanted && (asked is not null || watch.Elapsed < DefaultShare || counts.Contains(0)); seed++)
            counts[seed % counts.Length] += await new CollectScenario(seed % counts.Length, seed).RunAsync();
        string counted = $"{counts.Sum()} crash points of the collector (inner and growth {counts[0]}, leaf {counts[1]}, "
            + $"split {counts[2]}, "
            + $"other names {counts[3]}, any history {counts[4]}) in {watch.Elapsed.TotalSeconds:F0} s";
        output.WriteLine(counted);
        await Console.Out.WriteLineAsync(counted);
        Assert.True(Array.TrueForAll(counts, static count => count > 0), counted);
    }
}
