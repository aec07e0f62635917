// The calls of SMAPIv2 about names, content and settings, as scripts and custom keys (research/storage.md 5.5). A script that the plugin lacks
// makes the call Unimplemented before a process is started.
using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV3Bridge;

public sealed partial class SmapiV3Backend
{
    public async Task<ProbeResult> SrProbeAsync(
        string dbg, IReadOnlyDictionary<string, string> deviceConfig, IReadOnlyDictionary<string, string> smConfig,
        CancellationToken cancellationToken)
    {
        Require("SR.probe", "SR.probe");
        JsonNode? answer = await plugin.Scripts.RunAsync("SR.probe", Configured(dbg, deviceConfig), cancellationToken);
        return Shaped("SR.probe", answer, static a => new ProbeList(StorageWire.Items(a).Select(ReadProbed).ToList()));
    }

    public Task SrSetNameLabelAsync(string dbg, SrId sr, string nameLabel, CancellationToken cancellationToken) =>
        ChangeAsync("SR.set_name", "SR.set_name_label", OnSr(dbg, sr), cancellationToken, ("new_name", nameLabel));

    public Task SrSetNameDescriptionAsync(string dbg, SrId sr, string nameDescription, CancellationToken cancellationToken) =>
        ChangeAsync("SR.set_description", "SR.set_name_description", OnSr(dbg, sr), cancellationToken, ("new_description", nameDescription));

    public Task VdiSetNameLabelAsync(string dbg, SrId sr, VdiId vdi, string nameLabel, CancellationToken cancellationToken) =>
        ChangeAsync("Volume.set_name", "VDI.set_name_label", OnVolume(dbg, sr, vdi), cancellationToken, ("new_name", nameLabel));

    public Task VdiSetNameDescriptionAsync(string dbg, SrId sr, VdiId vdi, string nameDescription, CancellationToken cancellationToken) =>
        ChangeAsync(
            "Volume.set_description", "VDI.set_name_description", OnVolume(dbg, sr, vdi), cancellationToken, ("new_description", nameDescription));

    /// <summary>The volume is there already; its uuid and settings are the plugin's.</summary>
    public Task<VdiInfo> VdiIntroduceAsync(
        string dbg, SrId sr, string uuid, IReadOnlyDictionary<string, string> smConfig, VdiId location, CancellationToken cancellationToken) =>
        VdiStatAsync(dbg, sr, location, cancellationToken);

    /// <summary>What is not persistent is said at each epoch; there is nothing to remember.</summary>
    public Task VdiSetPersistentAsync(string dbg, SrId sr, VdiId vdi, bool persistent, CancellationToken cancellationToken) => Task.CompletedTask;

    /// <summary>A disk that forgets is booted from a clone, which datapaths serve in its place until the epoch's end.</summary>
    public async Task VdiEpochBeginAsync(string dbg, SrId sr, VdiId vdi, string vm, bool persistent, CancellationToken cancellationToken)
    {
        Volume volume = await StatAsync(dbg, sr, vdi, cancellationToken);
        await DropCloneAsync(dbg, sr, volume, cancellationToken);
        if (persistent)
            return;
        Require("Volume.clone", "VDI.epoch_begin");
        Require("Volume.set", "VDI.epoch_begin");
        VdiInfo clone = (await ForVolumeAsync("Volume.clone", OnVolume(dbg, sr, vdi), cancellationToken)).Info;
        try
        {
            await SetAsync(dbg, sr, vdi, Volume.CloneOnBootKey, clone.Vdi.Value, cancellationToken);
        }
        catch
        {
            await plugin.Scripts.RunAsync("Volume.destroy", OnVolume(dbg, sr, clone.Vdi), CancellationToken.None);
            throw;
        }
    }

