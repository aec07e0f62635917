// What the storage access layer must know after a crash: storage.db, one SQLite file (decision D6). A row is written before the backend is
// called (unsettled = 1: "maybe") and again after it answered, so that the state is never guessed. Replaces the field's JSON file
// (research/storage.md 2.2, 2.5).
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.Data.Sqlite;
using Platform;
using StorageAccess.Wire;

namespace StorageAccess;

internal sealed record SrRow(SrId Sr, string Type, IReadOnlyDictionary<string, string> DeviceConfig, bool IsAttached, bool IsUnsettled);

/// <summary>What the backend of one VDI was last known to be, for whom it was attached, and what attach answered.</summary>
internal sealed record VdiRow(SrId Sr, VdiId Vdi, VdiState State, bool IsUnsettled, DatapathId Datapath, string Vm, Backend? Backend);

/// <summary>The durable state of one host's storage access layer. Thread-safe.</summary>
public sealed class StorageState : IDisposable
{
    private const string Schema = """
        CREATE TABLE IF NOT EXISTS sr (
            sr TEXT PRIMARY KEY, type TEXT NOT NULL, device_config TEXT NOT NULL, attached INTEGER NOT NULL, unsettled INTEGER NOT NULL) STRICT;
        CREATE TABLE IF NOT EXISTS vdi (
            sr TEXT NOT NULL, vdi TEXT NOT NULL, phase INTEGER NOT NULL, access INTEGER NOT NULL, unsettled INTEGER NOT NULL,
            datapath TEXT NOT NULL, vm TEXT NOT NULL, backend TEXT, PRIMARY KEY (sr, vdi)) STRICT;
        CREATE TABLE IF NOT EXISTS datapath (
            datapath TEXT PRIMARY KEY, sr TEXT NOT NULL, vdi TEXT NOT NULL, vm TEXT NOT NULL, phase INTEGER NOT NULL, access INTEGER NOT NULL,
            leaked INTEGER NOT NULL, since TEXT NOT NULL) STRICT;
        CREATE INDEX IF NOT EXISTS datapath_of_vdi ON datapath (sr, vdi);
        CREATE TABLE IF NOT EXISTS mirror (id TEXT PRIMARY KEY, sr TEXT NOT NULL, made TEXT NOT NULL) STRICT;
        CREATE TABLE IF NOT EXISTS memory (sr TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (sr, key)) STRICT;
        """;

    private const string DatapathColumns = "datapath, sr, vdi, vm, phase, access, leaked, since";
    private const string BootKey = "boot_id";
    private static readonly SrId Host = new(""); // What is remembered of no SR.
    private readonly SqliteFile file;

    private StorageState(SqliteFile file) => this.file = file;

    /// <summary>Opens or creates storage.db; readable by its owner only, because device_config holds secrets.</summary>
    /// <exception cref="IOException">The file is damaged or in use by another daemon; it is left as it is.</exception>
    public static StorageState Open(string path) => new(SqliteFile.Open(path, Schema));

    public void Dispose() => file.Dispose();

    /// <summary>The start of the machine that the rows are about; null when there are none yet.</summary>
    public string? BootId
    {
        get => Recall(Host, BootKey);
        set => Remember(Host, BootKey, value ?? "");
    }

    /// <summary>Nothing is attached any more; what backends remember of their SRs stays.</summary>
    internal void ForgetBoot() => file.Transaction(() =>
    {
        file.Execute("DELETE FROM datapath");
        file.Execute("DELETE FROM vdi");
        file.Execute("UPDATE sr SET attached=0, unsettled=0");
    });

    /// <summary>What a backend remembers of an SR across restarts (a SMAPIv3 plugin's sr string); null when nothing.</summary>
    public string? Recall(SrId sr, string key) =>
        file.Query("SELECT value FROM memory WHERE sr=$sr AND key=$key", static row => row.GetString(0), ("$sr", sr.Value), ("$key", key))
            .FirstOrDefault();

    public void Remember(SrId sr, string key, string value) => file.Execute(
        "INSERT INTO memory VALUES ($sr,$key,$value) ON CONFLICT DO UPDATE SET value=$value", ("$sr", sr.Value), ("$key", key),
        ("$value", value));

    public void Forget(SrId sr, string key) =>
        file.Execute("DELETE FROM memory WHERE sr=$sr AND key=$key", ("$sr", sr.Value), ("$key", key));

    internal SrRow? FindSr(SrId sr) => Srs("WHERE sr=$sr", ("$sr", sr.Value)).FirstOrDefault();

    internal List<SrRow> Srs() => Srs("ORDER BY sr");

    internal void Save(SrRow row) => file.Execute(
        """
        INSERT INTO sr VALUES ($sr,$type,$config,$attached,$unsettled)
        ON CONFLICT DO UPDATE SET type=$type, device_config=$config, attached=$attached, unsettled=$unsettled
        """,
        ("$sr", row.Sr.Value), ("$type", row.Type), ("$config", JsonSerializer.Serialize(row.DeviceConfig)),
        ("$attached", row.IsAttached), ("$unsettled", row.IsUnsettled));

    internal void Forget(SrId sr) => file.Transaction(() =>
    {
        foreach (string table in (string[])["sr", "vdi", "datapath", "memory", "mirror"])
            file.Execute($"DELETE FROM {table} WHERE sr=$sr", ("$sr", sr.Value));
    });

    internal VdiRow? FindVdi(SrId sr, VdiId vdi) =>
        Vdis("WHERE sr=$sr AND vdi=$vdi", ("$sr", sr.Value), ("$vdi", vdi.Value)).FirstOrDefault();

