// A SMAPIv3 plugin: a folder of volume scripts and one of datapath scripts, each run with --json, named parameters in one line on stdin,
// the bare result on stdout (research/storage.md 5.2, 5.4). Shapes are read strictly: what the toolstack would guess at is an error here.
using System.Text.Json.Nodes;
using SrCheck.Checks;

namespace SrCheck.Plugins;

internal sealed class V3Plugin : IPluginUnderTest
{
    private const string Domain = "u0_sr_check";
    private readonly string volumeFolder;
    private readonly DatapathFolder datapaths;
    private string? sr;

    public V3Plugin(string volumeFolder, DatapathFolder datapaths, PluginProcess process, string srUuid,
        IReadOnlyDictionary<string, string> configuration, PluginInfo? info)
    {
        this.volumeFolder = volumeFolder;
        this.datapaths = datapaths;
        Process = process;
        SrUuid = srUuid;
        Configuration = configuration;
        Info = info ?? new PluginInfo("", "", "", "", new HashSet<string>(), new Dictionary<string, string>());
    }

    public bool IsV1 => false;

    public PluginInfo Info { get; private set; }

    public PluginProcess Process { get; }

    public string SrUuid { get; }

    public IReadOnlyDictionary<string, string> Configuration { get; set; }

    /// <summary>What SR.attach answered; what the other calls name the SR by.</summary>
    public string Sr => sr ?? throw new CheckFailedException("the SR is not attached");

    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    public async Task<PluginInfo> QueryAsync()
    {
        const string script = "Plugin.Query";
        JsonObject answer = V3Answer.Dict(script, await VolumeScriptAsync(script, []));
        HashSet<string> features = [.. V3Answer.Texts(script, answer, "features")];
        foreach (string text in new[] { "plugin", "name", "description", "vendor", "copyright", "version", "required_api_version" })
            V3Answer.Text(script, answer, text);
        V3Answer.Texts(script, answer, "required_cluster_stack");
        Dictionary<string, string> configuration = V3Answer.Map(script, answer, "configuration");
        Info = new PluginInfo(
            V3Answer.Text(script, answer, "plugin"), V3Answer.Text(script, answer, "name"), V3Answer.Text(script, answer, "version"),
            V3Answer.Text(script, answer, "required_api_version"), Derived(features), configuration);
        return Info;
    }

    public async Task CreateSrAsync(long sizeBytes = 0)
    {
        Dictionary<string, string> configuration = new(Configuration);
        if (sizeBytes > 0 && Info.Configuration.ContainsKey("size"))
            configuration["size"] = $"{sizeBytes}";
        JsonNode? answer = await VolumeScriptAsync("SR.create", new JsonObject
        {
            ["uuid"] = SrUuid,
            ["configuration"] = ToJson(configuration),
            ["name"] = World.SrName,
            ["description"] = World.SrDescription,
        });
        Configuration = V3Answer.Map("SR.create", new JsonObject { ["configuration"] = answer?.DeepClone() }, "configuration");
    }

    public async Task AttachSrAsync()
    {
        JsonNode? answer = await VolumeScriptAsync("SR.attach", new JsonObject { ["configuration"] = ToJson(Configuration) });
        sr = V3Answer.Text("SR.attach", new JsonObject { ["the answer"] = answer?.DeepClone() }, "the answer");
    }

    public Task DetachSrAsync() => NothingAsync("SR.detach", []);

    public Task DestroySrAsync() => NothingAsync("SR.destroy", []);

    public async Task<SrSpace> StatSrAsync() => V3Answer.SrStat("SR.stat", await VolumeScriptAsync("SR.stat", OfSr([])));

    public async Task<IReadOnlyList<Volume>> ScanAsync() =>
        [.. V3Answer.Array("SR.ls", await VolumeScriptAsync("SR.ls", OfSr([]))).Select(static v => V3Answer.Volume("SR.ls", v))];

    public async Task<IReadOnlyList<string>> ProbeAsync() =>
        V3Answer.Probe(await VolumeScriptAsync("SR.probe", new JsonObject { ["configuration"] = ToJson(Configuration) }));

