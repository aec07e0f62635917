// The drivers that we ship, run as an integrator's would be: their executables, under the storage access layer and the adapter, with a real
// tapdisk, judged by qemu-io and qemu-img. One life of an SR for both APIs.
using System.Text.Json.Nodes;
using Platform;
using SmapiV1Adapter;
using SmapiV3Bridge;
using StorageAccess;
using StorageAccess.Tap;
using Support;
using Xapi.Storage;

namespace Conformance.PluginsTests;

public sealed partial class ShippedDriversTests : IAsyncLifetime
{
    private const long DiskBytes = 8 << 20;
    private const long QuotaBytes = 64 << 20;
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly SrId sr = new(Guid.NewGuid().ToString());
    private readonly TemporaryDirectory folder = new();
    private readonly TapControl taps;
    private FakeXenApi? xenApi;
    private StorageState? state;
    private StorageLayer layer = null!;

    public ShippedDriversTests() => taps = new TapControl(folder.Path);

    private string SrFolder => folder.File("sr");

    public Task InitializeAsync() => Task.CompletedTask;

    public async Task DisposeAsync()
    {
        foreach (TapEntry entry in await taps.ListAsync(None))
        {
            if (entry.ProcessId is { } processId)
                Posix.TryKill(processId, 9);
        }

        if (xenApi is not null)
            await xenApi.DisposeAsync();
        state?.Dispose();
        folder.Dispose();
    }

