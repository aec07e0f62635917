// A SMAPIv1 driver that logs what it is given and calls back everything that the field's drivers call back, under the real daemon: every
// command in exactly the field's form (golden/*.xml, written from research/storage.md 3.1 and 3.2), every call of 4.1 answered with the
// field's types.
using System.Text.Json;
using System.Text.RegularExpressions;
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Support;
using Xapi;

namespace Conformance.PluginsTests;

public sealed partial class GoldenDriverTests : IAsyncLifetime
{
    private const string Dbg = "OpaqueRef:golden-task";
    private static readonly SrId Sr = new("5d0c1f6e-8f0a-4a55-9d3e-0c2b7a3a1b01");
    private static readonly DatapathId Dp = new("dp");
    private static readonly CancellationToken None = CancellationToken.None;
    private static readonly Dictionary<string, string> Nothing = [];
    private GoldenWorld world = null!;
    private string sr = "";
    private readonly Dictionary<string, string> vdis = [];

    public async Task InitializeAsync()
    {
        if (Tool.Exists("python3"))
            world = await GoldenWorld.StartAsync();
    }

    public async Task DisposeAsync()
    {
        if (world is not null)
            await world.DisposeAsync();
    }

    [SkippableFact]
    public async Task Every_command_has_the_fields_form()
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        SmapiV1Backend backend = world.Backend;
        Matches("sr_get_driver_info");
        world.TakeCalls();
        sr = world.Database.Create("SR", ("uuid", Sr.Value), ("type", "golden"));
        Dictionary<string, string> config = new() { ["location"] = "/srv/golden" };
        world.Database.Create("PBD", ("SR", sr), ("host", world.Host), ("device_config", RpcValue.Map(config)));

