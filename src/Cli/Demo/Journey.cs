// The demo itself, top down: two pools, a running VM with a real VHD, one migration, and the proof.
//   1 the disk   2 the pools   3 a VM that writes   4 migrate_receive, migrate   5 what arrived   6 give the disk back   7 what is left
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess.Wire;

namespace Demo;

internal enum Fault
{
    None,
    KillDestinationTapdisk,
}

internal sealed record JourneyOptions(
    string? DiskPath, string Folder, long BandwidthBytesPerSecond, Fault Fault, string? KeepFolder, bool IsQuiet, string Password);

internal sealed class Journey(JourneyOptions options, Narrator narrator)
{
    public const string VmName = "my lovely VM";
    public const string HostName = "my favourite host";
    public const string StorageName = "my favourite storage";
    private const long MemoryBytes = 64L << 20;

    private string vm = "";
    private string vmUuid = "";
    private string sourceFile = "";
    private string originalDisk = "";

    public async Task<(Pool A, Pool B)> StartPoolsAsync(CancellationToken cancellationToken)
    {
        string scratch = Directory.CreateDirectory(Path.Combine(options.Folder, "scratch")).FullName;
        originalDisk = Path.Combine(scratch, "original.vhd");
        string what = options.DiskPath is { } path
            ? await DemoDisk.TakeAsync(path, originalDisk, cancellationToken)
            : await DemoDisk.MakeAsync(originalDisk, scratch, cancellationToken);
        narrator.Tell($"the disk: {what}");
        Pool a = await Pool.StartAsync("A", "pool A's host", Path.Combine(options.Folder, "A"), options.Password, cancellationToken);
        Pool? b = null;
        try
        {
            b = await Pool.StartAsync("B", HostName, Path.Combine(options.Folder, "B"), options.Password, cancellationToken);
            narrator.Tell($"pool A (SMAPIv1 storage) at {a.Https}, pool B (SMAPIv3 storage) at {b.Https}: nothing shared");
            await AddStorageAsync(a, "filevhd", "pool A's storage", new() { ["location"] = a.StorageFolder }, cancellationToken);
            await AddStorageAsync(b, "vhdfile", StorageName, new() { ["path"] = b.StorageFolder }, cancellationToken);
            await AddVmAsync(a, cancellationToken);
            return (a, b);
        }
        catch
        {
            if (b is not null)
                await b.DisposeAsync();
            await a.DisposeAsync();
            throw;
        }
    }

    /// <returns>The result, whose <c>exit_code</c> says whether the promise was kept.</returns>
    public async Task<JsonObject> RunAsync(Pool a, Pool b, CancellationToken cancellationToken)
    {
        await AwaitWritesAsync(a, 200, cancellationToken);
        SortedSet<string> beforeA = await SeeAsync(a, cancellationToken);
        SortedSet<string> beforeB = await SeeAsync(b, cancellationToken);

        string host = await b.Api.ByNameAsync("host", HostName, cancellationToken);
        string storage = await b.Api.ByNameAsync("SR", StorageName, cancellationToken);
        RpcValue token = await b.Api.CallAsync("VM.migrate_receive", cancellationToken, host, storage, RpcValue.Struct());
        RpcStruct migrateOptions = options.BandwidthBytesPerSecond > 0
            ? RpcValue.Struct(("bandwidth_limit", options.BandwidthBytesPerSecond.ToString(CultureInfo.InvariantCulture)))
            : RpcValue.Struct();
        long start = Stopwatch.GetTimestamp();
        string task = await a.Api.RefAsync("Async.VM.migrate", cancellationToken, vm, token, true, migrateOptions);
        RpcStruct record = await WatchTaskAsync(a, b, task, cancellationToken);
        bool moved = record.Get("status").AsString() == "success";
        narrator.Tell(moved
            ? $"{VmName} arrived after {Stopwatch.GetElapsedTime(start).TotalSeconds:0.0} s"
            : $"the migration failed: {string.Join(": ", record.Get("error_info").AsArray().Select(static v => v.AsString()))}");

        JsonObject result = moved
            ? await ProveArrivedAsync(b, record, cancellationToken)
            : await ProveStayedAsync(a, record, cancellationToken);
        result["leftovers"] = await CountLeftoversAsync(a, b, beforeA, beforeB, moved, result, cancellationToken);
        await GiveBackAsync(moved ? b : a, moved, result, cancellationToken);
        bool kept = (bool)result["verified"]! && (int)result["leftovers"]! == 0;
        result["exit_code"] = kept && moved ? 0 : 1; // Also when a data path was killed on the way: the job goes on.
        return result;
    }