    public async Task VdiEpochEndAsync(string dbg, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        await DropCloneAsync(dbg, sr, await StatAsync(dbg, sr, vdi, cancellationToken), cancellationToken);

    public Task VdiComposeAsync(string dbg, SrId sr, VdiId parent, VdiId child, CancellationToken cancellationToken) =>
        ChangeAsync("Volume.compose", "VDI.compose", OnVolume(dbg, sr, child), cancellationToken, ("key2", parent.Value));

    public Task VdiRevertAsync(string dbg, SrId sr, VdiInfo snapshot, CancellationToken cancellationToken) =>
        ChangeAsync(
            "Volume.revert", "VDI.revert", OnVolume(dbg, sr, new VdiId(snapshot.SnapshotOf)), cancellationToken, ("snapshot", snapshot.Vdi.Value));

    public Task VdiEnableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ChangeAsync("Volume.enable_cbt", "VDI.enable_cbt", OnVolume(dbg, sr, vdi), cancellationToken);

    public Task VdiDisableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ChangeAsync("Volume.disable_cbt", "VDI.disable_cbt", OnVolume(dbg, sr, vdi), cancellationToken);

    public async Task VdiDataDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        await ChangeAsync("Volume.data_destroy", "VDI.data_destroy", OnVolume(dbg, sr, vdi), cancellationToken);
        await SetAsync(dbg, sr, vdi, Volume.TypeKey, "cbt_metadata", cancellationToken);
    }

    public async Task<string> VdiListChangedBlocksAsync(string dbg, SrId sr, VdiId from, VdiId to, CancellationToken cancellationToken)
    {
        const string script = "Volume.list_changed_blocks";
        Require(script, "VDI.list_changed_blocks");
        JsonObject parameters = OnVolume(dbg, sr, from);
        (parameters["key2"], parameters["offset"], parameters["length"]) = (to.Value, 0, -1);
        return Shaped(
            script, await plugin.Scripts.RunAsync(script, parameters, cancellationToken),
            static a => StorageWire.Text(a as JsonObject ?? throw new RpcFormatException("a dict was expected"), "bitmap"));
    }

    public Task VdiSetContentIdAsync(string dbg, SrId sr, VdiId vdi, string contentId, CancellationToken cancellationToken)
    {
        Require("Volume.set", "VDI.set_content_id");
        return SetAsync(dbg, sr, vdi, Volume.ContentIdKey, contentId, cancellationToken);
    }

    public async Task VdiSetSmConfigAsync(string dbg, SrId sr, VdiId vdi, string key, string? value, CancellationToken cancellationToken)
    {
        if (value is null)
        {
            Require("Volume.unset", "VDI.remove_from_sm_config");
            await UnsetAsync(dbg, sr, vdi, Volume.SmConfigPrefix + key, cancellationToken);
            return;
        }

        Require("Volume.set", "VDI.add_to_sm_config");
        if ((await StatAsync(dbg, sr, vdi, cancellationToken)).Info.SmConfig.ContainsKey(key))
            throw StorageException.DuplicatedKey(key);
        await SetAsync(dbg, sr, vdi, Volume.SmConfigPrefix + key, value, cancellationToken);
    }

    public Task VdiTagAsync(string dbg, SrId sr, VdiId vdi, string tag, bool isThere, CancellationToken cancellationToken)
    {
        Require(isThere ? "Volume.set" : "Volume.unset", isThere ? "VDI.add_tags" : "VDI.remove_tags");
        return isThere
            ? SetAsync(dbg, sr, vdi, Volume.TagPrefix + tag, tag, cancellationToken)
            : UnsetAsync(dbg, sr, vdi, Volume.TagPrefix + tag, cancellationToken);
    }

    /// <summary>Custom keys, as of a snapshot that was taken here; the field's daemon lacks the call.</summary>
    public async Task VdiSetSnapshotOfAsync(
        string dbg, SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf, CancellationToken cancellationToken)
    {
        Require("Volume.set", "SR.update_snapshot_info_dest");
        await SetAsync(dbg, sr, vdi, Volume.SnapshotTimeKey, snapshotTime, cancellationToken);
        await SetAsync(dbg, sr, vdi, Volume.IsASnapshotKey, "true", cancellationToken);
        await SetAsync(dbg, sr, vdi, Volume.SnapshotOfKey, snapshotOf.Value, cancellationToken);
    }

