// The bridge over plugins made of scripts: requests and answers as recorded from real plugins (Golden/smapiv3.jsonl), every form of error,
// and what the translation must get right (research/storage.md 5.2-5.5).
using System.Text.Json;
using System.Text.Json.Nodes;
using SmapiV3Bridge;
using StorageAccess;
using Support;

namespace Unit.SmapiV3BridgeTests;

public sealed class SmapiV3BackendTests : IDisposable
{
    private const string Volume = """{"key":"k","uuid":"u","name":"n","description":"d","read_write":true,"virtual_size":1048576,"physical_utilisation":1,"uri":["none://x","tapdisk://x"],"keys":{"vdi-type":"system"}}""";
    private static readonly SrId Sr = new("sr-1");
    private static readonly VdiId Vdi = new("k");
    private static readonly DatapathId Dp = new("vbd/3/xvda-1");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly StorageState state;

    public SmapiV3BackendTests()
    {
        state = StorageState.Open(folder.File("storage.db"));
        Script("volume/org.xen.xapi.storage.fake/Plugin.Query", """{"plugin":"fake","name":"f","required_api_version":"5.0","features":["VDI_DESTROY","SR_ATTACH","VDI_X/2"]}""");
        Script("volume/org.xen.xapi.storage.fake/SR.attach", "\"the sr\"");
        Script("volume/org.xen.xapi.storage.fake/Volume.stat", Volume);
        Script("datapath/tapdisk/Plugin.Query", """{"plugin":"tapdisk","name":"t","required_api_version":"5.0","features":[]}""");
        Script("datapath/tapdisk/Datapath.attach", """{"implementations":[["Nbd",{"uri":"nbd:unix:/a:exportname=b"}]]}""");
        foreach (string name in (string[])["activate", "deactivate", "detach"])
            Script($"datapath/tapdisk/Datapath.{name}", "null");
    }

