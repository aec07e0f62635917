// Our own drivers, as ./dev publish makes them, earn the first badge on every test run; the others take minutes and are earned by hand (docs/sr-check.md).
using SrCheck;
using SrCheck.Checks;

namespace Conformance.SrCheckTests;

public sealed class ShippedPluginTests
{
    [Theory]
    [InlineData(true, "sm/FileVhdSR")]
    [InlineData(false, "storage-scripts/volume/org.xen.xapi.storage.vhdfile")]
    public async Task A_shipped_plugin_earns_Bronze(bool isV1, string plugin)
    {
        string shipped = Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "../../../../out"));
        Assert.True(Path.Exists(Path.Combine(shipped, plugin)), "./dev publish makes it; ./test does it");
        RunOptions options = new(isV1, Path.Combine(shipped, plugin), Path.Combine(shipped, "storage-scripts/datapath"), shipped) { Level = Level.Bronze };
        RunResult result = await new Runner(options, static (_, _) => { }).RunAsync(Catalog.Chosen(options), CancellationToken.None);
        Assert.Empty(result.Outcomes.Where(static o => o.CostsBadge).Select(static o => $"{o.Check.Id}: {o.Seen}"));
        Assert.Equal(Level.Bronze, result.Badge);
        Assert.True(result.Count(OutcomeKind.Passed) >= 200, $"only {result.Count(OutcomeKind.Passed)} checks apply");
    }
}
