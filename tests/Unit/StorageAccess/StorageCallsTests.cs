// All calls of SMAPIv2 (research/storage.md 1.5) by their wire names, in both wire forms, and the layer's own: tasks, updates, copies.
using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Wire;
using Support;

namespace Unit.StorageAccessTests;

public sealed class StorageCallsTests : IAsyncDisposable
{
    // What the field's mux answers with Unimplemented too: it only runs inside a source's migration engine.
    private static readonly HashSet<string> FieldRefuses =
    [
        "DATA.MIRROR.send_start", "DATA.MIRROR.receive_start3", "DATA.MIRROR.receive_finalize3", "DATA.MIRROR.receive_cancel2",
    ];

    private static readonly string[] Calls =
    [
        "Query.query", "Query.diagnostics", "DP.create", "DP.destroy", "DP.destroy2", "DP.attach_info", "DP.diagnostics", "DP.stat_vdi", "SR.create", "SR.attach",
        "SR.detach", "SR.reset", "SR.destroy", "SR.list", "SR.probe", "SR.stat", "SR.scan", "SR.scan2", "SR.set_name_label", "SR.set_name_description",
        "VDI.create", "VDI.set_name_label", "VDI.set_name_description", "VDI.snapshot", "VDI.clone", "VDI.resize", "VDI.destroy", "VDI.stat",
        "VDI.introduce", "VDI.set_persistent", "VDI.epoch_begin", "VDI.attach", "VDI.attach2", "VDI.attach3", "VDI.activate", "VDI.activate3",
        "VDI.activate_readonly", "VDI.deactivate", "VDI.detach", "VDI.epoch_end", "VDI.similar_content", "VDI.get_by_name", "VDI.set_content_id",
        "VDI.compose", "VDI.revert", "VDI.add_to_sm_config", "VDI.remove_from_sm_config", "VDI.add_tags", "VDI.remove_tags", "VDI.enable_cbt",
        "VDI.disable_cbt", "VDI.data_destroy", "VDI.list_changed_blocks", "get_by_name", "DATA.copy", "DATA.import_activate", "DATA.get_nbd_server",
        "DATA.mirror", "DATA.stat", "DATA.MIRROR.receive_start", "DATA.MIRROR.receive_start2", "DATA.MIRROR.receive_finalize",
        "DATA.MIRROR.receive_finalize2", "DATA.MIRROR.receive_cancel", "DATA.MIRROR.pre_deactivate_hook", "DATA.MIRROR.has_mirror_failed",
        "DATA.MIRROR.list", "DATA.MIRROR.stat", "VDI.get_url", "SR.update_snapshot_info_src", "SR.update_snapshot_info_dest", "Policy.get_backend_vm", "TASK.stat", "TASK.cancel", "TASK.destroy", "TASK.list", "UPDATES.get",
    ];

    private static readonly SrId Sr = new("sr-1");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly MemoryStorageBackend backend = new();
    private readonly FakeCopier copier = new();
    private readonly StorageState state;
    private readonly StorageLayer layer;
    private readonly StorageTasks tasks;
    private readonly JsonRpcDispatcher dispatcher;

    public StorageCallsTests()
    {
        state = StorageState.Open(folder.File("storage.db"));
        layer = new StorageLayer(
            state, new Dictionary<string, IStorageBackend> { ["memory"] = backend }, new FakeReality(), TimeProvider.System, TimeSpan.FromSeconds(10));
        layer.RegisterSr(Sr, "memory", new Dictionary<string, string>());
        tasks = new StorageTasks(layer.Updates, TimeProvider.System);
        dispatcher = new StorageServer(layer, tasks, copier).Dispatcher;
    }

