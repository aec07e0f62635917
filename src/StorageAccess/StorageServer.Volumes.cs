// The method table's second half: volumes, content, mirrors, tasks, updates. Not in it, and so refused as Unimplemented as by the field's mux:
// DATA.MIRROR.send_start, receive_start3, receive_finalize3 and receive_cancel2. They only run inside the migration engine of a source, which
// drives the destination by ordinary calls (research/storage.md 2.1, 7.2); ours is the saga.
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using StorageAccess.Wire;
using static StorageAccess.StorageWire;

namespace StorageAccess;

public sealed partial class StorageServer
{
    private const int MaxWaitSeconds = 60;
    private const int DefaultWaitSeconds = 30;

    private Dictionary<string, JsonRpcHandler> SrNames() => new()
    {
        ["SR.probe"] = async (p, c) => Write(await layer.SrProbeAsync(
            Dbg(p), Text(p, "queue").ToLowerInvariant(), Map(Find(p, "device_config")), Map(Find(p, "sm_config")), c)),
        ["SR.set_name_label"] = (p, c) => Unit(layer.SrSetNameLabelAsync(Dbg(p), Sr(p), Text(p, "new_name_label"), c)),
        ["SR.set_name_description"] = (p, c) => Unit(layer.SrSetNameDescriptionAsync(Dbg(p), Sr(p), Text(p, "new_name_description"), c)),
    };

