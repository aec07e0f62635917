using System.Security.Cryptography;
using Xenops;
using Xenops.Streaming;
using static Unit.XenopsTests.Rig;

namespace Unit.XenopsTests;

public sealed class MigrationTests : IAsyncDisposable
{
    private const string Migration = "m-1";
    private const string Dbg = "test";
    private static readonly TimeSpan DowntimeLimit = TimeSpan.FromMilliseconds(50);
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(10);
    private static readonly CancellationToken None = CancellationToken.None;

    private readonly SharedDisks disks = new();
    private readonly Host a;
    private readonly Host b;
    private readonly byte[] original;

    public MigrationTests()
    {
        disks.Add("disk", 8 << 20);
        original = disks.Find("disk").Bytes.ToArray();
        a = new Host(disks);
        b = new Host(disks);
    }

    public async ValueTask DisposeAsync()
    {
        await a.DisposeAsync();
        await b.DisposeAsync();
        Assert.Equal(0, disks.OpenHandles);
        Assert.Empty(a.Datapaths.States);
        Assert.Empty(b.Datapaths.States);
    }

    [Fact]
    public async Task A_guest_goes_on_at_the_destination_without_a_hole_or_a_repeat_and_gives_its_disk_back_as_it_was()
    {
        await StartAtAAsync();
        await PrecopyAsync();
        await a.Source.StopAsync(Id, None);
        ImageSummary sent = await a.Source.TransferAsync(Id, None);
        Assert.Equal(sent, await b.Destination.LoadedAsync(Migration, Patience, None));
        Assert.Equal(sent.Digest, Convert.ToHexStringLower(PageDigests.RootOf(a.Domains.Find(Id).Guest!.Memory)));
        await a.Source.FreezeAsync(Dbg, Id, None);
        Assert.Equal(1, disks.OpenHandles); // The destination's: the source cannot write any more.
        await b.Destination.RunAsync(Migration, None);
        await a.Domains.RemoveAsync(Dbg, Id, None);
        Assert.Empty(a.Datapaths.States);
        Assert.Empty(a.Domains.List());

        long moved = a.Oracle(Id).Issued[^1];
        await UntilAsync(() => b.GuestOf(Id).WritesAcknowledged > moved + 200, "the guest writes at the destination");
        await b.Domains.PauseAsync(Id, None);
        AssertNothingLost();
        Assert.Equal(0, b.Oracle(Id).Boots);
        Assert.Equal((1, 0, 0), (b.GuestOf(Id).Boots, b.GuestOf(Id).Panics, b.GuestOf(Id).IoErrors));
        Assert.NotEqual(original, disks.Find("disk").Bytes);
        await b.Domains.UnpauseAsync(Id, None);
        await b.Domains.ShutdownAsync(Dbg, Id, clean: true, None);
        Assert.Equal(original, disks.Find("disk").Bytes);
    }

    [Fact]
    public async Task A_guest_that_moves_there_and_back_is_still_itself()
    {
        await StartAtAAsync();
        await MoveAsync(a, b, "there");
        await MoveAsync(b, a, "back");
        await UntilAsync(() => a.GuestOf(Id).ReadsVerified > 50, "the guest reads what it wrote");
        await a.Domains.ShutdownAsync(Dbg, Id, clean: true, None);
        Assert.Equal(original, disks.Find("disk").Bytes);
    }

    [Theory]
    [InlineData("precopied")]
    [InlineData("stopped")]
    [InlineData("sent")]
    [InlineData("frozen")]
    public async Task An_abort_lets_the_guest_go_on_at_the_source_and_leaves_nothing_at_the_destination(string phase)
    {
        await StartAtAAsync();
        await PrecopyAsync();
        if (phase != "precopied")
            await a.Source.StopAsync(Id, None);
        if (phase is "sent" or "frozen")
            await a.Source.TransferAsync(Id, None);
        if (phase == "frozen")
        {
            await a.Source.FreezeAsync(Dbg, Id, None);
            XenopsException refused = await Assert.ThrowsAsync<XenopsException>(() => a.Source.ResumeAsync(Dbg, Id, reattach: false, None));
            Assert.Equal("Bad_power_state", refused.Tag);
        }

        await b.Destination.DiscardAsync(Dbg, Migration, None);
        await b.Destination.DiscardAsync(Dbg, Migration, None);
        Assert.Empty(b.Domains.List());
        Assert.Empty(b.Datapaths.States);
        Assert.Empty(b.Notes);
        await a.Source.ResumeAsync(Dbg, Id, reattach: phase == "frozen", None);
        await a.Source.ResumeAsync(Dbg, Id, reattach: false, None);

        long before = a.GuestOf(Id).WritesAcknowledged;
        await UntilAsync(() => a.GuestOf(Id).WritesAcknowledged > before + 100, "the guest writes on at the source");
        Assert.Equal((1, 0, 0), (a.GuestOf(Id).Boots, a.GuestOf(Id).Panics, a.GuestOf(Id).IoErrors));
        await MoveAsync(a, b, "again");
        await b.Domains.ShutdownAsync(Dbg, Id, clean: true, None);
        Assert.Equal(original, disks.Find("disk").Bytes);
    }

