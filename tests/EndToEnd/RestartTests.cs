// "If anything dies, start it again": a daemon on either side is killed in the middle of the copy.
using Demo;
using Platform;
using StorageAccess.Wire;

namespace EndToEnd;

public class RestartTests
{
    private static readonly CancellationToken None = CancellationToken.None;

    [Theory]
    [InlineData("A")]
    [InlineData("B")]
    public async Task A_daemon_killed_in_the_copy_and_started_again_unwinds_the_job_and_the_next_try_succeeds(string killed)
    {
        ServedPools pools = new();
        await pools.InitializeAsync();
        try
        {
            SortedSet<string> before = await SeeAsync(pools);
            string vm = await pools.A.Api.ByNameAsync("VM", Journey.VmName, None);
            string task = await pools.A.Api.RefAsync(
                "Async.VM.migrate", None, vm, await TokenAsync(pools), true, RpcValue.Struct(("bandwidth_limit", (16 << 20).ToString())));
            while (!(await pools.A.Api.CallAsync("task.get_other_config", None, task)).AsMap().ContainsKey("detail"))
                await Task.Delay(20); // Bytes are on their way.
            await pools.KillAndRestartAsync(killed);

            for (int tries = 0; tries < 300 && !before.SetEquals(await SeeAsync(pools)); tries++)
                await Task.Delay(100);
            Assert.Equal(before, await SeeAsync(pools)); // Running at home, and nothing anywhere that was not there before.

            await pools.A.Api.CallAsync("VM.migrate", None, vm, await TokenAsync(pools), true, RpcValue.Struct());
            string there = await pools.B.Api.ByNameAsync("VM", Journey.VmName, None);
            Assert.Equal("Running", await pools.B.Api.RefAsync("VM.get_power_state", None, there));
        }
        finally
        {
            await pools.DisposeAsync();
        }
    }

    [Fact]
    public async Task After_a_start_of_the_machine_the_SRs_are_plugged_again_and_disks_can_be_used()
    {
        ServedPools pools = new();
        await pools.InitializeAsync();
        try
        {
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
        finally
        {
            await pools.DisposeAsync();
        }
    }

    /// <summary>The daemon's own process is another one after its restart.</summary>
    private static async Task<SortedSet<string>> SeeAsync(ServedPools pools)
    {
        SortedSet<string> all = await pools.SeeAsync();
        all.RemoveWhere(static thing => thing.EndsWith(" xapi", StringComparison.Ordinal));
        return all;
    }

    private static async Task<RpcValue> TokenAsync(ServedPools pools) => await pools.B.Api.CallAsync(
        "VM.migrate_receive", None, await pools.B.Api.ByNameAsync("host", Journey.HostName, None),
        await pools.B.Api.ByNameAsync("SR", Journey.StorageName, None), RpcValue.Struct());
}
