// The bad-input plan (research/users-and-trust.md 5.4), rows 146-162: a plugin's output. Each row is a test of its own for both adapters, and
// none may be missing.
using System.Diagnostics;
using System.Globalization;
using System.Reflection;
using System.Text.RegularExpressions;
using Nbd;
using Platform;
using SmapiV1Adapter;
using SmapiV3Bridge;
using StorageAccess;
using Support;

namespace Unit.StorageAccessTests;

public sealed partial class BadPluginTests : IDisposable
{
    private const int FirstRow = 146;
    private const int LastRow = 162;
    private const string Traceback = "echo 'ModuleNotFoundError: No module named XenAPI' >&2; exit 1";
    private static readonly TimeSpan Short = TimeSpan.FromSeconds(2);
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly BadPluginWorld world = new();

    public void Dispose() => world.Dispose();

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public Task Row_146_nothing_with_exit_0_is_no_answer(bool isV1) => world.HasNoAnswerAsync(isV1, "exit 0");

    [Theory]
    [InlineData(true, "non-zero exit")]
    [InlineData(false, "exit 1")]
    public async Task Row_147_a_good_result_with_exit_1_is_no_answer(bool isV1, string says) =>
        Assert.Contains(says, (await world.HasNoAnswerAsync(isV1, BadPluginWorld.Printing(BadPluginWorld.Good(isV1)) + "\nexit 1")).Message);

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public Task Row_148_half_a_document_is_no_answer(bool isV1)
    {
        string good = BadPluginWorld.Good(isV1);
        return world.HasNoAnswerAsync(isV1, BadPluginWorld.Printing(good[..(good.Length / 2)]));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public Task Row_149_two_documents_are_no_answer(bool isV1) =>
        world.HasNoAnswerAsync(isV1, BadPluginWorld.Printing(BadPluginWorld.Good(isV1) + "\n" + BadPluginWorld.Good(isV1)));

    [Theory]
    [InlineData(true, "INFO: starting\n", "")]
    [InlineData(true, "", "\nINFO: done")]
    [InlineData(false, "INFO: starting\n", "")]
    [InlineData(false, "", "\nINFO: done")]
    public async Task Row_150_log_lines_in_the_output_are_no_answer_and_are_shown(bool isV1, string before, string after)
    {
        StorageException e = await world.HasNoAnswerAsync(isV1, BadPluginWorld.Printing(before + BadPluginWorld.Good(isV1) + after));
        Assert.Contains((before + after).Trim(), e.Message);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Row_151_a_gigabyte_of_output_is_cut_off(bool isV1)
    {
        StorageException e = await world.HasNoAnswerAsync(isV1, "head -c 1000000000 /dev/zero");
        Assert.Contains("printed more than 8388608 bytes and was killed", e.Message);
    }

    /// <summary>All at once: each takes its whole deadline.</summary>
    [Fact]
    public Task Row_152_one_that_does_not_end_is_killed_with_what_it_started() => Task.WhenAll(
        from isV1 in (bool[])[true, false]
        from body in (string[])["echo $$ > PID; exec sleep 600", "sleep 600 & echo $! > PID; GOOD", "trap '' TERM; echo $$ > PID; while :; do sleep 600; done"]
        select DoesNotEndAsync(isV1, body));

    [Theory]
    [InlineData(true, "received signal: 9")]
    [InlineData(false, "exit 137")]
    public async Task Row_153_one_that_a_signal_ends_is_no_answer_though_it_printed_one(bool isV1, string says) => Assert.Contains(says,
        (await world.HasNoAnswerAsync(isV1, BadPluginWorld.Printing(BadPluginWorld.Good(isV1)) + "\nkill -9 $$")).Message);

    [Theory]
    [InlineData(true, "SR_BACKEND_FAILURE_99999")]
    [InlineData(false, "SR_BACKEND_FAILURE_99999")]
    public async Task Row_154_an_unknown_error_number_is_handed_on_and_a_text_for_a_number_is_no_answer(bool isV1, string code)
    {
        string refusal = isV1 ? Fault("<int>99999</int>") : """{"code":"SR_BACKEND_FAILURE_99999","params":["why"]}""";
        StorageException e = await Assert.ThrowsAsync<StorageException>(
            () => world.AskAsync(isV1, BadPluginWorld.Printing(refusal) + (isV1 ? "" : "\nexit 1")));
        Assert.Equal((code, false), (e.Code, e.IsOutcomeUnknown));
        Assert.Contains("why", e.Message);
        await world.HasNoAnswerAsync(isV1, BadPluginWorld.Printing(
            isV1 ? Fault("<string>twelve</string>") : BadPluginWorld.Volume.Replace("1048576", "\"twelve\"")));
    }

    /// <summary>A path is a text that no shell sees and that nothing is opened by; the address is, and fails as one error.</summary>
    [Theory]
    [InlineData("/etc/passwd")]
    [InlineData("/no/such/device")]
    [InlineData("/dev")]
    [InlineData("$(touch CANARY)")]
    public async Task Row_155_a_strange_path_of_attach_stays_a_text_and_cannot_be_connected_to(string template)
    {
        string path = template.Replace("CANARY", world.File("canary"));
        string nbd = $"nbd:unix:{path}:exportname=disk";
        SmapiV1Backend v1 = world.V1(BadPluginWorld.Printing(BadPluginWorld.Answer("<struct><member><name>params</name><value>" + path
            + "</value></member><member><name>params_nbd</name><value>" + nbd + "</value></member></struct>")));
        world.DatapathScript("Datapath.attach", BadPluginWorld.Printing(
            $$"""{"implementations":[["BlockDevice",{"path":"{{path}}"}],["Nbd",{"uri":"{{nbd}}"}]]}"""));
        foreach (IStorageBackend backend in (IStorageBackend[])[v1, await world.V3Async()])
        {
            Backend attached = await backend.VdiAttachAsync(
                "t", BadPluginWorld.Datapath, BadPluginWorld.Sr, BadPluginWorld.Disk, "0", VdiAccess.ReadWrite, None);
            Assert.Equal(path, attached.Implementations.OfType<BlockDevicePath>().Single().Path);
            NbdUri uri = NbdUri.TryParse(attached.Nbd!.Uri)!;
            await Assert.ThrowsAnyAsync<IOException>(() => NbdClient.ConnectAsync(uri, new NbdClientOptions { ConnectTimeout = Short }, None));
        }

        Assert.False(File.Exists(world.File("canary")));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Row_156_a_disk_smaller_than_asked_goes_again_and_a_larger_one_says_so(bool isV1)
    {
        string gone = world.File("gone");
        world.Script("Volume.create", BadPluginWorld.Printing(BadPluginWorld.Volume));
        world.Script("Volume.destroy", $"touch {gone}; echo null");
        IStorageBackend backend = isV1
            ? world.V1($"case \"$1\" in *vdi_create*) {Echo(BadPluginWorld.Answer(BadPluginWorld.Located))};; *vdi_delete*) touch {gone};& *) {Echo(BadPluginWorld.Good(true))};; esac")
            : await world.V3Async();
        StorageLayer layer = await world.LayerAsync(backend);
        VdiInfo larger = await layer.VdiCreateAsync("t", BadPluginWorld.Sr, Asked(1000000), None);
        Assert.Equal(1048576, larger.VirtualSizeBytes);
        Assert.False(File.Exists(gone));
        StorageException e = await Assert.ThrowsAsync<StorageException>(
            () => layer.VdiCreateAsync("t", BadPluginWorld.Sr, Asked(2000000), None));
        Assert.Equal(["Disk too small", "2000000", "1048576"], e.Parameters);
        Assert.True(File.Exists(gone));
    }

    /// <summary>A SMAPIv1 driver lists nothing itself: its disks are the database's rows.</summary>
    [Fact]
    public async Task Row_157_one_disk_twice_in_a_scan_is_no_answer()
    {
        world.Script("SR.ls", BadPluginWorld.Printing($"[{BadPluginWorld.Volume},{BadPluginWorld.Volume}]"));
        SmapiV3Backend backend = await world.V3Async();
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.SrScanAsync("t", BadPluginWorld.Sr, None));
        Assert.Equal("SCRIPT_FAILED", e.Code);
        Assert.Contains("volume disk is listed twice", e.Message);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Row_158_a_scan_whose_tool_is_missing_is_a_failure_and_no_empty_list(bool isV1)
    {
        string scan = $"lister || exit 127; {Echo(isV1 ? BadPluginWorld.Good(true) : $"[{BadPluginWorld.Volume}]")}";
        world.Script("SR.ls", scan);
        IStorageBackend backend = isV1 ? world.V1(scan) : await world.V3Async();
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.SrScanAsync("t", BadPluginWorld.Sr, None));
        Assert.Contains("lister", e.Message);
        FakeProgram.Write(world.File("tools/lister"), "exit 0");
        Assert.Equal(BadPluginWorld.Disk, Assert.Single((await backend.SrScanAsync("t", BadPluginWorld.Sr, None)).Vdis).Vdi);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Row_159_a_feature_that_is_claimed_and_lacking_is_not_implemented(bool isV1)
    {
        IStorageBackend backend = isV1 ? world.V1(BadPluginWorld.Printing(Fault("<int>38</int>"))) : await world.V3Async();
        VdiInfo disk = new() { Vdi = BadPluginWorld.Disk };
        StorageException e = await Assert.ThrowsAsync<StorageException>(() => backend.VdiSnapshotAsync("t", BadPluginWorld.Sr, disk, None));
        Assert.Equal(("Unimplemented", false), (e.Tag, e.IsOutcomeUnknown));
    }

    [Fact]
    public async Task Row_160_one_that_fails_as_it_starts_is_left_out_with_its_own_words()
    {
        FakeProgram.Write(world.File("sm/BrokenSR"), Traceback);
        Assert.Contains("No module named XenAPI", Assert.Single(await world.RejectedV1Async()).Reason);
        FakeProgram.Write(world.File("volume/broken/Plugin.Query"), Traceback);
        StoragePlugins plugins = await world.DiscoverV3Async();
        Assert.Contains("No module named XenAPI", Assert.Single(plugins.Rejected).Reason);
        Assert.Equal("fake", Assert.Single(plugins.Volumes).Type);
    }

    [Theory]
    [InlineData(UnixFileMode.UserRead, "executable", "cannot be started")]
    [InlineData(UnixFileMode.UserRead | UnixFileMode.UserExecute | UnixFileMode.OtherWrite, "everybody may write", "everybody may write")]
    public async Task Row_161_one_with_a_wrong_mode_is_left_out(UnixFileMode mode, string v1Says, string v3Says)
    {
        string touched = world.File("touched");
        File.SetUnixFileMode(FakeProgram.Write(world.File("sm/OddSR"), $"touch {touched}"), mode);
        Assert.Contains(v1Says, Assert.Single(await world.RejectedV1Async()).Reason);
        File.SetUnixFileMode(FakeProgram.Write(world.File("volume/odd/Plugin.Query"), $"touch {touched}"), mode);
        Assert.Contains(v3Says, Assert.Single((await world.DiscoverV3Async()).Rejected).Reason);
        Assert.False(File.Exists(touched));
    }

    [SkippableFact]
    public async Task Row_161_one_of_another_owner_is_left_out()
    {
        Skip.IfNot(Environment.IsPrivilegedProcess, "only root can give a file away");
        string touched = world.File("touched");
        await GiveAwayAsync(FakeProgram.Write(world.File("sm/OddSR"), $"touch {touched}"));
        Assert.Contains("belongs neither to root nor", Assert.Single(await world.RejectedV1Async()).Reason);
        await GiveAwayAsync(FakeProgram.Write(world.File("volume/odd/Plugin.Query"), $"touch {touched}"));
        Assert.Contains("belongs neither to root nor", Assert.Single((await world.DiscoverV3Async()).Rejected).Reason);
        Assert.False(File.Exists(touched));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Row_162_calls_at_once_get_each_its_own_answer(bool isV1)
    {
        VdiId[] disks = [.. Enumerable.Range(0, 8).Select(static i => new VdiId($"disk-{i}"))];
        foreach (VdiId disk in disks)
            world.Database.Add(disk.Value);
        world.Script("Volume.stat", $$"""read -r line; key=${line##*'"key":"'}; key=${key%%\"*}; echo '{{BadPluginWorld.Volume}}' | sed "s/\"disk\"/\"$key\"/" """);
        SmapiV1Backend v1 = world.V1("key=${1##*vdi_location</name><value>}; key=${key%%<*}; echo \"" + BadPluginWorld.Answer("$key") + "\"");
        SmapiV3Backend v3 = await world.V3Async();
        string[] answers = await Task.WhenAll(disks.Select(async disk => isV1
            ? await v1.VdiGenerateConfigAsync("t", BadPluginWorld.Sr, disk, None)
            : (await v3.VdiStatAsync("t", BadPluginWorld.Sr, disk, None)).Vdi.Value));
        Assert.Equal(disks.Select(static d => d.Value), answers);
    }

    [Fact]
    public void No_row_is_missing()
    {
        IEnumerable<int> rows = typeof(BadPluginTests).GetMethods(BindingFlags.Public | BindingFlags.Instance)
            .Where(static m => m.GetCustomAttributes<FactAttribute>().Any())
            .Select(static m => RowNumber().Match(m.Name)).Where(static m => m.Success)
            .Select(static m => int.Parse(m.Groups[1].Value, CultureInfo.InvariantCulture));
        Assert.Equal(Enumerable.Range(FirstRow, LastRow - FirstRow + 1), rows.Distinct().Order());
    }

    private static async Task DoesNotEndAsync(bool isV1, string body)
    {
        using BadPluginWorld own = new();
        string file = own.File("pid");
        StorageException e = await own.HasNoAnswerAsync(
            isV1, body.Replace("PID", file).Replace("GOOD", Echo(BadPluginWorld.Good(isV1))), Short);
        Assert.Contains("did not end within 2 s and was killed", e.Message);
        int processId = int.Parse(await File.ReadAllTextAsync(file), CultureInfo.InvariantCulture);
        Assert.True(SpinWait.SpinUntil(() => !ProcessTable.IsAlive(processId), TimeSpan.FromSeconds(10)), $"{body}: process {processId} lives");
    }

    private static async Task GiveAwayAsync(string path)
    {
        using Process chown = Process.Start("chown", ["12345", path]);
        await chown.WaitForExitAsync();
        Assert.Equal(0, chown.ExitCode);
    }

    private static VdiInfo Asked(long sizeBytes) => new() { Vdi = new VdiId(""), VirtualSizeBytes = sizeBytes, Type = "" };

    private static string Echo(string text) => $"echo '{text}'";

    private static string Fault(string code) =>
        $"<methodResponse><fault><value><struct><member><name>faultCode</name><value>{code}</value></member><member><name>faultString</name><value>why</value></member></struct></value></fault></methodResponse>";

    [GeneratedRegex(@"^Row_(\d{3})_")]
    private static partial Regex RowNumber();
}
