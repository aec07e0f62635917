// What is made of a driver's answer, in every form that an answer may have, and of no answer at all.
using SmapiV1Adapter;
using StorageAccess;
using Support;

namespace Unit.SmapiV1AdapterTests;

public sealed class SmapiV1BackendTests : IDisposable
{
    private const string Nil = "<methodResponse><params><param><value><nil/></value></param></params></methodResponse>";
    private static readonly string[] All =
    [
        "SR_PROBE", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE", "VDI_CLONE",
        "VDI_SNAPSHOT", "VDI_RESIZE", "VDI_INTRODUCE", "VDI_UPDATE", "VDI_GENERATE_CONFIG", "VDI_RESET_ON_BOOT", "VDI_CONFIG_CBT",
        "VDI_COMPOSE", "VDI_REVERT",
    ];

    private static readonly SrId Sr = new("sr");
    private static readonly VdiId Vdi = new("disk");
    private static readonly DatapathId Dp = new("dp");
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly FakeSmDatabase database = new();

    public SmapiV1BackendTests() => database.Add(Vdi.Value);

    public void Dispose() => folder.Dispose();

    [Theory]
    [InlineData(Nil)]
    [InlineData("<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value><nil/></value></param>\n</params>\n</methodResponse>\n\n")]
    [InlineData("\n\t <?xml version=\"1.0\"?><methodResponse> <params> <param> <value> <nil /> </value> </param> </params> </methodResponse>")]
    public Task Nil_is_an_answer_whatever_the_white_space(string stdout) => Answering(stdout).SrDetachAsync("t", Sr, None);

