using SmapiV1Adapter;
using SmapiV3Bridge;
using StorageAccess;
using Support;
using Unit.SmapiV1AdapterTests;

namespace Unit.StorageAccessTests;

/// <summary>
/// The two adapters over plugins that are shell scripts: one driver, and one plugin of each kind whose good scripts a test replaces.
/// </summary>
internal sealed class BadPluginWorld : IDisposable
{
    public const string Volume = """{"key":"disk","uuid":"u","name":"n","description":"","read_write":true,"virtual_size":1048576,"physical_utilisation":1,"uri":["tapdisk://x"],"keys":{}}""";
    public const string Stat = """{"sr":"the sr","name":"n","uuid":"sr","description":"","free_space":1,"total_space":2,"health":["Healthy",""]}""";
    public const string Located = "<struct><member><name>uuid</name><value>disk</value></member><member><name>location</name><value>disk</value></member></struct>";
    private const string PluginFolder = "volume/org.xen.xapi.storage.fake/";

    public static readonly SrId Sr = new("sr");
    public static readonly VdiId Disk = new("disk");
    public static readonly DatapathId Datapath = new("dp");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly StorageState state;

    public BadPluginWorld()
    {
        state = StorageState.Open(folder.File("storage.db"));
        Database.Add(Disk.Value);
        Script("Plugin.Query", Printing("""{"plugin":"fake","name":"f","required_api_version":"5.0","features":["VDI_SNAPSHOT"]}"""));
        Script("SR.attach", Printing("\"the sr\""));
        Script("SR.stat", Printing(Stat));
        Script("Volume.stat", Printing(Volume));
        FakeProgram.Write(File("datapath/tapdisk/Plugin.Query"), Printing("""{"plugin":"tapdisk","name":"t","required_api_version":"5.0"}"""));
    }

    public FakeSmDatabase Database { get; } = new();

    public void Dispose()
    {
        state.Dispose();
        folder.Dispose();
    }

    public string File(string name) => folder.File(name);

    public static string Printing(string text) => $"cat <<'E'\n{text}\nE";

    public static string Answer(string value) => $"<methodResponse><params><param><value>{value}</value></param></params></methodResponse>";

    /// <summary>What a plugin prints when all is well, for the call that <see cref="AskAsync"/> makes.</summary>
    public static string Good(bool isV1) => isV1 ? Answer("<nil/>") : Volume;

    public string Script(string name, string body) => FakeProgram.Write(File(PluginFolder + name), body);

    public string DatapathScript(string name, string body) => FakeProgram.Write(File("datapath/tapdisk/" + name), body);

    public SmapiV1Backend V1(string body, TimeSpan? deadline = null)
    {
        string path = FakeProgram.Write(File("sm/FakeSR"), body);
        QueryResult query = new("fake", "", "", "", "", "", [], new Dictionary<string, string>(), "SMAPIv1");
        string[] capabilities = ["VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_SNAPSHOT", "VDI_GENERATE_CONFIG"];
        SmDriver driver = new("fake", path, query, capabilities.ToDictionary(static c => c, static _ => 1));
        return new SmapiV1Backend(driver, Database, Settings(deadline));
    }

    public async Task<SmapiV3Backend> V3Async(TimeSpan? deadline = null)
    {
        StoragePlugins plugins = await DiscoverV3Async(deadline);
        SmapiV3Backend backend = new(Assert.Single(plugins.Volumes), plugins, state, TimeProvider.System);
        await backend.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        return backend;
    }

    public Task<StoragePlugins> DiscoverV3Async(TimeSpan? deadline = null) => StoragePlugins.DiscoverAsync(
        folder.Path, new ScriptSettings(folder.File("tools"), new Dictionary<string, string>(), deadline ?? TimeSpan.FromSeconds(20)), None);

    public async Task<IReadOnlyList<RejectedDriver>> RejectedV1Async() => (await SmDrivers.DiscoverAsync(
        File("sm"), [SmDrivers.AnyType], "OpaqueRef:h", Settings(null), None)).Rejected;

    /// <summary>One call that a good plugin answers: v1 sr_detach, v3 Volume.stat.</summary>
    public async Task AskAsync(bool isV1, string body, TimeSpan? deadline = null)
    {
        if (isV1)
        {
            await V1(body, deadline).SrDetachAsync("t", Sr, None);
            return;
        }

        SmapiV3Backend backend = await V3Async(deadline);
        Script("Volume.stat", body);
        await backend.VdiStatAsync("t", Sr, Disk, None);
    }

    /// <summary>The call has no answer: one error, and whether it was done is not known.</summary>
    public async Task<StorageException> HasNoAnswerAsync(bool isV1, string body, TimeSpan? deadline = null)
    {
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => AskAsync(isV1, body, deadline));
        Assert.Equal(isV1 ? "SR_BACKEND_FAILURE" : "SCRIPT_FAILED", e.Code);
        Assert.True(e.IsOutcomeUnknown);
        return e;
    }

    /// <summary>The layer over the one adapter or the other, its SR attached.</summary>
    public async Task<StorageLayer> LayerAsync(IStorageBackend backend)
    {
        Dictionary<string, IStorageBackend> backends = new() { ["fake"] = backend };
        StorageLayer layer = new(state, backends, new FakeReality(), TimeProvider.System, TimeSpan.FromSeconds(5));
        layer.RegisterSr(Sr, "fake", new Dictionary<string, string>());
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        return layer;
    }

    private SmDriverSettings Settings(TimeSpan? deadline) =>
        new(folder.File("tools"), new Dictionary<string, string>(), deadline ?? TimeSpan.FromSeconds(20));
}
