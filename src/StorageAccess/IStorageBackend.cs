namespace StorageAccess;

/// <summary>
/// One driver or plugin behind the storage access layer: SMAPIv2 below the automaton (research: storage.md 1.5). Calls are idempotent where the field's are
/// (attach of the attached, detach of the detached). <c>dbg</c> names the task for logs. Every call may throw <see cref="StorageException"/>:
/// the driver said no and nothing changed, or it gave no answer (<see cref="StorageException.NoAnswer"/>) and what it did is unknown.
/// The layer above serialises calls per SR and per VDI and only makes transitions that the automaton allows.
/// </summary>
public interface IStorageBackend
{
    Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken);

    /// <returns>The device_config to keep, possibly amended.</returns>
    Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig, long physicalSizeBytes,
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
}

/// <summary>
/// What a user of disks (xenopsd, the replication service) needs of the storage access layer; in process it is the layer itself, in another process
/// the client of its unix socket.
/// </summary>
public interface IDatapaths
{
    Task<Backend> AttachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken);

    Task ActivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    Task DeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    Task DetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken);

    /// <summary>Takes a datapath down from whatever state it is in; nothing to do when it is not there.</summary>
    Task DestroyAsync(string dbg, DatapathId datapath, bool allowLeak, CancellationToken cancellationToken);
}
