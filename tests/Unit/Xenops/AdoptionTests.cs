// kill -9 of xenopsd: what its guests are to the next one.
using Platform;
using Xenops;
using static Unit.XenopsTests.Rig;

namespace Unit.XenopsTests;

public class AdoptionTests
{
    private const string Dbg = "test";
    private const int Sigkill = 9;
    private static readonly CancellationToken None = CancellationToken.None;
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(20);

    [Fact]
    public async Task Ten_guests_outlive_a_killed_xenopsd_each_as_what_it_was_and_the_next_one_adopts_them()
    {
        SharedDisks disks = new();
        string[] vdis = [.. Enumerable.Range(0, 10).Select(static i => $"disk{i}")];
        foreach (string vdi in vdis)
            disks.Add(vdi, 4 << 20);
        Vm[] vms = [.. vdis.Select(static (vdi, i) => Slow(vdi, $"6c0e8d2e-1f4b-4f0f-9a53-0d9d1f3c2b{i:d2}"))];
        (string paused, string stopped, string frozen, Vm coming, Vm half) = (vms[1].Id, vms[2].Id, vms[3].Id, vms[8], vms[9]);
        await using Host other = new(disks);
        await using XenopsProcess xenopsd = new(disks, vdis);
        await xenopsd.StartAsync();
        await Task.WhenAll(vms[..8].Select(async vm =>
        {
            await xenopsd.Client.VmAddAsync(Dbg, vm, None);
            await xenopsd.Client.VmStartAsync(Dbg, vm.Id, None);
        }));
        await xenopsd.Client.VmPauseAsync(Dbg, paused, None);
        foreach (string id in (string[])[stopped, frozen])
        {
            ReceiveEndpoint endpoint = await other.Destination.ReceiveAsync(Dbg, id, vms.Single(v => v.Id == id), None);
            await xenopsd.Client.PrecopyAsync(Dbg, id, TargetOf(endpoint, id), TimeSpan.FromSeconds(1), None);
            await xenopsd.Client.StopAsync(Dbg, id, None);
        }

        await xenopsd.Client.TransferAsync(Dbg, frozen, None);
        await xenopsd.Client.FreezeAsync(Dbg, frozen, None);
        await xenopsd.Client.ReceiveAsync(Dbg, "half", half, None);
        other.Domains.Add(coming);
        await other.Domains.StartAsync(Dbg, coming.Id, None);
        ReceiveEndpoint here = await xenopsd.Client.ReceiveAsync(Dbg, "coming", coming, None);
        await other.Source.PrecopyAsync(coming.Id, TargetOf(here, "coming"), TimeSpan.FromSeconds(1), None);
        await other.Source.StopAsync(coming.Id, None);
        await other.Source.TransferAsync(coming.Id, None);
        ImageSummary image = await xenopsd.Client.LoadedAsync(Dbg, "coming", Patience, None);
        await other.Source.FreezeAsync(Dbg, coming.Id, None);
        IReadOnlyDictionary<string, int> processes = xenopsd.GuestProcesses;
        Assert.Equal(10, processes.Count);

        await xenopsd.KillAsync();
        await xenopsd.StartAsync();

        Assert.Equal(vms[..9].Select(static v => v.Id), (await xenopsd.Client.VmListAsync(Dbg, None)).Select(static v => v.Id));
        Assert.Equal(processes.Where(p => p.Key != half.Id).OrderBy(static p => p.Key), xenopsd.GuestProcesses.OrderBy(static p => p.Key));
        Assert.Equal("Paused", await xenopsd.StateOfAsync(paused));
        Assert.Equal("Paused", await xenopsd.StateOfAsync(stopped));
        Assert.Equal("Frozen", await xenopsd.StateOfAsync(frozen));
        Assert.Equal("Incoming", await xenopsd.StateOfAsync(coming.Id));
        Assert.Equal(vms[..9].Select(static v => $"vbd/{v.Id}/xvda"), xenopsd.Datapaths.Order());

        Assert.Equal("Bad_power_state", (await Assert.ThrowsAsync<XenopsException>(() => xenopsd.Client.ResumeAsync(Dbg, paused, true, None))).Tag);
        await xenopsd.Client.VmUnpauseAsync(Dbg, paused, None);
        Assert.True(await xenopsd.Client.ResumeAsync(Dbg, stopped, reattach: false, None));
        await Assert.ThrowsAsync<XenopsException>(() => xenopsd.Client.ResumeAsync(Dbg, frozen, reattach: false, None));
        Assert.True(await xenopsd.Client.ResumeAsync(Dbg, frozen, reattach: true, None));
        Assert.Equal(image, await xenopsd.Client.LoadedAsync(Dbg, "coming", Patience, None));
        await xenopsd.Client.RunAsync(Dbg, "coming", None);
        Assert.Equal("Does_not_exist", (await Assert.ThrowsAsync<XenopsException>(() => xenopsd.Client.RunAsync(Dbg, "half", None))).Tag);

        foreach (Vm vm in vms[..9])
        {
            GuestStatistics before = (await xenopsd.Client.VmStatAsync(Dbg, vm.Id, None)).Guest!;
            GuestStatistics now = before;
            for (int tries = 0; now.WritesAcknowledged <= before.WritesAcknowledged + 5; tries++)
            {
                Assert.True(tries < 1000, $"VM {vm.Id} writes no more");
                await Task.Delay(5);
                now = (await xenopsd.Client.VmStatAsync(Dbg, vm.Id, None)).Guest!;
            }

            Assert.Equal((1, 0, 0), (now.Boots, now.Panics, now.IoErrors));
            await xenopsd.Client.VmShutdownAsync(Dbg, vm.Id, clean: true, None);
        }
    }

    [Fact]
    public async Task A_guest_whose_process_dies_is_crashed_and_after_a_restart_it_is_gone_with_its_datapath()
    {
        SharedDisks disks = new();
        disks.Add("disk", 4 << 20);
        await using XenopsProcess xenopsd = new(disks, "disk");
        await xenopsd.StartAsync();
        await xenopsd.Client.VmAddAsync(Dbg, Slow("disk", Id), None);
        await xenopsd.Client.VmStartAsync(Dbg, Id, None);
        Posix.TryKill(xenopsd.GuestProcesses[Id], Sigkill);
        for (int tries = 0; await xenopsd.StateOfAsync(Id) != "Crashed"; tries++)
        {
            Assert.True(tries < 500, "its death is not seen");
            await Task.Delay(10);
        }

        Assert.False(await xenopsd.Client.ResumeAsync(Dbg, Id, reattach: true, None));
        await xenopsd.KillAsync();
        await xenopsd.StartAsync();
        Assert.Empty(await xenopsd.Client.VmListAsync(Dbg, None));
        Assert.Empty(xenopsd.Datapaths);
        Assert.False(await xenopsd.Client.ResumeAsync(Dbg, Id, reattach: true, None)); // There is nothing to resume: whoever aborts comes to an end.
        await xenopsd.Client.VmAddAsync(Dbg, Slow("disk", Id), None);
        await xenopsd.Client.VmStartAsync(Dbg, Id, None);
        Assert.Equal("Running", await xenopsd.StateOfAsync(Id));
    }

    private static Vm Slow(string vdi, string id) => NewVm(vdi, id) with
    {
        Platform = new Dictionary<string, string>
        {
            ["simulator.seed"] = "42",
            ["simulator.writes_per_second"] = "200",
            ["simulator.dirty_pages_per_second"] = "200",
            ["simulator.working_set_blocks"] = "64",
        },
    };
}
