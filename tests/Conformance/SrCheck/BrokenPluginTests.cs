// The kit's own proof: each broken plugin is caught by the check that names its fault, and that check holds for the good one.
using SrCheck;
using SrCheck.Checks;
using Support;

namespace Conformance.SrCheckTests;

public sealed class BrokenV3Tests
{
    public static TheoryData<string> Names => new(BrokenV3.All.Select(static b => b.Name));

    [Theory]
    [MemberData(nameof(Names))]
    public Task A_broken_v3_plugin_is_caught_by_the_check_that_names_its_fault(string name) =>
        Kit.CatchesAsync(BrokenV3.All.Single(b => b.Name == name), isV1: false);

    [Fact]
    public Task The_good_v3_plugin_passes_those_checks() => Kit.PassesAsync(BrokenV3.All.Select(static b => b.CaughtBy), isV1: false);
}

public sealed class BrokenV1Tests
{
    public static TheoryData<string> Names => new(BrokenV1.All.Select(static b => b.Name));

    [Theory]
    [MemberData(nameof(Names))]
    public Task A_broken_v1_driver_is_caught_by_the_check_that_names_its_fault(string name) =>
        Kit.CatchesAsync(BrokenV1.All.Single(b => b.Name == name), isV1: true);

    [Fact]
    public Task The_good_v1_driver_passes_those_checks() => Kit.PassesAsync(BrokenV1.All.Select(static b => b.CaughtBy), isV1: true);
}

/// <summary>Runs the kit on a plugin that is a text.</summary>
internal static class Kit
{
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(3);

    public static async Task CatchesAsync(BrokenPlugin broken, bool isV1)
    {
        using TemporaryDirectory folder = new();
        string plugin = NewPlugin.Write(folder.Path, "broken", isV1, broken.Text(isV1));
        if (broken.Mode is { } mode)
            File.SetUnixFileMode(folder.File("broken.py"), mode);
        RunResult result = await RunAsync(folder, plugin, isV1, [broken.CaughtBy], Deadline);
        Outcome outcome = Assert.Single(result.Outcomes);
        Assert.True(outcome.Kind == OutcomeKind.Failed, $"{broken.Name}: {broken.CaughtBy} is {outcome.Kind}: {outcome.Seen}");
        Assert.DoesNotContain("sr-check itself", outcome.Seen);
    }

    public static async Task PassesAsync(IEnumerable<string> checks, bool isV1)
    {
        using TemporaryDirectory folder = new();
        string plugin = NewPlugin.Write(folder.Path, "broken", isV1);
        RunResult result = await RunAsync(folder, plugin, isV1, [.. checks.Distinct()], TimeSpan.FromSeconds(30));
        Assert.All(result.Outcomes, static o => Assert.True(o.Kind == OutcomeKind.Passed, $"{o.Check.Id}: {o.Seen}"));
    }

    public static Task<RunResult> RunAsync(TemporaryDirectory folder, string plugin, bool isV1, string[] only, TimeSpan deadline)
    {
        RunOptions options = new(isV1, plugin, folder.File("datapath"), folder.Path)
        {
            Only = only,
            Deadline = deadline,
            Level = Level.Bronze
        };
        return new Runner(options, static (_, _) => { }).RunAsync(Catalog.Chosen(options), CancellationToken.None);
    }
}