    private Dictionary<string, JsonRpcHandler> VdiSettings() => new()
    {
        ["VDI.set_name_label"] = (p, c) => Unit(layer.VdiSetNameLabelAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "new_name_label"), c)),
        ["VDI.set_name_description"] = (p, c) => Unit(layer.VdiSetNameDescriptionAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "new_name_description"), c)),
        ["VDI.introduce"] = async (p, c) => Write(await layer.VdiIntroduceAsync(
            Dbg(p), Sr(p), Text(p, "uuid"), Map(Find(p, "sm_config")), new VdiId(Text(p, "location")), c)),
        ["VDI.set_persistent"] = (p, c) => Unit(layer.VdiSetPersistentAsync(Dbg(p), Sr(p), Vdi(p), Flag(p, "persistent"), c)),
        ["VDI.epoch_begin"] = (p, c) => Unit(layer.VdiEpochBeginAsync(Dbg(p), Sr(p), Vdi(p), Vm(p), Flag(p, "persistent", true), c)),
        ["VDI.epoch_end"] = (p, c) => Unit(layer.VdiEpochEndAsync(Dbg(p), Sr(p), Vdi(p), Vm(p), c)),
        ["VDI.add_to_sm_config"] = (p, c) => Unit(layer.VdiSetSmConfigAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "key"), Text(p, "value"), c)),
        ["VDI.remove_from_sm_config"] = (p, c) => Unit(layer.VdiSetSmConfigAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "key"), null, c)),
        ["VDI.add_tags"] = (p, c) => Unit(layer.VdiTagAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "key"), true, c)),
        ["VDI.remove_tags"] = (p, c) => Unit(layer.VdiTagAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "key"), false, c)),
    };

    private Dictionary<string, JsonRpcHandler> Content() => new()
    {
        ["VDI.similar_content"] = async (p, c) => Vdis(await layer.VdiSimilarContentAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["VDI.get_by_name"] = async (p, c) => Write(await layer.VdiGetByNameAsync(Dbg(p), Sr(p), Text(p, "name"), c)),
        ["get_by_name"] = async (p, c) =>
        {
            (SrId sr, VdiInfo vdi) = await layer.GetByNameAsync(Dbg(p), Text(p, "name"), c);
            return new JsonArray(sr.Value, Write(vdi));
        },
        ["VDI.set_content_id"] = (p, c) => Unit(layer.VdiSetContentIdAsync(Dbg(p), Sr(p), Vdi(p), Text(p, "content_id"), c)),
        ["VDI.get_url"] = async (p, c) => JsonValue.Create(await layer.VdiGetUrlAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["SR.update_snapshot_info_src"] = (p, c) => Unit(relations.SendAsync(
            Dbg(p), Sr(p), Vdi(p), Text(p, "url"), new SrId(Text(p, "dest")), new VdiId(Text(p, "dest_vdi")), Map(Find(p, "snapshot_pairs")),
            Flag(p, "verify_dest", false), c)),
        ["SR.update_snapshot_info_dest"] = (p, c) => Unit(relations.RecordAsync(
            Dbg(p), Sr(p), Vdi(p), ReadVdiInfo(Get(p, "src_vdi")), ReadVdiInfos(Find(p, "snapshot_pairs")), c)),
        ["VDI.compose"] = (p, c) => Unit(layer.VdiComposeAsync(Dbg(p), Sr(p), new VdiId(Text(p, "vdi1")), new VdiId(Text(p, "vdi2")), c)),
        ["VDI.revert"] = (p, c) => Unit(layer.VdiRevertAsync(Dbg(p), Sr(p), ReadVdiInfo(Get(p, "snapshot_info")), c)),
        ["VDI.enable_cbt"] = (p, c) => Unit(layer.VdiEnableCbtAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["VDI.disable_cbt"] = (p, c) => Unit(layer.VdiDisableCbtAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["VDI.data_destroy"] = (p, c) => Unit(layer.VdiDataDestroyAsync(Dbg(p), Sr(p), Vdi(p), c)),
        // The second key is misspelt on the field's wire, for ever.
        ["VDI.list_changed_blocks"] = async (p, c) => JsonValue.Create(await layer.VdiListChangedBlocksAsync(
            Dbg(p), Sr(p), new VdiId(Text(p, "vdi_from")), new VdiId(Text(p, "vdi_tp")), c)),
    };

    private Dictionary<string, JsonRpcHandler> DataPlane() => new()
    {
        ["DATA.copy"] = (p, _) => Answer(copying.Start(tasks, Dbg(p), Sr(p), Vdi(p), Text(p, "url", ""), new SrId(Text(p, "dest")))),
        ["DATA.import_activate"] = (p, _) => Answer(layer.NbdSocketOf(Sr(p), Vdi(p), Dp(p), isPassing: true)),
        ["DATA.get_nbd_server"] = (p, _) => Answer(layer.NbdSocketOf(Sr(p), Vdi(p), Dp(p), isPassing: false)),
        ["DATA.mirror"] = async (p, c) => Write(await mirrors.StartAsync(Dbg(p), Sr(p), Vdi(p), Vm(p), Text(p, "url"), c)),
        ["DATA.stat"] = async (p, c) => Write(await mirrors.StatAsync(Dbg(p), Sr(p), Vdi(p), Vm(p), ReadOperation(Get(p, "operation")), c)),
        ["Policy.get_backend_vm"] = static (_, _) => Answer("0"), // Every driver runs in the control domain.
    };

    /// <summary>The receiving end, for senders that leave its records with the destination (research/storage.md 7.2).</summary>
    private Dictionary<string, JsonRpcHandler> Mirrors() => new()
    {
        ["DATA.MIRROR.receive_start"] = ReceiveStartAsync,
        ["DATA.MIRROR.receive_start2"] = ReceiveStartAsync,
        ["DATA.MIRROR.receive_finalize"] = (p, c) => Unit(receiver.EndAsync(Dbg(p), Text(p, "id"), c)),
        ["DATA.MIRROR.receive_finalize2"] = (p, c) => Unit(receiver.FinalizeAsync(Dbg(p), Text(p, "id"), c)),
        ["DATA.MIRROR.receive_cancel"] = (p, c) => Unit(receiver.CancelAsync(Dbg(p), Text(p, "id"), c)),
        ["DATA.MIRROR.pre_deactivate_hook"] = (p, c) => Unit(mirrors.DrainAsync(Dbg(p), Sr(p), Vdi(p), c)),
        ["DATA.MIRROR.has_mirror_failed"] = async (p, c) => JsonValue.Create(await mirrors.HasFailedAsync(Sr(p), Text(p, "id"), c)),
        ["DATA.MIRROR.list"] = (_, _) => Task.FromResult<JsonNode?>(receiver.List()),
        ["DATA.MIRROR.stat"] = (p, _) => Task.FromResult<JsonNode?>(receiver.Stat(Text(p, "id"))),
    };

    private async Task<JsonNode?> ReceiveStartAsync(JsonObject p, CancellationToken cancellationToken) => await receiver.StartAsync(
        Dbg(p), Sr(p), Info(p), Text(p, "id"), Items(Find(p, "similar")).Select(TextOf).ToList(), Vm(p), cancellationToken);

    private Dictionary<string, JsonRpcHandler> TasksAndUpdates() => new()
    {
        ["TASK.stat"] = (p, _) => Task.FromResult<JsonNode?>(tasks.Stat(Text(p, "task"))),
        ["TASK.list"] = (_, _) => Task.FromResult<JsonNode?>(tasks.List()),
        ["TASK.cancel"] = (p, _) =>
        {
            tasks.Cancel(Text(p, "task"));
            return Task.FromResult<JsonNode?>(null);
        },
        ["TASK.destroy"] = (p, _) => Unit(tasks.DestroyAsync(Text(p, "task"))),
        ["UPDATES.get"] = async (p, c) =>
        {
            long seconds = Math.Clamp(Number(p, "timeout", DefaultWaitSeconds), 0, MaxWaitSeconds);
            (IReadOnlyList<Changed> what, string next) = await layer.Updates.GetAsync(Text(p, "from", ""), TimeSpan.FromSeconds(seconds), c);
            return new JsonArray(new JsonArray([.. what.Select(static change => change.ToJson())]), next);
        },
        ["Query.diagnostics"] = (_, _) => Answer(Diagnostics()),
    };

    private static Task<JsonNode?> Answer(string text) => Task.FromResult<JsonNode?>(JsonValue.Create(text));

    /// <summary>The oldest form of an attach: one path, whatever kind it is of (research/storage.md 2.1).</summary>
    private static JsonObject Legacy(Backend backend)
    {
        IEnumerable<string> paths = backend.Implementations.OfType<XenDisk>().Select(static disk => disk.Params)
            .Concat(backend.Implementations.OfType<FilePath>().Select(static file => file.Path))
            .Concat(backend.Implementations.OfType<BlockDevicePath>().Select(static device => device.Path));
        XenDisk? xen = backend.Implementations.OfType<XenDisk>().FirstOrDefault();
        return new JsonObject
        {
            ["params"] = paths.FirstOrDefault(static path => path.Length != 0) ?? backend.Nbd?.Uri ?? "",
            ["o_direct"] = true,
            ["o_direct_reason"] = "",
            ["xenstore_data"] = Write(xen?.Extra ?? new Dictionary<string, string>()),
        };
    }
}
