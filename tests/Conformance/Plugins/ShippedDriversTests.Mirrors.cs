// Live copies in the field's form over the drivers that we ship, with real tapdisks: what a sender of the field does, call by call
// (research/storage.md 7.4 to 7.8).
using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Tap;
using Xapi.Storage;

namespace Conformance.PluginsTests;

public sealed partial class ShippedDriversTests
{
    [SkippableTheory]
    [InlineData("filevhd")]
    [InlineData("vhdfile")]
    public async Task A_mirror_that_is_received_and_finalised_holds_what_the_guest_wrote_before_and_after(string type)
    {
        await StartAsync(type);
        await using StorageTasks tasks = new(layer.Updates, TimeProvider.System);
        StorageServer server = new(layer, tasks, new NbdDiskCopier());
        VdiInfo disk = await DiskAsync();
        string socket = await UpAsync("a", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x11 0 1M");

        JsonObject start = new() { ["sr"] = sr.Value, ["vdi_info"] = await StatAsync(server, disk.Vdi), ["id"] = "far/disk", ["similar"] = new JsonArray(), ["vm"] = "0" };
        JsonNode made = (await ResultAsync(server, "DATA.MIRROR.receive_start2", start))![1]!;
        VdiId leaf = new((string)made["mirror_vdi"]!["vdi"]!), parent = new((string)made["copy_diffs_to"]!);
        JsonObject ofLeaf = new() { ["dp"] = (string)made["mirror_datapath"]!, ["sr"] = sr.Value, ["vdi"] = leaf.Value, ["vm"] = "0" };
        string target = (string)(await ResultAsync(server, "DATA.get_nbd_server", ofLeaf))!;
        TapEntry source = (await taps.ListAsync(None)).Single(entry => entry.Arguments?.Contains(disk.Vdi.Value, StringComparison.Ordinal) == true);
        await taps.PauseAsync(source.ProcessId!.Value, source.Minor!.Value, None);
        await taps.ResumeAsync(source.ProcessId.Value, source.Minor.Value, null, $"nbd:{target}", None);
        VdiInfo snapshot = await layer.VdiSnapshotAsync("t", sr, disk with { SmConfig = new Dictionary<string, string>() }, None);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x22 512k 1M");
        Backend from = await BackendOfAsync("from", snapshot.Vdi, VdiAccess.ReadOnly), to = await BackendOfAsync("to", parent, VdiAccess.ReadWrite);
        await new NbdDiskCopier().CopyAsync(from, to, new Progress<double>(), None);
        await DownAsync("from", snapshot.Vdi);
        await DownAsync("to", parent);
        JsonObject ofSource = new() { ["dp"] = "a", ["sr"] = sr.Value, ["vdi"] = disk.Vdi.Value, ["id"] = $"{sr}/{disk.Vdi}" };
        await ResultAsync(server, "DATA.MIRROR.pre_deactivate_hook", ofSource);
        Assert.False((bool)(await ResultAsync(server, "DATA.MIRROR.has_mirror_failed", ofSource))!);
        await DownAsync("a", disk.Vdi);
        await ResultAsync(server, "DATA.MIRROR.receive_finalize2", new JsonObject { ["id"] = "far/disk" });

        Assert.Equal("{}", (await ResultAsync(server, "DATA.MIRROR.list", []))!.ToJsonString());
        Assert.Equal(
            new[] { disk.Vdi, snapshot.Vdi, leaf }.Select(static v => v.Value).Order(),
            (await layer.SrScanAsync("t", sr, None)).Vdis.Select(static v => v.Vdi.Value).Order());
        socket = await UpAsync("b", leaf);
        await QemuIoAsync(socket, leaf, "read -P 0x11 0 512k", "read -P 0x22 512k 1M", "read -P 0 1536k 6656k");
        await DownAsync("b", leaf);
    }

    [SkippableFact]
    public async Task DATA_mirror_copies_everything_and_each_write_after_it_and_a_tapdisk_of_nobody_is_reported_and_left_alone()
    {
        await StartAsync("vhdfile");
        await using StorageTasks tasks = new(layer.Updates, TimeProvider.System);
        StorageServer server = new(layer, tasks, new NbdDiskCopier());
        VdiInfo disk = await DiskAsync(), copy = await DiskAsync();
        string socket = await UpAsync("a", disk.Vdi);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x11 0 1M");
        string target = await UpAsync("b", copy.Vdi);
        Assert.Empty(await layer.UntrackedTapdisksAsync(taps, None));
        int stranger = await taps.SpawnAsync(ToolsFolder, None);
        int minor = await taps.AllocateMinorAsync(None);
        await taps.AttachAsync(stranger, minor, None);
        await taps.OpenAsync(stranger, minor, "aio:" + folder.File("storage.db"), TapOpenFlags.ReadOnly, null, None);
        string told = Assert.Single(await layer.UntrackedTapdisksAsync(taps, None));
        Assert.Contains($"tapdisk {stranger}, minor {minor}, serves aio:", told, StringComparison.Ordinal);
        Assert.Contains(told, (string)(await ResultAsync(server, "DP.diagnostics", []))!, StringComparison.Ordinal);
        Assert.Contains(await taps.ListAsync(None), entry => entry.ProcessId == stranger && entry.Arguments is not null);

        JsonObject mirror = new()
        {
            ["dbg"] = "t",
            ["sr"] = sr.Value,
            ["vdi"] = disk.Vdi.Value,
            ["image_format"] = "vhd",
            ["vm"] = "1",
            ["url"] = $"nbd+unix:///{copy.Vdi}?socket={target}",
        };
        JsonNode operation = (await ResultAsync(server, "DATA.mirror", mirror))!;
        Assert.Equal("MirrorV1", (string)operation[0]!);
        Assert.Equal("Migration_mirror_failure", (string)(await AnswerAsync(server, "DATA.mirror", mirror))["error"]![0]!);
        mirror["operation"] = operation.DeepClone();
        JsonNode status;
        do
        {
            status = (await ResultAsync(server, "DATA.stat", mirror))!;
            Assert.False((bool)status["failed"]!);
        }
        while (!(bool)status["complete"]!);
        Assert.Equal(1, (double)status["progress"]!);
        await QemuIoAsync(socket, disk.Vdi, "write -P 0x22 512k 1M");
        await DownAsync("a", disk.Vdi);
        Assert.Equal("Does_not_exist", (string)(await AnswerAsync(server, "DATA.stat", mirror))["error"]![0]!);
        await QemuIoAsync(target, copy.Vdi, "read -P 0x11 0 512k", "read -P 0x22 512k 1M", "read -P 0 1536k 6656k");
        await DownAsync("b", copy.Vdi);
    }

    private async Task<Backend> BackendOfAsync(string datapath, VdiId vdi, VdiAccess access)
    {
        Backend attached = await layer.AttachAsync("t", new DatapathId(datapath), sr, vdi, "0", access, None);
        await layer.ActivateAsync("t", new DatapathId(datapath), sr, vdi, "0", None);
        return attached;
    }

    private async Task<JsonNode?> StatAsync(StorageServer server, VdiId vdi) =>
        (await ResultAsync(server, "VDI.stat", new JsonObject { ["sr"] = sr.Value, ["vdi"] = vdi.Value }))!.DeepClone();

    private static async Task<JsonNode?> ResultAsync(StorageServer server, string call, JsonObject parameters)
    {
        JsonNode answer = await AnswerAsync(server, call, parameters);
        Assert.True(answer["error"] is null, answer.ToJsonString());
        return answer["result"];
    }

    private static async Task<JsonNode> AnswerAsync(StorageServer server, string call, JsonObject parameters) =>
        JsonNode.Parse(await server.Dispatcher.HandleAsync(
            new JsonObject { ["method"] = call, ["params"] = new JsonArray(parameters.DeepClone()), ["id"] = 1 }.ToJsonString(), None))!;
}