    private static async Task AddStorageAsync(
        Pool pool, string type, string name, Dictionary<string, string> configuration, CancellationToken cancellationToken)
    {
        string host = (await pool.Api.CallAsync("host.get_all", cancellationToken)).AsArray()[0].AsString();
        await pool.Api.CallAsync(
            "SR.create", cancellationToken, host, RpcValue.Map(configuration), "0", name, "", type, "user", false, RpcValue.Struct());
    }

    private async Task AddVmAsync(Pool a, CancellationToken cancellationToken)
    {
        string storage = await a.Api.ByNameAsync("SR", "pool A's storage", cancellationToken);
        string location = Guid.NewGuid().ToString();
        sourceFile = Path.Combine(a.StorageFolder, location + ".vhd");
        File.Copy(originalDisk, sourceFile);
        await a.Api.CallAsync("SR.scan", cancellationToken, storage);
        string vdi = (await a.Api.CallAsync("SR.get_VDIs", cancellationToken, storage)).AsArray().Single().AsString();
        vm = await a.Api.RefAsync("VM.create", cancellationToken, VmRecord(VmName));
        vmUuid = await a.Api.RefAsync("VM.get_uuid", cancellationToken, vm);
        await a.Api.CallAsync("VBD.create", cancellationToken, VbdRecord(vm, vdi, "0"));
        await a.Api.CallAsync("VM.start", cancellationToken, vm, false, false);
        narrator.Tell($"\"{VmName}\" runs in pool A and writes");
    }

    public static RpcStruct VbdRecord(string vm, string vdi, string device) => RpcValue.Struct(
        ("VM", vm), ("VDI", vdi), ("userdevice", device), ("bootable", true), ("mode", "RW"), ("type", "Disk"), ("unpluggable", true),
        ("empty", false), ("other_config", RpcValue.Struct()), ("qos_algorithm_type", ""), ("qos_algorithm_params", RpcValue.Struct()));

    public static RpcStruct VmRecord(string name)
    {
        string memory = MemoryBytes.ToString(CultureInfo.InvariantCulture);
        RpcStruct none = RpcValue.Struct();
        return RpcValue.Struct(
            ("name_label", name), ("name_description", "writes numbered, checksummed blocks for as long as it lives"), ("user_version", "1"),
            ("is_a_template", false), ("affinity", "OpaqueRef:NULL"), ("memory_static_max", memory), ("memory_dynamic_max", memory),
            ("memory_dynamic_min", memory), ("memory_static_min", memory), ("VCPUs_params", none), ("VCPUs_max", "1"),
            ("VCPUs_at_startup", "1"), ("actions_after_shutdown", "destroy"), ("actions_after_reboot", "restart"),
            ("actions_after_crash", "destroy"), ("PV_bootloader", ""), ("PV_kernel", ""), ("PV_ramdisk", ""), ("PV_args", ""),
            ("PV_bootloader_args", ""), ("PV_legacy_args", ""), ("HVM_boot_policy", "BIOS order"), ("HVM_boot_params", none),
            ("platform", none), ("PCI_bus", ""), ("other_config", none), ("recommendations", ""), ("xenstore_data", none));
    }

    private async Task AwaitWritesAsync(Pool pool, int count, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(TimeSpan.FromSeconds(30));
        int from = Oracle.Read(pool.OracleLog(vmUuid)).AcknowledgedCount;
        while (Oracle.Read(pool.OracleLog(vmUuid)).AcknowledgedCount < from + count)
            await Task.Delay(100, limit.Token);
    }

    private async Task<RpcStruct> WatchTaskAsync(Pool a, Pool b, string task, CancellationToken cancellationToken)
    {
        RpcStruct record = RpcValue.Struct();
        bool killed = false;
        await narrator.WatchAsync(
            "migrating",
            async () =>
            {
                record = (await a.Api.CallAsync("task.get_record", cancellationToken, task)).AsStruct();
                Dictionary<string, string> details = record.Get("other_config").AsMap();
                double fraction = double.Parse(record.Get("progress").AsString(), CultureInfo.InvariantCulture);
                if (options.Fault == Fault.KillDestinationTapdisk && !killed && details.GetValueOrDefault("phase") == "mirror" && fraction > 0.2)
                    killed = KillTapdisk(b);
                bool isOver = record.Get("status").AsString() is not ("pending" or "cancelling");
                return (fraction, $"{details.GetValueOrDefault("phase", "")} {details.GetValueOrDefault("detail", "")}".Trim(), isOver);
            },
            cancellationToken);
        return record;
    }

    private bool KillTapdisk(Pool pool)
    {
        const int Sigkill = 9;
        foreach ((int pid, _) in Leftovers.Processes(pool.Folder).Where(static p => p.Command == "tapdisk"))
        {
            narrator.Tell($"killing the destination's tapdisk (pid {pid})");
            return Posix.TryKill(pid, Sigkill);
        }

        return false;
    }

