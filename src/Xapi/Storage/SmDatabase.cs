// The pool database as SMAPIv1's adapter sees it.
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;

namespace Xapi.Storage;

public sealed class SmDatabase(PoolDatabase database, SessionTable sessions, string hostRef, TimeProvider time) : ISmDatabase
{
    private const string ContentIdKey = "content_id";
    private const string MirrorKey = "base_mirror";

    /// <summary>What the field writes; no reader may take it for the name of a content.</summary>
    private const string NoContent = "/No content: this is a cbt_metadata VDI/";

    private readonly Dictionary<string, string> sessionOfSr = [];
    private readonly Lock gate = new();

    public string HostRef => hostRef;

    public string HostAddress => database.GetString("host", hostRef, "address");

    /// <summary>Our calls carry the task's reference as dbg where they have one.</summary>
    public string TaskRefOf(string dbg) => dbg.StartsWith("OpaqueRef:", StringComparison.Ordinal) ? dbg : Database.Ref.Null;

    public SmSr Sr(SrId sr)
    {
        string reference = Ref(sr);
        string master = Master();
        return new SmSr(
            reference, SessionFor(reference), !database.GetBool("SR", reference, "shared") || master == hostRef, DeviceConfigOf(reference),
            LocalCacheSr())
        {
            MasterAddress = database.Exists("host", master) ? database.GetString("host", master, "address") : null,
            IsIntroducedByDr = database.GetRef("SR", reference, "introduced_by") is { } task && database.Exists("DR_task", task),
        };
    }

    public SmSr NoSr() => new("", SessionFor(Database.Ref.Null), Master() == hostRef, new Dictionary<string, string>(), LocalCacheSr());

    public SrInfo SrInfo(SrId sr)
    {
        string reference = Ref(sr);
        long total = database.GetLong("SR", reference, "physical_size");
        return new SrInfo(
            sr.Value, database.GetString("SR", reference, "name_label"), database.GetString("SR", reference, "name_description"), total,
            total - database.GetLong("SR", reference, "physical_utilisation"), false, "Healthy");
    }

    public IReadOnlyList<VdiInfo> Vdis(SrId sr) =>
        database.Transaction(() => database.GetSet("SR", Ref(sr), "VDIs").Select(InfoOf).ToList());

    public SmVdi? FindVdi(SrId sr, VdiId location) => database.Transaction(() =>
        VdiRows.Find(database, Ref(sr), location.Value) is { } vdi
            ? new SmVdi(vdi, database.GetString("VDI", vdi, "on_boot"), database.GetBool("VDI", vdi, "allow_caching"), InfoOf(vdi))
            : null);

    public void RecordCopy(SrId sr, VdiId copy, VdiInfo source, bool isSnapshot) => Change(sr, copy, reference =>
    {
        database.Set("VDI", reference, "name_label", source.NameLabel);
        database.Set("VDI", reference, "name_description", source.NameDescription);
        database.Set("VDI", reference, "is_a_snapshot", isSnapshot);
        database.SetInMap("VDI", reference, "other_config", ContentIdKey, source.ContentId);
        if (isSnapshot)
        {
            database.Set("VDI", reference, "snapshot_of", VdiRows.Find(database, Ref(sr), source.Vdi.Value) ?? Database.Ref.Null);
            database.Set("VDI", reference, "snapshot_time", DateTimeType.Of(time.GetUtcNow()));
        }

        if (source.SmConfig.TryGetValue(MirrorKey, out string? mirror))
            database.SetInMap("VDI", reference, "sm_config", MirrorKey, mirror);
    });

    public void RenameSr(SrId sr, string? label, string? description) => Rename("SR", Ref(sr), label, description);

    public void RenameVdi(SrId sr, VdiId vdi, string? label, string? description) =>
        Change(sr, vdi, reference => Rename("VDI", reference, label, description));

    public void RecordCaching(SrId sr, VdiId vdi, SmCaching? caching) => Change(sr, vdi, reference =>
    {
        string host = database.GetString("host", hostRef, "uuid");
        Keep($"read-caching-enabled-on-{host}", caching is null ? null : caching.IsEnabled ? "true" : "false");
        Keep($"read-caching-reason-{host}", caching is { IsEnabled: false } ? caching.ReasonAgainst : null);

        void Keep(string key, string? value)
        {
            if (value is null)
                database.RemoveFromMap("VDI", reference, "sm_config", key);
            else
                database.SetInMap("VDI", reference, "sm_config", key, value);
        }
    });

    public void ContentChanges(SrId sr, VdiId vdi) => Change(sr, vdi, reference =>
    {
        if (!database.GetBool("VDI", reference, "read_only"))
            database.RemoveFromMap("VDI", reference, "other_config", ContentIdKey);
    });

    public void ContentSettles(SrId sr, VdiId vdi) => Change(sr, vdi, reference =>
    {
        bool hasName = database.GetMap("VDI", reference, "other_config").ContainsKey(ContentIdKey);
        if (!hasName && !database.GetBool("VDI", reference, "read_only"))
            database.SetInMap("VDI", reference, "other_config", ContentIdKey, Guid.NewGuid().ToString());
    });

    public void RecordSnapshotOf(SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf) => Change(sr, vdi, reference =>
    {
        database.Set("VDI", reference, "is_a_snapshot", true);
        database.Set("VDI", reference, "snapshot_time", snapshotTime);
        database.Set("VDI", reference, "snapshot_of", VdiRows.Find(database, Ref(sr), snapshotOf.Value) ?? Database.Ref.Null);
    });

