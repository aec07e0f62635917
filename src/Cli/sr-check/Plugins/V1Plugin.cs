// A SMAPIv1 driver: one program, the whole call in its one argument, its disks known by what it tells the toolstack's database
// (research/storage.md section 3). The calls are those of the adapter that the daemon uses.
using System.Globalization;
using System.Text.Json.Nodes;
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Tap;
using StorageAccess.Wire;

namespace SrCheck.Plugins;

internal sealed class V1Plugin : IPluginUnderTest
{
    private readonly string program;
    private readonly WorldPlace place;
    private readonly string type;
    private IReadOnlyDictionary<string, string> configuration;

    public V1Plugin(string program, PluginProcess process, string srUuid, WorldPlace place, PluginInfo? info)
    {
        this.program = program;
        this.place = place;
        Process = process;
        SrUuid = srUuid;
        configuration = place.DeviceConfig;
        string file = Path.GetFileName(program);
        type = (file.EndsWith("SR", StringComparison.Ordinal) ? file[..^2] : file).ToLowerInvariant();
        Info = info ?? new PluginInfo(type, "", "", "", new HashSet<string>(), new Dictionary<string, string>());
        Tables = new ToolstackTables(srUuid, type, () => configuration, CallPlugin);
        Toolstack = new Toolstack(place.SocketPath, Tables);
    }

    public bool IsV1 => true;

    public PluginInfo Info { get; private set; }

    public PluginProcess Process { get; }

    public string SrUuid { get; }

    public ToolstackTables Tables { get; }

    public Toolstack Toolstack { get; }

    public IReadOnlyDictionary<string, string> Configuration
    {
        get => configuration;
        set
        {
            configuration = value;
            Tables.SetDeviceConfig(value);
        }
    }

    public ValueTask DisposeAsync() => Toolstack.DisposeAsync();

    public async Task<PluginInfo> QueryAsync()
    {
        const string command = "sr_get_driver_info";
        Dictionary<string, string> texts;
        List<string> capabilities;
        Dictionary<string, string> keys = [];
        RpcValue answer = await CallAsync(new SmCall(command) { HostRef = ToolstackTables.HostRef });
        try
        {
            RpcStruct info = answer.AsStruct();
            string[] names = ["name", "description", "vendor", "copyright", "driver_version", "required_api_version"];
            texts = names.ToDictionary(static n => n, n => info.Get(n).AsString());
            capabilities = [.. info.Get("capabilities").AsArray().Select(static c => c.AsString())];
            foreach (RpcValue entry in info.Get("configuration").AsArray())
                keys[entry.AsStruct().Get("key").AsString()] = entry.AsStruct().Get("description").AsString();
        }
        catch (RpcFormatException e)
        {
            throw new PluginBrokenException(command, $"{e.Message}: {PluginCall.Cut(XmlRpc.WriteValue(answer))}");
        }

        HashSet<string> features = [.. capabilities.Select(static c => c.Split('/')[0])];
        features.UnionWith(["SR_CREATE", "SR_DELETE", "SR_ATTACH", "SR_DETACH", "SR_SCAN"]);
        Info = new PluginInfo(type, texts["name"], texts["driver_version"], texts["required_api_version"], features, keys);
        return Info;
    }

    public Task CreateSrAsync(long sizeBytes = 0) => NilAsync(Call("sr_create", arguments: Text(sizeBytes)));

    public Task AttachSrAsync() => NilAsync(Call("sr_attach"));

    public Task DetachSrAsync() => NilAsync(Call("sr_detach"));

    public Task DestroySrAsync() => NilAsync(Call("sr_delete"));

    public Task ScanSrAsync() => NilAsync(Call("sr_scan"));

    public async Task<SrSpace> StatSrAsync()
    {
        await NilAsync(Call(Info.Has("SR_UPDATE") ? "sr_update" : "sr_scan"));
        long total = Tables.SrNumber("physical_size");
        return new SrSpace(total, total - Tables.SrNumber("physical_utilisation"), World.SrName, "Healthy");
    }

