// What a SMAPIv1 driver is told about (and changes, by its call-backs) lives in the pool database; this is the adapter's view of it
// (research/storage.md 2.7, 3.1). The Xapi daemon implements it.
using StorageAccess;

namespace SmapiV1Adapter;

/// <param name="SessionRef">A session marked as this SR's own, which the driver's call-backs use.</param>
/// <param name="IsMaster">This host may change the SR's metadata.</param>
/// <param name="LocalCacheSr">A uuid, or null.</param>
public sealed record SmSr(
    string Ref, string SessionRef, bool IsMaster, IReadOnlyDictionary<string, string> DeviceConfig, string? LocalCacheSr = null);

/// <param name="OnBoot"><c>persist</c> or <c>reset</c>.</param>
public sealed record SmVdi(string Ref, string OnBoot, bool AllowCaching, VdiInfo Info);

public interface ISmDatabase
{
    string HostRef { get; }

    /// <summary>The task that the call belongs to; the driver sends it back with its call-backs.</summary>
    string TaskRefOf(string dbg);

    /// <exception cref="StorageException">No_storage_plugin_for_sr: not in the database.</exception>
    SmSr Sr(SrId sr);

    /// <summary>After the driver's call-backs of a scan or update.</summary>
    SrInfo SrInfo(SrId sr);

    IReadOnlyList<VdiInfo> Vdis(SrId sr);

    /// <summary>By location; null when there is no record.</summary>
    SmVdi? FindVdi(SrId sr, VdiId location);

    /// <summary>
    /// A driver made a copy and introduced it: the record gets what drivers leave out (names, is_a_snapshot, snapshot_of, snapshot_time, content_id,
    /// and sm_config's <c>base_mirror</c> of the source).
    /// </summary>
    void RecordCopy(SrId sr, VdiId copy, VdiInfo source, bool isSnapshot);
}
