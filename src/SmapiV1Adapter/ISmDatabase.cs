// What a SMAPIv1 driver is told about (and changes, by its call-backs) lives in the pool database; this is the adapter's view of it
// (research/storage.md 2.7, 3.1). The Xapi daemon implements it.
using StorageAccess;

namespace SmapiV1Adapter;

/// <param name="Ref">"" for a call that is about no SR (a probe).</param>
/// <param name="SessionRef">A session marked as this SR's own, which the driver's call-backs use.</param>
/// <param name="IsMaster">This host may change the SR's metadata.</param>
/// <param name="LocalCacheSr">A uuid, or null.</param>
public sealed record SmSr(
    string Ref, string SessionRef, bool IsMaster, IReadOnlyDictionary<string, string> DeviceConfig, string? LocalCacheSr = null)
{
    /// <summary>Where the pool's coordinator is, for who asks another host; null when nobody knows.</summary>
    public string? MasterAddress { get; init; }

    /// <summary>A disaster recovery task brought it: its content is another pool's.</summary>
    public bool IsIntroducedByDr { get; init; }
}

/// <param name="OnBoot"><c>persist</c> or <c>reset</c>.</param>
public sealed record SmVdi(string Ref, string OnBoot, bool AllowCaching, VdiInfo Info);

/// <summary>What a driver says of its own caching when a VDI is attached.</summary>
public sealed record SmCaching(bool IsEnabled, string ReasonAgainst);

public interface ISmDatabase
{
    string HostRef { get; }

    /// <summary>Where this host is reached.</summary>
    string HostAddress { get; }

    /// <summary>The task that the call belongs to; the driver sends it back with its call-backs.</summary>
    string TaskRefOf(string dbg);

    /// <exception cref="StorageException">No_storage_plugin_for_sr: not in the database.</exception>
    SmSr Sr(SrId sr);

    /// <summary>What a probe runs with: a session that owns no SR.</summary>
    SmSr NoSr();

    /// <summary>After the driver's call-backs of a scan or update.</summary>
    SrInfo SrInfo(SrId sr);

    IReadOnlyList<VdiInfo> Vdis(SrId sr);

    /// <summary>By location; null when there is no record.</summary>
    SmVdi? FindVdi(SrId sr, VdiId location);

    /// <summary>
    /// A driver made a copy and introduced it: the record gets what drivers leave out (names, is_a_snapshot, snapshot_of, snapshot_time,
    /// content_id, and sm_config's <c>base_mirror</c> of the source).
    /// </summary>
    void RecordCopy(SrId sr, VdiId copy, VdiInfo source, bool isSnapshot);

    /// <summary>Null leaves a name as it is.</summary>
    void RenameSr(SrId sr, string? label, string? description);

    /// <summary>Null leaves a name as it is.</summary>
    void RenameVdi(SrId sr, VdiId vdi, string? label, string? description);

    /// <summary>What is known of this host's read caching while the VDI is attached here; null when it no longer is.</summary>
    void RecordCaching(SrId sr, VdiId vdi, SmCaching? caching);

    /// <summary>A VDI is about to be written: what its content was called is no longer true. One that may not be written is left.</summary>
    void ContentChanges(SrId sr, VdiId vdi);

    /// <summary>A VDI is no longer written: a content that has no name gets one. One that may not be written is left.</summary>
    void ContentSettles(SrId sr, VdiId vdi);

    /// <summary>The VDI is a snapshot of another, taken then.</summary>
    void RecordSnapshotOf(SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf);

    /// <summary>The VDI holds a snapshot's content again.</summary>
    void RecordRevert(SrId sr, VdiId vdi, VdiId snapshot);

    /// <summary>Only what is known about its changed blocks is left of the VDI.</summary>
    void RecordDataDestroyed(SrId sr, VdiId vdi);

    void SetContentId(SrId sr, VdiId vdi, string contentId);

    /// <param name="value">Null: the key goes, if it is there.</param>
    /// <exception cref="StorageException">Duplicated_key: drivers use this as a test-and-set.</exception>
    void SetSmConfig(SrId sr, VdiId vdi, string key, string? value);

    void Tag(SrId sr, VdiId vdi, string tag, bool isThere);
}