    public void RecordRevert(SrId sr, VdiId vdi, VdiId snapshot) => Change(sr, vdi, reference =>
    {
        if (VdiRows.Find(database, Ref(sr), snapshot.Value) is { } source)
            database.SetInMap("VDI", reference, "other_config", ContentIdKey, InfoOf(source).ContentId);
    });

    public void RecordDataDestroyed(SrId sr, VdiId vdi) => Change(sr, vdi, reference =>
    {
        database.SetInMap("VDI", reference, "other_config", ContentIdKey, NoContent);
        database.Set("VDI", reference, "type", "cbt_metadata");
    });

    public void SetContentId(SrId sr, VdiId vdi, string contentId) =>
        Change(sr, vdi, reference => database.SetInMap("VDI", reference, "other_config", ContentIdKey, contentId));

    public void SetSmConfig(SrId sr, VdiId vdi, string key, string? value) => Change(sr, vdi, reference =>
    {
        if (value is null)
        {
            database.RemoveFromMap("VDI", reference, "sm_config", key);
            return;
        }

        try
        {
            database.AddToMap("VDI", reference, "sm_config", key, value);
        }
        catch (XapiException e) when (e.Code == "MAP_DUPLICATE_KEY")
        {
            throw StorageException.DuplicatedKey(key);
        }
    });

    public void Tag(SrId sr, VdiId vdi, string tag, bool isThere) => Change(sr, vdi, reference =>
    {
        if (isThere)
            database.AddToSet("VDI", reference, "tags", tag);
        else
            database.RemoveFromSet("VDI", reference, "tags", tag);
    });

    /// <summary>Nothing happens when a driver took the row away meanwhile.</summary>
    private void Change(SrId sr, VdiId vdi, Action<string> change) => database.Transaction(() =>
    {
        if (VdiRows.Find(database, Ref(sr), vdi.Value) is { } reference)
            change(reference);
    });

    private void Rename(string className, string reference, string? label, string? description) => database.Transaction(() =>
    {
        if (label is not null)
            database.Set(className, reference, "name_label", label);
        if (description is not null)
            database.Set(className, reference, "name_description", description);
    });

    private VdiInfo InfoOf(string vdi)
    {
        string location = database.GetString("VDI", vdi, "location");
        string snapshotOf = database.GetRef("VDI", vdi, "snapshot_of");
        return new VdiInfo
        {
            Vdi = new VdiId(location),
            Uuid = database.GetString("VDI", vdi, "uuid"),
            ContentId = database.GetMap("VDI", vdi, "other_config").GetValueOrDefault(ContentIdKey, location),
            NameLabel = database.GetString("VDI", vdi, "name_label"),
            NameDescription = database.GetString("VDI", vdi, "name_description"),
            Type = database.GetString("VDI", vdi, "type"),
            IsASnapshot = database.GetBool("VDI", vdi, "is_a_snapshot"),
            SnapshotTime = database.GetString("VDI", vdi, "snapshot_time"),
            SnapshotOf = database.Exists("VDI", snapshotOf) ? database.GetString("VDI", snapshotOf, "location") : "",
            ReadOnly = database.GetBool("VDI", vdi, "read_only"),
            Sharable = database.GetBool("VDI", vdi, "sharable"),
            CbtEnabled = database.GetBool("VDI", vdi, "cbt_enabled"),
            Tags = database.GetSet("VDI", vdi, "tags"),
            VirtualSizeBytes = database.GetLong("VDI", vdi, "virtual_size"),
            PhysicalUtilisationBytes = database.GetLong("VDI", vdi, "physical_utilisation"),
            SmConfig = database.GetMap("VDI", vdi, "sm_config"),
        };
    }

    private string Ref(SrId sr) => database.FindByUuid("SR", sr.Value) ?? throw StorageException.NoPluginForSr(sr);

    private string Master() => database.All("pool") is [var pool, ..] ? database.GetRef("pool", pool, "master") : hostRef;

    /// <summary>A uuid; null when the host has none, or one that is gone.</summary>
    private string? LocalCacheSr() =>
        database.GetRef("host", hostRef, "local_cache_sr") is var cache && database.Exists("SR", cache)
            ? database.GetString("SR", cache, "uuid")
            : null;

    private IReadOnlyDictionary<string, string> DeviceConfigOf(string sr) =>
        database.GetSet("SR", sr, "PBDs").Where(pbd => database.GetRef("PBD", pbd, "host") == hostRef)
            .Select(pbd => database.GetMap("PBD", pbd, "device_config")).FirstOrDefault()
        ?? new Dictionary<string, string>();

    /// <summary>One session for each SR, made again when it has ended, ended when its SR is gone (research: storage.md 3.3).</summary>
    private string SessionFor(string sr)
    {
        lock (gate)
        {
            if (sessionOfSr.TryGetValue(sr, out string? session) && sessions.IsLive(session))
                return session;
            foreach (string gone in sessionOfSr.Keys.Where(s => s != Database.Ref.Null && !database.Exists("SR", s)).ToList())
            {
                sessions.Logout(sessionOfSr[gone]);
                sessionOfSr.Remove(gone);
            }

            return sessionOfSr[sr] = sessions.CreateForStorage(sr).Ref;
        }
    }
}
