using Demo;
using Platform;
using StorageAccess.Wire;
using Support;

namespace EndToEnd;

[Collection(SharedPair.Name)]
public class SeedClientTests
{
    private readonly ServedPools pools;

    public SeedClientTests(ServedPools pools) => this.pools = pools;

    [SkippableFact]
    public async Task The_client_program_of_seed_004_moves_the_vm_with_Pythons_own_client_and_the_shipped_names_bring_it_back()
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        await pools.BringHomeAsync();
        ChildResult client = await Tool.RunAsync(
            "python3", Path.Combine(AppContext.BaseDirectory, "seed_client.py"), pools.B.Https, pools.B.Password, pools.A.Https, pools.A.Password);

        Assert.Equal("", client.StandardError);
        Assert.Equal(["success", "[]", "Running"], client.StandardOutput.Trim().Split('\n'));
        Assert.Empty((await pools.A.Api.CallAsync("VM.get_by_name_label", CancellationToken.None, "my lovely VM")).AsArray());
        await ComesBackAsync();
    }

    /// <summary>From the SMAPIv3 storage to the SMAPIv1 one, by the names that shipped: host.migrate_receive, and VM.migrate_send with a map of its disks.</summary>
    private async Task ComesBackAsync()
    {
        CancellationToken none = CancellationToken.None;
        string host = await pools.A.Api.ByNameAsync("host", "pool A's host", none);
        string storage = await pools.A.Api.ByNameAsync("SR", "pool A's storage", none);
        string vm = await pools.B.Api.ByNameAsync("VM", Journey.VmName, none);
        string vbd = (await pools.B.Api.CallAsync("VM.get_VBDs", none, vm)).AsArray().Single().AsString();
        string vdi = await pools.B.Api.RefAsync("VBD.get_VDI", none, vbd);
        RpcValue token = await pools.A.Api.CallAsync("host.migrate_receive", none, host, "OpaqueRef:NULL", RpcValue.Struct());

        string there = await pools.B.Api.RefAsync(
            "VM.migrate_send", none, vm, token, true, RpcValue.Struct((vdi, storage)), RpcValue.Struct(), RpcValue.Struct());

        Assert.Equal("Running", await pools.A.Api.RefAsync("VM.get_power_state", none, there));
        Assert.Empty((await pools.B.Api.CallAsync("VM.get_by_name_label", none, Journey.VmName)).AsArray());
        Assert.Empty((await pools.B.Api.CallAsync("SR.get_VDIs", none, await pools.B.Api.ByNameAsync("SR", Journey.StorageName, none))).AsArray());
    }
}