    /// <summary>The datapath's plugin copies and mirrors in one job.</summary>
    public async Task<DataOperation> DataMirrorAsync(
        string dbg, SrId sr, VdiId vdi, string vm, string url, CancellationToken cancellationToken)
    {
        (ScriptFolder scripts, JsonObject parameters) = await DatapathAsync(dbg, new DatapathId("mirror"), sr, vdi, vm, cancellationToken);
        if (!scripts.Has("Data.mirror"))
            throw StorageException.Unimplemented("DATA.mirror");
        (parameters["domain"], parameters["remote"]) = (vm, url);
        return Shaped(scripts, "Data.mirror", await scripts.RunAsync("Data.mirror", parameters, cancellationToken), StorageWire.ReadOperation);
    }

    public async Task<DataStatus> DataStatAsync(
        string dbg, SrId sr, VdiId vdi, string vm, DataOperation operation, CancellationToken cancellationToken)
    {
        (ScriptFolder scripts, _) = await DatapathAsync(dbg, new DatapathId("mirror"), sr, vdi, vm, cancellationToken);
        if (!scripts.Has("Data.stat"))
            throw StorageException.Unimplemented("DATA.stat");
        JsonObject parameters = new() { ["dbg"] = dbg, ["operation"] = StorageWire.Write(operation) };
        return Shaped(scripts, "Data.stat", await scripts.RunAsync("Data.stat", parameters, cancellationToken), StorageWire.ReadDataStatus);
    }

    /// <summary>The clone of an epoch that has ended, or of one that a crash cut off.</summary>
    private async Task DropCloneAsync(string dbg, SrId sr, Volume volume, CancellationToken cancellationToken)
    {
        if (!volume.Keys.TryGetValue(Volume.CloneOnBootKey, out string? clone))
            return;
        Require("Volume.unset", "VDI.epoch_end");
        await plugin.Scripts.RunAsync("Volume.destroy", OnVolume(dbg, sr, new VdiId(clone)), cancellationToken);
        await UnsetAsync(dbg, sr, volume.Info.Vdi, Volume.CloneOnBootKey, cancellationToken);
    }

    private async Task SetAsync(string dbg, SrId sr, VdiId vdi, string key, string value, CancellationToken cancellationToken)
    {
        JsonObject parameters = OnVolume(dbg, sr, vdi);
        (parameters["k"], parameters["v"]) = (key, value);
        await plugin.Scripts.RunAsync("Volume.set", parameters, cancellationToken);
    }

    private async Task UnsetAsync(string dbg, SrId sr, VdiId vdi, string key, CancellationToken cancellationToken)
    {
        JsonObject parameters = OnVolume(dbg, sr, vdi);
        parameters["k"] = key;
        await plugin.Scripts.RunAsync("Volume.unset", parameters, cancellationToken);
    }

    private async Task ChangeAsync(
        string script, string call, JsonObject parameters, CancellationToken cancellationToken, params (string Name, string Value)[] more)
    {
        Require(script, call);
        foreach ((string name, string value) in more)
            parameters[name] = value;
        await plugin.Scripts.RunAsync(script, parameters, cancellationToken);
    }

    private void Require(string script, string call)
    {
        if (!plugin.Scripts.Has(script))
            throw StorageException.Unimplemented(call);
    }

    /// <summary>An entry that names an SR must be enough to attach it with, and the other way round (research/storage.md 5.4).</summary>
    private static ProbedSr ReadProbed(JsonNode? node)
    {
        JsonObject json = node as JsonObject ?? throw new RpcFormatException("a probe's entry must be a dict");
        Dictionary<string, string> configuration = StorageWire.Map(StorageWire.Find(json, "configuration"));
        bool isComplete = StorageWire.Flag(json, "complete", false);
        SrInfo? sr = StorageWire.Find(json, "sr") is JsonObject stat ? ReadStat(stat, "") : null;
        if (configuration.ContainsKey("sr_uuid") && !isComplete)
            throw new RpcFormatException("a probe's entry has sr_uuid and is not complete");
        if (sr is not null && !configuration.ContainsKey("sr_uuid"))
            throw new RpcFormatException("a probe's entry has an SR and no sr_uuid");
        return new ProbedSr(configuration, isComplete, sr, StorageWire.Map(StorageWire.Find(json, "extra_info")));
    }
}
