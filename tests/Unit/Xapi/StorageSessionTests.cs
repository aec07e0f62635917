using StorageAccess.Wire;
using Xapi.Database;

namespace Unit.XapiTests;

/// <summary>What SM drivers call back (research: storage.md 3.3, 4.1).</summary>
public sealed class StorageSessionTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();
    private readonly string sr;
    private readonly string otherSr;
    private readonly string driver;

    public StorageSessionTests()
    {
        sr = world.Database.Create("SR");
        otherSr = world.Database.Create("SR");
        driver = world.Sessions.CreateForStorage(sr).Ref;
    }

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public void A_driver_introduces_a_vdi_with_eleven_arguments_or_with_all()
    {
        string vdi = As(driver, "VDI.db_introduce", Introduction(sr)[..11]).AsString();
        Assert.Equal("true", FieldType.ColumnText(world.Database.Get("VDI", vdi, "managed")));
        Assert.Equal([vdi], world.Database.GetSet("SR", sr, "VDIs"));
        string full = As(driver, "VDI.db_introduce", Introduction(sr)).AsString();
        Assert.Equal(4096, world.Database.GetLong("VDI", full, "virtual_size"));
        Assert.Equal(Ref.Null, world.Database.GetRef("VDI", full, "snapshot_of"));
        Assert.True(world.Database.GetBool("VDI", full, "cbt_enabled"));
        As(driver, "VDI.set_virtual_size", full, "8192");
        Assert.Equal("8192", As(driver, "VDI.get_virtual_size", full).AsString());
        As(driver, "VDI.db_forget", full);
        Assert.Equal([vdi], world.Database.GetSet("SR", sr, "VDIs"));
    }

    [Fact]
    public void Nobody_but_the_srs_own_driver_and_the_pool_writes_privileged_fields()
    {
        string vdi = As(driver, "VDI.db_introduce", Introduction(sr)).AsString();
        string pbd = world.Database.Create("PBD", ("SR", sr));
        string stranger = world.Sessions.CreateForStorage(otherSr).Ref;
        (string Name, RpcValue[] Arguments)[] calls =
        [
            ("SR.set_virtual_allocation", [sr, "1"]), ("SR.set_physical_size", [sr, "1"]), ("SR.set_physical_utilisation", [sr, "1"]),
            ("VDI.set_sharable", [vdi, true]), ("VDI.set_managed", [vdi, true]), ("VDI.set_read_only", [vdi, true]),
            ("VDI.set_missing", [vdi, true]), ("VDI.set_virtual_size", [vdi, "1"]), ("VDI.set_physical_utilisation", [vdi, "1"]),
            ("VDI.set_is_a_snapshot", [vdi, true]), ("VDI.set_snapshot_of", [vdi, ""]),
            ("VDI.set_snapshot_time", [vdi, new RpcDateTime("20250101T00:00:00Z")]), ("VDI.set_metadata_of_pool", [vdi, ""]),
            ("VDI.set_cbt_enabled", [vdi, true]), ("PBD.set_device_config", [pbd, RpcValue.Struct()]),
            ("VDI.db_introduce", Introduction(sr)), ("VDI.db_forget", [vdi]),
        ];
        // A client that writes the marker into its own other_config is still a client.
        world.Call("session.add_to_other_config", world.User, "_sm_session", sr);
        foreach ((string name, RpcValue[] arguments) in calls)
        {
            foreach (string session in (string[])[world.User, stranger])
                Assert.StartsWith("PERMISSION_DENIED", world.RefusalAs(session, name, arguments), StringComparison.Ordinal);
            As(name == "VDI.db_forget" ? world.Root : driver, name, arguments);
        }
    }

    [Fact]
    public void The_drivers_filter_finds_its_pbd()
    {
        string pbd = world.Database.Create("PBD", ("SR", sr), ("host", world.Host));
        RpcValue found = As(driver, "PBD.get_all_records_where", $"field \"SR\" = \"{sr}\" andfield \"host\" = \"{world.Host}\"");
        Assert.Equal(pbd, Assert.Single(found.AsStruct().Members).Key);
    }

    private RpcValue As(string session, string name, params RpcValue[] arguments) =>
        ApiWorld.Unwrap(() => world.Call(name, ApiWorld.Local, [session, .. arguments]));

    private static RpcValue[] Introduction(string sr) =>
    [
        Guid.NewGuid().ToString(), "label", "", sr, "user", false, false, RpcValue.Struct(), "location", RpcValue.Struct(),
        RpcValue.Struct(), true, "4096", "512", "", false, new RpcDateTime("19700101T00:00:00Z"), "", true,
    ];
}
