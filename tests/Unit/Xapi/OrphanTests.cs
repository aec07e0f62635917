// What migrations left behind: listed with the job that made it, removed only where a journal says so.
using System.Text.Json.Nodes;
using Migration;
using StorageAccess;
using Support;
using Xapi.Migration;

namespace Unit.XapiTests;

public sealed class OrphanTests : IAsyncDisposable
{
    private readonly TemporaryDirectory folder = new();
    private readonly ApiWorld world = new();
    private readonly Ground ground = new();
    private readonly MigrationStore store;
    private readonly string sr;
    private readonly MigrationPlan plan = new MigrationWorld().Plan;

    public OrphanTests()
    {
        store = new MigrationStore(folder.File("migrations.db"));
        sr = world.Database.Create("SR", ("uuid", "srA"));
        new Orphans(world.Database, store, ground).AddTo(world.Messages);
    }

    public async ValueTask DisposeAsync()
    {
        store.Dispose();
        await world.DisposeAsync();
        folder.Dispose();
    }

    [Fact]
    public void What_a_refused_migration_made_is_listed_with_its_job_and_removed()
    {
        string disk = Vdi("d9", ("sm_config", "base_mirror", "m1/xvda"));
        string vm = world.Database.Create("VM", ("uuid", "vm1"), ("power_state", "Halted"));
        world.Database.SetInMap("VM", vm, "other_config", "import_migration", "m1");
        ground.Rows.Add(new DatapathRow(new DatapathId("mirror/m1/xvda"), new SrId("srA"), new VdiId("other"), "0", default));
        ground.Domains.Add(new IncomingDomain("vm1", "m1"));
        Claim();
        Made(ResourceKind.Disk, "xvda", "d9");
        Made(ResourceKind.Datapath, "xvda", "mirror/m1/xvda");
        Made(ResourceKind.Vm, "", vm);
        store.Append("m1", new DestinationRecord.Making(new Resource(ResourceKind.Domain, "")));
        Assert.Empty(List()); // Its journal is open: it is the job's.

        store.Append("m1", new DestinationRecord.Refusing("enough"));
        store.Append("m1", new DestinationRecord.Refused());
        Dictionary<string, JsonObject> found = List();
        Assert.Equal(new[] { Uuid(disk), "vm1", "mirror/m1/xvda", "domain/m1" }.Order(), found.Keys.Order());
        Assert.All(found.Values, static o => Assert.True((bool)o["safe_to_remove"]!, o.ToJsonString()));
        Assert.Equal("refused lovely", $"{found[Uuid(disk)]["job"]!["ended"]} {found[Uuid(disk)]["job"]!["vm_name"]}");

        Assert.Contains("only disks and VMs", world.Refusal("orphans.adopt", "domain/m1"), StringComparison.Ordinal);
        foreach (string id in found.Keys)
            world.Call("orphans.remove", id);
        Assert.Equal(["vdi " + disk, "datapath mirror/m1/xvda", "domain m1"], ground.Removed.OrderByDescending(static r => r.StartsWith('v')).ThenBy(static r => r));
        Assert.False(world.Database.Exists("VM", vm));
    }

    [Theory]
    [InlineData("another disk", "does not say that it made this")]
    [InlineData("the owner's", "may run on this")]
    [InlineData("used", "it is a disk of VM")]
    [InlineData("open", "it is open")]
    [InlineData("no journal", "no journal of this pool")]
    public void What_no_journal_says_we_made_or_what_is_used_is_listed_and_never_removed(string how, string reason)
    {
        string disk = Vdi("d9", ("sm_config", "base_mirror", how == "no journal" ? "m7/xvda" : "m1/xvda"));
        Claim();
        Made(ResourceKind.Disk, "xvda", how == "another disk" ? "d8" : "d9");
        if (how == "the owner's")
        {
            store.Append("m1", new DestinationRecord.Accepting(8));
            store.Append("m1", new DestinationRecord.Confirmed(null!));
        }
        else
        {
            store.Append("m1", new DestinationRecord.Refused());
        }

        if (how == "used")
            world.Database.Create("VBD", ("VM", world.Database.Create("VM")), ("VDI", disk));
        if (how == "open")
            ground.Rows.Add(new DatapathRow(new DatapathId("vbd/x/xvda"), new SrId("srA"), new VdiId("d9"), "x", default));

        Assert.False((bool)List()[Uuid(disk)]["safe_to_remove"]!);
        Assert.Contains(reason, world.Refusal("orphans.remove", Uuid(disk)), StringComparison.Ordinal);
        Assert.Empty(ground.Removed);

        world.Call("orphans.adopt", Uuid(disk));
        Assert.Empty(List());
        Assert.True(world.Database.Exists("VDI", disk));
    }

