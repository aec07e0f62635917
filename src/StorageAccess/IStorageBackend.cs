namespace StorageAccess;

/// <summary>
/// One driver or plugin behind the storage access layer: SMAPIv2 below the automaton (research: storage.md 1.5). Calls are idempotent where
/// the field's are (attach of the attached, detach of the detached). <c>dbg</c> names the task for logs. Every call may throw
/// <see cref="StorageException"/>: the driver said no and nothing changed, or it gave no answer (<see cref="StorageException.NoAnswer"/>) and
/// what it did is unknown. The layer above serialises calls per SR and per VDI and only makes transitions that the automaton allows.
/// </summary>
public interface IStorageBackend
{
    Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken);

    /// <returns>The device_config to keep, possibly amended.</returns>
    Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig,
        long physicalSizeBytes,
        CancellationToken cancellationToken);

    Task SrAttachAsync(string dbg, SrId sr, IReadOnlyDictionary<string, string> deviceConfig, CancellationToken cancellationToken);

    Task SrDetachAsync(string dbg, SrId sr, CancellationToken cancellationToken);

    Task SrDestroyAsync(string dbg, SrId sr, CancellationToken cancellationToken);

    Task<SrScan> SrScanAsync(string dbg, SrId sr, CancellationToken cancellationToken);

    Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken);

    Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken);

    Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken);

    Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken);

    /// <param name="source">The VDI to snapshot; its SmConfig carries the driver's parameters.</param>
    Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken);

    Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken);

    /// <returns>The new virtual size.</returns>
    Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken);

    Task<Backend> VdiAttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken);

    Task VdiActivateAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken);

    Task VdiDeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    Task VdiDetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    // What a driver may lack. The call's wire name in Unimplemented is what a client sees as the reason.

    /// <summary>Looks for SRs that these settings reach; about no SR in particular.</summary>
    Task<ProbeResult> SrProbeAsync(
        string dbg, IReadOnlyDictionary<string, string> deviceConfig, IReadOnlyDictionary<string, string> smConfig,
        CancellationToken cancellationToken) =>
        Task.FromException<ProbeResult>(StorageException.Unimplemented("SR.probe"));

    Task SrSetNameLabelAsync(string dbg, SrId sr, string nameLabel, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("SR.set_name_label"));

    Task SrSetNameDescriptionAsync(string dbg, SrId sr, string nameDescription, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("SR.set_name_description"));

    Task VdiSetNameLabelAsync(string dbg, SrId sr, VdiId vdi, string nameLabel, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.set_name_label"));

    Task VdiSetNameDescriptionAsync(string dbg, SrId sr, VdiId vdi, string nameDescription, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.set_name_description"));

    /// <summary>Makes a disk that exists already known under <paramref name="uuid"/>.</summary>
    Task<VdiInfo> VdiIntroduceAsync(
        string dbg, SrId sr, string uuid, IReadOnlyDictionary<string, string> smConfig, VdiId location, CancellationToken cancellationToken) =>
        Task.FromException<VdiInfo>(StorageException.Unimplemented("VDI.introduce"));

    /// <param name="persistent">False: the disk's content is thrown away and it starts afresh from its parent.</param>
    Task VdiSetPersistentAsync(string dbg, SrId sr, VdiId vdi, bool persistent, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.set_persistent"));

    /// <summary>A VM is about to boot from the disk.</summary>
    Task VdiEpochBeginAsync(string dbg, SrId sr, VdiId vdi, string vm, bool persistent, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.epoch_begin"));

    Task VdiEpochEndAsync(string dbg, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.epoch_end"));

    /// <summary>Lays the child's content over the parent's, under the child's name.</summary>
    Task VdiComposeAsync(string dbg, SrId sr, VdiId parent, VdiId child, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.compose"));

    /// <param name="snapshot">Its <c>SnapshotOf</c> is the disk that gets this content again.</param>
    Task VdiRevertAsync(string dbg, SrId sr, VdiInfo snapshot, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.revert"));

    Task VdiEnableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.enable_cbt"));

    Task VdiDisableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.disable_cbt"));

    /// <summary>Drops a snapshot's content and keeps what is known about its changed blocks.</summary>
    Task VdiDataDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.data_destroy"));

    /// <returns>A bitmap of 64 KiB blocks, first block in the highest bit, in base64.</returns>
    Task<string> VdiListChangedBlocksAsync(string dbg, SrId sr, VdiId from, VdiId to, CancellationToken cancellationToken) =>
        Task.FromException<string>(StorageException.Unimplemented("VDI.list_changed_blocks"));

    Task VdiSetContentIdAsync(string dbg, SrId sr, VdiId vdi, string contentId, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("VDI.set_content_id"));

    /// <param name="value">Null: the key goes. A key that is there already is not replaced: Duplicated_key.</param>
    Task VdiSetSmConfigAsync(string dbg, SrId sr, VdiId vdi, string key, string? value, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented(value is null ? "VDI.remove_from_sm_config" : "VDI.add_to_sm_config"));

    Task VdiTagAsync(string dbg, SrId sr, VdiId vdi, string tag, bool isThere, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented(isThere ? "VDI.add_tags" : "VDI.remove_tags"));

    /// <summary>Records that a disk is a snapshot of another: what a migration carries over for the snapshots of a disk.</summary>
    Task VdiSetSnapshotOfAsync(string dbg, SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf, CancellationToken cancellationToken) =>
        Task.FromException(StorageException.Unimplemented("SR.update_snapshot_info_dest"));

    /// <returns><c>address/session/location</c>: whom to ask for the disk, and by what right.</returns>
    Task<string> VdiGetUrlAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        Task.FromException<string>(StorageException.Unimplemented("VDI.get_url"));

    /// <summary>A plugin with a data plane of its own copies the disk and mirrors what is written.</summary>
    /// <param name="url">Where to: <c>nbd+unix:///EXPORT?socket=PATH</c>.</param>
    Task<DataOperation> DataMirrorAsync(string dbg, SrId sr, VdiId vdi, string vm, string url, CancellationToken cancellationToken) =>
        Task.FromException<DataOperation>(StorageException.Unimplemented("DATA.mirror"));

    Task<DataStatus> DataStatAsync(string dbg, SrId sr, VdiId vdi, string vm, DataOperation operation, CancellationToken cancellationToken) =>
        Task.FromException<DataStatus>(StorageException.Unimplemented("DATA.stat"));
}

/// <summary>
/// What a user of disks (xenopsd, the replication service) needs of the storage access layer; in process it is the layer itself, in another
/// process the client of its unix socket.
/// </summary>
public interface IDatapaths
{
    Task<Backend> AttachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access,
        CancellationToken cancellationToken);

    Task ActivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    Task DeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    Task DetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    /// <summary>Takes a datapath down from whatever state it is in; nothing to do when it is not there.</summary>
    Task DestroyAsync(string dbg, DatapathId datapath, bool allowLeak, CancellationToken cancellationToken);
}