    internal List<VdiRow> Vdis(SrId sr) => Vdis("WHERE sr=$sr ORDER BY vdi", ("$sr", sr.Value));

    /// <summary>A settled, detached VDI has no row.</summary>
    internal void Save(VdiRow row)
    {
        if (row.State.Phase == VdiPhase.Detached && !row.IsUnsettled)
            file.Execute("DELETE FROM vdi WHERE sr=$sr AND vdi=$vdi", ("$sr", row.Sr.Value), ("$vdi", row.Vdi.Value));
        else
            file.Execute(
                """
                INSERT INTO vdi VALUES ($sr,$vdi,$phase,$access,$unsettled,$datapath,$vm,$backend) ON CONFLICT DO UPDATE SET
                phase=$phase, access=$access, unsettled=$unsettled, datapath=$datapath, vm=$vm, backend=$backend
                """,
                ("$sr", row.Sr.Value), ("$vdi", row.Vdi.Value), ("$phase", (int)row.State.Phase), ("$access", (int)row.State.Access),
                ("$unsettled", row.IsUnsettled), ("$datapath", row.Datapath.Value), ("$vm", row.Vm),
                ("$backend", row.Backend is null ? null : StorageWire.Write(row.Backend).ToJsonString()));
    }

    internal DatapathRow? FindDatapath(DatapathId datapath) => Datapaths("WHERE datapath=$dp", ("$dp", datapath.Value)).FirstOrDefault();

    internal List<DatapathRow> Datapaths(SrId sr, VdiId vdi) =>
        Datapaths("WHERE sr=$sr AND vdi=$vdi ORDER BY datapath", ("$sr", sr.Value), ("$vdi", vdi.Value));

    internal List<DatapathRow> Datapaths() => Datapaths("ORDER BY sr, vdi, datapath");

    /// <summary>A detached datapath has no row.</summary>
    internal void Save(DatapathRow row)
    {
        if (row.State.Phase == VdiPhase.Detached)
            file.Execute("DELETE FROM datapath WHERE datapath=$dp", ("$dp", row.Datapath.Value));
        else
            file.Execute(
                $"INSERT INTO datapath ({DatapathColumns}) VALUES ($dp,$sr,$vdi,$vm,$phase,$access,$leaked,$since) " +
                "ON CONFLICT DO UPDATE SET vm=$vm, phase=$phase, access=$access, leaked=$leaked",
                ("$dp", row.Datapath.Value), ("$sr", row.Sr.Value), ("$vdi", row.Vdi.Value), ("$vm", row.Vm),
                ("$phase", (int)row.State.Phase),
                ("$access", (int)row.State.Access), ("$leaked", row.IsLeaked), ("$since", row.Since.ToString("O")));
    }

    internal void SaveTogether(VdiRow vdi, DatapathRow datapath) => file.Transaction(() =>
    {
        Save(vdi);
        Save(datapath);
    });

    internal void Save(ReceivedMirror mirror) => file.Execute(
        "INSERT INTO mirror VALUES ($id,$sr,$made) ON CONFLICT DO UPDATE SET sr=$sr, made=$made",
        ("$id", mirror.Id), ("$sr", mirror.Sr.Value), ("$made", JsonSerializer.Serialize(mirror)));

    internal ReceivedMirror? FindMirror(string id) => Mirrors("WHERE id=$id", ("$id", id)).FirstOrDefault();

    internal List<ReceivedMirror> Mirrors() => Mirrors("ORDER BY id");

    internal void ForgetMirror(string id) => file.Execute("DELETE FROM mirror WHERE id=$id", ("$id", id));

    private List<ReceivedMirror> Mirrors(string where, params (string, object?)[] parameters) => file.Query(
        $"SELECT made FROM mirror {where}",
        static row => JsonSerializer.Deserialize<ReceivedMirror>(row.GetString(0)) ?? throw new IOException("storage.db: a mirror's record is empty"),
        parameters);

    private List<SrRow> Srs(string where, params (string, object?)[] parameters) => file.Query(
        $"SELECT sr, type, device_config, attached, unsettled FROM sr {where}",
        static row => new SrRow(
            new SrId(row.GetString(0)), row.GetString(1), JsonSerializer.Deserialize<Dictionary<string, string>>(row.GetString(2)) ?? [],
            row.GetBoolean(3), row.GetBoolean(4)),
        parameters);

    private List<VdiRow> Vdis(string where, params (string, object?)[] parameters) => file.Query(
        $"SELECT sr, vdi, phase, access, unsettled, datapath, vm, backend FROM vdi {where}",
        static row => new VdiRow(
            new SrId(row.GetString(0)), new VdiId(row.GetString(1)), State(row, 2), row.GetBoolean(4), new DatapathId(row.GetString(5)),
            row.GetString(6), row.IsDBNull(7) ? null : StorageWire.ReadBackend(JsonNode.Parse(row.GetString(7)))),
        parameters);

    private List<DatapathRow> Datapaths(string where, params (string, object?)[] parameters) => file.Query(
        $"SELECT {DatapathColumns} FROM datapath {where}",
        static row => new DatapathRow(
            new DatapathId(row.GetString(0)), new SrId(row.GetString(1)), new VdiId(row.GetString(2)), row.GetString(3), State(row, 4))
        {
            IsLeaked = row.GetBoolean(6),
            Since = DateTimeOffset.Parse(row.GetString(7)),
        },
        parameters);

    private static VdiState State(SqliteDataReader row, int column) =>
        new((VdiPhase)row.GetInt32(column), (VdiAccess)row.GetInt32(column + 1));
}
