// The calls of SMAPIv2 that neither attach nor make a disk: names, content, parents, settings. Where the field takes no lock for a change
// of one disk (introduce, compose, revert, set_content_id, settings) this layer does.
using StorageAccess.Tap;

namespace StorageAccess;

public sealed partial class StorageLayer
{
    /// <summary>Looks for SRs of a type; no SR is touched and nothing is remembered.</summary>
    public Task<ProbeResult> SrProbeAsync(
        string dbg, string type, IReadOnlyDictionary<string, string> deviceConfig, IReadOnlyDictionary<string, string> smConfig,
        CancellationToken cancellationToken) =>
        backends.TryGetValue(type, out IStorageBackend? backend)
            ? backend.SrProbeAsync(dbg, deviceConfig, smConfig, cancellationToken)
            : throw new StorageException("SR_UNKNOWN_DRIVER", type);

    public Task SrSetNameLabelAsync(string dbg, SrId sr, string nameLabel, CancellationToken cancellationToken) =>
        WithSrAsync(dbg, "SR.set_name_label", sr, backend => backend.SrSetNameLabelAsync(dbg, sr, nameLabel, cancellationToken), cancellationToken);

    public Task SrSetNameDescriptionAsync(string dbg, SrId sr, string nameDescription, CancellationToken cancellationToken) =>
        WithSrAsync(
            dbg, "SR.set_name_description", sr, backend => backend.SrSetNameDescriptionAsync(dbg, sr, nameDescription, cancellationToken), cancellationToken);

    public Task VdiSetNameLabelAsync(string dbg, SrId sr, VdiId vdi, string nameLabel, CancellationToken cancellationToken) =>
        ChangeAsync(dbg, "VDI.set_name_label", sr, vdi, b => b.VdiSetNameLabelAsync(dbg, sr, vdi, nameLabel, cancellationToken), cancellationToken);

    public Task VdiSetNameDescriptionAsync(string dbg, SrId sr, VdiId vdi, string nameDescription, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "VDI.set_name_description", sr, vdi, b => b.VdiSetNameDescriptionAsync(dbg, sr, vdi, nameDescription, cancellationToken), cancellationToken);

    public Task<VdiInfo> VdiIntroduceAsync(
        string dbg, SrId sr, string uuid, IReadOnlyDictionary<string, string> smConfig, VdiId location, CancellationToken cancellationToken) =>
        WithVdiAsync(
            dbg, "VDI.introduce", sr, location, b => b.VdiIntroduceAsync(dbg, sr, uuid, smConfig, location, cancellationToken), cancellationToken);

    public Task VdiSetPersistentAsync(string dbg, SrId sr, VdiId vdi, bool persistent, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "VDI.set_persistent", sr, vdi, b => b.VdiSetPersistentAsync(dbg, sr, vdi, persistent, cancellationToken), cancellationToken);

    /// <summary>A disk that keeps what is written has nothing to begin; for the others the driver gives a fresh leaf.</summary>
    public Task VdiEpochBeginAsync(string dbg, SrId sr, VdiId vdi, string vm, bool persistent, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "VDI.epoch_begin", sr, vdi,
            async backend =>
            {
                await SettleAsync(dbg, sr, vdi, cancellationToken);
                if (!persistent)
                    await backend.VdiEpochBeginAsync(dbg, sr, vdi, vm, persistent, cancellationToken);
            },
            cancellationToken);

    /// <summary>Nothing to do for a driver without it.</summary>
    public Task VdiEpochEndAsync(string dbg, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "VDI.epoch_end", sr, vdi,
            async backend =>
            {
                await SettleAsync(dbg, sr, vdi, cancellationToken);
                try
                {
                    await backend.VdiEpochEndAsync(dbg, sr, vdi, vm, cancellationToken);
                }
                catch (StorageException e) when (e.Tag == "Unimplemented")
                {
                    // The field's drivers have no epoch_end either.
                }
            },
            cancellationToken);

    /// <summary>Lays the child over the parent; neither may be in use.</summary>
    public async Task VdiComposeAsync(string dbg, SrId sr, VdiId parent, VdiId child, CancellationToken cancellationToken)
    {
        if (parent == child)
            throw StorageException.Internal($"VDI.compose of {parent} with itself");
        // Two locks, always in the order of their names.
        bool isParentFirst = string.CompareOrdinal(parent.Value, child.Value) < 0;
        using IDisposable first = await VdiLocks(sr).TakeAsync((isParentFirst ? parent : child).Value, $"VDI.compose ({dbg})", cancellationToken);
        using IDisposable second = await VdiLocks(sr).TakeAsync((isParentFirst ? child : parent).Value, $"VDI.compose ({dbg})", cancellationToken);
        IStorageBackend backend = BackendOf(Attached(sr));
        foreach (VdiId vdi in (VdiId[])[parent, child])
            RequireUnused(vdi, "compose", state.Datapaths(sr, vdi));
        await backend.VdiComposeAsync(dbg, sr, parent, child, cancellationToken);
        updates.Add(Changed.Vdi(sr, child));
    }