    [Theory]
    [InlineData("")]
    [InlineData("Traceback (most recent call last):")]
    [InlineData("<methodResponse><params><param><value><ni")]
    [InlineData("<methodResponse><params><param><value>text</value></param></params></methodResponse>")]
    [InlineData("<methodResponse><params></params></methodResponse>")]
    [InlineData("<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member></struct></value></param></params></methodResponse>")]
    [InlineData("<!DOCTYPE a [<!ENTITY b 'c'>]><methodResponse><params><param><value>&b;</value></param></params></methodResponse>")]
    public async Task Anything_else_is_no_answer(string stdout)
    {
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => Answering(stdout).SrDetachAsync("t", Sr, None));
        Assert.Equal("SR_BACKEND_FAILURE", e.Code);
        Assert.True(e.IsOutcomeUnknown);
    }

    [Theory]
    [InlineData(38, "Unimplemented", "UNIMPLEMENTED_IN_SM_BACKEND", "vdi_detach")]
    [InlineData(39, "Backend_error", "SR_NOT_EMPTY", "")]
    [InlineData(24, "Backend_error", "VDI_IN_USE", "")]
    [InlineData(16, "Backend_error", "SR_DEVICE_IN_USE", "")]
    [InlineData(144, "Backend_error", "VDI_MISSING", "OpaqueRef:sr|OpaqueRef:disk")]
    [InlineData(44, "Backend_error", "SR_BACKEND_FAILURE_44", "|no space [opterr=x]|some noise\n")]
    [InlineData(1200, "Backend_error", "SR_BACKEND_FAILURE_1200", "|no space [opterr=x]|some noise\n")]
    public async Task A_fault_becomes_the_fields_error(int code, string tag, string xenApiCode, string parameters)
    {
        SmapiV1Backend backend = Driver($"echo some noise >&2; cat <<'E'\n{Fault(code)}\nE");
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.VdiDetachAsync("t", Dp, Sr, Vdi, "0", None));
        Assert.Equal((tag, xenApiCode, parameters), (e.Tag, e.Code, string.Join("|", e.Parameters)));
        Assert.False(e.IsOutcomeUnknown);
    }

    [Fact]
    public async Task Attach_answers_the_ways_in()
    {
        const string full = """
            <methodResponse><params><param><value><struct>
            <member><name>params</name><value>/dev/sm/a</value></member><member><name>params_nbd</name><value>nbd:unix:/a:exportname=b</value></member>
            <member><name>o_direct</name><value><boolean>1</boolean></value></member>
            <member><name>xenstore_data</name><value><struct><member><name>k</name><value>v</value></member></struct></value></member>
            </struct></value></param></params></methodResponse>
            """;
        Backend attached = await Answering(full).VdiAttachAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadWrite, None);
        XenDisk disk = Assert.IsType<XenDisk>(attached.Implementations[0]);
        Assert.Equal(("/dev/sm/a", "v", "vbd3"), (disk.Params, disk.Extra["k"], disk.BackendType));
        Assert.Equal("/dev/sm/a", Assert.IsType<BlockDevicePath>(attached.Implementations[1]).Path);
        Assert.Equal("nbd:unix:/a:exportname=b", attached.Nbd!.Uri);

        string without = full.Replace("<member><name>params_nbd</name><value>nbd:unix:/a:exportname=b</value></member>", "");
        Assert.True((await Assert.ThrowsAsync<StorageException>(
            () => Answering(without).VdiAttachAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadWrite, None))).IsOutcomeUnknown);
    }

    [Theory]
    [InlineData("sleep 60", "did not end within")]
    [InlineData("exit 3", "non-zero exit")]
    [InlineData("kill -9 $$", "received signal: 9")]
    [InlineData("head -c 9000000 /dev/zero", "printed more than")]
    public async Task A_driver_that_hangs_dies_or_floods_is_ended_and_is_no_answer(string script, string why)
    {
        SmapiV1Backend backend =
            Driver(script, deadline: script.StartsWith("sleep", StringComparison.Ordinal) ? TimeSpan.FromSeconds(0.5) : null);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.SrDetachAsync("t", Sr, None));
        Assert.Contains(why, e.Message);
        Assert.True(e.IsOutcomeUnknown);
    }

    [Fact]
    public async Task A_driver_gets_a_clean_environment()
    {
        SmapiV1Backend backend =
            Driver($"/usr/bin/env > {folder.File("env")}; echo '{Nil}'", configured: new() { ["XAPI_UNIX_SOCKET"] = "/x" });
        await backend.SrDetachAsync("t", Sr, None);
        List<string> names =
            File.ReadLines(folder.File("env")).Select(static l => l.Split('=')[0]).Except(["PWD", "SHLVL", "_"]).Order().ToList();
        Assert.Equal(["DOTNET_ROOT", "ORIGINATOR", "PATH", "XAPI_UNIX_SOCKET"], names);
        Assert.Contains($"PATH={folder.Path}:/usr", await File.ReadAllTextAsync(folder.File("env")));
    }

    [Fact]
    public async Task A_secret_of_device_config_is_in_no_error()
    {
        database.SrRecord = database.SrRecord with { DeviceConfig = new Dictionary<string, string> { ["chappassword"] = "s3cr3t" } };
        StorageException e =
            await Assert.ThrowsAsync<StorageException>(() => Driver("echo \"$1\"; echo \"$1\" >&2; exit 1").SrDetachAsync("t", Sr, None));
        Assert.Contains("chappassword", e.Message);
        Assert.DoesNotContain("s3cr3t", e.Message);
    }

    [Fact]
    public async Task Without_the_capability_activation_runs_nothing()
    {
        SmapiV1Backend backend = Driver("exit 9", capabilities: []);
        await backend.VdiActivateAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadWrite, None);
        await backend.VdiDeactivateAsync("t", Dp, Sr, Vdi, "0", None);
    }

    [Fact]
    public async Task A_disk_without_a_record_is_missing_except_to_those_who_let_it_go()
    {
        SmapiV1Backend backend = Driver("exit 9");
        VdiId gone = new("gone");
        await backend.VdiDeactivateAsync("t", Dp, Sr, gone, "0", None);
        await backend.VdiDetachAsync("t", Dp, Sr, gone, "0", None);
        Assert.Equal("VDI_MISSING", (await Assert.ThrowsAsync<StorageException>(() => backend.VdiDestroyAsync("t", Sr, gone, None))).Code);
    }

    [Fact]
    public async Task A_snapshot_is_recorded_as_one()
    {
        database.Add("copy");
        SmapiV1Backend backend = Driver(
            "echo '<methodResponse><params><param><value><struct><member><name>uuid</name><value>copy</value></member><member><name>location</name><value>copy</value></member></struct></value></param></params></methodResponse>'", capabilities: ["VDI_SNAPSHOT"]);
        Assert.Equal("copy", (await backend.VdiSnapshotAsync("t", Sr, database.VdiRecords[Vdi].Info, None)).Vdi.Value);
        Assert.Equal((new VdiId("copy"), Vdi, true), Assert.Single(database.Copies));
    }

    [Fact]
    public async Task What_only_the_coordinator_may_do_is_refused_elsewhere()
    {
        database.SrRecord = database.SrRecord with { IsMaster = false };
        Assert.Equal("HOST_IS_SLAVE", (await Assert.ThrowsAsync<StorageException>(() => Driver("exit 9").SrScanAsync("t", Sr, None))).Code);
    }

    [Fact]
    public async Task Discovery_takes_the_good_drivers_and_says_what_is_wrong_with_the_others()
    {
        const string info = """
            <methodResponse><params><param><value><struct><member><name>name</name><value>n</value></member><member><name>description</name><value/></member>
            <member><name>vendor</name><value>v</value></member><member><name>copyright</name><value/></member><member><name>driver_version</name><value>1</value></member>
            <member><name>required_api_version</name><value>1.1</value></member><member><name>capabilities</name><value><array><data><value>VDI_CREATE</value>
            <value>VDI_RESET_ON_BOOT/2</value><value>ATOMIC_PAUSE</value></data></array></value></member>
            <member><name>supported_image_formats</name><value><array><data><value>vhd</value></data></array></value></member><member><name>configuration</name><value><array><data/></array></value></member>
            </struct></value></param></params></methodResponse>
            """;
        string good = $"cat <<'E'\n{info}\nE";
        FakeProgram.Write(folder.File("sm/NFSSR"), good);
        FakeProgram.Write(folder.File("sm/nfsSR"), good);
        FakeProgram.Write(folder.File("sm/BadSR"), "echo nonsense");
        FakeProgram.Write(folder.File("sm/helper"), "exit 1");
        File.SetUnixFileMode(FakeProgram.Write(folder.File("sm/PlainSR"), good), UnixFileMode.UserRead);
        File.SetUnixFileMode(
            FakeProgram.Write(folder.File("sm/OpenSR"), good), UnixFileMode.UserRead | UnixFileMode.UserExecute | UnixFileMode.OtherWrite);
        File.CreateSymbolicLink(folder.File("sm/GoneSR"), folder.File("nowhere"));

        (IReadOnlyList<SmDriver> drivers, IReadOnlyList<RejectedDriver> rejected) =
            await SmDrivers.DiscoverAsync(folder.File("sm"), [SmDrivers.AnyType], "OpaqueRef:h", Settings(null, []), None);

        SmDriver driver = Assert.Single(drivers);
        Assert.Equal(("nfs", 2), (driver.Type, driver.Capabilities["VDI_RESET_ON_BOOT"]));
        Assert.Equal(["VDI_CREATE", "VDI_RESET_ON_BOOT"], driver.Info.Features);
        Assert.Equal(["ATOMIC_PAUSE"], driver.UnknownCapabilities);
        Assert.Equal(["vhd"], driver.ImageFormats);
        Assert.Empty((await SmDrivers.DiscoverAsync(folder.File("sm"), ["ext"], "OpaqueRef:h", Settings(null, []), None)).Rejected);
        Assert.Equal(
            ["BadSR: sr_get_driver_info failed", "GoneSR: it is a link to nothing", "OpenSR: everybody may write to it",
                "PlainSR: it is not executable", "nfsSR: serves type"],
            rejected.Select(r => $"{Path.GetFileName(r.Path)}: {r.Reason.Replace(folder.File("sm/NFSSR") + " ", "")}")
                .Select(static r => r.StartsWith("BadSR", StringComparison.Ordinal) ? r[..32]
                    : r.StartsWith("nfsSR", StringComparison.Ordinal) ? r[..18] : r));
    }

    private SmapiV1Backend Answering(string stdout) => Driver($"cat <<'E'\n{stdout}\nE");

    private SmapiV1Backend Driver(
        string script, TimeSpan? deadline = null, string[]? capabilities = null, Dictionary<string, string>? configured = null)
    {
        string path = FakeProgram.Write(folder.File("FakeSR"), script);
        QueryResult query = new("fake", "", "", "", "", "", [], new Dictionary<string, string>(), "SMAPIv1");
        Dictionary<string, int> can = (capabilities ?? All).ToDictionary(static c => c, static _ => 1);
        return new SmapiV1Backend(new SmDriver("fake", path, query, can), database, Settings(deadline, configured ?? []));
    }

    private SmDriverSettings Settings(TimeSpan? deadline, Dictionary<string, string> configured) =>
        new(folder.Path, configured, deadline ?? TimeSpan.FromSeconds(20));

    private static string Fault(int code) =>
        "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>" + code +
        "</int></value></member><member><name>faultString</name><value><string>no space [opterr=x]</string></value></member></struct></value></fault></methodResponse>";
}
