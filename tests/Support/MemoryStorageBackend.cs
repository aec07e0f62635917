using StorageAccess;

namespace Support;

/// <summary>
/// A storage backend in memory with the whole contract: idempotent datapath calls, and a no where the field says no. It records its calls,
/// and a test may make the next call of a name fail or hang.
/// </summary>
public class MemoryStorageBackend : IStorageBackend
{
    private readonly Dictionary<VdiId, VdiInfo> vdis = [];
    private readonly Dictionary<VdiId, VdiState> states = [];
    private readonly Dictionary<string, Func<Task>> faults = [];
    private readonly Dictionary<string, Func<Task>> faultsAfter = [];
    private readonly Lock gate = new();
    private readonly List<string> calls = [];
    private int lastKey;

    /// <summary>Every disk comes out this much smaller than asked for.</summary>
    public long ShrinkBytes { get; set; }

    public IReadOnlyList<string> Calls
    {
        get
        {
            lock (gate)
                return calls.ToList();
        }
    }

    public bool IsSrAttached { get; private set; }

    public VdiState StateOf(VdiId vdi) => states.GetValueOrDefault(vdi);

    public bool Has(VdiId vdi) => vdis.ContainsKey(vdi);

    /// <summary>The next call of that name runs this first; whatever it throws is the call's answer.</summary>
    public void Next(string call, Func<Task> run) => faults[call] = run;

    public void Next(string call, Exception answer) => faults[call] = () => Task.FromException(answer);

    /// <summary>The next call of that name is as any other again.</summary>
    public void Forget(string call)
    {
        faults.Remove(call);
        faultsAfter.Remove(call);
    }

    /// <summary>What served the disk has died.</summary>
    public void Kill(VdiId vdi) => states.Remove(vdi);

    /// <summary>The next call of that name does its work, then runs this.</summary>
    public void NextAfterWork(string call, Func<Task> run) => faultsAfter[call] = run;

    public async Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken)
    {
        await EnterAsync("Query", "");
        return new QueryResult("memory", "memory", "", "", "1", "2.0", ["VDI_CREATE"], new Dictionary<string, string>(), "SMAPIv2");
    }

    public async Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig,
        long physicalSizeBytes,
        CancellationToken cancellationToken)
    {
        await EnterAsync("SrCreate", nameLabel);
        return new Dictionary<string, string>(deviceConfig) { ["made"] = $"{physicalSizeBytes}" };
    }

    public async Task SrAttachAsync(string dbg, SrId sr, IReadOnlyDictionary<string, string> deviceConfig,
        CancellationToken cancellationToken)
    {
        await EnterAsync("SrAttach", "");
        IsSrAttached = true;
        await LeaveAsync("SrAttach");
    }

    public async Task SrDetachAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await EnterAsync("SrDetach", "");
        IsSrAttached = false;
        await LeaveAsync("SrDetach");
    }

    public async Task SrDestroyAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await EnterAsync("SrDestroy", "");
        vdis.Clear();
        IsSrAttached = false;
    }

    public async Task<SrScan> SrScanAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await EnterAsync("SrScan", "");
        return new SrScan(vdis.Values.ToList(), Info(sr));
    }

    public async Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await EnterAsync("SrStat", "");
        return Info(sr);
    }

    public async Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiCreate", request.NameLabel);
        return Add(request with { VirtualSizeBytes = request.VirtualSizeBytes - ShrinkBytes });
    }

    public async Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiDestroy", vdi.Value);
        if (!vdis.Remove(vdi))
            throw StorageException.VdiDoesNotExist(vdi);
    }

    public async Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiStat", vdi.Value);
        return vdis.TryGetValue(vdi, out VdiInfo? info) ? info : throw StorageException.VdiDoesNotExist(vdi);
    }

    public async Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiSnapshot", source.Vdi.Value);
        return Add(source with { IsASnapshot = true, SnapshotOf = source.Vdi.Value });
    }

    public async Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiClone", source.Vdi.Value);
        return Add(source);
    }

    public async Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiResize", $"{vdi} {newSizeBytes}");
        vdis[vdi] = vdis[vdi] with { VirtualSizeBytes = newSizeBytes };
        return newSizeBytes;
    }

    public async Task<Backend> VdiAttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiAttach", $"{vdi} {datapath} {access}");
        if (StateOf(vdi).Phase == VdiPhase.Detached)
            states[vdi] = new VdiState(VdiPhase.Attached, access);
        await LeaveAsync("VdiAttach");
        return new Backend([new XenDisk("", new Dictionary<string, string>(), "vbd3"),
            new NbdImplementation($"nbd:unix:/nbd/{vdi}:exportname={vdi}")]);
    }

    public async Task VdiActivateAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiActivate", $"{vdi} {datapath} {access}");
        if (StateOf(vdi).Phase == VdiPhase.Detached)
            throw new StorageException("SR_BACKEND_FAILURE_46", "", "not attached", "");
        states[vdi] = new VdiState(VdiPhase.Activated, access);
        await LeaveAsync("VdiActivate");
    }

    public async Task VdiDeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm,
        CancellationToken cancellationToken)
    {
        await EnterAsync("VdiDeactivate", $"{vdi} {datapath}");
        if (StateOf(vdi).Phase == VdiPhase.Activated)
            states[vdi] = StateOf(vdi) with { Phase = VdiPhase.Attached };
        await LeaveAsync("VdiDeactivate");
    }

    public async Task VdiDetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiDetach", $"{vdi} {datapath}");
        states.Remove(vdi);
        await LeaveAsync("VdiDetach");
    }

    /// <summary>The parent is no disk of its own any more.</summary>
    public async Task VdiComposeAsync(string dbg, SrId sr, VdiId parent, VdiId child, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiCompose", $"{parent} {child}");
        vdis.Remove(parent);
        await LeaveAsync("VdiCompose");
    }

    public async Task VdiSetSnapshotOfAsync(
        string dbg, SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf, CancellationToken cancellationToken)
    {
        await EnterAsync("VdiSetSnapshotOf", $"{vdi} {snapshotOf} {snapshotTime}");
        vdis[vdi] = vdis[vdi] with { IsASnapshot = true, SnapshotOf = snapshotOf.Value, SnapshotTime = snapshotTime };
    }

    private async Task EnterAsync(string call, string detail)
    {
        lock (gate)
            calls.Add($"{call} {detail}".TrimEnd());
        if (faults.Remove(call, out Func<Task>? fault))
            await fault();
    }

    private async Task LeaveAsync(string call)
    {
        if (faultsAfter.Remove(call, out Func<Task>? fault))
            await fault();
    }

    private VdiInfo Add(VdiInfo vdi)
    {
        VdiInfo added = vdi with { Vdi = new VdiId($"disk{++lastKey}"), Uuid = $"uuid{lastKey}" };
        vdis[added.Vdi] = added;
        return added;
    }

    private SrInfo Info(SrId sr) =>
        new(sr.Value, "memory", "", 1L << 40, (1L << 40) - vdis.Values.Sum(static v => v.VirtualSizeBytes), false, "Healthy");
}