    /// <summary>The disk that the snapshot is of gets its content again; it may not be in use.</summary>
    public Task VdiRevertAsync(string dbg, SrId sr, VdiInfo snapshot, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "VDI.revert", sr, new VdiId(snapshot.SnapshotOf.Length == 0 ? snapshot.Vdi.Value : snapshot.SnapshotOf),
            backend => backend.VdiRevertAsync(dbg, sr, snapshot, cancellationToken), cancellationToken);

    public Task VdiEnableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ChangeAsync(dbg, "VDI.enable_cbt", sr, vdi, b => b.VdiEnableCbtAsync(dbg, sr, vdi, cancellationToken), cancellationToken);

    public Task VdiDisableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ChangeAsync(dbg, "VDI.disable_cbt", sr, vdi, b => b.VdiDisableCbtAsync(dbg, sr, vdi, cancellationToken), cancellationToken);

    /// <exception cref="StorageException">VDI_IN_USE.</exception>
    public Task VdiDataDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "VDI.data_destroy", sr, vdi,
            async backend =>
            {
                await SettleAsync(dbg, sr, vdi, cancellationToken);
                RequireUnused(vdi, "data_destroy", state.Datapaths(sr, vdi));
                await backend.VdiDataDestroyAsync(dbg, sr, vdi, cancellationToken);
            },
            cancellationToken);

    /// <returns>A bitmap in base64, a bit for 64 KiB.</returns>
    public Task<string> VdiListChangedBlocksAsync(string dbg, SrId sr, VdiId from, VdiId to, CancellationToken cancellationToken) =>
        WithVdiAsync(
            dbg, "VDI.list_changed_blocks", sr, to, b => b.VdiListChangedBlocksAsync(dbg, sr, from, to, cancellationToken), cancellationToken);

    public Task VdiSetContentIdAsync(string dbg, SrId sr, VdiId vdi, string contentId, CancellationToken cancellationToken) =>
        ChangeAsync(dbg, "VDI.set_content_id", sr, vdi, b => b.VdiSetContentIdAsync(dbg, sr, vdi, contentId, cancellationToken), cancellationToken);

    /// <param name="value">Null: the key goes.</param>
    public Task VdiSetSmConfigAsync(string dbg, SrId sr, VdiId vdi, string key, string? value, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, value is null ? "VDI.remove_from_sm_config" : "VDI.add_to_sm_config", sr, vdi,
            b => b.VdiSetSmConfigAsync(dbg, sr, vdi, key, value, cancellationToken), cancellationToken);

    public Task VdiTagAsync(string dbg, SrId sr, VdiId vdi, string tag, bool isThere, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, isThere ? "VDI.add_tags" : "VDI.remove_tags", sr, vdi, b => b.VdiTagAsync(dbg, sr, vdi, tag, isThere, cancellationToken), cancellationToken);

    /// <summary>The disks of the same tree, nearest first, the disk itself at the head.</summary>
    public async Task<IReadOnlyList<VdiInfo>> VdiSimilarContentAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        SimilarContent.Of(vdi, (await SrScanAsync(dbg, sr, cancellationToken)).Vdis);

    /// <summary>By location, uuid, or a name that only one disk has.</summary>
    public async Task<VdiInfo> VdiGetByNameAsync(string dbg, SrId sr, string name, CancellationToken cancellationToken) =>
        Named(name, (await SrScanAsync(dbg, sr, cancellationToken)).Vdis) ?? throw StorageException.VdiDoesNotExist(new VdiId(name));

    /// <summary>In any attached SR: <c>SR/NAME</c>, or a name that only one disk of all has.</summary>
    public async Task<(SrId Sr, VdiInfo Vdi)> GetByNameAsync(string dbg, string name, CancellationToken cancellationToken)
    {
        foreach (SrId sr in SrList())
        {
            bool isQualified = name.StartsWith(sr.Value + "/", StringComparison.Ordinal);
            string inSr = isQualified ? name[(sr.Value.Length + 1)..] : name;
            if (Named(inSr, (await SrScanAsync(dbg, sr, cancellationToken)).Vdis) is { } found)
                return (sr, found);
        }

        throw StorageException.VdiDoesNotExist(new VdiId(name));
    }

    /// <summary>The socket on which a live disk is served; with <paramref name="isPassing"/> the one that takes passed connections.</summary>
    public string NbdSocketOf(SrId sr, VdiId vdi, DatapathId datapath, bool isPassing)
    {
        string? path = DpAttachInfo(sr, vdi, datapath).Nbd is { } nbd ? HostReality.SocketPathOf(nbd.Uri) : null;
        if (path is null)
            throw StorageException.Internal($"VDI {vdi} is not served over NBD");
        string real = File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path;
        if (!isPassing)
            return real;
        return TapControl.ServerOf(real) is { } server
            ? new TapControl(Path.GetDirectoryName(real)!).PassingSocketPath(server.ProcessId, server.Minor, isNewStyle: false)
            : throw StorageException.Internal($"VDI {vdi} is served by something that takes no passed connections: {real}");
    }

    /// <summary>The tapdisk that serves a disk which is activated here; null when something else does, or nothing.</summary>
    internal (TapControl Control, int ProcessId, int Minor)? TapOf(SrId sr, VdiId vdi)
    {
        return state.FindVdi(sr, vdi) is { State.Phase: VdiPhase.Activated } row && SocketOf(row) is { } socket && TapControl.ServerOf(socket) is { } server
            ? (new TapControl(Path.GetDirectoryName(socket)!), server.ProcessId, server.Minor) : null;
    }

    private static (int ProcessId, int Minor)? ServerOf(VdiRow row) => SocketOf(row) is { } socket ? TapControl.ServerOf(socket) : null;

    /// <summary>Where the disk is served, whatever links lead there; null when it is not served over NBD.</summary>
    private static string? SocketOf(VdiRow row) => row.Backend?.Nbd is { } nbd && HostReality.SocketPathOf(nbd.Uri) is { } path
        ? File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path : null;

    public Task VdiSetSnapshotOfAsync(
        string dbg, SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf, CancellationToken cancellationToken) =>
        ChangeAsync(
            dbg, "SR.update_snapshot_info_dest", sr, vdi, b => b.VdiSetSnapshotOfAsync(dbg, sr, vdi, snapshotTime, snapshotOf, cancellationToken),
            cancellationToken);

    public Task<string> VdiGetUrlAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        BackendOf(Attached(sr)).VdiGetUrlAsync(dbg, sr, vdi, cancellationToken);

    /// <exception cref="StorageException">Unimplemented: the plugin has no data plane of its own.</exception>
    internal Task<DataOperation> DataMirrorAsync(string dbg, SrId sr, VdiId vdi, string vm, string url, CancellationToken cancellationToken) =>
        WithVdiAsync(dbg, "DATA.mirror", sr, vdi, b => b.DataMirrorAsync(dbg, sr, vdi, vm, url, cancellationToken), cancellationToken);

    internal Task<DataStatus> DataStatAsync(
        string dbg, SrId sr, VdiId vdi, string vm, DataOperation operation, CancellationToken cancellationToken) =>
        BackendOf(Attached(sr)).DataStatAsync(dbg, sr, vdi, vm, operation, cancellationToken);

    private static VdiInfo? Named(string name, IReadOnlyList<VdiInfo> vdis)
    {
        if (vdis.FirstOrDefault(vdi => vdi.Vdi.Value == name || (vdi.Uuid.Length != 0 && vdi.Uuid == name)) is { } exact)
            return exact;
        List<VdiInfo> called = vdis.Where(vdi => vdi.NameLabel == name).Take(2).ToList();
        return called.Count == 1 ? called[0] : null;
    }

    private void RequireUnused(VdiId vdi, string operation, List<DatapathRow> users)
    {
        if (users.Count != 0)
            throw InUse(vdi, operation, users);
    }

    private async Task WithSrAsync(string dbg, string call, SrId sr, Func<IStorageBackend, Task> run, CancellationToken cancellationToken)
    {
        using IDisposable held = await srLocks.TakeAsync(sr.Value, $"{call} ({dbg})", cancellationToken);
        await run(BackendOf(Attached(sr)));
    }

    private async Task ChangeAsync(
        string dbg, string call, SrId sr, VdiId vdi, Func<IStorageBackend, Task> run, CancellationToken cancellationToken)
    {
        await WithVdiAsync(
            dbg, call, sr, vdi,
            async backend =>
            {
                await run(backend);
                return true;
            },
            cancellationToken);
        updates.Add(Changed.Vdi(sr, vdi));
    }
}