    public async Task<Volume> CreateAsync(string name, string description, long sizeBytes) =>
        V3Answer.Volume("Volume.create", await VolumeScriptAsync("Volume.create", OfSr(Creation(name, description, sizeBytes))));

    public Task<Volume> StatAsync(Volume volume) => VolumeAsync("Volume.stat", volume);

    public Task DestroyAsync(Volume volume) => NothingAsync("Volume.destroy", Key(volume));

    public Task<Volume> SnapshotAsync(Volume volume) => VolumeAsync("Volume.snapshot", volume);

    public Task<Volume> CloneAsync(Volume volume) => VolumeAsync("Volume.clone", volume);

    public Task ResizeAsync(Volume volume, long sizeBytes)
    {
        JsonObject parameters = Key(volume);
        parameters["new_size"] = sizeBytes;
        return NothingAsync("Volume.resize", parameters);
    }

    public async Task<IReadOnlyList<Access>> AttachAsync(Volume volume, bool isWritable) =>
        V3Answer.Implementations(await DatapathScriptAsync("Datapath.attach", volume));

    public async Task ActivateAsync(Volume volume, bool isWritable)
    {
        string script = isWritable ? "Datapath.activate" : "Datapath.activate_readonly";
        if (!isWritable && !datapaths.Has(volume.Reference, script))
            script = "Datapath.activate"; // The toolstack falls back where a plugin has no read-only way.
        V3Answer.Nothing(script, await DatapathScriptAsync(script, volume));
    }

    public async Task DeactivateAsync(Volume volume) =>
        V3Answer.Nothing("Datapath.deactivate", await DatapathScriptAsync("Datapath.deactivate", volume));

    public async Task DetachAsync(Volume volume) =>
        V3Answer.Nothing("Datapath.detach", await DatapathScriptAsync("Datapath.detach", volume));

    public Volume Unknown() =>
        new("11111111-2222-3333-4444-555555555555", "", "", "", 0, 0, "nothing://", new Dictionary<string, string>());

    public async Task SetKeyAsync(Volume volume, string key, string? value)
    {
        JsonObject parameters = Key(volume);
        parameters["k"] = key;
        if (value is not null)
            parameters["v"] = value;
        await NothingAsync(value is null ? "Volume.unset" : "Volume.set", parameters);
    }

    public Task SetVolumeTextAsync(string script, Volume volume, string name, string text)
    {
        JsonObject parameters = Key(volume);
        parameters[name] = text;
        return NothingAsync(script, parameters);
    }

    public Task SetSrTextAsync(string script, string name, string text) => NothingAsync(script, new JsonObject { [name] = text });

    public async Task RawAsync(RawCall call)
    {
        JsonObject parameters = Proper(call);
        call.Change(parameters);
        bool isDatapath = call.Operation.StartsWith("Datapath.", StringComparison.Ordinal);
        JsonNode? answer = isDatapath
            ? V3Answer.Read(call.Operation, await RunAsync(call.Operation, datapaths.PathOf(call.Volume!.Reference, call.Operation),
                parameters))
            : await VolumeScriptAsync(call.Operation, parameters);
        _ = answer;
    }

    /// <summary>The program alone: its own arguments and standard input.</summary>
    public Task<PluginCall> ProgramAsync(string script, IReadOnlyList<string> arguments, string standardInput) =>
        Process.RunAsync(script, Path.Combine(volumeFolder, script), arguments, standardInput);

    public bool HasScript(string script) => File.Exists(Path.Combine(volumeFolder, script));

    /// <summary>For the opposite of a feature: the script is run though it is not claimed.</summary>
    public Task<JsonNode?> VolumeScriptAsync(string script, JsonObject parameters)
    {
        if (!HasScript(script))
            throw new PluginRefusalException(script, "Unimplemented", 38, "there is no such script");
        return ReadAsync();

        async Task<JsonNode?> ReadAsync() =>
            V3Answer.Read(script, await RunAsync(script, Path.Combine(volumeFolder, script), parameters));
    }

