// The daemon dies inside every backend call of every step of every pair of datapaths, before the call's work and after it; the next daemon's
// records must be what the backend is. And what a start of the machine, a dead server and a damaged store mean.
using StorageAccess;
using Support;
using Xunit.Abstractions;

namespace Unit.StorageAccessTests;

public sealed class RestartTests : IDisposable
{
    private static readonly SrId Sr = new("sr-1");
    private static readonly DatapathId One = new("one"), Other = new("other");
    private static readonly CancellationToken None = CancellationToken.None;
    private static readonly VdiState[] States =
    [
        VdiState.Detached, new(VdiPhase.Attached, VdiAccess.ReadOnly), new(VdiPhase.Attached, VdiAccess.ReadWrite),
        new(VdiPhase.Activated, VdiAccess.ReadOnly), new(VdiPhase.Activated, VdiAccess.ReadWrite),
    ];

    private readonly ITestOutputHelper output;
    private readonly TemporaryDirectory folder = new();
    private readonly FakeReality reality = new();
    private readonly MemoryStorageBackend backend = new();
    private StorageState state;
    private StorageLayer layer;

    public RestartTests(ITestOutputHelper output)
    {
        this.output = output;
        (state, layer) = Open();
    }

    public void Dispose()
    {
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task Every_state_and_operation_ends_where_the_automaton_says_and_so_does_the_backend()
    {
        int single = 0, pairs = 0, refused = 0;
        foreach (VdiState one in States)
        {
            foreach (VdiState other in States)
            {
                foreach (DatapathOperation operation in Enum.GetValues<DatapathOperation>())
                {
                    VdiId vdi = await DiskAsync();
                    await BringAsync(vdi, one, other);
                    (VdiState superstate, _) = layer.DpStatVdi(Sr, vdi);
                    bool isAllowed = IsAllowed(one, other, operation, out VdiState next);
                    try
                    {
                        await RunAsync(One, vdi, operation);
                        Assert.True(isAllowed, $"{operation} of {one} beside {other}");
                    }
                    catch (StorageException e)
                    {
                        Assert.False(isAllowed, $"{operation} of {one} beside {other}: {e.Message}");
                        (next, refused) = (one, refused + 1);
                        Assert.Equal(superstate, layer.DpStatVdi(Sr, vdi).Superstate);
                    }

                    Assert.Equal(VdiAutomaton.Superstate([next, other]), layer.DpStatVdi(Sr, vdi).Superstate);
                    Assert.Equal(layer.DpStatVdi(Sr, vdi).Superstate, backend.StateOf(vdi));
                    _ = other.Phase == VdiPhase.Detached ? single++ : pairs++;
                }
            }
        }

        output.WriteLine($"{single} cases of (state, operation), {pairs} of (datapath pair, operation); {refused} were refused, as the field's table has it");
        Assert.Equal(25, single);
    }

    [Fact]
    public async Task A_daemon_that_dies_inside_any_call_of_any_step_believes_the_truth_after_its_restart()
    {
        int deaths = 0;
        foreach (VdiState one in States)
        {
            foreach (VdiState other in States)
            {
                foreach (DatapathOperation operation in Enum.GetValues<DatapathOperation>())
                {
                    if (IsAllowed(one, other, operation, out _))
                        deaths += await DieEverywhereAsync(one, other, operation);
                }
            }
        }

        output.WriteLine($"{deaths} deaths, each followed by a restart that found the truth");
        Assert.True(deaths > 30);
    }

    [Fact]
    public async Task An_SR_whose_attach_got_no_answer_is_detached_again_and_one_whose_detach_got_none_is_attached()
    {
        await DieInAsync("SrAttach", () => layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None));
        await layer.ReconcileAsync("restart", None);
        Assert.False(backend.IsSrAttached);
        Assert.Empty(layer.SrList());
        await UpAsync();
        await DieInAsync("SrDetach", () => layer.SrDetachAsync("t", Sr, None));
        await layer.ReconcileAsync("restart", None);
        Assert.True(backend.IsSrAttached);
        Assert.Equal([Sr], layer.SrList());
    }

