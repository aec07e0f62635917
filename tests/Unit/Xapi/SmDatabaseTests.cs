using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Storage;

namespace Unit.XapiTests;

/// <summary>What drivers are told of the pool, and what of it is kept right around them (research: storage.md 2.7, 3.3, 3.7, 3.8).</summary>
public sealed class SmDatabaseTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();
    private readonly SmDatabase port;
    private readonly string sr;
    private readonly SrId id = new(Guid.NewGuid().ToString());

    public SmDatabaseTests()
    {
        port = new SmDatabase(world.Database, world.Sessions, world.Host, world.Time);
        sr = world.Database.Create("SR", ("uuid", id.Value), ("type", "ext"));
    }

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public void A_session_is_kept_for_an_SR_made_again_when_it_ended_and_ended_with_the_SR()
    {
        string first = port.Sr(id).SessionRef;
        Assert.Equal(first, port.Sr(id).SessionRef);
        Assert.Equal(sr, world.Database.GetMap("session", first, "other_config")["_sm_session"]);
        world.Sessions.Logout(first);
        string second = port.Sr(id).SessionRef;
        Assert.NotEqual(first, second);
        world.Time.Advance(TimeSpan.FromHours(25));
        Assert.NotEqual(second, port.Sr(id).SessionRef);
        string third = port.Sr(id).SessionRef;
        world.Database.Destroy("SR", sr);
        port.NoSr();
        Assert.False(world.Sessions.IsLive(third));
        Assert.True(world.Sessions.IsLive(port.NoSr().SessionRef));
    }

    [Fact]
    public void No_crowd_of_logins_ends_a_drivers_session()
    {
        string session = port.Sr(id).SessionRef;
        for (int i = 0; i < 600; i++)
            world.Call("session.login_with_password", new Xapi.Rpc.CallOrigin(true, "SM", ""), "root", "", "", "SM");
        Assert.True(world.Sessions.IsLive(session));
    }

    [Fact]
    public void The_host_is_told_its_own_pbd_its_cache_and_who_the_coordinator_is()
    {
        string other = world.Database.Create("host", ("address", "10.0.0.2"));
        world.Database.Create("pool", ("master", other));
        Pbd(other, "/other");
        Pbd(world.Host, "/mine");
        string cache = world.Database.Create("SR", ("uuid", "cache-uuid"));
        world.Database.Set("host", world.Host, "local_cache_sr", cache);
        SmSr told = port.Sr(id);
        Assert.Equal(("/mine", "cache-uuid", true), (told.DeviceConfig["location"], told.LocalCacheSr, told.IsMaster));
        world.Database.Set("SR", sr, "shared", true);
        Assert.Equal((false, "10.0.0.2"), (port.Sr(id).IsMaster, port.Sr(id).MasterAddress));
        world.Database.Destroy("SR", cache);
        Assert.Null(port.Sr(id).LocalCacheSr);

        void Pbd(string host, string location) => world.Database.Create(
            "PBD", ("SR", sr), ("host", host), ("device_config", RpcValue.Map(new Dictionary<string, string> { ["location"] = location })));
    }

    [Fact]
    public void A_contents_name_goes_with_its_first_write_and_comes_back_as_another()
    {
        string vdi = Vdi("a");
        VdiId a = new("a");
        Assert.Equal("a", port.FindVdi(id, a)!.Info.ContentId);
        port.ContentSettles(id, a);
        string name = port.FindVdi(id, a)!.Info.ContentId;
        port.ContentSettles(id, a);
        Assert.Equal(name, port.FindVdi(id, a)!.Info.ContentId);
        port.ContentChanges(id, a);
        Assert.Equal("a", port.FindVdi(id, a)!.Info.ContentId);
        port.ContentSettles(id, a);
        Assert.NotEqual(name, port.FindVdi(id, a)!.Info.ContentId);
        world.Database.Set("VDI", vdi, "read_only", true);
        name = port.FindVdi(id, a)!.Info.ContentId;
        port.ContentChanges(id, a);
        Assert.Equal(name, port.FindVdi(id, a)!.Info.ContentId);

        string uuid = world.Database.GetString("host", world.Host, "uuid");
        port.RecordCaching(id, a, new SmCaching(false, "RO_WITH_NO_PARENT"));
        Assert.Equal("false", world.Database.GetMap("VDI", vdi, "sm_config")[$"read-caching-enabled-on-{uuid}"]);
        Assert.Equal("RO_WITH_NO_PARENT", world.Database.GetMap("VDI", vdi, "sm_config")[$"read-caching-reason-{uuid}"]);
        port.RecordCaching(id, a, null);
        Assert.Empty(world.Database.GetMap("VDI", vdi, "sm_config"));
        port.RecordDataDestroyed(id, a);
        Assert.Equal("cbt_metadata", port.FindVdi(id, a)!.Info.Type);
        Assert.Equal("/No content: this is a cbt_metadata VDI/", port.FindVdi(id, a)!.Info.ContentId);
    }

    [Fact]
    public async Task Of_many_who_take_a_lock_key_at_once_one_gets_it()
    {
        string vdi = Vdi("a");
        string driver = port.Sr(id).SessionRef;
        for (int round = 0; round < 20; round++)
        {
            using Barrier together = new(32);
            Task<bool>[] takers = [.. Enumerable.Range(0, 32).Select(_ => Task.Factory.StartNew(Take, TaskCreationOptions.LongRunning))];
            Assert.Equal(1, (await Task.WhenAll(takers)).Count(static won => won));
            world.Call("VDI.remove_from_sm_config", ApiWorld.Local, driver, vdi, "activating");
            world.Call("VDI.remove_from_sm_config", ApiWorld.Local, driver, vdi, "activating");

            bool Take()
            {
                together.SignalAndWait();
                try
                {
                    world.Dispatcher.CallAsync(
                        "VDI.add_to_sm_config", [driver, vdi, "activating", "True"], ApiWorld.Local, CancellationToken.None)
                        .GetAwaiter().GetResult();
                    return true;
                }
                catch (Xapi.XapiException e) when (e.Code == "MAP_DUPLICATE_KEY")
                {
                    return false;
                }
            }
        }
    }

    [Fact]
    public void Lock_keys_outlive_scans_and_drivers_that_write_back_what_they_read_before()
    {
        string vdi = Vdi("a");
        string driver = port.Sr(id).SessionRef;
        string[] locks = ["activating", "paused", "relinking", "host_OpaqueRef:h", "vhd-blocks"];
        foreach (string key in locks)
            Driver("VDI.add_to_sm_config", key, "mine");
        Driver("VDI.set_sm_config", RpcValue.Map(new Dictionary<string, string> { ["vhd-parent"] = "p", ["paused"] = "theirs" }));
        AssertLocks();
        Dictionary<string, string> seen = new() { ["vhd-parent"] = "q" };
        SrScan scan = new([new VdiInfo { Vdi = new VdiId("a"), SmConfig = seen }], port.SrInfo(id));
        VdiRows.Reconcile(world.Database, sr, VdiRows.Locations(world.Database, sr), scan);
        AssertLocks();
        // An administrator who clears them means it.
        world.Call("VDI.set_sm_config", vdi, RpcValue.Struct());
        Assert.Empty(world.Database.GetMap("VDI", vdi, "sm_config"));

        void Driver(string method, params RpcValue[] arguments) => world.Call(method, ApiWorld.Local, [driver, vdi, .. arguments]);

        void AssertLocks()
        {
            IReadOnlyDictionary<string, string> now = world.Database.GetMap("VDI", vdi, "sm_config");
            Assert.All(locks, key => Assert.Equal("mine", now[key]));
            Assert.Equal("p", now["vhd-parent"]);
        }
    }

    [Fact]
    public void What_came_or_went_while_a_scan_ran_stays_as_it_is()
    {
        string gone = Vdi("gone");
        Vdi("unseen");
        string went = Vdi("went");
        IReadOnlyDictionary<string, string> before = VdiRows.Locations(world.Database, sr);
        string came = Vdi("came");
        world.Database.Destroy("VDI", went);
        SrScan scan = new([Seen("unseen"), Seen("went"), Seen("new")], port.SrInfo(id));
        VdiRows.Reconcile(world.Database, sr, before, scan);
        Assert.Equal(["came", "new", "unseen"], VdiRows.Locations(world.Database, sr).Values.Order());
        Assert.True(world.Database.Exists("VDI", came) && !world.Database.Exists("VDI", gone));

        static VdiInfo Seen(string location) => new() { Vdi = new VdiId(location) };
    }

    [Fact]
    public void A_row_of_a_type_that_is_gone_goes_unless_an_SR_has_it()
    {
        QueryResult query = new("nfs", "NFS", "text", "v", "1.0", "1.1", ["A"], new Dictionary<string, string>(), "SMAPIv1");
        SmKind kind = new(query, new Dictionary<string, int> { ["VDI_RESET_ON_BOOT"] = 2 }, "(C)", "/sm/NFSSR", ["vhd", "odd"]);
        foreach (string type in (string[])["ext", "smb", "nfs", "nfs"])
            world.Database.Create("SM", ("type", type));
        SmRows.Record(world.Database, new Dictionary<string, SmKind> { ["nfs"] = kind });
        SmRows.Record(world.Database, new Dictionary<string, SmKind> { ["nfs"] = kind });
        Assert.Equal(["ext", "nfs"], world.Database.All("SM").Select(sm => world.Database.GetString("SM", sm, "type")).Order());
        string row = world.Database.Where("SM", "field \"type\" = \"nfs\"")[0];
        Assert.Equal("/sm/NFSSR", world.Database.GetString("SM", row, "driver_filename"));
        Assert.Equal("(C)", world.Database.GetString("SM", row, "copyright"));
        Assert.Equal(["VDI_RESET_ON_BOOT"], world.Database.GetSet("SM", row, "capabilities"));
        Assert.Equal("2", world.Database.GetMap("SM", row, "features")["VDI_RESET_ON_BOOT"]);
        Assert.Equal(["vhd"], world.Database.GetSet("SM", row, "supported_image_formats"));
    }

    private string Vdi(string location) => world.Database.Create("VDI", ("SR", sr), ("location", location));
}
