// The fuzzer itself: it finds what was hidden for it, gives it back, and knows every target.
using Fuzz;

namespace Unit.FuzzTests;

[Collection("measures memory")]
public class FuzzTests
{
    [Fact]
    public async Task The_planted_bug_is_found_within_seconds_and_its_input_shows_it_again()
    {
        FuzzTarget canary = FuzzTargets.Find("canary")!;
        CampaignResult result = await new Campaign(canary, seed: 1).RunAsync(TimeSpan.FromMinutes(5), 5_000_000);
        Assert.Contains("IndexOutOfRangeException", result.Finding, StringComparison.Ordinal);
        Assert.Contains("IndexOutOfRangeException", await new Campaign(canary, seed: 2).TryAsync(result.Input!), StringComparison.Ordinal);
        Assert.Null(await new Campaign(canary, seed: 2).TryAsync(canary.Seeds[0]));
    }

    // From the same corpus: what is kept for it depends on where a parser threw, which is not the same before and after it is compiled anew.
    [Fact]
    public void The_same_seed_makes_the_same_inputs()
    {
        FuzzTarget canary = FuzzTargets.Find("canary")!;
        List<byte[]> corpus = [.. canary.Seeds];
        Mutator first = new(canary, new Random(3)), second = new(canary, new Random(3)), other = new(canary, new Random(4));
        List<string> inputs = [.. Enumerable.Range(0, 1000).Select(_ => Convert.ToHexString(first.From(corpus)))];
        Assert.Equal(inputs, Enumerable.Range(0, 1000).Select(_ => Convert.ToHexString(second.From(corpus))));
        Assert.NotEqual(inputs, Enumerable.Range(0, 1000).Select(_ => Convert.ToHexString(other.From(corpus))));
    }

    [Fact]
    public async Task A_parser_that_allocates_without_measure_or_answers_late_is_found()
    {
        FuzzTarget greedy = new("greedy", [[1]], static _ => ValueTask.FromResult($"{new byte[32 << 20].Length}"));
        Assert.Contains("allocated", (await new Campaign(greedy, 1).RunAsync(TimeSpan.FromSeconds(1), 1)).Finding, StringComparison.Ordinal);
        FuzzTarget late = new("late", [[1]], static async _ =>
        {
            await new TaskCompletionSource().Task;
            return "";
        });
        Assert.Contains("no answer", (await new Campaign(late, 1).RunAsync(TimeSpan.FromSeconds(1), 1)).Finding, StringComparison.Ordinal);
    }

    [Fact]
    public void Every_target_has_good_inputs_and_a_name_of_its_own()
    {
        List<string> names = [.. FuzzTargets.Names];
        Assert.Equal(names.Distinct(), names);
        Assert.All(names, static name => Assert.NotEmpty(FuzzTargets.Find(name)!.Seeds));
        Assert.InRange(names.Count, 20, 100);
    }
}