    [Fact]
    public async Task After_a_start_of_the_machine_nothing_is_attached_and_no_driver_is_called()
    {
        VdiId vdi = await DiskAsync();
        await BringAsync(vdi, States[4], VdiState.Detached);
        await layer.ReconcileAsync("first", None);
        reality.BootId = "boot-2";
        int calls = backend.Calls.Count;
        RestartReport report = await layer.ReconcileAsync("second", None);
        Assert.Contains(report.Mended, line => line.Contains(vdi.Value, StringComparison.Ordinal) && line.Contains("datapath one", StringComparison.Ordinal));
        Assert.Empty(layer.Datapaths());
        Assert.Empty(layer.SrList());
        Assert.Equal(calls, backend.Calls.Count);
    }

    [Fact]
    public async Task A_disk_that_nobody_serves_any_more_is_served_again()
    {
        VdiId vdi = await DiskAsync();
        await BringAsync(vdi, States[4], VdiState.Detached);
        Assert.Empty((await layer.ReconcileAsync("restart", None)).Mended);
        reality.IsServing = false;
        backend.Kill(vdi);
        RestartReport report = await layer.ReconcileAsync("restart", None);
        Assert.Contains("nobody served it", Assert.Single(report.Mended), StringComparison.Ordinal);
        Assert.Equal(States[4], backend.StateOf(vdi));
    }

    [Fact]
    public async Task What_cannot_be_mended_is_reported_and_tried_again_before_its_next_use()
    {
        VdiId vdi = await DiskAsync();
        await BringAsync(vdi, States[2], VdiState.Detached);
        await DieInAsync("VdiActivate", () => RunAsync(One, vdi, DatapathOperation.Activate));
        backend.Next("VdiDeactivate", StorageException.NoAnswer("SR_BACKEND_FAILURE", "it hangs"));
        RestartReport report = await layer.ReconcileAsync("restart", None);
        Assert.Contains("it hangs", Assert.Single(report.Unmended), StringComparison.Ordinal);
        await RunAsync(One, vdi, DatapathOperation.Activate);
        Assert.Equal(States[4], backend.StateOf(vdi));
    }

