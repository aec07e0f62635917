// "If anything dies, start it again": a daemon on either side is killed in the middle of the copy.
using Demo;
using Platform;
using StorageAccess.Wire;

namespace EndToEnd;

public class RestartTests : IClassFixture<ServedPools>
{
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly ServedPools pools;

    public RestartTests(ServedPools pools) => this.pools = pools;

    [Theory]
    [InlineData("the source's daemon")]
    [InlineData("the destination's daemon")]
    public async Task What_is_killed_in_the_copy_and_started_again_goes_on_and_the_VM_arrives(string killed)
    {
        await pools.BringHomeAsync();
        string vm = await pools.A.Api.ByNameAsync("VM", Journey.VmName, None);
        string task = await pools.A.Api.RefAsync(
            "Async.VM.migrate", None, vm, await TokenAsync(pools), true, RpcValue.Struct(("bandwidth_limit", (8 << 20).ToString())));
        while (!(await pools.A.Api.CallAsync("task.get_other_config", None, task)).AsMap().ContainsKey("detail"))
            await Task.Delay(20); // Bytes are on their way.
        await pools.KillAndRestartAsync(killed == "the source's daemon" ? "A" : "B");

        string state = "";
        for (int tries = 0; tries < 300 && state != "Running"; tries++)
        {
            await Task.Delay(100);
            string[] there = [.. (await pools.B.Api.CallAsync("VM.get_by_name_label", None, Journey.VmName)).AsArray().Select(static v => v.AsString())];
            state = there.Length == 0 ? "" : await pools.B.Api.RefAsync("VM.get_power_state", None, there[0]);
        }

        Assert.Equal("Running", state);
        for (int tries = 0; tries < 100 && (await pools.A.Api.CallAsync("VM.get_by_name_label", None, Journey.VmName)).AsArray().Count > 0; tries++)
            await Task.Delay(100);
        Assert.Empty((await pools.A.Api.CallAsync("VM.get_by_name_label", None, Journey.VmName)).AsArray());
    }

    [Fact]
    public async Task After_a_start_of_the_machine_the_SRs_are_plugged_again_and_disks_can_be_used()
    {
        await pools.BringHomeAsync();
        string sr = await pools.B.Api.ByNameAsync("SR", Journey.StorageName, None);
        string uuid = await pools.B.Api.RefAsync("SR.get_uuid", None, sr);
        await pools.KillAndRestartAsync("B", static state =>
        {
            using SqliteFile file = SqliteFile.Open(Path.Combine(state, "storage.db"), "");
            Assert.Equal(1, file.Execute("UPDATE memory SET value='another boot' WHERE key='boot_id'"));
        });
        string log = await File.ReadAllTextAsync(Path.Combine(pools.B.Folder, "xapi.log"));
        Assert.Contains($"SR {uuid} is plugged again", log, StringComparison.Ordinal);
        string pbd = Assert.Single((await pools.B.Api.CallAsync("SR.get_PBDs", None, sr)).AsArray()).AsString();
        Assert.True((await pools.B.Api.CallAsync("PBD.get_currently_attached", None, pbd)).AsBool());
        await pools.B.Api.CallAsync("SR.scan", None, sr);
    }

    private static async Task<RpcValue> TokenAsync(ServedPools pools) => await pools.B.Api.CallAsync(
        "VM.migrate_receive", None, await pools.B.Api.ByNameAsync("host", Journey.HostName, None),
        await pools.B.Api.ByNameAsync("SR", Journey.StorageName, None), RpcValue.Struct());
}
