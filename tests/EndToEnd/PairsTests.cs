// One migration path for every pair of plugin APIs: the VM goes from a SMAPIv1 SR to another, on to a SMAPIv3 one, to another, and home.
using Demo;
using StorageAccess.Wire;

namespace EndToEnd;

/// <summary>With a pair of its own: what a witness saw of two boots in two pools cannot be put in order, so no other test may boot this guest.</summary>
public class PairsTests : IClassFixture<ServedPools>
{
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly ServedPools pools;

    public PairsTests(ServedPools pools) => this.pools = pools;

    [Fact]
    public async Task A_running_VM_moves_between_every_pair_of_plugin_APIs_and_every_acknowledged_write_is_there()
    {
        await pools.BringHomeAsync();
        // Pool A comes with a SMAPIv1 SR, pool B with a SMAPIv3 one: each gets one of the other kind.
        await AddStorageAsync(pools.A, "vhdfile", "path", "A's v3");
        await AddStorageAsync(pools.B, "filevhd", "location", "B's v1");
        string uuid = await pools.A.Api.RefAsync("VM.get_uuid", None, await pools.A.Api.ByNameAsync("VM", Journey.VmName, None));
        await HopAsync(pools, pools.A, pools.B, "B's v1", uuid); // v1 -> v1
        await HopAsync(pools, pools.B, pools.A, "A's v3", uuid); // v1 -> v3
        await HopAsync(pools, pools.A, pools.B, Journey.StorageName, uuid); // v3 -> v3
        await HopAsync(pools, pools.B, pools.A, "pool A's storage", uuid); // v3 -> v1
    }

    private static async Task AddStorageAsync(ServedPool pool, string type, string key, string name)
    {
        string folder = Directory.CreateDirectory(FolderOf(pool, name)).FullName;
        string host = (await pool.Api.CallAsync("host.get_all", None)).AsArray()[0].AsString();
        await pool.Api.CallAsync(
            "SR.create", None, host, RpcValue.Map(new Dictionary<string, string> { [key] = folder }), "0", name, "", type, "user", false, RpcValue.Struct());
    }

    private static string FolderOf(ServedPool pool, string storage) =>
        Path.Combine(pool.Folder, storage.EndsWith("v1", StringComparison.Ordinal) || storage.EndsWith("v3", StringComparison.Ordinal) ? "other-sr" : "sr");

    private static async Task HopAsync(ServedPools pools, ServedPool from, ServedPool to, string storage, string uuid)
    {
        string vm = await from.Api.ByNameAsync("VM", Journey.VmName, None);
        string host = (await to.Api.CallAsync("host.get_all", None)).AsArray()[0].AsString();
        RpcValue token = await to.Api.CallAsync("VM.migrate_receive", None, host, await to.Api.ByNameAsync("SR", storage, None), RpcValue.Struct());
        await from.Api.CallAsync("VM.migrate", None, vm, token, true, RpcValue.Struct());

        Assert.Empty((await from.Api.CallAsync("VM.get_by_name_label", None, Journey.VmName)).AsArray());
        string there = await to.Api.ByNameAsync("VM", Journey.VmName, None);
        Assert.Equal("Running", await to.Api.RefAsync("VM.get_power_state", None, there));
        string vdi = Assert.Single((await to.Api.CallAsync("SR.get_VDIs", None, await to.Api.ByNameAsync("SR", storage, None))).AsArray()).AsString();
        string image = Path.Combine(FolderOf(to, storage), await to.Api.RefAsync("VDI.get_location", None, vdi) + ".vhd");

        await to.Api.CallAsync("VM.pause", None, there);
        Oracle oracle = Oracle.Read([.. new[] { pools.A, pools.B }.Select(pool => Path.Combine(pool.Folder, "state", "xenopsd", "oracle", uuid + ".log"))]);
        (int looked, List<string> lost) = await Verification.LostWritesAsync(image, oracle, None);
        Assert.True(looked > 100, $"only {looked} blocks were ever written");
        Assert.Empty(lost);
        await to.Api.CallAsync("VM.unpause", None, there);
    }
}
