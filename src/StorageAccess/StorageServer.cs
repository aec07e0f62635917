// SMAPIv2 as other processes see it: the field's method names and named parameters (research/storage.md 1.2, 1.5), for JsonRpcDispatcher.
// Older spellings of the datapath calls are normalised upward as the field's mux does (2.1).
using System.Text;
using System.Text.Json.Nodes;
using StorageAccess.Wire;
using static StorageAccess.StorageWire;

namespace StorageAccess;

/// <summary>The method table; the host puts its dispatcher on a unix socket.</summary>
public sealed partial class StorageServer
{
    private static readonly QueryResult Mux = new(
        "mux", "storage multiplexor", "forwards calls to other plugins", "Storage", "1.0", "2.0", [], new Dictionary<string, string>(),
        "SMAPIv2");

    private readonly StorageLayer layer;
    private readonly StorageTasks tasks;
    private readonly DiskCopying copying;
    private readonly MirrorReceiver receiver;
    private readonly LiveMirrors mirrors;
    private readonly SnapshotRelations relations;

    public StorageServer(StorageLayer layer, StorageTasks tasks, IDiskCopier copier)
    {
        receiver = new MirrorReceiver(layer);
        mirrors = new LiveMirrors(layer);
        relations = new SnapshotRelations(layer);
        this.layer = layer;
        this.tasks = tasks;
        copying = new DiskCopying(layer, copier);
        Dispatcher = new JsonRpcDispatcher(new Dictionary<string, JsonRpcHandler>(
            Queries().Concat(Srs()).Concat(SrNames()).Concat(Vdis()).Concat(VdiSettings()).Concat(Content()).Concat(VdiDatapaths()).Concat(Dps())
                .Concat(DataPlane()).Concat(Mirrors()).Concat(TasksAndUpdates())), WriteError);
    }

    public JsonRpcDispatcher Dispatcher { get; }

    private static Dictionary<string, JsonRpcHandler> Queries() => new()
    {
        ["Query.query"] = static (_, _) => Task.FromResult<JsonNode?>(Write(Mux)),
    };

    private Dictionary<string, JsonRpcHandler> Srs() => new()
    {
        ["SR.list"] = (_, _) => Task.FromResult<JsonNode?>(Strings(layer.SrList().Select(static s => s.Value))),
        ["SR.create"] = async (p, c) => Write(await layer.SrCreateAsync(
            Dbg(p), Sr(p), Text(p, "name_label"), Text(p, "name_description", ""), Map(Find(p, "device_config")),
            Number(p, "physical_size"), c)),
        ["SR.attach"] = (p, c) => Unit(layer.SrAttachAsync(Dbg(p), Sr(p), Map(Find(p, "device_config")), c)),
        ["SR.detach"] = (p, c) => Unit(layer.SrDetachAsync(Dbg(p), Sr(p), c)),
        ["SR.reset"] = (p, c) => Unit(layer.SrResetAsync(Dbg(p), Sr(p), c)),
        ["SR.destroy"] = (p, c) => Unit(layer.SrDestroyAsync(Dbg(p), Sr(p), c)),
        ["SR.stat"] = async (p, c) => Write(await layer.SrStatAsync(Dbg(p), Sr(p), c)),
        ["SR.scan"] = async (p, c) => Vdis((await layer.SrScanAsync(Dbg(p), Sr(p), c)).Vdis),
        ["SR.scan2"] = async (p, c) =>
        {
            SrScan scan = await layer.SrScanAsync(Dbg(p), Sr(p), c);
            return new JsonArray(Vdis(scan.Vdis), Write(scan.Info));
        },
    };

