// Every call of SMAPIv2 through the client, JSON over a unix socket, and the server, and back; and the wire forms that the field's other
// ends rely on.
using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Wire;
using Support;

namespace Unit.StorageAccessTests;

public sealed class StorageServerTests : IAsyncDisposable
{
    private static readonly SrId Sr = new("sr-1");
    private static readonly DatapathId Dp = new("vbd/1/xvda");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly MemoryStorageBackend backend = new();
    private readonly StorageState state;
    private readonly StorageLayer layer;
    private readonly StorageTasks tasks;
    private readonly FakeCopier copier = new();
    private readonly StorageServer server;
    private readonly UnixHttpServer socket;
    private readonly JsonRpcClient rpc;
    private readonly StorageClient client;

    public StorageServerTests()
    {
        state = StorageState.Open(folder.File("storage.db"));
        layer = new StorageLayer(
            state, new Dictionary<string, IStorageBackend> { ["memory"] = backend }, new FakeReality(), TimeProvider.System, TimeSpan.FromSeconds(10));
        layer.RegisterSr(Sr, "memory", new Dictionary<string, string>());
        tasks = new StorageTasks(layer.Updates, TimeProvider.System);
        server = new StorageServer(layer, tasks, copier);
        socket = new UnixHttpServer(folder.File("s"), text => server.Dispatcher.HandleAsync(text, None));
        rpc = new JsonRpcClient(folder.File("s"), TimeSpan.FromSeconds(10));
        client = new StorageClient(rpc);
    }

    public async ValueTask DisposeAsync()
    {
        rpc.Dispose();
        await socket.DisposeAsync();
        await tasks.DisposeAsync();
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public void Half_a_surrogate_pair_in_an_answer_is_a_format_error()
    {
        JsonNode answer = JsonNode.Parse("""{"vdi":"a","virtual_size":1,"name_label":"\ud800"}""")!;
        Assert.Throws<RpcFormatException>(() => StorageWire.ReadVdiInfo(answer));
    }

    [Theory]
    [InlineData("[null]")]
    [InlineData("[null,1]")]
    [InlineData("[]")]
    [InlineData("{}")]
    public void An_error_without_a_tag_is_an_error_all_the_same(string error) =>
        Assert.Equal("INTERNAL_ERROR", StorageWire.ReadError(new JsonRpcException(JsonNode.Parse(error)!)).Code);

    [Fact]
    public async Task SR_calls_go_there_and_back()
    {
        Assert.Equal("mux", (await client.QueryAsync("t", None)).Driver);
        Dictionary<string, string> config = new() { ["location"] = "/srv/é" };
        IReadOnlyDictionary<string, string> kept = await client.SrCreateAsync("t", Sr, "name", "words & more", config, 1L << 41, None);
        Assert.Equal(new Dictionary<string, string>(config) { ["made"] = "2199023255552" }, kept);
        await client.SrAttachAsync("t", Sr, kept, None);
        Assert.Equal([Sr], await client.SrListAsync("t", None));
        Assert.Equal(1L << 40, (await client.SrStatAsync("t", Sr, None)).TotalSpaceBytes);
        SrScan scan = await client.SrScanAsync("t", Sr, None);
        Assert.Empty(scan.Vdis);
        Assert.Equal(Sr.Value, scan.Info.Uuid);
        await client.SrDetachAsync("t", Sr, None);
        Assert.Empty(await client.SrListAsync("t", None));
        await client.SrAttachAsync("t", Sr, kept, None);
        await client.SrDestroyAsync("t", Sr, None);
        Assert.Equal("No_storage_plugin_for_sr", (await Assert.ThrowsAsync<StorageException>(() => client.SrStatAsync("t", Sr, None))).Tag);
        await client.SrResetAsync("t", Sr, None);
    }

    [Fact]
    public async Task VDI_calls_go_there_and_back()
    {
        await client.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        VdiInfo request = new()
        {
            Vdi = new VdiId(""),
            NameLabel = "n",
            NameDescription = "d",
            Type = "system",
            VirtualSizeBytes = 3L << 40,
            ContentId = "c",
            Sharable = true,
            ReadOnly = true,
            SmConfig = new Dictionary<string, string> { ["k"] = "v" },
        };
        VdiInfo disk = await client.VdiCreateAsync("t", Sr, request, None);
        Assert.Equivalent(request with { Vdi = new VdiId("disk1"), Uuid = "uuid1" }, disk, strict: true);
        Assert.Equivalent(disk, await client.VdiStatAsync("t", Sr, disk.Vdi, None), strict: true);
        VdiInfo snapshot = await client.VdiSnapshotAsync("t", Sr, disk, None);
        Assert.Equal((true, disk.Vdi.Value), (snapshot.IsASnapshot, snapshot.SnapshotOf));
        Assert.Equal("disk3", (await client.VdiCloneAsync("t", Sr, snapshot, None)).Vdi.Value);
        Assert.Equal(4L << 40, await client.VdiResizeAsync("t", Sr, disk.Vdi, 4L << 40, None));
        await client.VdiDestroyAsync("t", Sr, disk.Vdi, None);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => client.VdiStatAsync("t", Sr, disk.Vdi, None));
        Assert.Equal(("Vdi_does_not_exist", "VDI_MISSING"), (e.Tag, e.Code));
    }

