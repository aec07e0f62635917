// Random lives of chains against a plain array. In ./test a bounded share; STORAGE_CHAINS=2000 runs the number asked for.
using System.Diagnostics;

namespace Unit.VhdTests;

public sealed class ChainModelTests(Xunit.Abstractions.ITestOutputHelper output)
{
    private static readonly TimeSpan DefaultShare = TimeSpan.FromSeconds(12);

    [Fact]
    public async Task A_chain_reads_as_an_array_after_any_steps()
    {
        string? asked = Environment.GetEnvironmentVariable("STORAGE_CHAINS");
        int chains = asked is null ? int.MaxValue : int.Parse(asked, System.Globalization.CultureInfo.InvariantCulture);
        Stopwatch watch = Stopwatch.StartNew();
        int done = 0, steps = 0, deepest = 0;
        for (; done < chains && (asked is not null || watch.Elapsed < DefaultShare); done++)
        {
            using ChainModel model = new(done);
            List<string> log = [];
            int maxDepth = 1 + done % 12;
            try
            {
                await model.DeepenAsync(maxDepth);
                deepest = Math.Max(deepest, model.Depth);
                for (int step = 0; step < 12 + maxDepth; step++)
                {
                    log.Add(await model.StepAsync(maxDepth));
                    deepest = Math.Max(deepest, model.Depth);
                    steps++;
                }
            }
            catch (Exception e)
            {
                throw new Xunit.Sdk.XunitException($"chain {done}, after {string.Join(", ", log)}: {e}");
            }
        }

        string counted = $"{done} chains, {steps} steps, up to {deepest} deep";
        output.WriteLine(counted);
        await Console.Out.WriteLineAsync("chain model: " + counted);
        Assert.True(steps > 0, counted);
    }
}