    public void Dispose()
    {
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task Requests_and_answers_are_as_recorded_from_a_real_plugin()
    {
        List<JsonNode> golden = File.ReadLines(GoldenFile).Select(static l => JsonNode.Parse(l)!).ToList();
        foreach (JsonNode call in golden)
        {
            // The last good answer of each script.
            if (call["exit"]!.GetValue<int>() == 0)
                Script(call["script"]!.ToString(), call["stdout"]?.ToJsonString() ?? "null");
        }

        SmapiV3Backend backend = await BackendAsync("simple-file");
        JsonNode create = golden.Last(static g => g["script"]!.ToString().EndsWith("SR.create", StringComparison.Ordinal));
        SrId sr = new(create["stdin"]!["uuid"]!.ToString());
        Dictionary<string, string> config = create["stdin"]!["configuration"]!.Deserialize<Dictionary<string, string>>()!;
        IReadOnlyDictionary<string, string> kept = await backend.SrCreateAsync("heldout", sr, "my sr", "words & more", config, 0, None);
        await backend.SrAttachAsync("heldout", sr, kept, None);
        await backend.SrStatAsync("heldout", sr, None);
        VdiInfo request =
            new() { Vdi = new VdiId(""), NameLabel = "vol 1", NameDescription = "été 漢", VirtualSizeBytes = 8388608, Type = "" };
        VdiInfo made = await backend.VdiCreateAsync("heldout", sr, request, None);
        Assert.Equal("bb8807f9-a868-4e1c-90f7-27d4f17b38dc", made.Vdi.Value);
        Assert.Equal(16777216, await backend.VdiResizeAsync("heldout", sr, made.Vdi, 16777216, None));
        Backend attached = await backend.VdiAttachAsync("heldout", Dp, sr, made.Vdi, "u0", VdiAccess.ReadWrite, None);
        Assert.Equal("/dev/loop0", attached.Implementations.OfType<BlockDevicePath>().Single().Path);
        await backend.VdiActivateAsync("heldout", Dp, sr, made.Vdi, "u0", VdiAccess.ReadWrite, None);
        await backend.VdiDeactivateAsync("heldout", Dp, sr, made.Vdi, "u0", None);
        await backend.VdiDetachAsync("heldout", Dp, sr, made.Vdi, "u0", None);
        await backend.VdiDestroyAsync("heldout", sr, made.Vdi, None);
        await backend.SrScanAsync("heldout", sr, None);
        await backend.SrDetachAsync("heldout", sr, None);

        foreach (IGrouping<string, JsonObject> sent in Sent().GroupBy(static s => s.Script, static s => s.Request))
        {
            List<JsonNode> recorded =
                golden.Where(g => g["script"]!.ToString().EndsWith("/" + sent.Key, StringComparison.Ordinal)).ToList();
            if (sent.Key != "Plugin.Query")
                Assert.All(sent, r => Assert.Contains(recorded, g => JsonNode.DeepEquals(r, g["stdin"])));
        }

        Assert.Equal(13, Sent().Select(static s => s.Script).Distinct().Count() - 1);
    }

    [Theory]
    [InlineData("""echo '{"code":"SR_BACKEND_FAILURE_44","params":["no","space"],"backtrace":{}}'; exit 1""", "SR_BACKEND_FAILURE_44", "no|space", false)]
    [InlineData("""echo '{"code":"x","params":["Activated_on_another_host","h"]}'; exit 1""", "VDI_IN_USE", "h|activated on another host", false)]
    [InlineData("""echo '{"code":"Volume_does_not_exist","params":["k"]}'; exit 1""", "VDI_MISSING", "k", false)]
    [InlineData("echo noise >&2; echo half >&1; exit 0", "SCRIPT_FAILED", null, true)]
    [InlineData("exit 0", "SCRIPT_FAILED", null, true)]
    [InlineData("echo '[1,2]'; exit 1", "SCRIPT_FAILED", null, true)]
    [InlineData("echo '{\"key\":\"k\"}'", "SCRIPT_FAILED", null, true)]
    [InlineData("kill -9 $$", "SCRIPT_FAILED", null, true)]
    [InlineData("sleep 60", "SCRIPT_FAILED", null, true)]
    [InlineData("head -c 9000000 /dev/zero", "SCRIPT_FAILED", null, true)]
    public async Task Errors_and_garbage_are_told_apart(string script, string code, string? parameters, bool isOutcomeUnknown)
    {
        FakeProgram.Write(folder.File("volume/org.xen.xapi.storage.fake/Volume.stat"), script);
        SmapiV3Backend backend =
            await BackendAsync("fake", script.StartsWith("sleep", StringComparison.Ordinal) ? TimeSpan.FromSeconds(2) : null);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.VdiStatAsync("t", Sr, Vdi, None));
        Assert.Equal((code, isOutcomeUnknown), (e.Code, e.IsOutcomeUnknown));
        if (parameters is not null)
            Assert.Equal(parameters, string.Join("|", e.Parameters));
    }

    [Fact]
    public async Task A_failed_script_shows_its_stderr()
    {
        FakeProgram.Write(folder.File("volume/org.xen.xapi.storage.fake/Volume.stat"), "echo what went wrong >&2; exit 2");
        SmapiV3Backend backend = await BackendAsync();
        Assert.Contains("what went wrong",
            (await Assert.ThrowsAsync<StorageException>(() => backend.VdiStatAsync("t", Sr, Vdi, None))).Parameters[3]);
    }

    [Fact]
    public async Task A_missing_script_is_not_implemented()
    {
        SmapiV3Backend backend = await BackendAsync();
        StorageException e =
            await Assert.ThrowsAsync<StorageException>(() => backend.VdiCloneAsync("t", Sr, new VdiInfo { Vdi = Vdi }, None));
        Assert.Equal(("Unimplemented", "Volume.clone"), (e.Tag, e.Parameters[0]));
    }

