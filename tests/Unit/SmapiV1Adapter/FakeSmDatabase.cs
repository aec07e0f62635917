using SmapiV1Adapter;
using StorageAccess;

namespace Unit.SmapiV1AdapterTests;

/// <summary>One SR with its VDI records; what a driver's call-backs would do to it, the test does.</summary>
internal sealed class FakeSmDatabase : ISmDatabase
{
    public string HostRef { get; set; } = "OpaqueRef:host";

    public string HostAddress => "203.0.113.5";

    public string TaskRef { get; set; } = "OpaqueRef:task";

    public SmSr SrRecord { get; set; } = new("OpaqueRef:sr", "OpaqueRef:session", true, new Dictionary<string, string>());

    public Dictionary<VdiId, SmVdi> VdiRecords { get; } = [];

    public List<(VdiId Copy, VdiId Source, bool IsSnapshot)> Copies { get; } = [];

    /// <summary>A location that is not there yet counts as introduced by the driver.</summary>
    public bool IntroducesAnything { get; set; }

    public string TaskRefOf(string dbg) => TaskRef;

    public SmSr Sr(SrId sr) => SrRecord;

    public SrInfo SrInfo(SrId sr) => new(sr.Value, "sr", "", 100, 50, false, "Healthy");

    public IReadOnlyList<VdiInfo> Vdis(SrId sr) => VdiRecords.Values.Select(static v => v.Info).ToList();

    public SmVdi? FindVdi(SrId sr, VdiId location)
    {
        if (!VdiRecords.ContainsKey(location) && IntroducesAnything)
            Add(location.Value);
        return VdiRecords.GetValueOrDefault(location);
    }

    public void RecordCopy(SrId sr, VdiId copy, VdiInfo source, bool isSnapshot) => Copies.Add((copy, source.Vdi, isSnapshot));

    /// <summary>What the adapter recorded, in order, one text for each.</summary>
    public List<string> Notes { get; } = [];

    public SmSr NoSr() => SrRecord with { Ref = "", DeviceConfig = new Dictionary<string, string>() };

    public void RenameSr(SrId sr, string? label, string? description) => Notes.Add($"rename sr {label ?? "-"} {description ?? "-"}");

    public void RenameVdi(SrId sr, VdiId vdi, string? label, string? description) =>
        Notes.Add($"rename {vdi} {label ?? "-"} {description ?? "-"}");

    public void RecordCaching(SrId sr, VdiId vdi, SmCaching? caching) =>
        Notes.Add(caching is null ? $"uncached {vdi}" : $"caching {vdi} {caching.IsEnabled} {caching.ReasonAgainst}");

    public void ContentChanges(SrId sr, VdiId vdi) => Notes.Add($"changes {vdi}");

    public void ContentSettles(SrId sr, VdiId vdi) => Notes.Add($"settles {vdi}");

    public void RecordRevert(SrId sr, VdiId vdi, VdiId snapshot) => Notes.Add($"revert {vdi} to {snapshot}");

    public void RecordSnapshotOf(SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf) =>
        Notes.Add($"{vdi} is a snapshot of {snapshotOf} since {snapshotTime}");

    public void RecordDataDestroyed(SrId sr, VdiId vdi) => Notes.Add($"data destroyed {vdi}");

    public void Add(string location) => VdiRecords[new VdiId(location)] = new SmVdi(
        $"OpaqueRef:{location}", "persist", false, new VdiInfo { Vdi = new VdiId(location), Uuid = location, VirtualSizeBytes = 1 << 20 });

    public void SetContentId(SrId sr, VdiId vdi, string contentId) => Notes.Add($"content {vdi} {contentId}");

    public void SetSmConfig(SrId sr, VdiId vdi, string key, string? value) => Notes.Add($"sm_config {vdi} {key} {value ?? "-"}");

    public void Tag(SrId sr, VdiId vdi, string tag, bool isThere) => Notes.Add($"tag {vdi} {tag} {isThere}");
}
