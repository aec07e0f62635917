// The storage access layer of one host: SR -> backend by type (the mux), the automaton and the locks in front of every backend, and
// storage.db behind them. Agrees with research/storage.md 2.1-2.5. Lock order: SR, then VDI. A VDI call excludes SR.detach and SR.destroy
// of its SR, not SR.scan.
using System.Collections.Concurrent;
using Platform;

namespace StorageAccess;

public sealed partial class StorageLayer : IDatapaths
{
    /// <summary>Longer than an adapter's own deadline, so that a hung driver is reported by the call that hangs.</summary>
    public static readonly TimeSpan DefaultLockWait = TimeSpan.FromMinutes(6);

    private readonly StorageState state;
    private readonly IReadOnlyDictionary<string, IStorageBackend> backends;
    private readonly IHostReality reality;
    private readonly TimeProvider time;
    private readonly TimeSpan lockWait;
    private readonly StorageUpdates updates;
    private readonly Exclusion srLocks;
    private readonly ConcurrentDictionary<SrId, Exclusion> vdiLocks = [];
    private IReadOnlyList<string> untracked = [];

    /// <param name="backends">By SR type, lower case.</param>
    public StorageLayer(
        StorageState state, IReadOnlyDictionary<string, IStorageBackend> backends, IHostReality reality, TimeProvider time, TimeSpan lockWait)
    {
        this.state = state;
        this.backends = backends;
        this.reality = reality;
        this.time = time;
        this.lockWait = lockWait;
        updates = new StorageUpdates(time);
        srLocks = new Exclusion("SR", time, lockWait);
    }

    internal StorageState State => state;

    internal TimeProvider Time => time;

    /// <summary>What has changed, for those who wait for it.</summary>
    public StorageUpdates Updates => updates;

    /// <summary>Makes an SR known; nothing is attached. Registering again replaces device_config, and the type while detached.</summary>
    /// <exception cref="StorageException">SR_UNKNOWN_DRIVER, or the SR is attached with another type.</exception>
    public void RegisterSr(SrId sr, string type, IReadOnlyDictionary<string, string> deviceConfig)
    {
        if (!backends.ContainsKey(type))
            throw new StorageException("SR_UNKNOWN_DRIVER", type);
        SrRow? known = state.FindSr(sr);
        if (known is not null && known.Type != type && (known.IsAttached || known.IsUnsettled))
            throw StorageException.Internal($"SR {sr} is attached as {known.Type}; detach it before registering it as {type}");
        state.Save(known is null ? new SrRow(sr, type, deviceConfig, false, false)
            : known with { Type = type, DeviceConfig = deviceConfig });
    }

    /// <summary>What is registered, with device_config (which may hold secrets).</summary>
    public IReadOnlyDictionary<string, string>? DeviceConfigOf(SrId sr) => state.FindSr(sr)?.DeviceConfig;

    public Task<QueryResult> QueryAsync(string dbg, string type, CancellationToken cancellationToken) =>
        backends.TryGetValue(type, out IStorageBackend? backend)
            ? backend.QueryAsync(dbg, cancellationToken)
            : throw new StorageException("SR_UNKNOWN_DRIVER", type);

    public Task<QueryResult> QueryAsync(string dbg, SrId sr, CancellationToken cancellationToken) =>
        QueryAsync(dbg, Registered(sr).Type, cancellationToken);

    /// <summary>The attached SRs.</summary>
    public IReadOnlyList<SrId> SrList() => state.Srs().Where(static s => s.IsAttached).Select(static s => s.Sr).ToList();

