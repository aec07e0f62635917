// SMAPIv2 -> one SMAPIv3 volume plugin and the datapath plugins: which scripts, in which order (research/storage.md 5.5; what that table
// marks as BUG is done right here). The SR string that SR.attach answered is kept in storage.db, so that SRs survive a restart of the
// daemon.
using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV3Bridge;

public sealed partial class SmapiV3Backend(VolumePlugin plugin, StoragePlugins plugins, StorageState state, TimeProvider time) : IStorageBackend
{
    private const string SrString = "smapiv3.sr";
    private const int UnreachableRetries = 3;

    public Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken) => Task.FromResult(plugin.Query);

    public async Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig,
        long physicalSizeBytes,
        CancellationToken cancellationToken)
    {
        JsonObject parameters = Configured(dbg, deviceConfig);
        parameters["uuid"] = sr.Value;
        parameters["name"] = nameLabel;
        parameters["description"] = nameDescription;
        JsonNode? answer = await plugin.Scripts.RunAsync("SR.create", parameters, cancellationToken);
        return answer is null && plugin.IsVersion3 ? deviceConfig : Shaped("SR.create", answer, StorageWire.Map);
    }

    public async Task SrAttachAsync(string dbg, SrId sr, IReadOnlyDictionary<string, string> deviceConfig,
        CancellationToken cancellationToken)
    {
        JsonNode? answer = await plugin.Scripts.RunAsync("SR.attach", Configured(dbg, deviceConfig), cancellationToken);
        state.Remember(sr, SrString,
            Shaped("SR.attach", answer, static a => a is JsonValue ? StorageWire.TextOf(a) : throw new RpcFormatException("no string")));
    }

    public async Task SrDetachAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        if (state.Recall(sr, SrString) is null)
            return;
        await plugin.Scripts.RunAsync("SR.detach", OnSr(dbg, sr), cancellationToken);
        state.Forget(sr, SrString);
    }

    public async Task SrDestroyAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await plugin.Scripts.RunAsync("SR.destroy", OnSr(dbg, sr), cancellationToken);
        state.Forget(sr, SrString);
    }

    public async Task<SrScan> SrScanAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        SrInfo info = await SrStatAsync(dbg, sr, cancellationToken);
        for (int retry = 0; info.Health == "Unreachable" && retry < UnreachableRetries; retry++)
        {
            await Task.Delay(TimeSpan.FromSeconds(1), time, cancellationToken);
            info = await SrStatAsync(dbg, sr, cancellationToken);
        }

        if (info.Health != "Healthy")
            throw new StorageException("SR_UNHEALTHY", sr.Value, info.Health, "repair the SR's storage, then scan again");
        JsonNode? answer = await plugin.Scripts.RunAsync("SR.ls", OnSr(dbg, sr), cancellationToken);
        List<Volume> volumes = Shaped("SR.ls", answer, ReadList);
        HashSet<string> temporaries = volumes.Select(static v => v.Keys.GetValueOrDefault(Volume.CloneOnBootKey, "")).ToHashSet();
        return new SrScan(volumes.Where(v => !temporaries.Contains(v.Info.Vdi.Value)).Select(static v => v.Info).ToList(), info);
    }

    /// <summary>One key twice is two disks for one, and a space that does not exist.</summary>
    private static List<Volume> ReadList(JsonNode? answer)
    {
        List<Volume> volumes = StorageWire.Items(answer).Select(Volume.Read).ToList();
        HashSet<VdiId> seen = [];
        return volumes.FirstOrDefault(v => !seen.Add(v.Info.Vdi)) is { } twice
            ? throw new RpcFormatException($"volume {twice.Info.Vdi} is listed twice")
            : volumes;
    }

    public async Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        JsonNode? answer = await plugin.Scripts.RunAsync("SR.stat", OnSr(dbg, sr), cancellationToken);
        return Shaped(
            "SR.stat", answer, a => ReadStat(a as JsonObject ?? throw new RpcFormatException("an SR must be a dict"), sr.Value));
    }

    private static SrInfo ReadStat(JsonObject stat, string uuid) => new(
        StorageWire.Text(stat, "uuid", uuid), StorageWire.Text(stat, "name", ""), StorageWire.Text(stat, "description", ""),
        StorageWire.Number(stat, "total_space"), StorageWire.Number(stat, "free_space"), StorageWire.Flag(stat, "clustered", false),
        StorageWire.Find(stat, "health") is JsonArray { Count: > 0 } variant ? StorageWire.TextOf(variant[0]) : "Healthy");

    public async Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken)
    {
        JsonObject parameters = OnSr(dbg, sr);
        parameters["name"] = request.NameLabel;
        parameters["description"] = request.NameDescription;
        parameters["size"] = request.VirtualSizeBytes;
        parameters["sharable"] = request.Sharable;
        VdiInfo created = (await ForVolumeAsync("Volume.create", parameters, cancellationToken)).Info;
        Dictionary<string, string> keys = request.SmConfig.ToDictionary(static p => Volume.SmConfigPrefix + p.Key, static p => p.Value);
        if (request.Type.Length != 0)
            keys[Volume.TypeKey] = request.Type;
        await SetOrUndoAsync(dbg, sr, created.Vdi, keys, cancellationToken);
        return created with { Type = request.Type.Length == 0 ? "user" : request.Type, SmConfig = request.SmConfig };
    }

    public async Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        Volume volume = await StatAsync(dbg, sr, vdi, cancellationToken);
        if (volume.Keys.TryGetValue(Volume.CloneOnBootKey, out string? temporary))
            await plugin.Scripts.RunAsync("Volume.destroy", OnVolume(dbg, sr, new VdiId(temporary)), cancellationToken);
        await plugin.Scripts.RunAsync("Volume.destroy", OnVolume(dbg, sr, vdi), cancellationToken);
    }

    public async Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        (await StatAsync(dbg, sr, vdi, cancellationToken)).Info;

    public async Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken)
    {
        VdiInfo snapshot = (await ForVolumeAsync("Volume.snapshot", OnVolume(dbg, sr, source.Vdi), cancellationToken)).Info;
        string now = time.GetUtcNow().ToString("yyyyMMdd'T'HH:mm:ss'Z'");
        Dictionary<string, string> keys = new()
        {
            [Volume.SnapshotTimeKey] = now,
            [Volume.IsASnapshotKey] = "true",
            [Volume.SnapshotOfKey] = source.Vdi.Value,
            [Volume.ContentIdKey] = source.ContentId,
            [Volume.TypeKey] = source.Type,
        };
        foreach (string tag in source.Tags)
            keys[Volume.TagPrefix + tag] = tag;
        await SetOrUndoAsync(dbg, sr, snapshot.Vdi, keys, cancellationToken);
        return snapshot with
        {
            Tags = source.Tags,
            SnapshotTime = now,
            IsASnapshot = true,
            SnapshotOf = source.Vdi.Value,
            ContentId = source.ContentId,
            Type = source.Type,
        };
    }

    public async Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        (await ForVolumeAsync("Volume.clone", OnVolume(dbg, sr, source.Vdi), cancellationToken)).Info;

    public async Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken)
    {
        JsonObject parameters = OnVolume(dbg, sr, vdi);
        parameters["new_size"] = newSizeBytes;
        await plugin.Scripts.RunAsync("Volume.resize", parameters, cancellationToken);
        return (await VdiStatAsync(dbg, sr, vdi, cancellationToken)).VirtualSizeBytes;
    }

    public async Task<Backend> VdiAttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        (ScriptFolder scripts, JsonObject parameters) = await DatapathAsync(dbg, datapath, sr, vdi, vm, cancellationToken);
        return Shaped(
            scripts, "Datapath.attach", await scripts.RunAsync("Datapath.attach", parameters, cancellationToken), StorageWire.ReadBackend);
    }

    public async Task VdiActivateAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        (ScriptFolder scripts, JsonObject parameters) = await DatapathAsync(dbg, datapath, sr, vdi, vm, cancellationToken);
        bool readOnly = access == VdiAccess.ReadOnly && scripts.Has("Datapath.activate_readonly");
        await scripts.RunAsync(readOnly ? "Datapath.activate_readonly" : "Datapath.activate", parameters, cancellationToken);
    }

    public async Task VdiDeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm,
        CancellationToken cancellationToken)
    {
        (ScriptFolder scripts, JsonObject parameters) = await DatapathAsync(dbg, datapath, sr, vdi, vm, cancellationToken);
        await scripts.RunAsync("Datapath.deactivate", parameters, cancellationToken);
    }

    public async Task VdiDetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        (ScriptFolder scripts, JsonObject parameters) = await DatapathAsync(dbg, datapath, sr, vdi, vm, cancellationToken);
        await scripts.RunAsync("Datapath.detach", parameters, cancellationToken);
    }

    /// <summary>
    /// The first of the volume's URIs that has a plugin; asked anew for each call, so a plugin's URIs must be stable from attach to detach.
    /// </summary>
    private async Task<(ScriptFolder Scripts, JsonObject Parameters)> DatapathAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        Volume volume = await StatAsync(dbg, sr, vdi, cancellationToken);
        if (volume.Keys.TryGetValue(Volume.CloneOnBootKey, out string? clone))
            volume = await StatAsync(dbg, sr, new VdiId(clone), cancellationToken);
        foreach (string uri in volume.Uris)
        {
            if (plugins.DatapathOf(uri) is { } scripts)
                return (scripts, new JsonObject { ["dbg"] = dbg, ["uri"] = uri, ["domain"] = DomainOf(datapath, vm) });
        }

        throw new StorageException("MISSING_URI", $"no datapath plugin serves any of: {string.Join(" ", volume.Uris)}");
    }

    /// <summary>Several users in dom0 are told apart by their datapaths; a guest is its domain id.</summary>
    private static string DomainOf(DatapathId datapath, string vm) =>
        vm == "0" ? $"u0-{datapath}".Replace('/', '_').Replace('-', '_') : vm;

    /// <summary>Custom keys belong to the volume that was just made; when one cannot be set, the volume goes again.</summary>
    private async Task SetOrUndoAsync(
        string dbg, SrId sr, VdiId vdi, IReadOnlyDictionary<string, string> keys, CancellationToken cancellationToken)
    {
        if (!plugin.Scripts.Has("Volume.set"))
            return; // Such plugins are real (research/storage.md, appendix C): type and keys are lost, the disk is not.
        try
        {
            foreach ((string key, string value) in keys)
            {
                JsonObject parameters = OnVolume(dbg, sr, vdi);
                parameters["k"] = key;
                parameters["v"] = value;
                await plugin.Scripts.RunAsync("Volume.set", parameters, cancellationToken);
            }
        }
        catch
        {
            await plugin.Scripts.RunAsync("Volume.destroy", OnVolume(dbg, sr, vdi), CancellationToken.None);
            throw;
        }
    }

    private Task<Volume> StatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ForVolumeAsync("Volume.stat", OnVolume(dbg, sr, vdi), cancellationToken);

    private async Task<Volume> ForVolumeAsync(string script, JsonObject parameters, CancellationToken cancellationToken) =>
        Shaped(script, await plugin.Scripts.RunAsync(script, parameters, cancellationToken), Volume.Read);

    private T Shaped<T>(string script, JsonNode? answer, Func<JsonNode?, T> read) => Shaped(plugin.Scripts, script, answer, read);

    private static T Shaped<T>(ScriptFolder scripts, string script, JsonNode? answer, Func<JsonNode?, T> read)
    {
        try
        {
            return read(answer);
        }
        catch (RpcFormatException e)
        {
            throw scripts.Misshapen(script, answer, e.Message);
        }
    }

    private JsonObject Configured(string dbg, IReadOnlyDictionary<string, string> deviceConfig)
    {
        JsonObject parameters = new() { ["dbg"] = dbg, ["configuration"] = StorageWire.Write(deviceConfig) };
        if (plugin.IsVersion3)
            parameters["uri"] = deviceConfig.TryGetValue("uri", out string? uri) ? uri : throw new StorageException("MISSING_URI");
        return parameters;
    }

    private JsonObject OnSr(string dbg, SrId sr) =>
        new() { ["dbg"] = dbg, ["sr"] = state.Recall(sr, SrString) ?? throw StorageException.SrNotAttached(sr) };

    private JsonObject OnVolume(string dbg, SrId sr, VdiId vdi)
    {
        JsonObject parameters = OnSr(dbg, sr);
        parameters["key"] = vdi.Value;
        return parameters;
    }
}
