using Platform;
using Support;

namespace EndToEnd;

public class SeedClientTests : IClassFixture<ServedPools>
{
    private readonly ServedPools pools;

    public SeedClientTests(ServedPools pools) => this.pools = pools;

    [SkippableFact]
    public async Task The_client_program_of_seed_004_moves_the_vm_over_https_with_Pythons_own_client()
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        ChildResult client = await Tool.RunAsync(
            "python3", Path.Combine(AppContext.BaseDirectory, "seed_client.py"), pools.B.Https, pools.B.Password, pools.A.Https, pools.A.Password);

        Assert.Equal("", client.StandardError);
        Assert.Equal(["success", "[]", "Running"], client.StandardOutput.Trim().Split('\n'));
        Assert.Empty((await pools.A.Api.CallAsync("VM.get_by_name_label", CancellationToken.None, "my lovely VM")).AsArray());
    }
}
