// Our own drivers earn the first badge on every test run; the others take minutes and are earned by hand (docs/sr-check.md).
using SrCheck;
using SrCheck.Checks;
using Support;

namespace Conformance.SrCheckTests;

public sealed class ShippedPluginTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_shipped_plugin_earns_Bronze(bool isV1)
    {
        using TemporaryDirectory folder = new();
        string tools = Built("Tapdisk");
        string plugin = isV1 ? Path.Combine(Built("FileVhdSR"), "FileVhdSR") : Installed(folder, Path.Combine(Built("vhdfile"), "vhdfile"));
        RunOptions options = new(isV1, plugin, folder.File("datapath"), tools) { Level = Level.Bronze };
        RunResult result = await new Runner(options, static (_, _) => { }).RunAsync(Catalog.Chosen(options), CancellationToken.None);
        Assert.Empty(result.Outcomes.Where(static o => o.CostsBadge).Select(static o => $"{o.Check.Id}: {o.Seen}"));
        Assert.Equal(Level.Bronze, result.Badge);
        Assert.True(result.Count(OutcomeKind.Passed) >= 200, $"only {result.Count(OutcomeKind.Passed)} checks apply");
    }

    private static string Installed(TemporaryDirectory folder, string program)
    {
        string[] volume =
        [
            "Plugin.Query", "SR.probe", "SR.create", "SR.attach", "SR.detach", "SR.destroy", "SR.stat", "SR.ls", "SR.set_name",
            "SR.set_description", "Volume.create", "Volume.snapshot", "Volume.clone", "Volume.resize", "Volume.destroy", "Volume.stat", "Volume.set",
            "Volume.unset", "Volume.set_name", "Volume.set_description",
        ];
        string[] datapath =
        [
            "Plugin.Query", "Datapath.attach", "Datapath.activate", "Datapath.activate_readonly", "Datapath.deactivate", "Datapath.detach",
        ];
        string scripts = folder.File("volume/org.xen.xapi.storage.vhdfile");
        Link(scripts, volume, program);
        Link(folder.File("datapath/tapdisk"), datapath, program);
        return scripts;
    }

    private static void Link(string folder, string[] names, string program)
    {
        Directory.CreateDirectory(folder);
        foreach (string name in names)
            File.CreateSymbolicLink(Path.Combine(folder, name), program);
    }

    private static string Built(string project) => Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "../..", project, "release"));
}
