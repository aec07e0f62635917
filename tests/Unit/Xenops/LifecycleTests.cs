using System.Text.Json.Nodes;
using StorageAccess;
using Xenops;
using static Unit.XenopsTests.Rig;

namespace Unit.XenopsTests;

public sealed class LifecycleTests : IAsyncDisposable
{
    private const string Dbg = "test";
    private static readonly CancellationToken None = CancellationToken.None;

    private readonly SharedDisks disks = new();
    private readonly Host host;

    public LifecycleTests()
    {
        disks.Add("disk", 8 << 20);
        host = new Host(disks);
    }

    public ValueTask DisposeAsync() => host.DisposeAsync();

    [Fact]
    public async Task A_vm_is_started_paused_unpaused_shut_down_and_removed()
    {
        byte[] original = disks.Find("disk").Bytes.ToArray();
        host.Domains.Add(NewVm());
        Assert.Equal("Halted", host.StateOf(Id));
        await host.Domains.StartAsync(Dbg, Id, None);
        Assert.Equal([$"attach vbd/{Id}/xvda", $"activate vbd/{Id}/xvda"], host.Datapaths.Calls);
        Assert.Single(host.Notes);
        await UntilAsync(() => host.GuestOf(Id).WritesAcknowledged > 50, "the guest writes");
        await host.Domains.PauseAsync(Id, None);
        GuestStatistics paused = host.GuestOf(Id);
        Assert.Equal(paused.WritesIssued, paused.WritesAcknowledged);
        Assert.Equal("Paused", host.StateOf(Id));
        await host.Domains.UnpauseAsync(Id, None);
        await UntilAsync(() => host.GuestOf(Id).WritesAcknowledged > paused.WritesAcknowledged, "the guest writes on");
        await host.Domains.ShutdownAsync(Dbg, Id, clean: true, None);
        Assert.Equal("Halted", host.StateOf(Id));
        Assert.Equal(original, disks.Find("disk").Bytes);
        AssertNothingIsHeld();
        await host.Domains.RemoveAsync(Dbg, Id, None);
        Assert.Empty(host.Domains.List());
    }

    [Fact]
    public async Task A_hard_shutdown_cuts_the_power_even_when_the_disk_does_not_answer()
    {
        TaskCompletionSource never = new();
        disks.WriteGate = never.Task;
        host.Domains.Add(NewVm());
        await host.Domains.StartAsync(Dbg, Id, None);
        await UntilAsync(() => host.GuestOf(Id).WritesIssued > 0, "the guest writes");
        await host.Domains.ShutdownAsync(Dbg, Id, clean: false, None);
        Assert.Empty(host.Oracle(Id).Acknowledged);
        AssertNothingIsHeld();
    }