    private Dictionary<string, JsonRpcHandler> Vdis() => new()
    {
        ["VDI.create"] = async (p, c) => Write(await layer.VdiCreateAsync(Dbg(p), Sr(p), Info(p), c)),
        ["VDI.destroy"] = (p, c) => Unit(layer.VdiDestroyAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["VDI.stat"] = async (p, c) => Write(await layer.VdiStatAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["VDI.snapshot"] = async (p, c) => Write(await layer.VdiSnapshotAsync(Dbg(p), Sr(p), Info(p), c)),
        ["VDI.clone"] = async (p, c) => Write(await layer.VdiCloneAsync(Dbg(p), Sr(p), Info(p), c)),
        ["VDI.resize"] = async (p, c) => JsonValue.Create(await layer.VdiResizeAsync(Dbg(p), Sr(p), Vdi(p), Number(p, "new_size"), c)),
    };

    private Dictionary<string, JsonRpcHandler> VdiDatapaths() => new()
    {
        ["VDI.attach"] = async (p, c) => Legacy(ReadBackend(await AttachAsync(p, c))),
        ["VDI.attach2"] = AttachAsync,
        ["VDI.attach3"] = AttachAsync,
        ["VDI.activate"] = (p, c) => Unit(layer.ActivateAsync(Dbg(p), Dp(p), Sr(p), Vdi(p), Vm(p), c)),
        ["VDI.activate3"] = (p, c) => Unit(layer.ActivateAsync(Dbg(p), Dp(p), Sr(p), Vdi(p), Vm(p), c)),
        // The access was given at attach, so a read-only datapath is activated read-only whichever of the two is called.
        ["VDI.activate_readonly"] = (p, c) => Unit(layer.ActivateAsync(Dbg(p), Dp(p), Sr(p), Vdi(p), Vm(p), c)),
        ["VDI.deactivate"] = (p, c) => Unit(layer.DeactivateAsync(Dbg(p), Dp(p), Sr(p), Vdi(p), Vm(p), c)),
        ["VDI.detach"] = (p, c) => Unit(layer.DetachAsync(Dbg(p), Dp(p), Sr(p), Vdi(p), Vm(p), c)),
    };

    private Dictionary<string, JsonRpcHandler> Dps() => new()
    {
        ["DP.create"] = static (p, _) => Task.FromResult<JsonNode?>(Text(p, "id")),
        ["DP.destroy"] = (p, c) => Unit(layer.DestroyAsync(Dbg(p), Dp(p), Flag(p, "allow_leak"), c)),
        ["DP.destroy2"] = (p, c) => Unit(layer.DestroyAsync(Dbg(p), Dp(p), Flag(p, "allow_leak"), c)),
        ["DP.attach_info"] = (p, _) => Task.FromResult<JsonNode?>(Write(layer.DpAttachInfo(Sr(p), Vdi(p), Dp(p)))),
        ["DP.stat_vdi"] = (p, _) =>
        {
            (VdiState superstate, IReadOnlyList<DatapathRow> rows) = layer.DpStatVdi(Sr(p), Vdi(p));
            JsonObject dps = [];
            foreach (DatapathRow row in rows)
                dps[row.Datapath.Value] = Write(row.State);
            return Task.FromResult<JsonNode?>(new JsonObject { ["superstate"] = Write(superstate), ["dps"] = dps });
        },
        // Ours: the table of DP.diagnostics for programs.
        ["DP.list"] = (_, _) => Task.FromResult<JsonNode?>(new JsonArray([.. layer.Datapaths().Select(static row => (JsonNode)new JsonObject
        {
            ["dp"] = row.Datapath.Value,
            ["sr"] = row.Sr.Value,
            ["vdi"] = row.Vdi.Value,
            ["vm"] = row.Vm,
            ["state"] = row.State.ToString(),
        })])),
        ["DP.diagnostics"] = (_, _) => Task.FromResult<JsonNode?>(Diagnostics()),
    };

    private async Task<JsonNode?> AttachAsync(JsonObject p, CancellationToken cancellationToken) => Write(await layer.AttachAsync(
        Dbg(p), Dp(p), Sr(p), Vdi(p), Vm(p), Flag(p, "read_write") ? VdiAccess.ReadWrite : VdiAccess.ReadOnly, cancellationToken));

    private string Diagnostics()
    {
        StringBuilder text = new();
        foreach (DatapathRow row in layer.Datapaths())
            text.Append($"SR {row.Sr} VDI {row.Vdi}: {row}\n");
        foreach (string found in layer.Untracked)
            text.Append($"when the daemon started, {found}\n");
        return text.ToString();
    }

    private static async Task<JsonNode?> Unit(Task call)
    {
        await call;
        return null;
    }

    private static JsonArray Vdis(IEnumerable<VdiInfo> vdis) => new(vdis.Select(static v => (JsonNode)Write(v)).ToArray());

    private static string Dbg(JsonObject p) => Text(p, "dbg", "");

    private static SrId Sr(JsonObject p) => new(Text(p, "sr"));

    private static VdiId Vdi(JsonObject p) => new(Text(p, "vdi"));

    private static DatapathId Dp(JsonObject p) => new(Text(p, "dp"));

    private static string Vm(JsonObject p) => Text(p, "vm", "0");

    private static VdiInfo Info(JsonObject p) => ReadVdiInfo(Get(p, "vdi_info"));
}
