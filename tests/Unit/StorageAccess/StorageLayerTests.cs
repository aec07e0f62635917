// The layer over a backend in memory: datapaths, locks, leaks, faults, and what is known after the daemon died at any point.
using StorageAccess;
using Support;

namespace Unit.StorageAccessTests;

public sealed class StorageLayerTests : IDisposable
{
    private static readonly SrId Sr = new("sr-1");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly MemoryStorageBackend backend = new();
    private StorageState state;
    private StorageLayer layer;

    public StorageLayerTests()
    {
        state = StorageState.Open(folder.File("storage.db"));
        layer = NewLayer();
        layer.RegisterSr(Sr, "memory", new Dictionary<string, string> { ["location"] = "/srv" });
    }

    public void Dispose()
    {
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task A_disk_goes_up_and_down_and_the_backend_follows()
    {
        VdiId vdi = await DiskAsync();
        Backend attached = await AttachAsync("vbd/1/xvda", vdi);
        Assert.Equal($"nbd:unix:/nbd/{vdi}:exportname={vdi}", attached.Nbd!.Uri);
        await layer.ActivateAsync("t", Dp("vbd/1/xvda"), Sr, vdi, "1", None);
        Assert.Equal("Activated(RW)", backend.StateOf(vdi).ToString());
        Assert.Equivalent(attached, layer.DpAttachInfo(Sr, vdi, Dp("vbd/1/xvda")));
        await layer.DeactivateAsync("t", Dp("vbd/1/xvda"), Sr, vdi, "1", None);
        await layer.DetachAsync("t", Dp("vbd/1/xvda"), Sr, vdi, "1", None);
        Assert.Equal(VdiState.Detached, backend.StateOf(vdi));
        Assert.Empty(layer.Datapaths());
    }

    [Fact]
    public async Task The_second_datapath_shares_the_backend_and_the_last_one_takes_it_down_under_the_first_ones_name()
    {
        VdiId vdi = await DiskAsync();
        Backend first = await AttachAsync("a", vdi);
        Backend second = await AttachAsync("b", vdi);
        Assert.Equivalent(first, second);
        await layer.DetachAsync("t", Dp("a"), Sr, vdi, "0", None);
        Assert.Equal(VdiPhase.Attached, backend.StateOf(vdi).Phase);
        await layer.DetachAsync("t", Dp("b"), Sr, vdi, "0", None);
        Assert.Equal([$"VdiAttach {vdi} a ReadWrite", $"VdiDetach {vdi} a"], backend.Calls.Where(static c => c.Contains("tach disk")));
    }

    [Fact]
    public async Task A_writer_after_a_reader_is_refused_with_the_readers_name()
    {
        VdiId vdi = await DiskAsync();
        await AttachAsync("reader", vdi, VdiAccess.ReadOnly);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => AttachAsync("writer", vdi));
        Assert.Equal("VDI_IN_USE", e.Code);
        Assert.Contains("datapath reader of VM 0, Attached(RO), since ", e.Parameters[2]);
        Assert.Single(layer.Datapaths());
    }