    private async Task<JsonNode?> DatapathScriptAsync(string script, Volume volume)
    {
        JsonObject parameters = new() { ["uri"] = volume.Reference, ["domain"] = Domain };
        return V3Answer.Read(script, await RunAsync(script, datapaths.PathOf(volume.Reference, script), parameters));
    }

    private Task<PluginCall> RunAsync(string script, string program, JsonObject parameters)
    {
        parameters["dbg"] ??= "sr-check";
        return Process.RunAsync(script, program, ["--json"], parameters.ToJsonString() + "\n");
    }

    private JsonObject Proper(RawCall call) => call.Operation switch
    {
        "Plugin.Query" => [],
        "SR.create" => new JsonObject
        {
            ["uuid"] = SrUuid,
            ["configuration"] = ToJson(Configuration),
            ["name"] = World.SrName,
            ["description"] = World.SrDescription,
        },
        "SR.attach" or "SR.probe" => new JsonObject { ["configuration"] = ToJson(Configuration) },
        "Volume.create" => OfSr(Creation("raw", "", World.SmallBytes)),
        _ when call.Operation.StartsWith("Datapath.", StringComparison.Ordinal) =>
            new JsonObject { ["uri"] = call.Volume!.Reference, ["domain"] = Domain },
        _ => OfSr(call.Volume is { } volume ? Key(volume) : []),
    };

    private static JsonObject Creation(string name, string description, long sizeBytes) =>
        new() { ["name"] = name, ["description"] = description, ["size"] = sizeBytes, ["sharable"] = false };

    private async Task<Volume> VolumeAsync(string script, Volume volume) =>
        V3Answer.Volume(script, await VolumeScriptAsync(script, OfSr(Key(volume))));

    private async Task NothingAsync(string script, JsonObject parameters) =>
        V3Answer.Nothing(script, await VolumeScriptAsync(script, OfSr(parameters)));

    private JsonObject OfSr(JsonObject parameters)
    {
        parameters["sr"] ??= Sr;
        return parameters;
    }

    private static JsonObject Key(Volume volume) => new() { ["key"] = volume.Key };

    private static JsonObject ToJson(IReadOnlyDictionary<string, string> map)
    {
        JsonObject json = [];
        foreach ((string key, string value) in map)
            json[key] = value;
        return json;
    }

    /// <summary>What the toolstack makes of the claimed features and the scripts that are there (research/storage.md 5.5).</summary>
    private HashSet<string> Derived(HashSet<string> claimed)
    {
        HashSet<string> features = [.. claimed.Select(static f => f.Split('/')[0])];
        if (features.Remove("VDI_DESTROY"))
            features.Add("VDI_DELETE");
        (string Script, string Feature)[] byScript =
        [
            ("SR.attach", "SR_ATTACH"), ("SR.create", "SR_CREATE"), ("SR.destroy", "SR_DELETE"), ("SR.detach", "SR_DETACH"),
            ("SR.ls", "SR_SCAN"), ("SR.stat", "SR_UPDATE"), ("SR.probe", "SR_PROBE"), ("Volume.create", "VDI_CREATE"),
            ("Volume.clone", "VDI_CLONE"), ("Volume.snapshot", "VDI_SNAPSHOT"), ("Volume.resize", "VDI_RESIZE"),
            ("Volume.destroy", "VDI_DELETE"), ("Volume.stat", "VDI_UPDATE"), ("Volume.set", "VDI_SET"), ("Volume.unset", "VDI_UNSET"),
            ("Volume.set_name", "VDI_SET_NAME"), ("Volume.set_description", "VDI_SET_DESCRIPTION"), ("SR.set_name", "SR_SET_NAME"),
            ("SR.set_description", "SR_SET_DESCRIPTION"),
        ];
        features.UnionWith(byScript.Where(s => HasScript(s.Script)).Select(static s => s.Feature));
        features.UnionWith(["VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE"]);
        return features;
    }
}