    [Fact]
    public async Task The_domain_tells_dom0s_users_apart_and_a_guest_is_itself()
    {
        SmapiV3Backend backend = await BackendAsync();
        await backend.VdiAttachAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadWrite, None);
        await backend.VdiAttachAsync("t", Dp, Sr, Vdi, "7", VdiAccess.ReadWrite, None);
        Assert.Equal(["u0_vbd_3_xvda_1", "7"], Sent("Datapath.attach").Select(static r => r["domain"]!.ToString()));
        Assert.All(Sent("Datapath.attach"), static r => Assert.Equal("tapdisk://x", r["uri"]!.ToString()));
    }

    [Fact]
    public async Task A_reader_is_activated_read_only_when_the_plugin_can()
    {
        SmapiV3Backend without = await BackendAsync();
        await without.VdiActivateAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadOnly, None);
        Assert.Single(Sent("Datapath.activate"));
        Script("datapath/tapdisk/Datapath.activate_readonly", "null");
        SmapiV3Backend with = await BackendAsync();
        await with.VdiActivateAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadOnly, None);
        Assert.Single(Sent("Datapath.activate_readonly"));
        Assert.Single(Sent("Datapath.activate"));
    }

    [Fact]
    public async Task A_snapshots_keys_are_set_on_the_snapshot()
    {
        Script("volume/org.xen.xapi.storage.fake/Volume.snapshot", Volume.Replace("\"key\":\"k\"", "\"key\":\"snap\""));
        Script("volume/org.xen.xapi.storage.fake/Volume.set", "null");
        SmapiV3Backend backend = await BackendAsync();
        VdiInfo snapshot = await backend.VdiSnapshotAsync("t", Sr, new VdiInfo { Vdi = Vdi, ContentId = "c", Type = "system", Tags = ["red"] }, None);
        Assert.Equal(("snap", true, "k", "c"), (snapshot.Vdi.Value, snapshot.IsASnapshot, snapshot.SnapshotOf, snapshot.ContentId));
        Assert.All(Sent("Volume.set"), static r => Assert.Equal("snap", r["key"]!.ToString()));
        Assert.Equal(
            ["content_id=c", "is_a_snapshot=true", "snapshot_of=k", "tagsred=red", "vdi-type=system"],
            Sent("Volume.set").Select(static r => $"{r["k"]}={r["v"]}").Where(static k =>
                !k.StartsWith("snapshot_time", StringComparison.Ordinal)).Order());
    }

    [Fact]
    public async Task A_volume_whose_keys_cannot_be_set_is_destroyed_again()
    {
        Script("volume/org.xen.xapi.storage.fake/Volume.create", Volume);
        Script("volume/org.xen.xapi.storage.fake/Volume.destroy", "null");
        FakeProgram.Write(folder.File("volume/org.xen.xapi.storage.fake/Volume.set"), "echo '{\"code\":\"E\",\"params\":[]}'; exit 1");
        SmapiV3Backend backend = await BackendAsync();
        VdiInfo request = new() { Vdi = new VdiId(""), VirtualSizeBytes = 1 << 20, Type = "system" };
        Assert.Equal("E", (await Assert.ThrowsAsync<StorageException>(() => backend.VdiCreateAsync("t", Sr, request, None))).Code);
        Assert.Equal("k", Assert.Single(Sent("Volume.destroy"))["key"]!.ToString());
    }

    [Fact]
    public async Task An_attached_SR_is_known_to_the_next_daemon()
    {
        await BackendAsync();
        SmapiV3Backend next = await BackendAsync(attach: false);
        Assert.Equal("k", (await next.VdiStatAsync("t", Sr, Vdi, None)).Vdi.Value);
        Assert.Equal("the sr", Sent("Volume.stat").Single()["sr"]!.ToString());
        Script("volume/org.xen.xapi.storage.fake/SR.detach", "null");
        SmapiV3Backend last = await BackendAsync(attach: false);
        await last.SrDetachAsync("t", Sr, None);
        await last.SrDetachAsync("t", Sr, None);
        Assert.Single(Sent("SR.detach"));
        Assert.Equal("Sr_not_attached", (await Assert.ThrowsAsync<StorageException>(() => last.VdiStatAsync("t", Sr, Vdi, None))).Tag);
    }

    [Fact]
    public async Task A_scan_of_an_unhealthy_SR_is_refused_and_temporaries_are_not_listed()
    {
        const string stat = """{"sr":"the sr","name":"n","description":"","free_space":5,"total_space":9,"datasources":[],"clustered":false,"health":["HEALTH","m"]}""";
        Script("volume/org.xen.xapi.storage.fake/SR.stat", stat.Replace("HEALTH", "Unavailable"));
        Script(
            "volume/org.xen.xapi.storage.fake/SR.ls",
            $"[{Volume.Replace("\"vdi-type\":\"system\"", "\"clone-on-boot\":\"tmp\"")},{Volume.Replace("\"key\":\"k\"",
            "\"key\":\"tmp\"")}]");
        SmapiV3Backend backend = await BackendAsync();
        Assert.Equal("SR_UNHEALTHY", (await Assert.ThrowsAsync<StorageException>(() => backend.SrScanAsync("t", Sr, None))).Code);
        Script("volume/org.xen.xapi.storage.fake/SR.stat", stat.Replace("HEALTH", "Healthy"));
        SrScan scan = await backend.SrScanAsync("t", Sr, None);
        Assert.Equal("k", Assert.Single(scan.Vdis).Vdi.Value);
        Assert.Equal(5, scan.Info.FreeSpaceBytes);
    }

    [Fact]
    public async Task Discovery_derives_features_and_refuses_what_it_cannot_speak()
    {
        Script("volume/org.xen.xapi.storage.old/Plugin.Query", """{"plugin":"old","name":"o","required_api_version":"4.0","features":[]}""");
        FakeProgram.Write(folder.File("volume/org.xen.xapi.storage.broken/Plugin.Query"), "exit 1");
        Directory.CreateDirectory(folder.File("volume/org.xen.xapi.storage.empty"));
        File.WriteAllText(folder.File("volume/org.xen.xapi.storage.fake/Volume.clone"), "not executable");
        StoragePlugins plugins = await DiscoverAsync();
        VolumePlugin plugin = Assert.Single(plugins.Volumes);
        Assert.Equal("fake", plugin.Type);
        Assert.Equal(
            ["SR_ATTACH", "VDI_ACTIVATE", "VDI_ATTACH", "VDI_CLONE", "VDI_DEACTIVATE", "VDI_DELETE", "VDI_DETACH", "VDI_INTRODUCE",
                "VDI_RESET_ON_BOOT", "VDI_UPDATE", "VDI_X"],
            plugin.Query.Features.Order(StringComparer.Ordinal));
        Assert.Equal(["broken", "empty", "old"], plugins.Rejected.Select(static r => r.Path.Split('.')[^1]));
        Assert.Equal(["tapdisk"], plugins.DatapathSchemes);
        SmapiV3Backend backend = new(plugin, plugins, state, TimeProvider.System);
        await backend.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        Assert.Equal(
            "SCRIPT_NOT_EXECUTABLE",
            (await Assert.ThrowsAsync<StorageException>(() => backend.VdiCloneAsync("t", Sr, new VdiInfo { Vdi = Vdi }, None))).Code);
    }

    [Fact]
    public async Task Names_content_settings_and_tags_become_the_fields_scripts_and_keys()
    {
        foreach (string name in (string[])["set_name", "set_description", "set", "unset", "compose", "revert"])
            Script($"volume/org.xen.xapi.storage.fake/Volume.{name}", "null");
        SmapiV3Backend backend = await BackendAsync();
        await backend.VdiSetNameLabelAsync("t", Sr, Vdi, "new", None);
        await backend.VdiSetNameDescriptionAsync("t", Sr, Vdi, "words", None);
        await backend.VdiSetContentIdAsync("t", Sr, Vdi, "c", None);
        await backend.VdiSetSmConfigAsync("t", Sr, Vdi, "a", "b", None);
        await backend.VdiSetSmConfigAsync("t", Sr, Vdi, "a", null, None);
        await backend.VdiTagAsync("t", Sr, Vdi, "gold", true, None);
        await backend.VdiTagAsync("t", Sr, Vdi, "gold", false, None);
        await backend.VdiComposeAsync("t", Sr, new VdiId("parent"), Vdi, None);
        await backend.VdiRevertAsync("t", Sr, new VdiInfo { Vdi = new VdiId("snap"), SnapshotOf = "k" }, None);
        Assert.Equal("new", Assert.Single(Sent("Volume.set_name"))["new_name"]!.ToString());
        Assert.Equal("words", Assert.Single(Sent("Volume.set_description"))["new_description"]!.ToString());
        Assert.Equal(["content_id=c", "_sm_config_a=b", "tagsgold=gold"], Sent("Volume.set").Select(static r => $"{r["k"]}={r["v"]}"));
        Assert.Equal(["_sm_config_a", "tagsgold"], Sent("Volume.unset").Select(static r => r["k"]!.ToString()));
        Assert.Equal("k parent", Assert.Single(Sent("Volume.compose")) is { } c ? $"{c["key"]} {c["key2"]}" : "");
        Assert.Equal("k snap", Assert.Single(Sent("Volume.revert")) is { } r ? $"{r["key"]} {r["snapshot"]}" : "");
        Assert.Equal("VDI.enable_cbt", Assert.Single((await Assert.ThrowsAsync<StorageException>(() => backend.VdiEnableCbtAsync("t", Sr, Vdi, None))).Parameters));
    }

    [Theory]
    [InlineData("Volume.stat")]
    [InlineData(".")]
    public async Task A_plugin_that_everybody_may_write_to_is_refused_before_it_runs(string open)
    {
        string path = folder.File(Path.Combine("volume/org.xen.xapi.storage.fake", open));
        File.SetUnixFileMode(path, File.GetUnixFileMode(path) | UnixFileMode.OtherWrite);
        StoragePlugins plugins = await DiscoverAsync();
        Assert.Empty(plugins.Volumes);
        Assert.Contains("everybody may write", Assert.Single(plugins.Rejected).Reason, StringComparison.Ordinal);
        Assert.Single(Sent()); // The datapath plugin was asked, this one was not.
    }

    [Fact]
    public async Task A_key_that_is_there_is_not_replaced()
    {
        Script("volume/org.xen.xapi.storage.fake/Volume.set", "null");
        Script("volume/org.xen.xapi.storage.fake/Volume.stat", Volume.Replace("\"vdi-type\"", "\"_sm_config_a\"", StringComparison.Ordinal));
        SmapiV3Backend backend = await BackendAsync();
        Assert.Equal(
            "Duplicated_key", (await Assert.ThrowsAsync<StorageException>(() => backend.VdiSetSmConfigAsync("t", Sr, Vdi, "a", "b", None))).Tag);
        Assert.Empty(Sent("Volume.set"));
    }

    [Fact]
    public async Task An_epoch_that_forgets_is_served_by_a_clone_that_goes_at_its_end()
    {
        foreach (string name in (string[])["set", "unset", "destroy"])
            Script($"volume/org.xen.xapi.storage.fake/Volume.{name}", "null");
        Script("volume/org.xen.xapi.storage.fake/Volume.clone", Volume.Replace("\"k\"", "\"clone\"", StringComparison.Ordinal));
        SmapiV3Backend backend = await BackendAsync();
        await backend.VdiEpochBeginAsync("t", Sr, Vdi, "7", persistent: false, None);
        Assert.Equal("k clone-on-boot=clone", Assert.Single(Sent("Volume.set")) is { } set ? $"{set["key"]} {set["k"]}={set["v"]}" : "");

        Script("volume/org.xen.xapi.storage.fake/Volume.stat", Volume.Replace("\"vdi-type\":\"system\"", "\"clone-on-boot\":\"clone\"", StringComparison.Ordinal));
        await backend.VdiAttachAsync("t", Dp, Sr, Vdi, "7", VdiAccess.ReadWrite, None);
        Assert.Equal("clone", Sent("Volume.stat")[^1]["key"]!.ToString());
        await backend.VdiEpochEndAsync("t", Sr, Vdi, "7", None);
        Assert.Equal("clone", Assert.Single(Sent("Volume.destroy"))["key"]!.ToString());
        Assert.Equal("clone-on-boot", Assert.Single(Sent("Volume.unset"))["k"]!.ToString());
    }

    [Theory]
    [InlineData("""[{"configuration":{"sr_uuid":"u","path":"/a"},"complete":true,"sr":{"name":"n","total_space":2,"free_space":1},"extra_info":{}}]""", 1)]
    [InlineData("[]", 0)]
    [InlineData("""[{"configuration":{"sr_uuid":"u"},"complete":false}]""", -1)]
    [InlineData("""[{"configuration":{},"complete":true,"sr":{"total_space":2,"free_space":1}}]""", -1)]
    public async Task A_probe_is_a_list_and_a_contradiction_in_it_is_no_answer(string answer, int found)
    {
        Script("volume/org.xen.xapi.storage.fake/SR.probe", answer);
        SmapiV3Backend backend = await BackendAsync();
        Task<ProbeResult> probing = backend.SrProbeAsync("t", new Dictionary<string, string>(), new Dictionary<string, string>(), None);
        if (found < 0)
            Assert.Equal("SCRIPT_FAILED", (await Assert.ThrowsAsync<StorageException>(() => probing)).Code);
        else
            Assert.Equal(found, Assert.IsType<ProbeList>(await probing).Found.Count);
    }

    private void Script(string path, string answer)
    {
        string name = Path.GetFileName(path);
        FakeProgram.Write(folder.File(path),
            $"read -r line; printf '%s\\t%s\\n' {name} \"$line\" >> {folder.File("sent")}; cat <<'E'\n{answer}\nE");
    }

    private List<(string Script, JsonObject Request)> Sent() =>
        File.ReadLines(folder.File("sent")).Select(static l => l.Split('\t', 2)).Select(static p =>
            (p[0], JsonNode.Parse(p[1])!.AsObject())).ToList();

    private List<JsonObject> Sent(string script) => Sent().Where(s => s.Script == script).Select(static s => s.Request).ToList();

    private Task<StoragePlugins> DiscoverAsync(TimeSpan? deadline = null) => StoragePlugins.DiscoverAsync(
        folder.Path, new ScriptSettings("/usr/bin", new Dictionary<string, string>(), deadline ?? TimeSpan.FromSeconds(20)), None);

    private async Task<SmapiV3Backend> BackendAsync(string type = "fake", TimeSpan? deadline = null, bool attach = true)
    {
        StoragePlugins plugins = await DiscoverAsync(deadline);
        SmapiV3Backend backend = new(plugins.Volumes.Single(v => v.Type == type), plugins, state, TimeProvider.System);
        if (attach && type == "fake")
            await backend.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        return backend;
    }

    private static string GoldenFile
    {
        get
        {
            string? found = AppContext.BaseDirectory;
            while (!File.Exists(Path.Combine(found, "Storage.sln")))
                found = Path.GetDirectoryName(found)!;
            return Path.Combine(found, "tests/Unit/SmapiV3Bridge/Golden/smapiv3.jsonl");
        }
    }
}
