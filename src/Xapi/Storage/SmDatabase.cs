// The pool database as SMAPIv1's adapter sees it.
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;

namespace Xapi.Storage;

public sealed class SmDatabase(PoolDatabase database, SessionTable sessions, string hostRef, TimeProvider time) : ISmDatabase
{
    private readonly Dictionary<string, string> sessionOfSr = [];
    private readonly Lock gate = new();

    public string HostRef => hostRef;

    /// <summary>Our calls carry the task's reference as dbg where they have one.</summary>
    public string TaskRefOf(string dbg) => dbg.StartsWith("OpaqueRef:", StringComparison.Ordinal) ? dbg : "OpaqueRef:NULL";

    public SmSr Sr(SrId sr)
    {
        string reference = Ref(sr);
        return new SmSr(reference, SessionFor(reference), IsMaster: true, DeviceConfigOf(reference));
    }

    public SrInfo SrInfo(SrId sr)
    {
        string reference = Ref(sr);
        long total = database.GetLong("SR", reference, "physical_size");
        return new SrInfo(
            sr.Value, database.GetString("SR", reference, "name_label"), database.GetString("SR", reference, "name_description"), total,
            total - database.GetLong("SR", reference, "physical_utilisation"), false, "Healthy");
    }

    public IReadOnlyList<VdiInfo> Vdis(SrId sr) => [.. database.GetSet("SR", Ref(sr), "VDIs").Select(InfoOf)];

    public SmVdi? FindVdi(SrId sr, VdiId location) =>
        VdiRows.Find(database, Ref(sr), location.Value) is { } vdi
            ? new SmVdi(vdi, database.GetString("VDI", vdi, "on_boot"), database.GetBool("VDI", vdi, "allow_caching"), InfoOf(vdi))
            : null;

    public void RecordCopy(SrId sr, VdiId copy, VdiInfo source, bool isSnapshot) => database.Transaction(() =>
    {
        string reference = VdiRows.Find(database, Ref(sr), copy.Value) ?? throw StorageException.VdiDoesNotExist(copy);
        database.Set("VDI", reference, "name_label", source.NameLabel);
        database.Set("VDI", reference, "name_description", source.NameDescription);
        database.Set("VDI", reference, "is_a_snapshot", isSnapshot);
        database.SetInMap("VDI", reference, "other_config", "content_id", source.ContentId);
        if (isSnapshot)
        {
            database.Set("VDI", reference, "snapshot_of", VdiRows.Find(database, Ref(sr), source.Vdi.Value) ?? "OpaqueRef:NULL");
            database.Set("VDI", reference, "snapshot_time", DateTimeType.Of(time.GetUtcNow()));
        }

        if (source.SmConfig.TryGetValue("base_mirror", out string? mirror))
            database.SetInMap("VDI", reference, "sm_config", "base_mirror", mirror);
    });

    private VdiInfo InfoOf(string vdi)
    {
        string location = database.GetString("VDI", vdi, "location");
        return new VdiInfo
        {
            Vdi = new VdiId(location),
            Uuid = database.GetString("VDI", vdi, "uuid"),
            ContentId = database.GetMap("VDI", vdi, "other_config").GetValueOrDefault("content_id", location),
            NameLabel = database.GetString("VDI", vdi, "name_label"),
            NameDescription = database.GetString("VDI", vdi, "name_description"),
            Type = database.GetString("VDI", vdi, "type"),
            IsASnapshot = database.GetBool("VDI", vdi, "is_a_snapshot"),
            SnapshotTime = database.GetString("VDI", vdi, "snapshot_time"),
            ReadOnly = database.GetBool("VDI", vdi, "read_only"),
            Sharable = database.GetBool("VDI", vdi, "sharable"),
            VirtualSizeBytes = database.GetLong("VDI", vdi, "virtual_size"),
            PhysicalUtilisationBytes = database.GetLong("VDI", vdi, "physical_utilisation"),
            SmConfig = database.GetMap("VDI", vdi, "sm_config"),
        };
    }

    private string Ref(SrId sr) => database.FindByUuid("SR", sr.Value) ?? throw StorageException.NoPluginForSr(sr);

    private IReadOnlyDictionary<string, string> DeviceConfigOf(string sr) =>
        database.GetSet("SR", sr, "PBDs").Select(pbd => database.GetMap("PBD", pbd, "device_config")).FirstOrDefault()
        ?? new Dictionary<string, string>();

    /// <summary>One session for each SR, made again when it has expired (research: storage.md 3.3).</summary>
    private string SessionFor(string sr)
    {
        lock (gate)
        {
            if (!sessionOfSr.TryGetValue(sr, out string? session) || !database.Exists("session", session))
                sessionOfSr[sr] = session = sessions.CreateForStorage(sr).Ref;
            return session;
        }
    }
}
