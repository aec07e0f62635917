using Platform;
using Support;

namespace Conformance.VhdTransferTests;

public sealed class BenchTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [SkippableFact]
    public async Task Every_bench_runs_on_a_small_workload_and_leaves_nothing()
    {
        Skip.IfNot(Tool.Exists("nbdkit"), Tool.Missing("nbdkit"));
        string own = AppContext.BaseDirectory.TrimEnd('/');
        string built = Path.GetFullPath(Path.Combine(own, "..", ".."));
        string configuration = Path.GetFileName(own);
        ChildResult result = await Tool.RunAsync(
            Path.Combine(built, "Bench", configuration, "Bench"),
            "all", "--small", "--json", "--rounds", "1", "--dir", directory.Path, "--bin", Path.Combine(built, "vhd-util", configuration));
        Assert.True(result.ExitCode == 0, result.StandardError);
        System.Text.Json.Nodes.JsonArray races = System.Text.Json.Nodes.JsonNode.Parse(result.StandardOutput)!["races"]!.AsArray();
        Assert.True(races.Count >= 10, result.StandardOutput);
        Assert.Empty(Directory.GetFileSystemEntries(directory.Path));
    }
}
