// The messages about names, origin and changed blocks: the driver is told, the row follows, and refusals have the field's codes.
using StorageAccess;
using StorageAccess.Wire;
using Support;
using Xapi.Storage;

namespace Unit.XapiTests;

public sealed class VdiMessageTests : IAsyncDisposable
{
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly ApiWorld world = new();
    private readonly TemporaryDirectory folder = new();
    private readonly NamingBackend backend = new();
    private readonly FakeCopier copier = new();
    private readonly StorageState state;
    private readonly StorageLayer layer;
    private readonly string sr;
    private readonly string pbd;

    public VdiMessageTests()
    {
        state = StorageState.Open(folder.File("storage.db"));
        layer = new StorageLayer(
            state, new Dictionary<string, IStorageBackend> { ["memory"] = backend }, new FakeReality(), TimeProvider.System, TimeSpan.FromSeconds(10));
        new VdiMessages(layer, copier, world.Database).AddTo(world.Messages);
        sr = world.Database.Create("SR", ("name_label", "sr"), ("type", "memory"));
        pbd = world.Database.Create("PBD", ("host", world.Host), ("SR", sr), ("currently_attached", true));
    }

    private SrId Id => new(world.Database.GetString("SR", sr, "uuid"));

    public async ValueTask DisposeAsync()
    {
        await world.DisposeAsync();
        state.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task A_new_name_goes_to_the_driver_and_to_the_row_and_a_drivers_own_call_back_only_to_the_row()
    {
        string vdi = await DiskAsync();
        world.Call("VDI.set_name_label", vdi, "new");
        world.Call("VDI.set_name_description", vdi, "text");
        world.Call("SR.set_name_label", sr, "its");
        Assert.Equal(["label disk1 new", "description disk1 text", "sr its"], backend.Told);
        Assert.Equal(("new", "text", "its"),
            (world.Database.GetString("VDI", vdi, "name_label"), world.Database.GetString("VDI", vdi, "name_description"), world.Database.GetString("SR", sr, "name_label")));
        ApiWorld.Unwrap(() => world.Call("VDI.set_name_label", ApiWorld.Local, world.Sessions.CreateForStorage(sr).Ref, vdi, "seen"));
        Assert.Equal((3, "seen"), (backend.Told.Count, world.Database.GetString("VDI", vdi, "name_label")));

        world.Database.Set("PBD", pbd, "currently_attached", false);
        Assert.Equal("SR_NOT_ATTACHED", CodeOf("VDI.set_name_label", vdi, "lost"));
        Assert.Equal("seen", world.Database.GetString("VDI", vdi, "name_label"));
    }

    [Fact]
    public async Task A_disk_that_the_SR_has_is_introduced_once()
    {
        await DiskAsync();
        world.Database.Destroy("VDI", VdiRows.Find(world.Database, sr, "disk1")!);
        string vdi = world.Call("VDI.introduce", Introduced("disk1")).AsString();
        Assert.Equal(("disk1", "given"), (world.Database.GetString("VDI", vdi, "location"), world.Database.GetString("VDI", vdi, "name_label")));
        Assert.Equal($"LOCATION_NOT_UNIQUE {sr} disk1", world.Refusal("VDI.introduce", Introduced("disk1")));

        RpcValue[] Introduced(string location) => ["u", "given", "", sr, "user", false, false, RpcValue.Map([]), location];
    }

    [Fact]
    public async Task Changed_blocks_are_told_of_and_what_has_none_is_refused_by_the_fields_codes()
    {
        string vdi = await DiskAsync();
        world.Call("VDI.enable_cbt", vdi);
        world.Call("VDI.enable_cbt", vdi);
        Assert.Equal(["cbt disk1"], backend.Told);
        Assert.True(world.Database.GetBool("VDI", vdi, "cbt_enabled"));
        Assert.Equal("AQ==", world.Call("VDI.list_changed_blocks", vdi, vdi).AsString());
        Assert.Equal("OPERATION_NOT_ALLOWED", CodeOf("VDI.data_destroy", vdi));
        world.Database.Set("VDI", vdi, "is_a_snapshot", true);
        Assert.Equal("OPERATION_NOT_ALLOWED", CodeOf("VDI.disable_cbt", vdi));
        Assert.Equal($"SR_OPERATION_NOT_SUPPORTED {sr}", world.Refusal("VDI.data_destroy", vdi));
        world.Database.Set("VDI", vdi, "cbt_enabled", false);
        Assert.Equal("VDI_NO_CBT_METADATA", CodeOf("VDI.data_destroy", vdi));
        world.Database.Set("VDI", vdi, "is_a_snapshot", false);
        world.Database.Set("VDI", vdi, "on_boot", "reset");
        Assert.Equal("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", CodeOf("VDI.enable_cbt", vdi));
        world.Database.Set("VDI", vdi, "type", "cbt_metadata");
        Assert.Equal("VDI_INCOMPATIBLE_TYPE", CodeOf("VDI.enable_cbt", vdi));
    }

    [Fact]
    public async Task A_copy_is_a_disk_of_its_own_with_the_names_of_the_first()
    {
        string vdi = await DiskAsync();
        string copy = world.Call("VDI.copy", vdi, sr).AsString();
        Assert.Equal((1, "disk2", "disk"), (copier.Copies, world.Database.GetString("VDI", copy, "location"), world.Database.GetString("VDI", copy, "name_label")));
        Assert.Empty(layer.Datapaths());
        Assert.Equal("OPERATION_NOT_ALLOWED", CodeOf("VDI.copy", vdi, sr, "OpaqueRef:NULL", copy));
    }

    private async Task<string> DiskAsync()
    {
        layer.RegisterSr(Id, "memory", new Dictionary<string, string>());
        await layer.SrAttachAsync("t", Id, new Dictionary<string, string>(), None);
        VdiInfo made = await layer.VdiCreateAsync(
            "t", Id, new VdiInfo { Vdi = new VdiId(""), NameLabel = "disk", VirtualSizeBytes = 1 << 20 }, None);
        return VdiRows.Ensure(world.Database, sr, made with { Uuid = "" });
    }

    private string CodeOf(string message, params RpcValue[] arguments) => world.Refusal(message, arguments).Split(' ')[0];

    /// <summary>A driver that takes names and knows changed blocks, and cannot drop a snapshot's data.</summary>
    private sealed class NamingBackend : MemoryStorageBackend, IStorageBackend
    {
        public List<string> Told { get; } = [];

        Task IStorageBackend.SrSetNameLabelAsync(string dbg, SrId sr, string nameLabel, CancellationToken cancellationToken) => Tell($"sr {nameLabel}");

        Task IStorageBackend.VdiSetNameLabelAsync(string dbg, SrId sr, VdiId vdi, string nameLabel, CancellationToken cancellationToken) =>
            Tell($"label {vdi} {nameLabel}");

        Task IStorageBackend.VdiSetNameDescriptionAsync(string dbg, SrId sr, VdiId vdi, string nameDescription, CancellationToken cancellationToken) =>
            Tell($"description {vdi} {nameDescription}");

        Task<VdiInfo> IStorageBackend.VdiIntroduceAsync(
            string dbg, SrId sr, string uuid, IReadOnlyDictionary<string, string> smConfig, VdiId location, CancellationToken cancellationToken) =>
            VdiStatAsync(dbg, sr, location, cancellationToken);

        Task IStorageBackend.VdiEnableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) => Tell($"cbt {vdi}");

        Task<string> IStorageBackend.VdiListChangedBlocksAsync(string dbg, SrId sr, VdiId from, VdiId to, CancellationToken cancellationToken) =>
            Task.FromResult("AQ==");

        private Task Tell(string what)
        {
            Told.Add(what);
            return Task.CompletedTask;
        }
    }
}