    [Fact]
    public async Task A_datapath_has_one_disk()
    {
        VdiId one = await DiskAsync();
        VdiId other = await DiskAsync();
        await AttachAsync("a", one);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => AttachAsync("a", other));
        Assert.Contains("a datapath has one VDI", e.Message);
    }

    [Fact]
    public async Task An_unregistered_and_a_detached_SR_are_told_apart()
    {
        Assert.Equal("No_storage_plugin_for_sr",
            (await Assert.ThrowsAsync<StorageException>(() => layer.SrScanAsync("t", new SrId("x"), None))).Tag);
        Assert.Equal("Sr_not_attached", (await Assert.ThrowsAsync<StorageException>(() => layer.SrScanAsync("t", Sr, None))).Tag);
        Assert.Equal(
            "SR_UNKNOWN_DRIVER",
            Assert.Throws<StorageException>(() => layer.RegisterSr(new SrId("y"), "nosuch", new Dictionary<string, string>())).Code);
    }

    [Fact]
    public async Task An_SR_is_attached_once_and_not_detached_under_its_users()
    {
        VdiId vdi = await DiskAsync();
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        Assert.Single(backend.Calls, static c => c == "SrAttach");
        await AttachAsync("a", vdi);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => layer.SrDetachAsync("t", Sr, None));
        Assert.Equal("SR_DEVICE_IN_USE", e.Code);
        Assert.Contains("datapath a of VM 0", e.Parameters[1]);
        await layer.DestroyAsync("t", Dp("a"), false, None);
        await layer.SrDetachAsync("t", Sr, None);
        Assert.False(backend.IsSrAttached);
        Assert.Empty(layer.SrList());
    }

    [Fact]
    public async Task A_disk_that_comes_out_too_small_is_destroyed_again()
    {
        await UpAsync();
        backend.ShrinkBytes = 512;
        StorageException e = await Assert.ThrowsAsync<StorageException>(DiskAsync);
        Assert.Equal(["Disk too small", "1048576", "1048064"], e.Parameters);
        Assert.False(backend.Has(new VdiId("disk1")));
    }

    [Fact]
    public async Task A_disk_in_use_is_not_destroyed_and_the_refusal_names_its_user()
    {
        VdiId vdi = await DiskAsync();
        await AttachAsync("vbd/7/xvda", vdi);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => layer.VdiDestroyAsync("t", Sr, vdi, None));
        Assert.Equal("VDI_IN_USE", e.Code);
        Assert.Contains("datapath vbd/7/xvda", e.Parameters[2]);
        Assert.True(backend.Has(vdi));
    }

    [Fact]
    public async Task A_leaked_datapath_is_taken_down_before_the_next_operation()
    {
        VdiId vdi = await DiskAsync();
        await AttachAsync("a", vdi);
        await layer.ActivateAsync("t", Dp("a"), Sr, vdi, "0", None);
        backend.Next("VdiDeactivate", new StorageException("SR_BACKEND_FAILURE_46", "", "busy", ""));
        await Assert.ThrowsAsync<StorageException>(() => layer.DestroyAsync("t", Dp("a"), allowLeak: false, None));
        Assert.True(Assert.Single(layer.Datapaths()).IsLeaked);

        backend.Next("VdiDeactivate", new StorageException("SR_BACKEND_FAILURE_46", "", "still busy", ""));
        Assert.Contains("still busy", (await Assert.ThrowsAsync<StorageException>(() => AttachAsync("b", vdi))).Message);
        await layer.VdiDestroyAsync("t", Sr, vdi, None);
        Assert.Equal(VdiState.Detached, backend.StateOf(vdi));
        Assert.False(backend.Has(vdi));
    }

    [Fact]
    public async Task A_datapath_destroyed_with_allow_leak_is_gone_and_the_backend_is_cleaned_up_before_its_next_use()
    {
        VdiId vdi = await DiskAsync();
        await AttachAsync("a", vdi);
        await layer.ActivateAsync("t", Dp("a"), Sr, vdi, "0", None);
        backend.Next("VdiDeactivate", new StorageException("SR_BACKEND_FAILURE_46", "", "busy", ""));
        await layer.DestroyAsync("t", Dp("a"), allowLeak: true, None);
        Assert.Empty(layer.Datapaths());
        Assert.Equal(VdiPhase.Activated, backend.StateOf(vdi).Phase);
        await layer.VdiDestroyAsync("t", Sr, vdi, None);
        Assert.Equal(VdiState.Detached, backend.StateOf(vdi));
    }

    [Fact]
    public async Task Destroying_a_datapath_that_is_not_there_is_nothing_to_do() =>
        await layer.DestroyAsync("t", Dp("nobody"), allowLeak: false, None);

    [Fact]
    public async Task A_clear_no_leaves_everything_as_it_was()
    {
        VdiId vdi = await DiskAsync();
        backend.Next("VdiAttach", new StorageException("VDI_IN_USE"));
        await Assert.ThrowsAsync<StorageException>(() => AttachAsync("a", vdi));
        Assert.Empty(layer.Datapaths());
        await AttachAsync("b", vdi, VdiAccess.ReadOnly);
        Assert.Equal(
            [$"VdiAttach {vdi} a ReadWrite", $"VdiAttach {vdi} b ReadOnly"],
            backend.Calls.Where(static c => c.StartsWith("VdiAt", StringComparison.Ordinal)));
    }

    [Fact]
    public async Task An_attach_without_an_answer_is_repaired_before_the_next_one()
    {
        VdiId vdi = await DiskAsync();
        backend.NextAfterWork(
            "VdiAttach", () => throw StorageException.NoAnswer("SR_BACKEND_FAILURE", "it was killed after its work"));
        await Assert.ThrowsAsync<StorageException>(() => AttachAsync("a", vdi));
        Assert.Equal(VdiPhase.Attached, backend.StateOf(vdi).Phase);
        await AttachAsync("b", vdi, VdiAccess.ReadOnly);
        Assert.Equal("Attached(RO)", backend.StateOf(vdi).ToString());
    }

    [Theory]
    [InlineData("VdiAttach", false)]
    [InlineData("VdiActivate", false)]
    [InlineData("VdiDeactivate", false)]
    [InlineData("VdiDetach", false)]
    [InlineData("VdiAttach", true)]
    [InlineData("VdiActivate", true)]
    [InlineData("VdiDeactivate", true)]
    [InlineData("VdiDetach", true)]
    public async Task A_daemon_that_died_inside_a_call_finds_the_disk_as_its_datapaths_say(string call, bool afterTheWork)
    {
        VdiId vdi = await DiskAsync();
        TaskCompletionSource reached = new();
        Task NeverAnswered()
        {
            reached.TrySetResult();
            return new TaskCompletionSource().Task; // The daemon dies here.
        }

        if (afterTheWork)
            backend.NextAfterWork(call, NeverAnswered);
        else
            backend.Next(call, NeverAnswered);
        Task dying = UpAndDownAsync(vdi);
        await reached.Task.WaitAsync(TimeSpan.FromSeconds(5));
        Reopen();
        await AttachAsync("second", vdi, VdiAccess.ReadOnly);
        (VdiState superstate, _) = layer.DpStatVdi(Sr, vdi);
        Assert.Equal(superstate, backend.StateOf(vdi));
        foreach (DatapathRow row in layer.Datapaths())
            await layer.DestroyAsync("t", row.Datapath, allowLeak: false, None);
        Assert.Equal(VdiState.Detached, backend.StateOf(vdi));
        Assert.False(dying.IsCompleted);
    }

    [Fact]
    public async Task What_was_attached_is_known_after_a_restart()
    {
        VdiId vdi = await DiskAsync();
        Backend before = await AttachAsync("a", vdi);
        await layer.ActivateAsync("t", Dp("a"), Sr, vdi, "0", None);
        Reopen();
        Assert.Equal([Sr], layer.SrList());
        DatapathRow row = Assert.Single(layer.Datapaths());
        Assert.Equal(("a", "Activated(RW)"), (row.Datapath.Value, row.State.ToString()));
        Assert.Equivalent(before, layer.DpAttachInfo(Sr, vdi, Dp("a")));
        int callsBefore = backend.Calls.Count;
        await layer.ActivateAsync("t", Dp("a"), Sr, vdi, "0", None);
        Assert.Equal(callsBefore, backend.Calls.Count);
    }

    [Fact]
    public void A_damaged_storage_db_is_refused_and_left_as_it_is()
    {
        string path = folder.File("damaged.db");
        File.WriteAllText(path, new string('x', 8192));
        Assert.Throws<IOException>(() => StorageState.Open(path));
        Assert.Equal(new string('x', 8192), File.ReadAllText(path));
    }

    [Fact]
    public void Storage_db_is_for_its_owner_only() =>
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(folder.File("storage.db")));

    [Fact]
    public async Task Calls_on_one_disk_wait_for_each_other_and_a_wait_ends_with_the_holders_name()
    {
        VdiId vdi = await DiskAsync();
        layer = NewLayer(TimeSpan.FromMilliseconds(50));
        TaskCompletionSource release = new();
        backend.Next("VdiAttach", () => release.Task);
        Task<Backend> first = AttachAsync("slow", vdi);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => AttachAsync("b", vdi));
        Assert.Equal("OTHER_OPERATION_IN_PROGRESS", e.Code);
        Assert.Contains("AttachReadWrite of slow (t) holds it since", e.Message);
        VdiId other = await DiskAsync();
        await AttachAsync("c", other);
        release.SetResult();
        await first;
        await AttachAsync("b", vdi);
    }

    [Fact]
    public async Task An_SR_waits_for_its_disks_and_its_disks_wait_for_it()
    {
        VdiId vdi = await DiskAsync();
        TaskCompletionSource release = new();
        backend.Next("VdiResize", () => release.Task);
        Task<long> resize = layer.VdiResizeAsync("t", Sr, vdi, 2 << 20, None);
        Task detach = layer.SrDetachAsync("t", Sr, None);
        Task<VdiInfo> stat = layer.VdiStatAsync("t", Sr, vdi, None); // Behind the detach: fair.
        Assert.False(detach.IsCompleted);
        Assert.False(stat.IsCompleted);
        release.SetResult();
        Assert.Equal(2 << 20, await resize);
        await detach;
        Assert.Equal("Sr_not_attached", (await Assert.ThrowsAsync<StorageException>(() => stat)).Tag);
    }

    [Fact]
    public async Task A_cancelled_wait_leaves_no_lock_behind()
    {
        VdiId vdi = await DiskAsync();
        TaskCompletionSource release = new();
        backend.Next("VdiAttach", () => release.Task);
        Task<Backend> first = AttachAsync("a", vdi);
        using CancellationTokenSource cancel = new();
        Task<Backend> waiting = layer.AttachAsync("t", Dp("b"), Sr, vdi, "0", VdiAccess.ReadWrite, cancel.Token);
        await cancel.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => waiting);
        release.SetResult();
        await first;
        await AttachAsync("c", vdi);
    }

    [Fact]
    public async Task The_last_writer_does_not_leave_under_a_reader_and_nothing_leaks()
    {
        VdiId vdi = await DiskAsync();
        await AttachAsync("writer", vdi);
        await AttachAsync("reader", vdi, VdiAccess.ReadOnly);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => layer.DestroyAsync("t", Dp("writer"), false, None));
        Assert.Equal("VDI_IN_USE", e.Code);
        await layer.DestroyAsync("t", Dp("reader"), false, None);
        await layer.DestroyAsync("t", Dp("writer"), false, None);
        Assert.Empty(layer.Datapaths());
    }

    private static DatapathId Dp(string name) => new(name);

    private StorageLayer NewLayer(TimeSpan? lockWait = null) => new(
        state, new Dictionary<string, IStorageBackend> { ["memory"] = backend }, new FakeReality(), TimeProvider.System, lockWait ?? TimeSpan.FromSeconds(10));

    private void Reopen()
    {
        state.Dispose();
        state = StorageState.Open(folder.File("storage.db"));
        layer = NewLayer();
    }

    private Task UpAsync() => layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);

    private async Task<VdiId> DiskAsync()
    {
        await UpAsync();
        return (await layer.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), VirtualSizeBytes = 1 << 20 }, None)).Vdi;
    }

    private Task<Backend> AttachAsync(string datapath, VdiId vdi, VdiAccess access = VdiAccess.ReadWrite) =>
        layer.AttachAsync("t", Dp(datapath), Sr, vdi, "0", access, None);

    private async Task UpAndDownAsync(VdiId vdi)
    {
        await AttachAsync("first", vdi, VdiAccess.ReadOnly);
        await layer.ActivateAsync("t", Dp("first"), Sr, vdi, "0", None);
        await layer.DeactivateAsync("t", Dp("first"), Sr, vdi, "0", None);
        await layer.DetachAsync("t", Dp("first"), Sr, vdi, "0", None);
    }
}
