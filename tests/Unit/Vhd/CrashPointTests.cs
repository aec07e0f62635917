// Crash points by the number: in ./test for a bounded time; STORAGE_CRASH_POINTS=1000000 runs until so many were opened and compared.
using System.Diagnostics;
using System.Globalization;
using Support;

namespace Unit.VhdTests;

public sealed class CrashPointTests(Xunit.Abstractions.ITestOutputHelper output)
{
    private static readonly TimeSpan DefaultShare = TimeSpan.FromSeconds(12);

    [Fact]
    public async Task Every_crash_point_leaves_a_permitted_content()
    {
        string? asked = Environment.GetEnvironmentVariable("STORAGE_CRASH_POINTS");
        long wanted = asked is null ? long.MaxValue : long.Parse(asked, CultureInfo.InvariantCulture);
        Stopwatch watch = Stopwatch.StartNew();
        long[] counts = new long[CrashScenario.Kinds + 1];
        for (int seed = 0; counts.Sum() < wanted && (asked is not null || watch.Elapsed < DefaultShare); seed++)
        {
            for (int kind = 0; kind < CrashScenario.Kinds; kind++)
                counts[kind] += new CrashScenario(kind, seed).Run();
            for (int life = 0; life < 16; life++)
            {
                Random random = new(1000 + seed * 16 + life);
                Death death = life % 4 < 2 ? Death.Process : Death.Power;
                counts[^1] += await CrashTests.LivesAsync(random, death, life % 2 == 0, $"seed {seed}, {life}");
            }
        }

        string counted = $"{counts.Sum()} crash points (resize {counts[..5].Sum()}, merge {counts[5] + counts[6]}, parent {counts[7]}, "
            + $"repair {counts[8]}, snapshot {counts[9]}, hidden {counts[10]}, create {counts[11]}, write {counts[12]}) in {watch.Elapsed.TotalSeconds:F0} s";
        output.WriteLine(counted);
        await Console.Out.WriteLineAsync(counted);
        Assert.True(Array.TrueForAll(counts, static count => count > 0), counted);
    }
}