    [Fact]
    public async Task Datapath_calls_go_there_and_back()
    {
        VdiId vdi = await DiskAsync();
        Backend attached = await client.AttachAsync("t", Dp, Sr, vdi, "1", VdiAccess.ReadOnly, None);
        Assert.Equivalent(attached, await client.AttachAsync("t", Dp, Sr, vdi, "1", VdiAccess.ReadOnly, None), strict: true);
        Assert.Equal($"nbd:unix:/nbd/{vdi}:exportname={vdi}", attached.Nbd!.Uri);
        await client.ActivateAsync("t", Dp, Sr, vdi, "1", None);
        (VdiState superstate, IReadOnlyDictionary<DatapathId, VdiState> dps) = await client.DpStatVdiAsync("t", Sr, vdi, None);
        Assert.Equal(("Activated(RO)", "Activated(RO)"), (superstate.ToString(), dps[Dp].ToString()));
        Assert.Equivalent(attached, await client.DpAttachInfoAsync("t", Sr, vdi, Dp, "1", None), strict: true);
        Assert.Contains("vbd/1/xvda of VM 1, Activated(RO)", await client.DpDiagnosticsAsync(None));
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => client.DetachAsync("t", Dp, Sr, vdi, "1", None));
        Assert.Equal("Illegal_transition", e.Tag);
        Assert.Equal("Activated(RO)", e.Transition!.Value.From.ToString());
        await client.DeactivateAsync("t", Dp, Sr, vdi, "1", None);
        await client.DetachAsync("t", Dp, Sr, vdi, "1", None);
        await client.DestroyAsync("t", Dp, allowLeak: false, None);
        Assert.Empty(layer.Datapaths());
    }

    [Fact]
    public async Task A_backends_error_arrives_with_its_code_and_parameters()
    {
        VdiId vdi = await DiskAsync();
        backend.Next("VdiAttach", new StorageException("SR_BACKEND_FAILURE_44", "", "no space", "stderr é"));
        StorageException e =
            await Assert.ThrowsAsync<StorageException>(() => client.AttachAsync("t", Dp, Sr, vdi, "1", VdiAccess.ReadWrite, None));
        Assert.Equal("SR_BACKEND_FAILURE_44", e.Code);
        Assert.Equal(["", "no space", "stderr é"], e.Parameters);
    }

    [Theory]
    [InlineData("SR.list", """{"dbg":"t"}""", """{"result":[],"error":null,"id":7}""")]
    [InlineData("SR.scan", """{"dbg":"t","sr":"sr-1"}""", """{"result":null,"error":["Sr_not_attached","sr-1"],"id":7}""")]
    [InlineData("SR.scan", """{"dbg":"t","sr":"x"}""", """{"result":null,"error":["No_storage_plugin_for_sr","x"],"id":7}""")]
    [InlineData("DP.create", """{"dbg":"t","id":"a"}""", """{"result":"a","error":null,"id":7}""")]
    [InlineData("SR.detach", """{"DBG":"t","SR":"sr-1","unknown":1}""", """{"result":null,"error":null,"id":7}""")]
    [InlineData("SR.probe", """{"queue":"memory"}""", """{"result":null,"error":["Unimplemented","SR.probe"],"id":7}""")]
    [InlineData("SR.scan", """{}""", """{"result":null,"error":["Internal_error","the member \u0022sr\u0022 is missing"],"id":7}""")]
    [InlineData(
        "DP.destroy", """{"dbg":"t","dp":"a","allow_leak":"maybe"}""",
        """{"result":null,"error":["Internal_error","\u0022allow_leak\u0022 must be a boolean"],"id":7}""")]
    public async Task The_wire_is_the_fields(string method, string parameters, string answer)
    {
        string request = $$"""{"method":"{{method}}","params":[{{parameters}}],"id":7}""";
        Assert.Equal(answer, await server.Dispatcher.HandleAsync(request, None));
    }

    [Fact]
    public async Task States_and_implementations_have_the_fields_form()
    {
        VdiId vdi = await DiskAsync();
        string attach = $$"""{"method":"VDI.attach3","params":[{"dbg":"t","dp":"a","sr":"sr-1","vdi":"{{vdi}}","vm":"0","read_write":true}],"id":1}""";
        JsonNode answer = JsonNode.Parse(await server.Dispatcher.HandleAsync(attach, None))!;
        Assert.Equal(
            $$"""{"implementations":[["XenDisk",{"params":"","extra":{},"backend_type":"vbd3"}],["Nbd",{"uri":"nbd:unix:/nbd/{{vdi}}:exportname={{vdi}}"}]]}""",
            answer["result"]!.ToJsonString());
        string stat = $$"""{"method":"DP.stat_vdi","params":[{"dbg":"t","sr":"sr-1","vdi":"{{vdi}}","unit":null}],"id":1}""";
        answer = JsonNode.Parse(await server.Dispatcher.HandleAsync(stat, None))!;
        Assert.Equal("""{"superstate":["Attached","RW"],"dps":{"a":["Attached","RW"]}}""", answer["result"]!.ToJsonString());
    }

    private async Task<VdiId> DiskAsync()
    {
        await client.SrAttachAsync("t", Sr, new Dictionary<string, string>(), None);
        return (await client.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = new VdiId(""), VirtualSizeBytes = 1 << 20 }, None)).Vdi;
    }
}