    private async Task<JsonObject> ProveArrivedAsync(Pool b, RpcStruct task, CancellationToken cancellationToken)
    {
        JsonObject receipt = JsonNode.Parse(task.Get("other_config").AsMap()["receipt"])!.AsObject();
        vm = await b.Api.ByNameAsync("VM", VmName, cancellationToken);
        string powerState = await b.Api.RefAsync("VM.get_power_state", cancellationToken, vm);
        await AwaitWritesAsync(b, 100, cancellationToken); // It lives: it goes on writing over there.
        await b.Api.CallAsync("VM.pause", cancellationToken, vm);
        Oracle all = Oracle.Read(OldLog(b), b.OracleLog(vmUuid));
        string destinationFile = await DiskFileAsync(b, cancellationToken);
        (int looked, List<string> lost) = await Verification.LostWritesAsync(destinationFile, all, cancellationToken);
        ComparedDisks compared = await Verification.CompareAsync(
            KeptSource, destinationFile, Oracle.Read(b.OracleLog(vmUuid)), cancellationToken);
        narrator.Tell(
            $"{compared.Bytes >> 20} MiB compared with the source as it was at switch-over: {compared.Differences.Count} differences "
            + $"({compared.ExplainedBlocks} blocks written since); {all.AcknowledgedCount} acknowledged writes, their {looked} blocks checked, {lost.Count} lost");
        foreach (string trouble in compared.Differences.Concat(lost).Take(5))
            narrator.Tell(trouble);
        return new JsonObject
        {
            ["migrated"] = powerState == "Running",
            ["verified"] = compared.Differences.Count == 0 && lost.Count == 0 && compared.Bytes > 0 && looked > 0,
            ["vm_runs_on"] = "destination",
            ["blocks_checked"] = looked,
            ["blackout_ms"] = receipt["blackout"]!["total_ms"]!.DeepClone(),
            ["bytes_logical"] = receipt["logical_bytes"]!.DeepClone(),
            ["bytes_sent"] = receipt["sent_bytes"]!.DeepClone(),
            ["bytes_compared"] = compared.Bytes,
            ["writes_acknowledged"] = all.AcknowledgedCount,
            ["writes_lost"] = lost.Count,
            ["receipt"] = receipt,
        };
    }

    private async Task<JsonObject> ProveStayedAsync(Pool a, RpcStruct task, CancellationToken cancellationToken)
    {
        string powerState = await a.Api.RefAsync("VM.get_power_state", cancellationToken, vm);
        await AwaitWritesAsync(a, 100, cancellationToken);
        await a.Api.CallAsync("VM.pause", cancellationToken, vm);
        Oracle all = Oracle.Read(a.OracleLog(vmUuid));
        (int looked, List<string> lost) = await Verification.LostWritesAsync(sourceFile, all, cancellationToken);
        narrator.Tell($"\"{VmName}\" is {powerState} in pool A; {all.AcknowledgedCount} acknowledged writes, their {looked} blocks checked, {lost.Count} lost");
        return new JsonObject
        {
            ["migrated"] = false,
            ["verified"] = powerState == "Running" && lost.Count == 0 && looked > 0,
            ["vm_runs_on"] = powerState == "Running" ? "source" : "nowhere",
            ["error"] = new JsonArray([.. task.Get("error_info").AsArray().Select(static v => (JsonNode)v.AsString())]),
            ["writes_acknowledged"] = all.AcknowledgedCount,
            ["writes_lost"] = lost.Count,
        };
    }

    /// <summary>What is there now and was not before, besides the VM's own where it lives: its record, its disk, one datapath, one tapdisk with its sockets, its guest.</summary>
    private async Task<int> CountLeftoversAsync(
        Pool a, Pool b, SortedSet<string> beforeA, SortedSet<string> beforeB, bool moved, JsonObject result, CancellationToken cancellationToken)
    {
        SortedSet<string> left = await SeeAsync(a, cancellationToken);
        left.ExceptWith(beforeA);
        SortedSet<string> atB = await SeeAsync(b, cancellationToken);
        atB.ExceptWith(beforeB);
        if (moved)
        {
            // The source must have let go of what it had, too.
            SortedSet<string> sourceNow = await SeeAsync(a, cancellationToken);
            left.UnionWith(sourceNow.Where(thing => OwnWords.Any(word => thing.StartsWith($"A: {word}", StringComparison.Ordinal))
                && (thing.Contains(vmUuid, StringComparison.Ordinal) || thing.Contains(Path.GetFileNameWithoutExtension(sourceFile), StringComparison.Ordinal))));
            left.UnionWith(sourceNow.Where(static thing =>
                thing.EndsWith(" tapdisk", StringComparison.Ordinal) || thing.Contains(" guest ", StringComparison.Ordinal)));
            string location = Path.GetFileNameWithoutExtension(await DiskFileAsync(b, cancellationToken));
            List<string> tapdisks = [.. atB.Where(static t => t.EndsWith(" tapdisk", StringComparison.Ordinal))];
            string pid = tapdisks.Count == 1 ? tapdisks[0].Split(' ')[2] : "none";
            atB.RemoveWhere(thing => thing.Contains(vmUuid, StringComparison.Ordinal) || thing.Contains(location, StringComparison.Ordinal)
                || thing == $"B: process {pid} tapdisk" || (thing.StartsWith("B: socket ", StringComparison.Ordinal) && IsOfTapdisk(thing, pid)));
        }

        left.UnionWith(atB);
        foreach (string thing in left.Take(10))
            narrator.Tell($"left behind: {thing}");
        if (left.Count > 0)
            result["leftover_names"] = new JsonArray([.. left.Select(static l => (JsonNode)l)]);
        return left.Count;
    }