    [Fact]
    public async Task A_refusal_names_host_VM_datapath_process_and_time()
    {
        VdiId vdi = await DiskAsync();
        await BringAsync(vdi, States[4], VdiState.Detached);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => layer.VdiDestroyAsync("t", Sr, vdi, None));
        Assert.Equal("VDI_IN_USE", e.Code);
        foreach (string part in (string[])["host-a", "VM 7", "datapath one", "tapdisk[4711]", "since 2"])
            Assert.Contains(part, e.Message, StringComparison.Ordinal);
        backend.Next("VdiSnapshot", new StorageException("SR_BACKEND_FAILURE_46", "", "The VDI is not available", ""));
        e = await Assert.ThrowsAsync<StorageException>(() => layer.VdiSnapshotAsync("t", Sr, new VdiInfo { Vdi = vdi }, None));
        Assert.StartsWith("The VDI is not available [datapath one of VM 7", e.Parameters[1], StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_store_cut_at_any_byte_is_refused_or_holds_all_that_was_committed()
    {
        VdiId vdi = await DiskAsync();
        await BringAsync(vdi, States[4], States[1]);
        state.Dispose(); // A clean end leaves one file.
        byte[] whole = File.ReadAllBytes(folder.File("storage.db"));
        string cut = folder.File("cut.db");
        int refused = 0;
        for (int length = 0; length < whole.Length; length += length < 8192 ? 1 : 61)
        {
            File.WriteAllBytes(cut, whole.AsSpan(0, length));
            try
            {
                using StorageState opened = StorageState.Open(cut);
                Assert.True(opened.Datapaths().Count == 2, $"cut at {length} of {whole.Length}: {opened.Datapaths().Count} datapaths");
            }
            catch (IOException)
            {
                refused++;
            }

            File.Delete(cut);
            File.Delete(cut + "-wal");
        }

        output.WriteLine($"{refused} cuts of {whole.Length} bytes were refused");
        (state, layer) = Open();
    }

    [Fact]
    public void A_store_that_is_gone_while_its_journal_is_there_is_refused()
    {
        File.WriteAllText(folder.File("gone.db-wal"), "x");
        Assert.Throws<IOException>(() => StorageState.Open(folder.File("gone.db")));
        Assert.False(File.Exists(folder.File("gone.db")));
    }

    [Fact]
    public void Two_daemons_do_not_share_a_store() =>
        Assert.Contains("another daemon", Assert.Throws<IOException>(() => StorageState.Open(folder.File("storage.db"))).Message, StringComparison.Ordinal);

    private (StorageState, StorageLayer) Open()
    {
        StorageState opened = StorageState.Open(folder.File("storage.db"));
        StorageLayer made = new(
            opened, new Dictionary<string, IStorageBackend> { ["memory"] = backend }, reality, TimeProvider.System, TimeSpan.FromSeconds(10));
        made.RegisterSr(Sr, "memory", new Dictionary<string, string>());
        return (opened, made);
    }

    private async Task<int> DieEverywhereAsync(VdiState one, VdiState other, DatapathOperation operation)
    {
        int deaths = 0;
        foreach (string call in (string[])["VdiAttach", "VdiActivate", "VdiDeactivate", "VdiDetach"])
        {
            foreach (bool isAfter in (bool[])[false, true])
            {
                VdiId vdi = await DiskAsync();
                await BringAsync(vdi, one, other);
                if (!await DieInAsync(call, () => RunAsync(One, vdi, operation), isAfter))
                    continue;
                RestartReport report = await layer.ReconcileAsync("restart", None);
                Assert.Empty(report.Unmended);
                Assert.Equal(layer.DpStatVdi(Sr, vdi).Superstate, backend.StateOf(vdi));
                deaths++;
            }
        }

        return deaths;
    }

    /// <summary>Runs until the backend is in a call, and takes the layer away there; false when that call is not made.</summary>
    private async Task<bool> DieInAsync(string call, Func<Task> run, bool isAfter = true)
    {
        TaskCompletionSource reached = new();
        Func<Task> never = () =>
        {
            reached.SetResult();
            return new TaskCompletionSource().Task;
        };
        if (isAfter)
            backend.NextAfterWork(call, never);
        else
            backend.Next(call, never);
        if (await Task.WhenAny(run(), reached.Task) != reached.Task)
        {
            backend.Forget(call);
            return false;
        }

        state.Dispose();
        (state, layer) = Open();
        return true;
    }

    private static bool IsAllowed(VdiState one, VdiState other, DatapathOperation operation, out VdiState next)
    {
        next = one;
        try
        {
            next = VdiAutomaton.Apply(one, operation);
        }
        catch (StorageException)
        {
            return false;
        }

        return VdiAutomaton.Operations(VdiAutomaton.Superstate([one, other]), VdiAutomaton.Superstate([next, other])) is not null;
    }

    /// <summary>The writer first: after a reader it would be refused.</summary>
    private async Task BringAsync(VdiId vdi, VdiState one, VdiState other)
    {
        bool isWriterFirst = other.Access == VdiAccess.ReadOnly;
        foreach ((DatapathId datapath, VdiState target) in isWriterFirst ? [(One, one), (Other, other)] : new[] { (Other, other), (One, one) })
        {
            if (target.Phase == VdiPhase.Detached)
                continue;
            await RunAsync(datapath, vdi, target.Access == VdiAccess.ReadWrite ? DatapathOperation.AttachReadWrite : DatapathOperation.AttachReadOnly);
            if (target.Phase == VdiPhase.Activated)
                await RunAsync(datapath, vdi, DatapathOperation.Activate);
        }
    }

    private Task RunAsync(DatapathId datapath, VdiId vdi, DatapathOperation operation)
    {
        // A datapath has one VDI: each disk has its own.
        DatapathId mine = vdi.Value == "disk1" ? datapath : new DatapathId($"{datapath} of {vdi}");
        return operation switch
        {
            DatapathOperation.AttachReadOnly => layer.AttachAsync("t", mine, Sr, vdi, "7", VdiAccess.ReadOnly, None),
            DatapathOperation.AttachReadWrite => layer.AttachAsync("t", mine, Sr, vdi, "7", VdiAccess.ReadWrite, None),
            DatapathOperation.Activate => layer.ActivateAsync("t", mine, Sr, vdi, "7", None),
            DatapathOperation.Deactivate => layer.DeactivateAsync("t", mine, Sr, vdi, "7", None),
            _ => layer.DetachAsync("t", mine, Sr, vdi, "7", None),
        };
    }

    private Task UpAsync() => layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);

    private async Task<VdiId> DiskAsync()
    {
        await UpAsync();
        return (await layer.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), VirtualSizeBytes = 1 << 20 }, None)).Vdi;
    }
}