    /// <returns>The device_config to keep, possibly amended.</returns>
    public async Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig,
        long physicalSizeBytes,
        CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.create ({dbg})", cancellationToken);
        SrRow row = Registered(sr);
        if (row.IsAttached)
            throw new StorageException("SR_BACKEND_FAILURE_42", "", $"SR {sr} exists and is attached", "");
        IReadOnlyDictionary<string, string> kept = await BackendOf(row).SrCreateAsync(
            dbg, sr, nameLabel, nameDescription, deviceConfig, physicalSizeBytes, cancellationToken);
        state.Save(row with { DeviceConfig = kept });
        return kept;
    }

    /// <summary>Nothing to do when it is attached already.</summary>
    public async Task SrAttachAsync(string dbg, SrId sr, IReadOnlyDictionary<string, string> deviceConfig,
        CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.attach ({dbg})", cancellationToken);
        SrRow row = Registered(sr) with { DeviceConfig = deviceConfig };
        if (row is { IsAttached: true, IsUnsettled: false })
            return;
        state.Save(row with { IsUnsettled = true });
        await SettledSrAsync(row, () => BackendOf(row).SrAttachAsync(dbg, sr, deviceConfig, cancellationToken), attachedAfter: true);
    }

    /// <summary>Leaked datapaths are taken down first; live ones are a reason to refuse. Nothing to do when it is detached.</summary>
    /// <exception cref="StorageException">SR_DEVICE_IN_USE with the holders.</exception>
    public async Task SrDetachAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.detach ({dbg})", cancellationToken);
        using IDisposable whole = await VdiLocks(sr).TakeWholeAsync($"SR.detach ({dbg})", cancellationToken);
        SrRow row = Registered(sr);
        if (row is { IsAttached: false, IsUnsettled: false })
            return;
        await QuietAsync(dbg, row, cancellationToken);
        state.Save(row with { IsUnsettled = true });
        await SettledSrAsync(row, () => BackendOf(row).SrDetachAsync(dbg, sr, cancellationToken), attachedAfter: false);
    }

    /// <summary>Destroys the SR's content and forgets it.</summary>
    public async Task SrDestroyAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.destroy ({dbg})", cancellationToken);
        using IDisposable whole = await VdiLocks(sr).TakeWholeAsync($"SR.destroy ({dbg})", cancellationToken);
        SrRow row = Attached(sr);
        await QuietAsync(dbg, row, cancellationToken);
        await BackendOf(row).SrDestroyAsync(dbg, sr, cancellationToken);
        state.Forget(sr);
    }

    /// <summary>Forgets the SR and all its datapaths without calling the driver.</summary>
    public async Task SrResetAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.reset ({dbg})", cancellationToken);
        using IDisposable whole = await VdiLocks(sr).TakeWholeAsync($"SR.reset ({dbg})", cancellationToken);
        state.Forget(sr);
    }

    public async Task<SrScan> SrScanAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.scan ({dbg})", cancellationToken);
        return await BackendOf(Attached(sr)).SrScanAsync(dbg, sr, cancellationToken);
    }

    public async Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"SR.stat ({dbg})", cancellationToken);
        return await BackendOf(Attached(sr)).SrStatAsync(dbg, sr, cancellationToken);
    }

    /// <summary>A disk of at least the size asked for; a smaller one is destroyed again.</summary>
    public async Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken)
    {
        using IDisposable held = await VdiLocks(sr).TakeSharedAsync($"VDI.create ({dbg})", cancellationToken);
        IStorageBackend backend = BackendOf(Attached(sr));
        VdiInfo created = await backend.VdiCreateAsync(dbg, sr, request, cancellationToken);
        if (created.VirtualSizeBytes >= request.VirtualSizeBytes)
            return created;
        await backend.VdiDestroyAsync(dbg, sr, created.Vdi, cancellationToken);
        throw new StorageException("SR_BACKEND_FAILURE", "Disk too small", $"{request.VirtualSizeBytes}", $"{created.VirtualSizeBytes}");
    }

    public async Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        using IDisposable held = await VdiLocks(sr).TakeSharedAsync($"VDI.stat ({dbg})", cancellationToken);
        return await BackendOf(Attached(sr)).VdiStatAsync(dbg, sr, vdi, cancellationToken);
    }

    /// <exception cref="StorageException">VDI_IN_USE with the holders, unless all that is left of them is leaked and can be taken
    /// down.</exception>
    public async Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        using IDisposable held = await VdiLocks(sr).TakeAsync(vdi.Value, $"VDI.destroy ({dbg})", cancellationToken);
        IStorageBackend backend = BackendOf(Attached(sr));
        await SettleAsync(dbg, sr, vdi, cancellationToken);
        List<DatapathRow> users = state.Datapaths(sr, vdi);
        if (users.Count != 0)
            throw InUse(vdi, "destroy", users);
        await backend.VdiDestroyAsync(dbg, sr, vdi, cancellationToken);
        updates.Add(Changed.Vdi(sr, vdi));
    }

    public Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        WithVdiAsync(dbg, "VDI.snapshot", sr, source.Vdi, backend =>
            backend.VdiSnapshotAsync(dbg, sr, source, cancellationToken), cancellationToken);

    public Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        WithVdiAsync(dbg, "VDI.clone", sr, source.Vdi, backend =>
            backend.VdiCloneAsync(dbg, sr, source, cancellationToken), cancellationToken);

    /// <returns>The new virtual size.</returns>
    public Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken) =>
        WithVdiAsync(dbg, "VDI.resize", sr, vdi, backend =>
            backend.VdiResizeAsync(dbg, sr, vdi, newSizeBytes, cancellationToken), cancellationToken);

    private async Task<T> WithVdiAsync<T>(
        string dbg, string call, SrId sr, VdiId vdi, Func<IStorageBackend, Task<T>> run, CancellationToken cancellationToken)
    {
        using IDisposable held = await VdiLocks(sr).TakeAsync(vdi.Value, $"{call} ({dbg})", cancellationToken);
        IStorageBackend backend = BackendOf(Attached(sr));
        try
        {
            return await run(backend);
        }
        catch (StorageException e)
        {
            throw Named(e, sr, vdi, call);
        }
    }

    /// <summary>Calls the backend with the SR marked "maybe"; a clear no leaves it as it was, no answer leaves it marked.</summary>
    private async Task SettledSrAsync(SrRow row, Func<Task> call, bool attachedAfter)
    {
        try
        {
            await call();
        }
        catch (StorageException e) when (!e.IsOutcomeUnknown)
        {
            state.Save(row);
            throw;
        }

        state.Save(row with { IsAttached = attachedAfter, IsUnsettled = false });
    }

    /// <summary>Before an SR goes: leaks and half-done calls are cleaned up, live users are respected.</summary>
    private async Task QuietAsync(string dbg, SrRow sr, CancellationToken cancellationToken)
    {
        List<DatapathRow> live = state.Datapaths().Where(d => d.Sr == sr.Sr && !d.IsLeaked).ToList();
        if (live.Count != 0)
            throw new StorageException("SR_DEVICE_IN_USE", sr.Sr.Value, string.Join("; ", live));
        foreach (VdiRow vdi in state.Vdis(sr.Sr))
            await SettleAsync(dbg, sr.Sr, vdi.Vdi, cancellationToken);
    }

    private SrRow Registered(SrId sr) => state.FindSr(sr) ?? throw StorageException.NoPluginForSr(sr);

    private SrRow Attached(SrId sr)
    {
        SrRow row = Registered(sr);
        return row.IsAttached ? row : throw StorageException.SrNotAttached(sr);
    }

    private IStorageBackend BackendOf(SrRow sr) =>
        backends.TryGetValue(sr.Type, out IStorageBackend? backend) ? backend : throw new StorageException("SR_UNKNOWN_DRIVER", sr.Type);

    private Exclusion VdiLocks(SrId sr) => vdiLocks.GetOrAdd(sr, _ => new Exclusion("VDI", time, lockWait));

    private StorageException InUse(VdiId vdi, string operation, IEnumerable<DatapathRow> users) =>
        new("VDI_IN_USE", vdi.Value, operation, string.Join("; ", users.Select(Holder)));

    /// <summary>Who holds a VDI, for the one who may not have it: VM, datapath, state, since when, host and process.</summary>
    private string Holder(DatapathRow row)
    {
        string? server = state.FindVdi(row.Sr, row.Vdi)?.Backend is { } backend ? reality.ServerOf(backend) : null;
        return $"{row}, on host {reality.HostName}{(server is null ? "" : $", served by {server}")}";
    }

    /// <summary>A driver that says "in use" knows no names: they are added.</summary>
    private StorageException Named(StorageException refusal, SrId sr, VdiId vdi, string operation)
    {
        List<DatapathRow> users = refusal.Code is "VDI_IN_USE" or "SR_BACKEND_FAILURE_46" or "SR_BACKEND_FAILURE_24" ? state.Datapaths(sr, vdi) : [];
        if (users.Count == 0)
            return refusal;
        return refusal.Code == "VDI_IN_USE" ? InUse(vdi, operation, users)
            : refusal.With(1, $"{refusal.Parameters.ElementAtOrDefault(1)} [{string.Join("; ", users.Select(Holder))}]".TrimStart());
    }
}