        RawProbe probe = Assert.IsType<RawProbe>(await backend.SrProbeAsync(
            Dbg, new Dictionary<string, string> { ["location"] = "/srv" }, new Dictionary<string, string> { ["depth"] = "1" }, None));
        Assert.Equal("<?xml version=\"1.0\" ?><SRlist/>", probe.Xml);
        Matches("sr_probe");
        await MatchesAsync("sr_create", () => backend.SrCreateAsync(Dbg, Sr, "n", "d", config, 1L << 40, None));
        await MatchesAsync("sr_attach", () => backend.SrAttachAsync(Dbg, Sr, config, None));
        await MatchesAsync("sr_scan", () => backend.SrScanAsync(Dbg, Sr, None));
        await MatchesAsync("sr_update", () => backend.SrSetNameLabelAsync(Dbg, Sr, "new", None));
        Assert.Equal("user", await backend.SrContentTypeAsync(Dbg, Sr, None));
        Matches("sr_content_type");
        await VdisAsync(backend);
        await MatchesAsync("sr_detach", () => backend.SrDetachAsync(Dbg, Sr, None));
        await MatchesAsync("sr_delete", () => backend.SrDestroyAsync(Dbg, Sr, None));
        Assert.Empty(Directory.GetFiles(GoldenWorld.Golden(""), "*.xml").Select(Path.GetFileNameWithoutExtension).Except(matched));
    }

    private async Task VdisAsync(SmapiV1Backend backend)
    {
        VdiInfo request = new()
        {
            Vdi = new VdiId(""),
            NameLabel = "disk <1> & \"2\"",
            VirtualSizeBytes = 8 << 20,
            SmConfig = new Dictionary<string, string> { ["type"] = "vhd" },
        };
        VdiInfo disk = await MatchesAsync("vdi_create", () => backend.VdiCreateAsync(Dbg, Sr, request, None));
        Assert.Equal(("disk <1> & \"2\"", 8 << 20), (disk.NameLabel, disk.VirtualSizeBytes));
        VdiInfo single = disk with { SmConfig = new Dictionary<string, string> { ["type"] = "single" } };
        VdiInfo snapshot = await MatchesAsync("vdi_snapshot", () => backend.VdiSnapshotAsync(Dbg, Sr, single, None));
        Assert.Equal((disk.NameLabel, true, disk.Vdi.Value), (snapshot.NameLabel, snapshot.IsASnapshot, snapshot.SnapshotOf));
        VdiInfo clone = await MatchesAsync("vdi_clone", () => backend.VdiCloneAsync(Dbg, Sr, disk with { SmConfig = Nothing }, None));
        Dictionary<string, string> kept = new() { ["kept"] = "yes" };
        VdiId location = new("00000000-0000-4000-8000-000000000009");
        await MatchesAsync("vdi_introduce", () => backend.VdiIntroduceAsync(Dbg, Sr, location.Value, kept, location, None));
        await MatchesAsync("vdi_update", () => backend.VdiSetNameDescriptionAsync(Dbg, Sr, disk.Vdi, "new", None));

        Backend attached = await MatchesAsync(
            "vdi_attach", () => backend.VdiAttachAsync(Dbg, Dp, Sr, disk.Vdi, "0", VdiAccess.ReadWrite, None));
        Assert.Equal("nbd:unix:/run/golden:exportname=1", attached.Nbd!.Uri);
        await MatchesAsync("vdi_activate", () => backend.VdiActivateAsync(Dbg, Dp, Sr, disk.Vdi, "0", VdiAccess.ReadWrite, None));
        await MatchesAsync("vdi_deactivate", () => backend.VdiDeactivateAsync(Dbg, Dp, Sr, disk.Vdi, "0", None));
        await MatchesAsync("vdi_detach", () => backend.VdiDetachAsync(Dbg, Dp, Sr, disk.Vdi, "0", None));
        Assert.Equal(16 << 20, await MatchesAsync("vdi_resize", () => backend.VdiResizeAsync(Dbg, Sr, disk.Vdi, 16 << 20, None)));
        await MatchesAsync("vdi_compose", () => backend.VdiComposeAsync(Dbg, Sr, clone.Vdi, disk.Vdi, None));
        await MatchesAsync("vdi_epoch_begin", () => backend.VdiEpochBeginAsync(Dbg, Sr, disk.Vdi, "0", persistent: true, None));
        await MatchesAsync("vdi_epoch_end", () => backend.VdiEpochEndAsync(Dbg, Sr, disk.Vdi, "0", None));
        await StaticAsync(await MatchesAsync("vdi_generate_config", () => backend.VdiGenerateConfigAsync(Dbg, Sr, disk.Vdi, None)));
        await MatchesAsync("vdi_enable_cbt", () => backend.VdiEnableCbtAsync(Dbg, Sr, disk.Vdi, None));
        string changed = await MatchesAsync(
            "vdi_list_changed_blocks", () => backend.VdiListChangedBlocksAsync(Dbg, Sr, snapshot.Vdi, disk.Vdi, None));
        Assert.Equal("gAAB", changed);
        await MatchesAsync("vdi_disable_cbt", () => backend.VdiDisableCbtAsync(Dbg, Sr, disk.Vdi, None));
        await MatchesAsync("vdi_revert", () => backend.VdiRevertAsync(Dbg, Sr, snapshot, None));
        await MatchesAsync("vdi_data_destroy", () => backend.VdiDataDestroyAsync(Dbg, Sr, snapshot.Vdi, None));
        Assert.Equal("cbt_metadata", (await backend.VdiStatAsync(Dbg, Sr, snapshot.Vdi, None)).Type);
        await MatchesAsync("vdi_delete", () => backend.VdiDestroyAsync(Dbg, Sr, clone.Vdi, None));
    }

    /// <summary>As static-vdis does it: with the driver's own text.</summary>
    private async Task StaticAsync(string config)
    {
        StaticVdi disk = new(world.DriverPath, config, world.Settings);
        Backend attached = await MatchesAsync("vdi_attach_from_config", () => disk.AttachAsync(None));
        Assert.NotNull(attached.Nbd);
        await MatchesAsync("vdi_detach_from_config", () => disk.DetachAsync(None));
    }

    [SkippableFact]
    public async Task Every_call_back_of_the_field_is_answered()
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        RpcValue made = await world.CallAsync(
            "SR.create", world.Host, RpcValue.Map(new Dictionary<string, string> { ["location"] = "/srv", ["callbacks"] = "all" }), "0", "sr",
            "", "golden", "user", false, RpcValue.Struct());
        List<string[]> rows = JsonSerializer.Deserialize<List<string[]>>(await File.ReadAllTextAsync(world.LogFile("callbacks.json")))!;
        string[] expected = await File.ReadAllLinesAsync(GoldenWorld.Golden("callbacks.txt"));
        Assert.Equal(expected, rows.Select(static r => $"{r[0]} {r[1]} {r[2]}".TrimEnd()));

        // What it changed is in the pool's database, with the types that its clients see.
        string vdi = world.Database.GetSet("SR", made.AsString(), "VDIs")
            .Single(v => world.Database.GetString("VDI", v, "location").EndsWith("102", StringComparison.Ordinal));
        Assert.Equal(8L << 30, world.Database.GetLong("VDI", vdi, "virtual_size"));
        Assert.Equal("20250319T04:16:24Z", world.Database.GetString("VDI", vdi, "snapshot_time"));
        Assert.Equal("q", world.Database.GetMap("VDI", vdi, "sm_config")["vhd-parent"]);
        Assert.Equal("s3cr3t", world.Database.GetString("secret", Assert.Single(world.Database.All("secret")), "value"));
        Assert.Empty(world.Database.All("message"));
        string[] texts = rows.Select(static r => r[3]).ToArray();
        Assert.Contains("ON_SLAVE_FAILED fails", texts);
        Assert.Contains("XENAPI_MISSING_PLUGIN no-such-plugin", texts);
        Assert.Contains(texts, static t => t.StartsWith("MESSAGE_PARAMETER_COUNT_MISMATCH VDI.get_record", StringComparison.Ordinal));

        string sm = Assert.Single(world.Database.All("SM"));
        Assert.Equal("2", world.Database.GetMap("SM", sm, "features")["VDI_RESET_ON_BOOT"]);
        Assert.DoesNotContain("ATOMIC_PAUSE", world.Database.GetSet("SM", sm, "capabilities"));
        Assert.Equal(world.DriverPath, world.Database.GetString("SM", sm, "driver_filename"));
    }

    [SkippableFact]
    public async Task A_probe_and_a_static_configuration_are_asked_for_by_clients()
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        RpcValue[] probe = [world.Host, RpcValue.Struct(), "golden", RpcValue.Struct()];
        Assert.Equal("<?xml version=\"1.0\" ?><SRlist/>", (await world.CallAsync("SR.probe", probe)).AsString());
        XapiException raw = await Assert.ThrowsAsync<XapiException>(() => world.CallAsync("SR.probe_ext", probe));
        Assert.Equal("SR_OPERATION_NOT_SUPPORTED", raw.Code);
        probe[2] = "nosuch";
        Assert.Equal("SR_UNKNOWN_DRIVER", (await Assert.ThrowsAsync<XapiException>(() => world.CallAsync("SR.probe", probe))).Code);
    }

    private readonly HashSet<string> matched = [];

    private async Task<T> MatchesAsync<T>(string command, Func<Task<T>> run)
    {
        world.TakeCalls();
        T result = await run();
        Matches(command);
        return result;
    }

    private async Task MatchesAsync(string command, Func<Task> run)
    {
        world.TakeCalls();
        await run();
        Matches(command);
    }

    /// <summary>The first of the calls since the last time is that command, byte for byte; a reference stands as {vdi:LOCATION} and so on.</summary>
    private void Matches(string command)
    {
        (string Command, string Argument) call = world.TakeCalls()[0];
        Assert.Equal(command, call.Command);
        foreach (string vdi in sr.Length == 0 ? [] : world.Database.GetSet("SR", sr, "VDIs"))
            vdis[world.Database.GetString("VDI", vdi, "location")] = vdi;
        string golden = Token().Replace(File.ReadAllText(GoldenWorld.Golden($"{command}.xml")).TrimEnd(), token => token.Groups[1].Value switch
        {
            "host" => world.Host,
            "sr" => sr,
            "session" => world.SessionOf(sr),
            "no-sr-session" => world.SessionOf("OpaqueRef:NULL"),
            string vdi => vdis[vdi["vdi:".Length..]],
        });
        Assert.Equal(golden, call.Argument);
        matched.Add(command);
    }

    [GeneratedRegex(@"\{([a-z:0-9-]+)\}")]
    private static partial Regex Token();
}