    [Fact]
    public async Task An_abort_ends_a_precopy_that_is_under_way()
    {
        await StartAtAAsync();
        ReceiveEndpoint endpoint = await b.Destination.ReceiveAsync(Dbg, Migration, NewVm(), None);
        // Never small enough: 30 rounds.
        Task<PrecopyStats> precopy = a.Source.PrecopyAsync(Id, TargetOf(endpoint, Migration), TimeSpan.Zero, None);
        await UntilAsync(() => precopy.IsCompleted || a.Source.Progress(Id).Rounds > 0, "a round is sent");
        await a.Source.AbortStreamAsync(Id, None);
        // All thirty rounds may have gone while we looked.
        if (await Record.ExceptionAsync(() => precopy) is { } ended)
            Assert.Equal("Cancelled", Assert.IsType<XenopsException>(ended).Tag);
        Assert.Equal("Running", a.StateOf(Id));
        XenopsException load = await Assert.ThrowsAsync<XenopsException>(() => b.Destination.LoadedAsync(Migration, Patience, None));
        Assert.Contains("refused", load.Message);
    }

    [Fact]
    public async Task A_stop_is_answered_after_the_guests_writes_are_done()
    {
        await StartAtAAsync();
        await PrecopyAsync();
        TaskCompletionSource gate = new(TaskCreationOptions.RunContinuationsAsynchronously);
        disks.WriteGate = gate.Task;
        await UntilAsync(() => a.GuestOf(Id).WritesIssued > a.GuestOf(Id).WritesAcknowledged, "a write is in flight");
        Task<StoppedAt> stop = a.Source.StopAsync(Id, None);
        Assert.False(stop.IsCompleted);
        disks.WriteGate = null;
        gate.SetResult();
        await stop;
        Assert.Equal(a.GuestOf(Id).WritesIssued, a.GuestOf(Id).WritesAcknowledged);
        long issued = a.GuestOf(Id).WritesIssued;
        byte[] memory = PageDigests.RootOf(a.Domains.Find(Id).Guest!.Memory);
        await a.Source.TransferAsync(Id, None);
        Assert.Equal(issued, a.GuestOf(Id).WritesIssued);
        Assert.Equal(memory, PageDigests.RootOf(a.Domains.Find(Id).Guest!.Memory));
    }

    [Fact]
    public async Task An_incoming_guest_does_not_run_before_it_may()
    {
        await StartAtAAsync();
        await PrecopyAsync();
        Assert.Equal("Incoming", b.StateOf(Id));
        Assert.Equal("Bad_power_state", (await Assert.ThrowsAsync<XenopsException>(() => b.Domains.StartAsync(Dbg, Id, None))).Tag);
        Assert.Equal("Internal_error", (await Assert.ThrowsAsync<XenopsException>(() => b.Destination.RunAsync(Migration, None))).Tag);
        await a.Source.StopAsync(Id, None);
        await a.Source.TransferAsync(Id, None);
        await b.Destination.LoadedAsync(Migration, Patience, None);
        Assert.Equal("Bad_power_state", (await Assert.ThrowsAsync<XenopsException>(() => b.Domains.StartAsync(Dbg, Id, None))).Tag);
        Assert.Equal("Bad_power_state", (await Assert.ThrowsAsync<XenopsException>(() => b.Domains.RemoveAsync(Dbg, Id, None))).Tag);
        await a.Source.FreezeAsync(Dbg, Id, None);
        string at = await b.Destination.RunAsync(Migration, None);
        Assert.Equal(at, await b.Destination.RunAsync(Migration, None));
        Assert.Equal("Bad_power_state", (await Assert.ThrowsAsync<XenopsException>(() =>
            b.Destination.DiscardAsync(Dbg, Migration, None))).Tag);
        Assert.Equal("Running", b.StateOf(Id));
    }

    [Fact]
    public async Task Neither_a_wrong_secret_nor_a_wrong_certificate_gets_anywhere_and_the_right_one_still_does()
    {
        await StartAtAAsync();
        ReceiveEndpoint endpoint = await b.Destination.ReceiveAsync(Dbg, Migration, NewVm(), None);
        StreamTarget right = TargetOf(endpoint, Migration);
        StreamTarget[] wrong =
        [
            right with { Secret = new Platform.Secret("guess") },
            right with { Migration = "m-2" },
            right with { Fingerprint = new string('0', 64) },
        ];
        foreach (StreamTarget target in wrong)
        {
            XenopsException e = await Assert.ThrowsAsync<XenopsException>(() => a.Source.PrecopyAsync(Id, target, DowntimeLimit, None));
            Assert.Equal("Failed_to_contact_remote_service", e.Tag);
            Assert.Equal("Running", a.StateOf(Id));
        }

        Assert.NotEqual(0, (await a.Source.PrecopyAsync(Id, right, DowntimeLimit, None)).Rounds);
    }