    [SkippableTheory]
    [InlineData("filevhd")]
    [InlineData("vhdfile")]
    public async Task An_SR_lives_from_create_to_destroy_and_leaves_nothing(string type)
    {
        await StartAsync(type);
        VdiInfo disk = await DiskAsync();
        Assert.Equal(DiskBytes, disk.VirtualSizeBytes);
        string socket = await UpAsync("a", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x11 0 1M");
        // Again is nothing to do.
        await layer.ActivateAsync("t", new DatapathId("a"), sr, disk.Vdi, "0", None);

        VdiInfo snapshot = await layer.VdiSnapshotAsync("t", sr, disk, None);
        await QemuIoAsync(socket, disk.Vdi, "read -P 0x11 0 1M", "write -P 0x22 512k 1M");
        await DownAsync("a", disk.Vdi);
        VdiInfo clone = await layer.VdiCloneAsync("t", sr, snapshot, None);
        socket = await UpAsync("b", clone.Vdi);
        await QemuIoAsync(socket, clone.Vdi, "read -P 0x11 0 1M", "read -P 0 1M 1M", "write -P 0x33 0 64k");
        await DownAsync("b", clone.Vdi);
        socket = await UpAsync("c", snapshot.Vdi, VdiAccess.ReadOnly);
        await QemuIoAsync(socket, snapshot.Vdi, "-r", "read -P 0x11 0 1M");
        await DownAsync("c", snapshot.Vdi);
        socket = await UpAsync("d", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "read -P 0x11 0 512k", "read -P 0x22 512k 1M", "read -P 0 2M 1M");
        await DownAsync("d", disk.Vdi);

        SrScan scan = await layer.SrScanAsync("t", sr, None);
        Assert.Equal(
            new[] { disk, snapshot, clone }.Select(static v => v.Vdi.Value).Order(), scan.Vdis.Select(static v => v.Vdi.Value).Order());
        Assert.Equal(QuotaBytes, scan.Info.TotalSpaceBytes);
        Assert.InRange(scan.Info.FreeSpaceBytes, QuotaBytes - (16 << 20), QuotaBytes - (2 << 20));
        await QemuImgReadsAsync();

        await layer.VdiDestroyAsync("t", sr, disk.Vdi, None);
        await layer.VdiDestroyAsync("t", sr, snapshot.Vdi, None);
        await layer.VdiDestroyAsync("t", sr, clone.Vdi, None);
        Assert.Empty(Directory.GetFiles(SrFolder, "*.vhd"));
        await layer.SrDestroyAsync("t", sr, None);
        Assert.False(Directory.Exists(SrFolder));
        Assert.False(Directory.Exists(folder.File("nbd")) && Directory.EnumerateFileSystemEntries(folder.File("nbd")).Any());
        Assert.DoesNotContain(await taps.ListAsync(None), static e => e.Minor is not null);
    }

    [SkippableTheory]
    [InlineData("filevhd")]
    [InlineData("vhdfile")]
    public async Task A_tapdisk_that_died_counts_as_closed(string type)
    {
        await StartAsync(type);
        VdiInfo disk = await DiskAsync();
        string socket = await UpAsync("a", disk.Vdi);
        int processId = (await taps.ListAsync(None)).Single(static e => e.Arguments is not null).ProcessId!.Value;
        Posix.TryKill(processId, 9);
        await DownAsync("a", disk.Vdi);
        Assert.Null(new FileInfo(socket).LinkTarget);
        Assert.DoesNotContain(await taps.ListAsync(None), static e => e.Minor is not null);
        socket = await UpAsync("b", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "read -P 0 0 1M");
        await DownAsync("b", disk.Vdi);
    }

    [SkippableTheory]
    [InlineData("filevhd", "SR_BACKEND_FAILURE_44", "VDI_IN_USE", "SR_NOT_EMPTY")]
    [InlineData("vhdfile", "SR_BACKEND_FAILURE_44", "SR_BACKEND_FAILURE_24", "SR_BACKEND_FAILURE_39")]
    public async Task What_cannot_be_done_is_refused_and_changes_nothing(string type, string noSpace, string inUse, string notEmpty)
    {
        await StartAsync(type);
        Assert.Equal(noSpace, (await Assert.ThrowsAsync<StorageException>(() => DiskAsync(QuotaBytes + 512))).Code);
        Assert.Empty(Directory.GetFiles(SrFolder, "*.vhd"));
        VdiInfo disk = await DiskAsync();
        Assert.Equal(notEmpty, (await Assert.ThrowsAsync<StorageException>(() => layer.SrDestroyAsync("t", sr, None))).Code);

        // Somebody else has the image open: no view of the SR may open it again, or delete it.
        int processId = await taps.SpawnAsync(ToolsFolder, None);
        int minor = await taps.AllocateMinorAsync(None);
        await taps.AttachAsync(processId, minor, None);
        await taps.OpenAsync(processId, minor, $"vhd:{SrFolder}/{disk.Vdi}.vhd", TapOpenFlags.None, null, None);
        Assert.Equal(inUse, (await Assert.ThrowsAsync<StorageException>(() => UpAsync("a", disk.Vdi))).Code);
        await layer.DestroyAsync("t", new DatapathId("a"), allowLeak: false, None);
        Assert.Equal(inUse, (await Assert.ThrowsAsync<StorageException>(() => layer.VdiDestroyAsync("t", sr, disk.Vdi, None))).Code);
        await taps.CloseAsync(processId, minor, force: false, None);
        await taps.DetachAsync(processId, minor, None);
        await layer.VdiDestroyAsync("t", sr, disk.Vdi, None);
    }

    [SkippableTheory]
    [InlineData("filevhd")]
    [InlineData("vhdfile")]
    public async Task One_damaged_image_does_not_hide_the_others_and_a_cut_off_fork_is_cleaned_up(string type)
    {
        await StartAsync(type);
        VdiInfo good = await DiskAsync();
        VdiInfo bad = await DiskAsync();
        // As a fork leaves it when it dies after the link: the base is the disk's own file, and nothing points to it.
        string baseKey = Guid.NewGuid().ToString();
        File.WriteAllText(Path.Combine(SrFolder, $".fork-{good.Vdi}"), baseKey);
        Posix.CreateHardLink(Path.Combine(SrFolder, $"{good.Vdi}.vhd"), Path.Combine(SrFolder, $"{baseKey}.vhd"));
        File.WriteAllText(Path.Combine(SrFolder, $".{good.Vdi}.vhd.new"), "half");
        File.WriteAllBytes(Path.Combine(SrFolder, $"{bad.Vdi}.vhd"), new byte[4096]);

        VdiInfo third = await DiskAsync();
        SrScan scan = await layer.SrScanAsync("t", sr, None);
        Assert.Contains(scan.Vdis, v => v.Vdi == good.Vdi);
        Assert.Contains(scan.Vdis, v => v.Vdi == third.Vdi);
        Assert.DoesNotContain(scan.Vdis, v => v.Vdi.Value == baseKey);
        Assert.Equal(3, Directory.GetFiles(SrFolder, "*.vhd").Length);
        Assert.DoesNotContain(Directory.GetFiles(SrFolder), static f =>
            f.EndsWith(".new", StringComparison.Ordinal) || f.Contains(".fork-"));
    }

    [SkippableTheory]
    [InlineData("filevhd", "SR_BACKEND_FAILURE_79", "VDI_IN_USE", "SR_BACKEND_FAILURE_44")]
    [InlineData("vhdfile", "SR_BACKEND_FAILURE_79", "SR_BACKEND_FAILURE_24", "SR_BACKEND_FAILURE_44")]
    public async Task A_disk_grows_and_keeps_what_it_holds(string type, string shrink, string inUse, string noSpace)
    {
        await StartAsync(type);
        VdiInfo disk = await DiskAsync();
        string socket = await UpAsync("a", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x11 0 1M");
        Assert.Equal(inUse, await RefusalAsync(2 * DiskBytes));
        await DownAsync("a", disk.Vdi);
        Assert.Equal(2 * DiskBytes, await layer.VdiResizeAsync("t", sr, disk.Vdi, 2 * DiskBytes, None));
        Assert.Equal(2 * DiskBytes, await layer.VdiResizeAsync("t", sr, disk.Vdi, 2 * DiskBytes, None));
        Assert.Equal(shrink, await RefusalAsync(DiskBytes));
        Assert.Equal(noSpace, await RefusalAsync(QuotaBytes * 2));
        Assert.Equal(2 * DiskBytes, (await layer.VdiStatAsync("t", sr, disk.Vdi, None)).VirtualSizeBytes);
        socket = await UpAsync("b", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "read -P 0x11 0 1M", "read -P 0 1M 15M", "write -P 0x22 15M 1M");
        await DownAsync("b", disk.Vdi);
        await QemuImgReadsAsync();

        async Task<string> RefusalAsync(long sizeBytes) =>
            (await Assert.ThrowsAsync<StorageException>(() => layer.VdiResizeAsync("t", sr, disk.Vdi, sizeBytes, None))).Code;
    }

    [SkippableTheory]
    [InlineData("filevhd")]
    [InlineData("vhdfile")]
    public async Task DATA_copy_makes_a_disk_that_reads_the_same_and_holds_no_zeros(string type)
    {
        await StartAsync(type);
        VdiInfo disk = await DiskAsync();
        string socket = await UpAsync("a", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x11 0 1M", "write -P 0x22 3000k 4k", "write -P 0 4M 2M", "write -P 0x33 8188k 4k");
        Assert.True(Posix.IsSocket(layer.NbdSocketOf(sr, disk.Vdi, new DatapathId("a"), isPassing: false)));
        Assert.True(Posix.IsSocket(layer.NbdSocketOf(sr, disk.Vdi, new DatapathId("a"), isPassing: true)));
        await DownAsync("a", disk.Vdi);

        await using StorageTasks tasks = new(layer.Updates, TimeProvider.System);
        StorageServer server = new(layer, tasks, new NbdDiskCopier());
        JsonNode started = await CallAsync("DATA.copy", new JsonObject
        {
            ["dbg"] = "t",
            ["sr"] = sr.Value,
            ["vdi"] = disk.Vdi.Value,
            ["vm"] = "0",
            ["url"] = "",
            ["dest"] = sr.Value,
            ["verify_dest"] = false,
        });
        string token = "";
        JsonNode state;
        while ((string)(state = (await CallAsync("TASK.stat", new JsonObject { ["task"] = started.DeepClone() }))["state"]!)[0]! == "Pending")
            token = (string)(await CallAsync("UPDATES.get", new JsonObject { ["from"] = token, ["timeout"] = 5 }))[1]!;
        Assert.True((string)state[0]! == "Completed", state.ToJsonString());

        string made = Path.Combine(SrFolder, $"{(string)state[1]!["result"]![1]!["vdi"]!}.vhd"), source = Path.Combine(SrFolder, $"{disk.Vdi}.vhd");
        ChildResult compared = await Tool.RunAsync("qemu-img", "compare", "-f", "vpc", "-F", "vpc", source, made);
        Assert.True(compared.ExitCode == 0, compared.StandardOutput);
        Assert.True(new FileInfo(made).Length < new FileInfo(source).Length, "the zeros were written again");
        Assert.Empty(layer.Datapaths());

        async Task<JsonNode> CallAsync(string call, JsonObject parameters)
        {
            JsonObject request = new() { ["method"] = call, ["params"] = new JsonArray(parameters), ["id"] = 1 };
            JsonNode answer = JsonNode.Parse(await server.Dispatcher.HandleAsync(request.ToJsonString(), None))!;
            Assert.True(answer["error"] is null, answer.ToJsonString());
            return answer["result"]!;
        }
    }

    private async Task StartAsync(string type)
    {
        Skip.IfNot(Tool.Exists("qemu-io"), Tool.Missing("qemu-io"));
        state = StorageState.Open(folder.File("storage.db"));
        IStorageBackend backend = type == "filevhd" ? await V1Async() : await V3Async();
        layer = new StorageLayer(state, new Dictionary<string, IStorageBackend> { [type] = backend }, new HostReality("here"), TimeProvider.System,
            TimeSpan.FromSeconds(30));
        Dictionary<string, string> config = type == "filevhd"
            ? new() { ["location"] = SrFolder }
            : new() { ["path"] = SrFolder, ["size"] = $"{QuotaBytes}" };
        layer.RegisterSr(sr, type, config);
        await layer.SrAttachAsync("t", sr, await layer.SrCreateAsync("t", sr, "n", "d", config, QuotaBytes, None), None);
    }

    private async Task<IStorageBackend> V1Async()
    {
        xenApi = new FakeXenApi(folder.File("xapi"), SrFolder);
        Link("sm/FileVhdSR", Built("FileVhdSR"));
        SmDriverSettings settings = new(ToolsFolder, Variables(), TimeSpan.FromMinutes(1));
        (IReadOnlyList<SmDriver> drivers, IReadOnlyList<RejectedDriver> rejected) =
            await SmDrivers.DiscoverAsync(folder.File("sm"), [SmDrivers.AnyType], xenApi.HostRef, settings, None);
        Assert.Empty(rejected);
        return new SmapiV1Backend(Assert.Single(drivers), xenApi, settings);
    }

    private async Task<IStorageBackend> V3Async()
    {
        string program = Built("vhdfile");
        string[] volume =
        [
            "Plugin.Query", "SR.create", "SR.attach", "SR.detach", "SR.destroy", "SR.stat", "SR.ls", "Volume.create", "Volume.snapshot",
            "Volume.clone",
            "Volume.destroy", "Volume.stat", "Volume.set", "Volume.unset", "Volume.resize", "Volume.compose",
        ];
        string[] datapath =
            ["Plugin.Query", "Datapath.attach", "Datapath.activate", "Datapath.activate_readonly", "Datapath.deactivate",
                "Datapath.detach"];
        foreach (string script in volume)
            Link($"scripts/volume/org.xen.xapi.storage.vhdfile/{script}", program);
        foreach (string script in datapath)
            Link($"scripts/datapath/tapdisk/{script}", program);
        ScriptSettings settings = new(ToolsFolder, Variables(), TimeSpan.FromMinutes(1));
        StoragePlugins plugins = await StoragePlugins.DiscoverAsync(folder.File("scripts"), settings, None);
        Assert.Empty(plugins.Rejected);
        return new SmapiV3Backend(Assert.Single(plugins.Volumes), plugins, state!, TimeProvider.System);
    }

    private void Link(string name, string target)
    {
        Directory.CreateDirectory(Path.GetDirectoryName(folder.File(name))!);
        File.CreateSymbolicLink(folder.File(name), target);
    }

    private Dictionary<string, string> Variables() =>
        new() { ["BLKTAP_CONTROL_DIRECTORY"] = folder.Path, ["XAPI_UNIX_SOCKET"] = folder.File("xapi") };

    private Task<VdiInfo> DiskAsync(long sizeBytes = DiskBytes) =>
        layer.VdiCreateAsync("t", sr, new VdiInfo { Vdi = new VdiId(""), NameLabel = "disk", VirtualSizeBytes = sizeBytes }, None);

    private async Task<string> UpAsync(string datapath, VdiId vdi, VdiAccess access = VdiAccess.ReadWrite)
    {
        Backend attached = await layer.AttachAsync("t", new DatapathId(datapath), sr, vdi, "0", access, None);
        await layer.ActivateAsync("t", new DatapathId(datapath), sr, vdi, "0", None);
        string[] parts = attached.Nbd!.Uri.Split(':');
        Assert.Equal(["nbd", "unix", $"exportname={vdi}"], [parts[0], parts[1], parts[3]]);
        return parts[2];
    }

    private async Task DownAsync(string datapath, VdiId vdi)
    {
        await layer.DeactivateAsync("t", new DatapathId(datapath), sr, vdi, "0", None);
        await layer.DetachAsync("t", new DatapathId(datapath), sr, vdi, "0", None);
    }

    private static async Task QemuIoAsync(string socket, VdiId vdi, params string[] commands)
    {
        List<string> arguments = ["-f", "raw"];
        foreach (string command in commands)
            arguments.AddRange(command.StartsWith('-') ? [command] : ["-c", command]);
        ChildResult result = await Tool.RunAsync("qemu-io", [.. arguments, $"nbd+unix:///{vdi}?socket={socket}"]);
        Assert.True(result.ExitCode == 0 && !result.StandardOutput.Contains("failed"), result.StandardOutput + result.StandardError);
    }

    private async Task QemuImgReadsAsync()
    {
        foreach (string image in Directory.GetFiles(SrFolder, "*.vhd"))
        {
            ChildResult result = await Tool.RunAsync("qemu-img", "info", "-f", "vpc", image);
            Assert.True(result.ExitCode == 0, $"{image}: {result.StandardError}");
        }
    }

    private static string ToolsFolder => Path.GetDirectoryName(Built("tapdisk", "Tapdisk"))!;

    /// <summary>The newest build of an executable of ours; the project file makes sure that there is one.</summary>
    private static string Built(string program, string? project = null)
    {
        string root = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(root, "Storage.sln")))
            root = Path.GetDirectoryName(root)!;
        return Directory.GetFiles(Path.Combine(root, "artifacts/bin", project ?? program), program, SearchOption.AllDirectories)
            .OrderByDescending(File.GetLastWriteTimeUtc).First();
    }
}
