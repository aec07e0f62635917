// DATA.MIRROR.receive_*: what is made and named in the answer, and that nothing of it is left by a failure, a cancel, or a death at any call.
using System.Text.Json.Nodes;
using Platform;
using StorageAccess;
using Support;

namespace Unit.StorageAccessTests;

public sealed class MirrorReceiverTests : IAsyncDisposable
{
    private const long SizeBytes = 1 << 20;
    private static readonly SrId Sr = new("sr-1");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly MemoryStorageBackend backend = new();
    private readonly StorageState state;
    private StorageLayer layer;
    private StorageTasks tasks;
    private StorageServer server;

    public MirrorReceiverTests()
    {
        state = StorageState.Open(folder.File("storage.db"));
        (layer, tasks, server) = Start();
        layer.RegisterSr(Sr, "memory", new Dictionary<string, string>());
    }

    public async ValueTask DisposeAsync()
    {
        await tasks.DisposeAsync();
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task A_start_makes_a_leaf_with_a_dummy_and_a_parent_and_finalising_leaves_the_leaf()
    {
        JsonNode made = await StartAsync([]);
        Assert.Equal("Vhd_mirror", (string)made[0]!);
        Assert.Equal(("disk1", "disk2", "disk3"), ((string)made[1]!["mirror_vdi"]!["vdi"]!, (string)made[1]!["dummy_vdi"]!, (string)made[1]!["copy_diffs_to"]!));
        Assert.Null(made[1]!["copy_diffs_from"]);
        Assert.Equal("far/disk", (string)made[1]!["mirror_vdi"]!["sm_config"]!["base_mirror"]!);
        DatapathRow datapath = Assert.Single(layer.Datapaths());
        Assert.Equal(("Activated(RW)", "7", (string)made[1]!["mirror_datapath"]!), (datapath.State.ToString(), datapath.Vm, datapath.Datapath.Value));
        Assert.Equal(
            """{"far/disk":{"source_vdi":"disk","dest_vdi":"disk1","state":["Receiving"],"failed":false}}""",
            (await ResultAsync("DATA.MIRROR.list"))!.ToJsonString());
        JsonNode changes = (await ResultAsync("UPDATES.get", ("from", ""), ("timeout", 0)))!;
        Assert.Contains("[\"Mirror\",\"far/disk\"]", changes[0]!.ToJsonString(), StringComparison.Ordinal);

        await ResultAsync("DATA.MIRROR.receive_finalize2", ("id", "far/disk"));
        Assert.Contains("VdiCompose disk3 disk1", backend.Calls);
        Assert.Equal((0, "disk1"), (layer.Datapaths().Count, Assert.Single((await layer.SrScanAsync("t", Sr, None)).Vdis).Vdi.Value));
        Assert.Equal("[\"Does_not_exist\",[\"mirror\",\"far/disk\"]]", (await ErrorAsync("DATA.MIRROR.stat", ("id", "far/disk")))!.ToJsonString());
    }

    [Fact]
    public async Task The_nearest_disk_that_is_not_larger_is_cloned_and_grown()
    {
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        foreach ((string content, long size) in new[] { ("large", SizeBytes * 2), ("far", SizeBytes), ("near", SizeBytes / 2) })
            await layer.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), ContentId = content, VirtualSizeBytes = size }, None);
        JsonNode made = await StartAsync(["unknown", "large", "near", "far"]);
        Assert.Equal("near", (string)made[1]!["copy_diffs_from"]!);
        Assert.Contains("VdiClone disk3", backend.Calls);
        Assert.Contains($"VdiResize disk6 {SizeBytes}", backend.Calls);
    }

    [Theory]
    [InlineData("SrScan")]
    [InlineData("VdiCreate")]
    [InlineData("VdiSnapshot")]
    [InlineData("VdiAttach")]
    [InlineData("VdiActivate")]
    public async Task A_start_that_fails_leaves_nothing_and_neither_does_a_death_that_a_later_cancel_finds(string call)
    {
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        backend.Next(call, new StorageException("SR_BACKEND_FAILURE_44", "", "no space", ""));
        Assert.Equal("Backend_error", (string)(await ErrorAsync("DATA.MIRROR.receive_start", Parameters([])))![0]!);
        await NothingIsLeftAsync();

        backend.Next(call, new InvariantException("the daemon dies"));
        await Assert.ThrowsAsync<InvariantException>(() => AnswerAsync("DATA.MIRROR.receive_start", Parameters([])));
        await RestartAsync();
        Assert.Equal("far/disk", Assert.Single((await ResultAsync("DATA.MIRROR.list"))!.AsObject()).Key);
        await ResultAsync("DATA.MIRROR.receive_cancel", ("id", "far/disk"));
        await NothingIsLeftAsync();
    }

    [Fact]
    public async Task A_cancel_destroys_what_was_made_and_a_second_start_of_the_same_mirror_replaces_the_first()
    {
        await StartAsync([]);
        await StartAsync([]);
        Assert.Equal(3, (await layer.SrScanAsync("t", Sr, None)).Vdis.Count);
        backend.Next("VdiDestroy", new StorageException("SR_BACKEND_FAILURE_46", "", "busy", ""));
        JsonNode left = (await ErrorAsync("DATA.MIRROR.receive_cancel", ("id", "far/disk")))!;
        Assert.Contains("busy", (string)left[1]!, StringComparison.Ordinal);
        await RestartAsync();
        await ResultAsync("DATA.MIRROR.receive_cancel", ("id", "far/disk"));
        await NothingIsLeftAsync();
        await ResultAsync("DATA.MIRROR.receive_cancel", ("id", "far/disk"));
        await ResultAsync("DATA.MIRROR.receive_finalize2", ("id", "far/disk"));
    }

    [Theory]
    [InlineData("VdiDeactivate")]
    [InlineData("VdiCompose")]
    [InlineData("VdiDestroy")]
    public async Task Once_the_sender_has_switched_over_nothing_is_destroyed_and_finalising_goes_on_where_it_stopped(string call)
    {
        await StartAsync([]);
        backend.Next(call, new InvariantException("the daemon dies"));
        await Assert.ThrowsAsync<InvariantException>(() => AnswerAsync("DATA.MIRROR.receive_finalize2", ("id", "far/disk")));
        await RestartAsync();
        Assert.Equal("Migration_mirror_failure", (string)(await ErrorAsync("DATA.MIRROR.receive_cancel", ("id", "far/disk")))![0]!);
        await ResultAsync("DATA.MIRROR.receive_finalize2", ("id", "far/disk"));
        Assert.Equal("disk1", Assert.Single((await layer.SrScanAsync("t", Sr, None)).Vdis).Vdi.Value);
        Assert.Single(backend.Calls.Where(static c => c == "VdiCompose disk3 disk1").Skip(call == "VdiCompose" ? 1 : 0));
    }

    [Fact]
    public async Task The_oldest_finalise_lets_go_of_the_leaf_and_leaves_the_rest_to_the_sender()
    {
        await StartAsync([]);
        await ResultAsync("DATA.MIRROR.receive_finalize", ("id", "far/disk"));
        Assert.Equal((0, 3), (layer.Datapaths().Count, (await layer.SrScanAsync("t", Sr, None)).Vdis.Count));
        Assert.Equal("{}", (await ResultAsync("DATA.MIRROR.list"))!.ToJsonString());
    }

    [Fact]
    public async Task Snapshots_are_told_which_disk_they_are_of_only_when_they_hold_the_same()
    {
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        foreach (string content in (string[])["c1", "c2"])
            await layer.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), ContentId = content, VirtualSizeBytes = SizeBytes }, None);
        JsonObject Pairs(string content) => new()
        {
            ["disk2"] = new JsonObject { ["vdi"] = "far-snapshot", ["content_id"] = content, ["snapshot_time"] = "20260101T00:00:00Z" },
        };
        (string, JsonNode?)[] common = [("sr", Sr.Value), ("vdi", "disk1"), ("src_vdi", new JsonObject { ["vdi"] = "far" })];
        Assert.Equal(
            "[\"Content_ids_do_not_match\",[\"disk2\",\"far-snapshot\"]]",
            (await ErrorAsync("SR.update_snapshot_info_dest", [.. common.Select(Copy), ("snapshot_pairs", Pairs("other"))]))!.ToJsonString());
        await ResultAsync("SR.update_snapshot_info_dest", [.. common.Select(Copy), ("snapshot_pairs", Pairs("c2"))]);
        Assert.Equal("VdiSetSnapshotOf disk2 disk1 20260101T00:00:00Z", backend.Calls[^1]);

        static (string, JsonNode?) Copy((string Name, JsonNode? Value) pair) => (pair.Name, pair.Value?.DeepClone());
    }

    [Fact]
    public async Task The_source_tells_the_destination_in_the_fields_form_and_hands_its_refusal_on()
    {
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        foreach (string content in (string[])["c1", "c2"])
            await layer.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), ContentId = content, VirtualSizeBytes = SizeBytes }, None);
        List<string> asked = [];
        await using UnixHttpServer far = UnixHttpServer.OnLoopback(async body =>
        {
            asked.Add(body);
            return await StorageXml.HandleAsync(server.Dispatcher, body, None);
        });
        (string, JsonNode?)[] Send(string remote) =>
        [
            ("sr", Sr.Value), ("vdi", "disk1"), ("url", far.Url + "services/SM?session_id=OpaqueRef:x"), ("dest", Sr.Value), ("dest_vdi", "disk1"),
            ("snapshot_pairs", new JsonObject { ["disk2"] = remote }), ("verify_dest", false),
        ];
        await ResultAsync("SR.update_snapshot_info_src", Send("disk2"));
        Assert.Contains("<name>disk2</name><value><struct><member><name>vdi</name><value>disk2</value>", Assert.Single(asked), StringComparison.Ordinal);
        Assert.True((await layer.VdiStatAsync("t", Sr, new VdiId("disk2"), None)).IsASnapshot);
        Assert.Equal("[\"Vdi_does_not_exist\",\"disk9\"]", (await ErrorAsync("SR.update_snapshot_info_src", Send("disk9")))!.ToJsonString());
    }

    private (StorageLayer, StorageTasks, StorageServer) Start()
    {
        StorageLayer started = new(
            state, new Dictionary<string, IStorageBackend> { ["memory"] = backend }, new FakeReality(), TimeProvider.System, TimeSpan.FromSeconds(10));
        StorageTasks its = new(started.Updates, TimeProvider.System);
        return (started, its, new StorageServer(started, its, new FakeCopier()));
    }

    private async Task RestartAsync()
    {
        await tasks.DisposeAsync();
        (layer, tasks, server) = Start();
        await layer.ReconcileAsync("restart", None);
    }

    private async Task NothingIsLeftAsync()
    {
        Assert.Empty((await layer.SrScanAsync("t", Sr, None)).Vdis);
        Assert.Empty(layer.Datapaths());
        Assert.Equal("{}", (await ResultAsync("DATA.MIRROR.list"))!.ToJsonString());
    }

    private async Task<JsonNode> StartAsync(string[] similar)
    {
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        return (await ResultAsync("DATA.MIRROR.receive_start2", [.. Parameters(similar), ("vm", "7")]))!;
    }

    private static (string, JsonNode?)[] Parameters(string[] similar) =>
    [
        ("dbg", "t"), ("sr", Sr.Value), ("id", "far/disk"), ("vdi_info", new JsonObject { ["vdi"] = "disk", ["uuid"] = "u", ["virtual_size"] = SizeBytes }),
        ("similar", new JsonArray([.. similar.Select(static s => (JsonNode)s)])),
    ];

    private async Task<JsonNode?> ResultAsync(string call, params (string, JsonNode?)[] parameters)
    {
        JsonNode answer = await AnswerAsync(call, parameters);
        Assert.True(answer["error"] is null, answer.ToJsonString());
        return answer["result"];
    }

    private async Task<JsonNode?> ErrorAsync(string call, params (string, JsonNode?)[] parameters) => (await AnswerAsync(call, parameters))["error"];

    private async Task<JsonNode> AnswerAsync(string call, params (string, JsonNode?)[] parameters)
    {
        JsonObject named = new(parameters.Select(static p => KeyValuePair.Create(p.Item1, p.Item2)));
        return JsonNode.Parse(await server.Dispatcher.HandleAsync(
            new JsonObject { ["method"] = call, ["params"] = new JsonArray(named), ["id"] = 1 }.ToJsonString(), None))!;
    }
}