    [Fact]
    public async Task A_destination_with_another_disk_or_memory_refuses_the_guest_and_says_why()
    {
        disks.Add("smaller", 4 << 20);
        await StartAtAAsync();
        ReceiveEndpoint endpoint = await b.Destination.ReceiveAsync(Dbg, Migration, NewVm() with { MemoryBytes = 8 << 20 }, None);
        XenopsException e = await Assert.ThrowsAsync<XenopsException>(
            () => a.Source.PrecopyAsync(Id, TargetOf(endpoint, Migration), DowntimeLimit, None));
        Assert.True(e.Message.Contains("bytes of memory"), e.ToString());
        await b.Destination.DiscardAsync(Dbg, Migration, None);

        endpoint = await b.Destination.ReceiveAsync(Dbg, Migration, NewVm("smaller"), None);
        await a.Source.PrecopyAsync(Id, TargetOf(endpoint, Migration), DowntimeLimit, None);
        await a.Source.StopAsync(Id, None);
        await a.Source.TransferAsync(Id, None);
        e = await Assert.ThrowsAsync<XenopsException>(() => b.Destination.LoadedAsync(Migration, Patience, None));
        Assert.Contains("4194304", e.Message);
    }

    [Fact]
    public async Task A_receive_that_fails_leaves_nothing()
    {
        b.Datapaths.FailOn = "activate";
        await Assert.ThrowsAsync<StorageAccess.StorageException>(() => b.Destination.ReceiveAsync(Dbg, Migration, NewVm(), None));
        Assert.Empty(b.Domains.List());
        Assert.Empty(b.Datapaths.States);
        Assert.Empty(b.Notes);
        b.Datapaths.FailOn = null;
        await b.Destination.ReceiveAsync(Dbg, Migration, NewVm(), None);
    }

    [Fact]
    public async Task A_frozen_guest_cannot_run_and_removing_it_is_repeated_when_its_disks_do_not_go()
    {
        await StartAtAAsync();
        await PrecopyAsync();
        await a.Source.StopAsync(Id, None);
        await a.Source.TransferAsync(Id, None);
        await a.Source.FreezeAsync(Dbg, Id, None);
        a.Datapaths.FailOn = "detach";
        await Assert.ThrowsAsync<XenopsException>(() => a.Domains.RemoveAsync(Dbg, Id, None));
        Assert.NotEmpty(a.Datapaths.States);
        await Assert.ThrowsAsync<XenopsException>(() => a.Source.ResumeAsync(Dbg, Id, reattach: false, None));
        a.Datapaths.FailOn = null;
        await a.Domains.RemoveAsync(Dbg, Id, None);
        Assert.Empty(a.Datapaths.States);
        await b.Destination.DiscardAsync(Dbg, Migration, None);
    }

    private async Task StartAtAAsync()
    {
        a.Domains.Add(NewVm());
        await a.Domains.StartAsync(Dbg, Id, None);
        await UntilAsync(() => a.GuestOf(Id).WritesAcknowledged > 100, "the guest writes");
    }

    private async Task<PrecopyStats> PrecopyAsync()
    {
        ReceiveEndpoint endpoint = await b.Destination.ReceiveAsync(Dbg, Migration, NewVm(), None);
        return await a.Source.PrecopyAsync(Id, TargetOf(endpoint, Migration), DowntimeLimit, None);
    }

    private static async Task MoveAsync(Host from, Host to, string migration)
    {
        ReceiveEndpoint endpoint = await to.Destination.ReceiveAsync(Dbg, migration, NewVm(), None);
        await from.Source.PrecopyAsync(Id, TargetOf(endpoint, migration), DowntimeLimit, None);
        await from.Source.StopAsync(Id, None);
        ImageSummary sent = await from.Source.TransferAsync(Id, None);
        Assert.Equal(sent, await to.Destination.LoadedAsync(migration, Patience, None));
        await from.Source.FreezeAsync(Dbg, Id, None);
        await to.Destination.RunAsync(migration, None);
        await from.Domains.RemoveAsync(Dbg, Id, None);
    }

    private void AssertNothingLost()
    {
        (Oracle before, Oracle after) = (a.Oracle(Id), b.Oracle(Id));
        Assert.Equal(before.Issued.Order(), before.Acknowledged.Order());
        long[] issued = [.. before.Issued, .. after.Issued];
        Assert.Equal(Enumerable.Range(1, issued.Length).Select(static n => (long)n), issued.Order());
        Dictionary<long, string> expected = before.Expected();
        foreach ((long offset, string digest) in after.Expected())
            expected[offset] = digest;
        byte[] disk = disks.Find("disk").Bytes;
        foreach ((long offset, string digest) in expected)
            Assert.Equal(digest, Convert.ToHexStringLower(SHA256.HashData(disk.AsSpan((int)offset, 4096))));
    }
}