    [Theory]
    [InlineData("attach")]
    [InlineData("activate")]
    public async Task A_start_that_fails_is_undone_and_the_first_cause_is_told(string verb)
    {
        Vm vm = NewVm();
        vm = vm with { Vbds = [.. vm.Vbds, new Vbd { Device = "xvdb", Sr = "sr", Vdi = "disk", Mode = "RO" }] };
        host.Domains.Add(vm);
        host.Datapaths.FailOn = $"{verb} vbd/{Id}/xvdb";
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => host.Domains.StartAsync(Dbg, Id, None));
        Assert.Equal("SR_BACKEND_FAILURE_46", e.Code);
        Assert.Equal("Halted", host.StateOf(Id));
        AssertNothingIsHeld();
        host.Datapaths.FailOn = null;
        await host.Domains.StartAsync(Dbg, Id, None);
    }

    [Fact]
    public async Task A_start_whose_guest_cannot_boot_is_undone()
    {
        host.Domains.Add(NewVm() with { Platform = new Dictionary<string, string> { ["simulator.seed"] = "many" } });
        XenopsException e = await Assert.ThrowsAsync<XenopsException>(() => host.Domains.StartAsync(Dbg, Id, None));
        Assert.Contains("simulator.seed", e.Message);
        AssertNothingIsHeld();
    }

    [Fact]
    public async Task Disks_that_did_not_go_at_shutdown_go_before_the_next_start()
    {
        host.Domains.Add(NewVm());
        await host.Domains.StartAsync(Dbg, Id, None);
        host.Datapaths.FailOn = "deactivate";
        XenopsException e = await Assert.ThrowsAsync<XenopsException>(() => host.Domains.ShutdownAsync(Dbg, Id, clean: true, None));
        Assert.Contains("is halted, but", e.Message);
        Assert.Equal("Halted", host.StateOf(Id));
        Assert.Equal(0, disks.OpenHandles);
        await Assert.ThrowsAsync<XenopsException>(() => host.Domains.StartAsync(Dbg, Id, None));
        host.Datapaths.FailOn = null;
        await host.Domains.StartAsync(Dbg, Id, None);
        Assert.Equal("Running", host.StateOf(Id));
    }

    [Fact]
    public async Task A_guests_failed_writes_are_told_and_a_guest_that_cannot_shut_down_runs_on()
    {
        host.Domains.Add(NewVm());
        await host.Domains.StartAsync(Dbg, Id, None);
        await UntilAsync(() => host.GuestOf(Id).WritesAcknowledged > 50, "the guest writes");
        disks.FailWrites = true;
        await UntilAsync(() => host.GuestOf(Id).IoErrors > 0, "a write fails");
        await UntilAsync(() => host.Oracle(Id).Errors > 0, "the oracle tells it");
        XenopsException e = await Assert.ThrowsAsync<XenopsException>(() => host.Domains.ShutdownAsync(Dbg, Id, clean: true, None));
        Assert.Contains("runs on", e.Message);
        Assert.Equal("Running", host.StateOf(Id));
        disks.FailWrites = false;
        long acknowledged = host.GuestOf(Id).WritesAcknowledged;
        await UntilAsync(() => host.GuestOf(Id).WritesAcknowledged > acknowledged + 50, "the guest writes on");
        Assert.Equal(0, host.GuestOf(Id).Panics);
    }

    [Fact]
    public async Task A_panic_is_told_and_only_a_hard_shutdown_ends_it()
    {
        host.Domains.Add(NewVm());
        await host.Domains.StartAsync(Dbg, Id, None);
        await UntilAsync(() => host.GuestOf(Id).WritesAcknowledged > 300, "the guest writes");
        await host.Domains.PauseAsync(Id, None);
        disks.Find("disk").Bytes.AsSpan().Clear();
        await host.Domains.UnpauseAsync(Id, None);
        await UntilAsync(() => host.StateOf(Id) == "Crashed", "the guest panics");
        JsonObject stat = host.Domains.Stat(Id);
        Assert.Contains("acknowledged", stat["guest"]!["panic_reason"]!.ToString());
        Assert.Equal("Bad_power_state", (await Assert.ThrowsAsync<XenopsException>(() =>
            host.Domains.ShutdownAsync(Dbg, Id, true, None))).Tag);
        await host.Domains.ShutdownAsync(Dbg, Id, clean: false, None);
        AssertNothingIsHeld();
    }

    [Fact]
    public async Task What_a_killed_xenopsd_left_is_destroyed_by_the_next()
    {
        DatapathId left = new($"vbd/{Id}/xvda");
        host.Storage.Note(left);
        host.Datapaths.FailOn = "destroy";
        Assert.Single(await host.Storage.DestroyLeftoversAsync(new HashSet<DatapathId>(), None));
        Assert.Single(host.Notes);
        host.Datapaths.FailOn = null;
        Assert.Empty(await host.Storage.DestroyLeftoversAsync(new HashSet<DatapathId>(), None));
        Assert.Empty(host.Notes);
        Assert.Equal([$"destroy {left}", $"destroy {left}"], host.Datapaths.Calls);

        host.Storage.Note(left);
        host.Domains.Add(NewVm());
        await host.Domains.StartAsync(Dbg, Id, None);
        Assert.Equal([$"destroy {left}", $"attach {left}", $"activate {left}"], host.Datapaths.Calls.Skip(2));
    }

    [Fact]
    public async Task Calls_on_one_vm_take_turns_and_exactly_one_start_wins()
    {
        host.Domains.Add(NewVm());
        Task[] starts = Enumerable.Range(0, 8).Select(_ => host.Domains.StartAsync(Dbg, Id, None)).ToArray();
        await Task.WhenAll(starts).ContinueWith(static _ => { }, TaskScheduler.Default);
        Assert.Equal(1, starts.Count(static s => s.IsCompletedSuccessfully));
        Assert.Equal(1, disks.OpenHandles);
    }

    private void AssertNothingIsHeld()
    {
        Assert.Empty(host.Datapaths.States);
        Assert.Empty(host.Notes);
        Assert.Equal(0, disks.OpenHandles);
    }
}