    [Theory]
    [InlineData("d1", true)]
    [InlineData("a copy", false)]
    public void A_held_disk_whose_job_is_closed_is_removed_only_when_the_journal_names_it(string location, bool isSafe)
    {
        string disk = Vdi(location);
        HeldDisks.Hold(world.Database, disk, plan, DateTimeOffset.UnixEpoch);
        store.Append("m1", new SourceRecord.Begun(plan, DateTimeOffset.UnixEpoch));
        store.Append("m1", new SourceRecord.Granting(8));
        store.Append("m1", new SourceRecord.Accepted(DateTimeOffset.UnixEpoch));
        Assert.Empty(List());
        Assert.StartsWith("UUID_INVALID", world.Refusal("orphans.remove", Uuid(disk)));
        store.Append("m1", new SourceRecord.Closed());

        Assert.Equal(isSafe, (bool)List()[Uuid(disk)]["safe_to_remove"]!);
        if (isSafe)
            world.Call("orphans.remove", Uuid(disk));
        else
            world.Refusal("orphans.remove", Uuid(disk));
        Assert.Equal(isSafe ? 1 : 0, ground.Removed.Count);
    }

    private Dictionary<string, JsonObject> List() =>
        world.Call("orphans.list").AsMap().ToDictionary(static o => o.Key, static o => JsonNode.Parse(o.Value)!.AsObject());

    private string Vdi(string location, params (string Map, string Key, string Value)[] marks)
    {
        string vdi = world.Database.Create("VDI", ("SR", sr), ("location", location));
        foreach ((string map, string key, string value) in marks)
            world.Database.SetInMap("VDI", vdi, map, key, value);
        return vdi;
    }

    private string Uuid(string vdi) => world.Database.GetString("VDI", vdi, "uuid");

    private void Claim() => store.Append("m1", new DestinationRecord.Claimed(plan, DateTimeOffset.UnixEpoch));

    private void Made(ResourceKind kind, string device, string id)
    {
        store.Append("m1", new DestinationRecord.Making(new Resource(kind, device)));
        store.Append("m1", new DestinationRecord.Made(new Resource(kind, device), id));
    }

    private sealed class Ground : IOrphanGround
    {
        public List<DatapathRow> Rows { get; } = [];

        public List<IncomingDomain> Domains { get; } = [];

        public List<string> Removed { get; } = [];

        public IReadOnlyList<DatapathRow> Datapaths() => Rows;

        public Task<IReadOnlyList<IncomingDomain>> IncomingDomainsAsync(CancellationToken cancellationToken) =>
            Task.FromResult<IReadOnlyList<IncomingDomain>>(Domains);

        public Task DestroyVdiAsync(string migration, string vdi, CancellationToken cancellationToken) => Remove($"vdi {vdi}");

        public Task DestroyDatapathAsync(string migration, DatapathId datapath, CancellationToken cancellationToken) => Remove($"datapath {datapath}");

        public Task DiscardDomainAsync(string migration, CancellationToken cancellationToken) => Remove($"domain {migration}");

        private Task Remove(string what)
        {
            Removed.Add(what);
            return Task.CompletedTask;
        }
    }
}
