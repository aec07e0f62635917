// Whether a command is issued at all, and what is made of a driver that misbehaves: by programs that would leave a trace if they ran.
using SmapiV1Adapter;
using StorageAccess;
using Support;

namespace Unit.SmapiV1AdapterTests;

public sealed class SmCommandTests : IDisposable
{
    private const string Nil = "echo '<methodResponse><params><param><value><nil/></value></param></params></methodResponse>'";
    private static readonly SrId Sr = new("sr");
    private static readonly VdiId Vdi = new("disk");
    private static readonly DatapathId Dp = new("dp");
    private static readonly CancellationToken None = CancellationToken.None;
    private static readonly Dictionary<string, string> Nothing = [];

    /// <summary>Each call with the capability that its command needs, whether the coordinator does it, and whether a DR SR allows it.</summary>
    private static readonly (string Command, string? Capability, bool OnMaster, bool ForDr, Func<SmapiV1Backend, Task> Run)[] Calls =
    [
        ("sr_create", null, false, false, b => b.SrCreateAsync("t", Sr, "", "", Nothing, 0, None)),
        ("sr_delete", null, false, false, b => b.SrDestroyAsync("t", Sr, None)),
        ("sr_attach", null, false, true, b => b.SrAttachAsync("t", Sr, Nothing, None)),
        ("sr_detach", null, false, true, b => b.SrDetachAsync("t", Sr, None)),
        ("sr_scan", null, true, true, b => b.SrScanAsync("t", Sr, None)),
        ("sr_probe", "SR_PROBE", false, true, b => b.SrProbeAsync("t", Nothing, Nothing, None)),
        ("vdi_create", "VDI_CREATE", true, false, b => b.VdiCreateAsync("t", Sr, new VdiInfo { Vdi = Vdi }, None)),
        ("vdi_introduce", "VDI_INTRODUCE", false, false, b => b.VdiIntroduceAsync("t", Sr, "u", Nothing, Vdi, None)),
        ("vdi_delete", "VDI_DELETE", true, false, b => b.VdiDestroyAsync("t", Sr, Vdi, None)),
        ("vdi_attach", "VDI_ATTACH", false, true, b => b.VdiAttachAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadOnly, None)),
        ("vdi_detach", null, false, true, b => b.VdiDetachAsync("t", Dp, Sr, Vdi, "0", None)),
        ("vdi_snapshot", "VDI_SNAPSHOT", true, false, b => b.VdiSnapshotAsync("t", Sr, new VdiInfo { Vdi = Vdi }, None)),
        ("vdi_clone", "VDI_CLONE", true, false, b => b.VdiCloneAsync("t", Sr, new VdiInfo { Vdi = Vdi }, None)),
        ("vdi_clone", "VDI_CLONE", true, false, b => b.VdiSetPersistentAsync("t", Sr, Vdi, false, None)),
        ("vdi_resize", "VDI_RESIZE", true, false, b => b.VdiResizeAsync("t", Sr, Vdi, 1, None)),
        ("vdi_compose", "VDI_MIRROR", true, false, b => b.VdiComposeAsync("t", Sr, Vdi, Vdi, None)),
        ("vdi_epoch_begin", "VDI_RESET_ON_BOOT", false, false, b => b.VdiEpochBeginAsync("t", Sr, Vdi, "0", false, None)),
        ("vdi_enable_cbt", "VDI_CONFIG_CBT", true, false, b => b.VdiEnableCbtAsync("t", Sr, Vdi, None)),
        ("vdi_disable_cbt", "VDI_CONFIG_CBT", true, false, b => b.VdiDisableCbtAsync("t", Sr, Vdi, None)),
        ("vdi_data_destroy", "VDI_CONFIG_CBT", true, false, b => b.VdiDataDestroyAsync("t", Sr, Vdi, None)),
        ("vdi_list_changed_blocks", "VDI_CONFIG_CBT", true, false, b => b.VdiListChangedBlocksAsync("t", Sr, Vdi, Vdi, None)),
        ("vdi_revert", "VDI_REVERT", false, false,
            b => b.VdiRevertAsync("t", Sr, new VdiInfo { Vdi = Vdi, SnapshotOf = Vdi.Value }, None)),
        ("vdi_generate_config", "VDI_GENERATE_CONFIG", false, false, b => b.VdiGenerateConfigAsync("t", Sr, Vdi, None)),
    ];

    private static readonly string[] Every = [.. Calls.Select(static c => c.Capability).OfType<string>().Distinct()];

    /// <summary>Every number of research/storage.md 3.5.</summary>
    private static readonly int[] Numbers =
    [
        1, 2, 16, 19, 20, 24, 37, .. Enumerable.Range(38, 7), .. Enumerable.Range(46, 90), .. Enumerable.Range(140, 5),
        .. Enumerable.Range(150, 5), .. Enumerable.Range(160, 17), 180, 181, 182, .. Enumerable.Range(200, 6), .. Enumerable.Range(220, 9),
        413, .. Enumerable.Range(430, 5), .. Enumerable.Range(445, 17), 1200,
    ];

    private readonly TemporaryDirectory folder = new();
    private readonly FakeSmDatabase database = new();

    public SmCommandTests() => database.Add(Vdi.Value);

    public static TheoryData<int> All() => [.. Enumerable.Range(0, Calls.Length)];

    public void Dispose() => folder.Dispose();

    [Theory]
    [MemberData(nameof(All))]
    public async Task What_a_driver_does_not_claim_is_refused_before_it_is_started(int index)
    {
        (string command, string? capability, _, _, Func<SmapiV1Backend, Task> run) = Calls[index];
        StorageException? refused = await RefusalAsync(() => run(Driver(Trace, [.. Every.Where(c => c != capability)])));
        Assert.Equal(capability is null, File.Exists(folder.File("ran")));
        if (capability is not null)
            Assert.Equal(("Unimplemented", "UNIMPLEMENTED_IN_SM_BACKEND", command), (refused!.Tag, refused.Code, refused.Parameters[0]));
    }

    [Theory]
    [MemberData(nameof(All))]
    public async Task What_changes_an_SRs_metadata_is_sent_to_the_coordinator(int index)
    {
        (_, _, bool onMaster, _, Func<SmapiV1Backend, Task> run) = Calls[index];
        database.SrRecord = database.SrRecord with { IsMaster = false, MasterAddress = "10.0.0.1" };
        StorageException? refused = await RefusalAsync(() => run(Driver(Trace, Every)));
        Assert.Equal(!onMaster, File.Exists(folder.File("ran")));
        if (onMaster)
            Assert.Equal(("Redirect", "HOST_IS_SLAVE", "10.0.0.1"), (refused!.Tag, refused.Code, refused.Parameters[0]));
    }

    [Theory]
    [MemberData(nameof(All))]
    public async Task An_SR_of_another_pools_disaster_recovery_is_read_only(int index)
    {
        (_, _, _, bool forDr, Func<SmapiV1Backend, Task> run) = Calls[index];
        database.SrRecord = database.SrRecord with { IsIntroducedByDr = true };
        StorageException? refused = await RefusalAsync(() => run(Driver(Trace, Every)));
        Assert.Equal(forDr, File.Exists(folder.File("ran")));
        Assert.Equal(forDr ? null : "OPERATION_NOT_ALLOWED", refused?.Code == "OPERATION_NOT_ALLOWED" ? refused.Code : null);
    }

    [Fact]
    public async Task What_needs_nothing_of_a_driver_that_cannot_is_done_without_it()
    {
        SmapiV1Backend backend = Driver("exit 9", ["VDI_ATTACH"]);
        await backend.VdiEpochBeginAsync("t", Sr, Vdi, "0", persistent: true, None);
        await backend.VdiEpochEndAsync("t", Sr, Vdi, "0", None);
        await backend.VdiSetPersistentAsync("t", Sr, Vdi, persistent: true, None);
        await backend.VdiSetNameLabelAsync("t", Sr, Vdi, "new", None);
        await backend.SrSetNameDescriptionAsync("t", Sr, "text", None);
        await backend.SrStatAsync("t", Sr, None);
        Assert.Equal(["rename disk new -", "rename sr - text"], database.Notes);
    }

    [Fact]
    public async Task What_a_datapath_means_for_content_and_caching_is_recorded()
    {
        const string attached = """
            <methodResponse><params><param><value><struct><member><name>params_nbd</name><value/></member>
            <member><name>o_direct</name><value><boolean>FLAG</boolean></value></member>
            <member><name>o_direct_reason</name><value>LICENSE_RESTRICTION</value></member></struct></value></param></params></methodResponse>
            """;
        foreach (string flag in (string[])["0", "1"])
            await Driver($"cat <<'E'\n{attached.Replace("FLAG", flag)}\nE", Every)
                .VdiAttachAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadWrite, None);
        SmapiV1Backend backend = Driver(Nil, Every);
        await backend.VdiActivateAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadOnly, None);
        await backend.VdiActivateAsync("t", Dp, Sr, Vdi, "0", VdiAccess.ReadWrite, None);
        await backend.VdiDeactivateAsync("t", Dp, Sr, Vdi, "0", None);
        await backend.VdiDetachAsync("t", Dp, Sr, Vdi, "0", None);
        Assert.Equal(
            ["caching disk True LICENSE_RESTRICTION", "caching disk False LICENSE_RESTRICTION", "changes disk", "settles disk",
                "uncached disk"],
            database.Notes);
    }

    [Fact]
    public async Task Attach_detach_and_probe_of_a_host_take_turns()
    {
        // The second may not start before the first has ended: the first only ends when it sees that the second has not started.
        string script = $"""
            mkdir {folder.File("turn")} || touch {folder.File("both")}
            mkfifo {folder.File("quiet")}; read -t 0.2 <> {folder.File("quiet")}; rm {folder.File("quiet")}
            rmdir {folder.File("turn")}; {Nil}
            """;
        SmapiV1Backend backend = Driver(script, Every);
        await Task.WhenAll(
            backend.SrAttachAsync("t", Sr, Nothing, None), backend.SrDetachAsync("t", Sr, None), backend.SrAttachAsync("t", Sr, Nothing, None));
        Assert.False(File.Exists(folder.File("both")));
    }

    [Fact]
    public async Task Each_number_of_the_field_is_its_error()
    {
        SmapiV1Backend backend = Driver($"echo why >&2; cat {folder.File("answer")}", Every);
        foreach (int number in Numbers)
        {
            await File.WriteAllTextAsync(folder.File("answer"), StorageAccess.Wire.XmlRpc.WriteFault(number, "text [opterr=x]"));
            StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.VdiDetachAsync("t", Dp, Sr, Vdi, "0", None));
            (string code, string[] parameters) = number switch
            {
                38 => ("UNIMPLEMENTED_IN_SM_BACKEND", new[] { "vdi_detach" }),
                39 => ("SR_NOT_EMPTY", []),
                24 => ("VDI_IN_USE", []),
                16 => ("SR_DEVICE_IN_USE", []),
                144 => ("VDI_MISSING", ["OpaqueRef:sr", "OpaqueRef:disk"]),
                _ => ($"SR_BACKEND_FAILURE_{number}", ["", "text [opterr=x]", "why\n"]),
            };
            Assert.Equal((code, string.Join('|', parameters)), (e.Code, string.Join('|', e.Parameters)));
        }
    }

    [Theory]
    [InlineData("echo \"$1\"; exit 1")]
    [InlineData("echo \"$1\" >&2; exit 1")]
    [InlineData("echo garbage \"$1\"")]
    [InlineData("echo \"$1\" >&2; sleep 60")]
    public async Task No_secret_is_in_an_error_however_the_driver_tells_its_argument(string script)
    {
        Dictionary<string, string> secrets = new() { ["chappassword"] = "p<4&\"s'7", ["cifspasswd"] = "zwei", ["token_secret"] = "drei" };
        database.SrRecord = database.SrRecord with { SessionRef = "OpaqueRef:5e55", DeviceConfig = secrets };
        TimeSpan deadline = script.Contains("sleep", StringComparison.Ordinal) ? TimeSpan.FromSeconds(0.5) : TimeSpan.FromSeconds(20);
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => Driver(script, Every, deadline).SrDetachAsync("t", Sr, None));
        Assert.Contains("chappassword", e.Message);
        foreach (string secret in (string[])["p<4&\"s'7", "p&lt;4&amp;&quot;s'7", "zwei", "drei", "5e55"])
            Assert.DoesNotContain(secret, e.Message);
    }

    [Fact]
    public async Task What_a_driver_started_ends_with_it_even_an_orphan_in_a_group_of_its_own()
    {
        string pids = folder.File("pids");
        string script = $"""
            set -m
            (sleep 300 & echo $! >> {pids}) &
            wait
            set +m
            setsid sleep 300 & echo $! > {folder.File("daemon")}
            sleep 300 & echo $! >> {pids}
            wait
            """;
        StorageException e = await Assert.ThrowsAsync<StorageException>(
            () => Driver(script, Every, TimeSpan.FromSeconds(1)).SrDetachAsync("t", Sr, None));
        Assert.True(e.IsOutcomeUnknown);
        int[] started = File.ReadAllLines(pids).Select(int.Parse).ToArray();
        Assert.Equal(2, started.Length);
        foreach (int processId in started)
            Assert.False(IsAlive(processId), $"{processId} is alive");
        // Who left the session on purpose is a daemon (a tapdisk): its owner ends it.
        int daemon = int.Parse(File.ReadAllText(folder.File("daemon")));
        Assert.True(Platform.Posix.TryKill(daemon, 9));
    }

    [Theory]
    [InlineData("no XML")]
    [InlineData("<methodCall><methodName>vdi_delete</methodName><params><param><value><struct/></value></param></params></methodCall>")]
    [InlineData("<methodCall><methodName>vdi_attach_from_config</methodName><params/></methodCall>")]
    public async Task A_static_configuration_that_is_none_starts_nothing(string config)
    {
        Driver(Trace, Every);
        StaticVdi disk = new(folder.File("FakeSR"), config, Settings(TimeSpan.FromSeconds(20)));
        await Assert.ThrowsAsync<StorageException>(() => disk.AttachAsync(None));
        await Assert.ThrowsAsync<StorageException>(() => disk.DetachAsync(None));
        Assert.False(File.Exists(folder.File("ran")));
    }

    [Fact]
    public void What_only_some_calls_have_is_where_the_field_has_it()
    {
        SmCall call = new("vdi_create")
        {
            HostRef = "h",
            Sr = new SmSr("s", "ses", true, new Dictionary<string, string> { ["SRmaster"] = "no" }, LocalCacheSr: "cache"),
            SrUuid = Sr,
            VdiType = "user",
            FixedUuid = "fixed",
        };
        string xml = call.ToXml();
        Assert.Contains("<name>SRmaster</name><value>true</value></member></struct>", xml);
        Assert.Contains("<name>sr_uuid</name><value>sr</value></member><member><name>vdi_uuid</name><value>fixed</value>", xml);
        Assert.EndsWith(
            "<name>local_cache_sr</name><value>cache</value></member></struct></value></param></params></methodCall>", xml);
        Assert.DoesNotContain("vdi_ref", xml);
    }

    private string Trace => $"touch {folder.File("ran")}; {Nil}";

    /// <summary>Null when the call succeeded, or failed for what the program answered.</summary>
    private static async Task<StorageException?> RefusalAsync(Func<Task> run)
    {
        try
        {
            await run();
            return null;
        }
        catch (StorageException e)
        {
            return e;
        }
    }

    private static bool IsAlive(int processId) =>
        File.Exists($"/proc/{processId}/stat") && !File.ReadAllText($"/proc/{processId}/stat").Contains(") Z ", StringComparison.Ordinal);

    private SmapiV1Backend Driver(string script, string[] capabilities, TimeSpan? deadline = null)
    {
        string path = FakeProgram.Write(folder.File("FakeSR"), script);
        QueryResult query = new("fake", "", "", "", "", "", [], new Dictionary<string, string>(), "SMAPIv1");
        return new SmapiV1Backend(
            new SmDriver("fake", path, query, capabilities.ToDictionary(static c => c, static _ => 1)), database,
            Settings(deadline ?? TimeSpan.FromSeconds(20)));
    }

    private SmDriverSettings Settings(TimeSpan deadline) => new(folder.Path, new Dictionary<string, string>(), deadline);
}