    public async Task<IReadOnlyList<Volume>> ScanAsync()
    {
        await ScanSrAsync();
        return Tables.Volumes();
    }

    public async Task<IReadOnlyList<string>> ProbeAsync()
    {
        JsonObject call = ToJson(XmlRpc.ReadCall(Call("sr_probe").ToXml()).Parameters[0].AsStruct());
        call.Remove("sr_ref");
        call.Remove("sr_uuid");
        call["sr_sm_config"] = new JsonObject();
        RpcValue answer = V1Answer.Read("sr_probe", await RunAsync("sr_probe", WriteCall("sr_probe", call)));
        return V1Answer.ProbedUuids(V1Answer.Text("sr_probe", answer));
    }

    public async Task<Volume> CreateAsync(string name, string description, long sizeBytes) =>
        await MadeAsync(Creation(name, description, Text(sizeBytes)));

    public Task<Volume> StatAsync(Volume volume) => Task.FromResult(
        Tables.Find(volume.Key) ?? throw new PluginRefusalException("VDI record", "HANDLE_INVALID", 144, $"no record of {volume.Key}"));

    public Task DestroyAsync(Volume volume) => NilAsync(Call("vdi_delete", volume));

    public async Task<Volume> SnapshotAsync(Volume volume)
    {
        Volume snapshot = await MadeAsync(Call("vdi_snapshot", volume) with { DriverParams = new Dictionary<string, string>() });
        Tables.Set(snapshot.Reference, "name_label", volume.Name);
        Tables.Set(snapshot.Reference, "is_a_snapshot", true);
        Tables.Set(snapshot.Reference, "snapshot_of", volume.Reference);
        return snapshot;
    }

    public async Task<Volume> CloneAsync(Volume volume) =>
        await MadeAsync(Call("vdi_clone", volume) with { DriverParams = new Dictionary<string, string>() });

    public async Task ResizeAsync(Volume volume, long sizeBytes) =>
        V1Answer.Location("vdi_resize", await CallAsync(Call("vdi_resize", volume, Text(sizeBytes))));

    public async Task<IReadOnlyList<Access>> AttachAsync(Volume volume, bool isWritable) =>
        V1Answer.Attached(await CallAsync(Call("vdi_attach", volume, Flag(isWritable))));

    public Task ActivateAsync(Volume volume, bool isWritable) => NilAsync(Call("vdi_activate", volume, Flag(isWritable)));

    public Task DeactivateAsync(Volume volume) => NilAsync(Call("vdi_deactivate", volume));

    public Task DetachAsync(Volume volume) => NilAsync(Call("vdi_detach", volume));

    public Volume Unknown()
    {
        const string uuid = "11111111-2222-3333-4444-555555555555";
        return new Volume(uuid, uuid, "", "", 0, 0, "OpaqueRef:vdi-" + uuid, new Dictionary<string, string>());
    }

    public async Task RawAsync(RawCall call)
    {
        SmCall proper = call.Operation switch
        {
            "sr_get_driver_info" => new SmCall(call.Operation) { HostRef = ToolstackTables.HostRef },
            "sr_create" => Call(call.Operation, arguments: "0"),
            "vdi_create" => Creation("raw", "", Text(World.SmallBytes)),
            "vdi_attach" or "vdi_activate" => Call(call.Operation, call.Volume, "true"),
            "vdi_resize" => Call(call.Operation, call.Volume, Text(2 * World.SmallBytes)),
            _ => Call(call.Operation, call.Volume),
        };
        JsonObject members = ToJson(XmlRpc.ReadCall(proper.ToXml()).Parameters[0].AsStruct());
        call.Change(members);
        V1Answer.Read(call.Operation, await RunAsync(call.Operation, WriteCall(call.Operation, members)));
    }