    public async ValueTask DisposeAsync()
    {
        await tasks.DisposeAsync();
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task Every_call_of_the_sheet_has_a_handler_and_the_others_say_which_they_are()
    {
        foreach (string call in Calls)
        {
            // A handler that is there complains about what is missing; one that is not there says Unimplemented with the call's own name.
            JsonNode answer = await RawAsync(call, new JsonObject { ["timeout"] = 0 }); // UPDATES.get lacks nothing, and would wait for one.
            string error = answer["error"]?.ToJsonString() ?? "";
            Assert.False(error == $"[\"Unimplemented\",\"{call}\"]", call);
        }

        foreach (string call in FieldRefuses)
            Assert.Equal($"[\"Unimplemented\",\"{call}\"]", (await RawAsync(call, new JsonObject()))["error"]!.ToJsonString());
    }

    [Theory]
    [InlineData("VDI.set_name_label", """{"new_name_label":"n"}""")]
    [InlineData("VDI.set_content_id", """{"content_id":"c"}""")]
    [InlineData("VDI.add_to_sm_config", """{"key":"k","value":"v"}""")]
    [InlineData("VDI.add_tags", """{"key":"k"}""")]
    [InlineData("VDI.enable_cbt", "{}")]
    [InlineData("VDI.data_destroy", "{}")]
    [InlineData("VDI.get_url", "{}")]
    [InlineData("DATA.mirror", """{"image_format":"vhd","vm":"1","url":"nbd+unix:///x?socket=/tmp/x"}""")]
    [InlineData("VDI.set_persistent", """{"persistent":false}""")]
    public async Task A_call_that_the_driver_lacks_is_refused_with_its_own_name(string call, string parameters)
    {
        VdiId vdi = await DiskAsync();
        JsonObject named = JsonNode.Parse(parameters)!.AsObject();
        (named["dbg"], named["sr"], named["vdi"]) = ("t", Sr.Value, vdi.Value);
        Assert.Equal($"[\"Unimplemented\",\"{call}\"]", (await RawAsync(call, named))["error"]!.ToJsonString());
    }

    [Fact]
    public async Task An_epoch_of_a_disk_that_keeps_its_content_calls_no_driver()
    {
        VdiId vdi = await DiskAsync();
        JsonObject named = new() { ["dbg"] = "t", ["sr"] = Sr.Value, ["vdi"] = vdi.Value, ["vm"] = "1", ["persistent"] = true };
        Assert.Null((await RawAsync("VDI.epoch_begin", named))["error"]);
        Assert.Null((await RawAsync("VDI.epoch_end", named))["error"]);
        named["persistent"] = false;
        Assert.Equal("[\"Unimplemented\",\"VDI.epoch_begin\"]", (await RawAsync("VDI.epoch_begin", named))["error"]!.ToJsonString());
    }

    [Fact]
    public async Task Similar_disks_are_told_by_their_tree_nearest_first()
    {
        VdiId vdi = await DiskAsync();
        VdiInfo snapshot = await layer.VdiSnapshotAsync("t", Sr, await layer.VdiStatAsync("t", Sr, vdi, None), None);
        await DiskAsync();
        IReadOnlyList<VdiInfo> similar = await layer.VdiSimilarContentAsync("t", Sr, vdi, None);
        Assert.Equal([vdi, snapshot.Vdi], similar.Select(static s => s.Vdi));
    }

    [Fact]
    public void The_distance_counts_edges_through_hidden_parents()
    {
        VdiInfo Disk(string name, string parent) => new()
        {
            Vdi = new VdiId(name),
            Uuid = "u-" + name,
            SmConfig = new Dictionary<string, string> { ["vhd-parent"] = "u-" + parent },
        };
        VdiInfo[] all = [Disk("a", "base"), Disk("b", "base"), Disk("base", "root"), Disk("c", "root"), Disk("far", "elsewhere")];
        Assert.Equal(["a", "base", "b", "c"], SimilarContent.Of(new VdiId("a"), all).Select(static s => s.Vdi.Value));
        Assert.Equal("Vdi_does_not_exist", Assert.Throws<StorageException>(() => SimilarContent.Of(new VdiId("x"), all)).Tag);
    }

    [Fact]
    public async Task A_copy_is_a_task_whose_result_is_the_new_disk_and_leaves_no_datapath()
    {
        VdiId vdi = await DiskAsync();
        string task = (await ResultAsync("DATA.copy", Copy(vdi)))!.GetValue<string>();
        JsonNode ended = await EndOfAsync(task);
        Assert.Equal("Completed", ended["state"]![0]!.GetValue<string>());
        Assert.Equal("Vdi_info", ended["state"]![1]!["result"]![0]!.GetValue<string>());
        Assert.Equal((1, 0, 2), (copier.Copies, layer.Datapaths().Count, (await layer.SrScanAsync("t", Sr, None)).Vdis.Count));
        await ResultAsync("TASK.destroy", new JsonObject { ["task"] = task });
        Assert.Equal("[\"Does_not_exist\",[\"task\",\"1\"]]", (await RawAsync("TASK.stat", new JsonObject { ["task"] = task }))["error"]!.ToJsonString());
    }

    [Fact]
    public async Task A_cancelled_or_failed_copy_leaves_neither_a_disk_nor_a_datapath()
    {
        VdiId vdi = await DiskAsync();
        foreach (bool isCancelled in (bool[])[true, false])
        {
            TaskCompletionSource reached = new();
            copier.Work = async cancellationToken =>
            {
                reached.SetResult();
                if (!isCancelled)
                    throw StorageException.Internal("the link is gone");
                await Task.Delay(Timeout.Infinite, cancellationToken);
            };
            string task = (await ResultAsync("DATA.copy", Copy(vdi)))!.GetValue<string>();
            await reached.Task;
            await ResultAsync("TASK.cancel", new JsonObject { ["task"] = task });
            JsonNode ended = await EndOfAsync(task);
            Assert.Equal(isCancelled ? "Cancelled" : "Internal_error", ended["state"]![1]![0]!.GetValue<string>());
            Assert.Equal((0, 1), (layer.Datapaths().Count, (await layer.SrScanAsync("t", Sr, None)).Vdis.Count));
        }
    }

    [Fact]
    public async Task A_copy_to_another_host_is_refused_and_says_what_to_call()
    {
        JsonObject copy = Copy(await DiskAsync());
        copy["url"] = "https://203.0.113.9/services/SM?session_id=OpaqueRef:x";
        JsonNode error = (await RawAsync("DATA.copy", copy))["error"]!;
        Assert.Equal("Migration_preparation_failure", error[0]!.GetValue<string>());
        Assert.Contains("VM.migrate_send", error[1]!.GetValue<string>(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Updates_tell_each_change_once_and_wait_for_the_next()
    {
        VdiId vdi = await DiskAsync();
        await layer.AttachAsync("t", new DatapathId("a"), Sr, vdi, "0", VdiAccess.ReadWrite, None);
        JsonNode first = (await ResultAsync("UPDATES.get", new JsonObject { ["dbg"] = "t", ["from"] = "", ["timeout"] = 0 }))!;
        Assert.Equal("[[\"Dp\",\"a\"]]", first[0]!.ToJsonString());
        string token = first[1]!.GetValue<string>();
        Task<JsonNode?> waiting = ResultAsync("UPDATES.get", new JsonObject { ["dbg"] = "t", ["from"] = token, ["timeout"] = 30 });
        Assert.False(waiting.IsCompleted);
        await layer.DetachAsync("t", new DatapathId("a"), Sr, vdi, "0", None);
        Assert.Equal("[[\"Dp\",\"a\"]]", (await waiting)![0]!.ToJsonString());
        await layer.VdiDestroyAsync("t", Sr, vdi, None);
        JsonNode last = (await ResultAsync("UPDATES.get", new JsonObject { ["dbg"] = "t", ["from"] = (await waiting)![1]!.GetValue<string>(), ["timeout"] = 0 }))!;
        Assert.Equal($"[[\"Vdi\",[\"sr-1\",\"{vdi}\"]]]", last[0]!.ToJsonString());
    }

    [Fact]
    public async Task The_XML_form_answers_with_a_status_and_never_with_a_fault()
    {
        await DiskAsync();
        RpcValue listed = await XmlAsync("SR.list", ("dbg", "t"));
        Assert.Equal("Success", listed.AsStruct().Get("Status").AsString());
        Assert.Equal(["sr-1"], listed.AsStruct().Get("Value").AsArray().Select(static v => v.AsString()));
        RpcValue stat = (await XmlAsync("SR.stat", ("dbg", "t"), ("sr", "sr-1"))).AsStruct().Get("Value");
        Assert.Equal(1L << 40, stat.AsStruct().Get("total_space").AsLong());
        RpcValue refused = await XmlAsync("SR.stat", ("dbg", "t"), ("sr", "x"));
        Assert.Equal("Failure", refused.AsStruct().Get("Status").AsString());
        Assert.Equal(["No_storage_plugin_for_sr", "x"], refused.AsStruct().Get("ErrorDescription").AsArray().Select(static v => v.AsString()));
        string malformed = await StorageXml.HandleAsync(dispatcher, "<methodCall><nonsense/>", None);
        Assert.Equal("Failure", XmlRpc.ReadResponse(malformed).AsStruct().Get("Status").AsString());
    }

    private async Task<VdiId> DiskAsync()
    {
        await layer.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        return (await layer.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), VirtualSizeBytes = 1 << 20 }, None)).Vdi;
    }

    private static JsonObject Copy(VdiId vdi) =>
        new() { ["dbg"] = "t", ["sr"] = Sr.Value, ["vdi"] = vdi.Value, ["vm"] = "0", ["url"] = "", ["dest"] = Sr.Value, ["verify_dest"] = false };

    private async Task<JsonNode> EndOfAsync(string task)
    {
        string token = "";
        while (true)
        {
            JsonNode now = (await ResultAsync("TASK.stat", new JsonObject { ["task"] = task }))!;
            if (now["state"]![0]!.GetValue<string>() != "Pending")
                return now;
            token = (await ResultAsync("UPDATES.get", new JsonObject { ["from"] = token, ["timeout"] = 5 }))![1]!.GetValue<string>();
        }
    }

    private async Task<JsonNode?> ResultAsync(string call, JsonObject parameters)
    {
        JsonNode answer = await RawAsync(call, parameters);
        Assert.Null(answer["error"]);
        return answer["result"];
    }

    private async Task<JsonNode> RawAsync(string call, JsonObject parameters) => JsonNode.Parse(await dispatcher.HandleAsync(
        new JsonObject { ["method"] = call, ["params"] = new JsonArray(parameters.DeepClone()), ["id"] = 1 }.ToJsonString(), None))!;

    private async Task<RpcValue> XmlAsync(string call, params (string Name, RpcValue Value)[] parameters) =>
        XmlRpc.ReadResponse(await StorageXml.HandleAsync(dispatcher, XmlRpc.WriteCall(call, RpcValue.Struct(parameters)), None));
}