    private static Task<SortedSet<string>> SeeAsync(Pool pool, CancellationToken cancellationToken) =>
        Leftovers.SeeAsync(pool.Name, pool.Folder, pool.Api, cancellationToken);

    private static readonly string[] SocketWords = ["nbd", "nbd-old", "nbdserver", "nbdserver-new"];

    private static readonly string[] OwnWords = ["VDI", "VM", "volume", "datapath"];

    /// <summary>The names that one tapdisk with one disk gives its sockets (ctl, the nbd ones), and the minor that was taken for it.</summary>
    private static bool IsOfTapdisk(string thing, string pid) =>
        thing.EndsWith("ctl" + pid, StringComparison.Ordinal)
        || SocketWords.Any(word => thing.Contains(word + pid + ".", StringComparison.Ordinal))
        || thing.EndsWith("nbdclient" + pid, StringComparison.Ordinal)
        || thing.Contains("tapdisk/tapdisk-", StringComparison.Ordinal);

    /// <summary>A clean shutdown: the guest writes back what it found, from its memory, so the caller's disk is as it was, byte for byte.</summary>
    private async Task GiveBackAsync(Pool pool, bool moved, JsonObject result, CancellationToken cancellationToken)
    {
        string file = moved ? await DiskFileAsync(pool, cancellationToken) : sourceFile;
        await pool.Api.CallAsync("VM.unpause", cancellationToken, vm);
        await pool.Api.CallAsync("VM.clean_shutdown", cancellationToken, vm);
        ComparedDisks restored = await Verification.CompareAsync(originalDisk, file, null, cancellationToken);
        bool identical = restored.Bytes > 0 && restored.Differences.Count == 0;
        result["restored"] = identical;
        result["verified"] = (bool)result["verified"]! && identical;
        string? qemu = await Verification.QemuCompareAsync(options.DiskPath ?? originalDisk, file, cancellationToken);
        result["qemu_img_compare"] = qemu;
        narrator.Tell($"the guest shut down and put back what it had found: the disk is {(identical ? "the original again" : "NOT the original")}"
            + (qemu is null ? "" : $"; qemu-img compare: {qemu}"));
        if (options.KeepFolder is { } keep)
        {
            Directory.CreateDirectory(keep);
            File.Copy(file, Path.Combine(keep, "destination.vhd"), overwrite: true);
            File.Copy(originalDisk, Path.Combine(keep, "original.vhd"), overwrite: true);
            if (moved)
                File.Copy(KeptSource, Path.Combine(keep, "source-at-switch-over.vhd"), overwrite: true);
            result["kept"] = Path.GetFullPath(keep);
        }
    }

    /// <summary>A second name for the source's file: it keeps the content at switch-over when the pool deletes its own.</summary>
    public void KeepSource() => Posix.CreateHardLink(sourceFile, KeptSource);

    private string KeptSource => Path.Combine(options.Folder, "scratch", "source-at-switch-over.vhd");

    private string OldLog(Pool b) => b.OracleLog(vmUuid).Replace(
        Path.Combine(options.Folder, "B"), Path.Combine(options.Folder, "A"), StringComparison.Ordinal);

    private async Task<string> DiskFileAsync(Pool pool, CancellationToken cancellationToken)
    {
        string vbd = (await pool.Api.CallAsync("VM.get_VBDs", cancellationToken, vm)).AsArray().Single().AsString();
        string vdi = await pool.Api.RefAsync("VBD.get_VDI", cancellationToken, vbd);
        return Path.Combine(pool.StorageFolder, await pool.Api.RefAsync("VDI.get_location", cancellationToken, vdi) + ".vhd");
    }
}