    /// <summary>The program alone, with arguments of its own.</summary>
    public Task<PluginCall> ProgramAsync(string name, IReadOnlyList<string> arguments) => Process.RunAsync(name, program, arguments, "");

    public Task<PluginCall> RunAsync(string command, string xml) => ProgramAsync(command, [xml]);

    /// <summary>The call's XML as the adapter writes it.</summary>
    public string XmlOf(string command, Volume? volume = null) => Call(command, volume).ToXml();

    private SmCall Creation(string name, string description, string size) =>
        Call("vdi_create", null, size, name, description, "", "false", "19700101T00:00:00Z", "", "false") with
        {
            VdiType = "user",
            VdiSmConfig = new Dictionary<string, string>(),
        };

    private SmCall Call(string command, Volume? volume = null, params string[] arguments) => new(command)
    {
        HostRef = ToolstackTables.HostRef,
        Arguments = arguments,
        Sr = new SmSr(Tables.SrRef, ToolstackTables.SessionRef, IsMaster: true, configuration),
        SrUuid = new SrId(SrUuid),
        TaskRef = "OpaqueRef:NULL",
        Vdi = volume is null
            ? null
            : new SmVdi(volume.Reference, "persist", false, new VdiInfo { Vdi = new VdiId(volume.Key), Uuid = volume.Uuid }),
    };

    private async Task<Volume> MadeAsync(SmCall call)
    {
        (string uuid, string location) = V1Answer.Location(call.Command, await CallAsync(call));
        Volume volume = Tables.Find(location)
            ?? throw new PluginBrokenException(call.Command,
                $"it answered location {location}, which it has not introduced (VDI.db_introduce)");
        return volume.Uuid == uuid
            ? volume
            : throw new PluginBrokenException(call.Command, $"it answered uuid {uuid} and introduced {volume.Uuid}");
    }

    private async Task NilAsync(SmCall call) => V1Answer.Nil(call.Command, await CallAsync(call));

    private async Task<RpcValue> CallAsync(SmCall call) => V1Answer.Read(call.Command, await RunAsync(call.Command, call.ToXml()));

    /// <summary>The field's tapdisk-pause, against the tapdisks of this world; what others there are has nothing to do here.</summary>
    private string CallPlugin(string pluginAndFunction)
    {
        if (!pluginAndFunction.StartsWith("tapdisk-pause/", StringComparison.Ordinal))
            return "True";
        TapControl taps = new(place.ControlFolder);
        foreach (TapEntry entry in taps.ListAsync(CancellationToken.None).GetAwaiter().GetResult())
        {
            if (entry is not { ProcessId: { } process, Minor: { } minor, Arguments: not null })
                continue;
            Task done = pluginAndFunction.EndsWith("/pause", StringComparison.Ordinal)
                ? taps.PauseAsync(process, minor, CancellationToken.None)
                : taps.ResumeAsync(process, minor, arguments: null, secondary: null, CancellationToken.None);
            done.GetAwaiter().GetResult();
        }

        return "True";
    }

    private static string WriteCall(string command, JsonObject members) =>
        XmlRpc.WriteCall(command, FromJson(members));

    private static JsonObject ToJson(RpcStruct members)
    {
        JsonObject json = [];
        foreach ((string name, RpcValue value) in members.Members)
        {
            json[name] = value switch
            {
                RpcStruct inner => ToJson(inner),
                RpcArray items => new JsonArray([.. items.Items.Select(static i => JsonValue.Create(i.AsString()))]),
                _ => value.AsString(),
            };
        }

        return json;
    }

    private static RpcValue FromJson(JsonNode? node) => node switch
    {
        JsonObject map => RpcValue.Struct([.. map.Select(static m => (m.Key, FromJson(m.Value)))]),
        JsonArray items => RpcValue.Array(items.Select(FromJson)),
        null => "",
        _ => node.ToString(),
    };

    private static string Text(long value) => value.ToString(CultureInfo.InvariantCulture);

    private static string Flag(bool value) => value ? "true" : "false";
}
