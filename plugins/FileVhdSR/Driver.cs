// The commands (research/storage.md 3.2): each works on the folder or on a tapdisk, then tells the toolstack's database by call-backs, and
// answers nil, a {uuid, location} or the attach struct.
using System.Globalization;
using StorageAccess.Wire;
using VhdFolder;

namespace FileVhdSR;

internal sealed class Driver(Request request)
{
    private static readonly string[] Capabilities =
    [
        "SR_PROBE", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE", "VDI_CLONE",
        "VDI_SNAPSHOT", "VDI_RESIZE",
        "VDI_MIRROR", "THIN_PROVISIONING", "ATOMIC_PAUSE",
    ];

    private readonly DiskTap tap = DiskTap.FromEnvironment();

    public async Task<RpcValue> RunAsync(CancellationToken cancellationToken)
    {
        try
        {
            return request.Command switch
            {
                "sr_get_driver_info" => Info(),
                "sr_probe" => Probe(),
                "sr_create" => Create(),
                "sr_delete" => await DeleteSrAsync(cancellationToken),
                "sr_attach" or "sr_scan" => await ScanAsync(cancellationToken),
                "sr_detach" => await DetachAsync(cancellationToken),
                "sr_update" => await UpdateAsync(),
                "vdi_create" => await CreateDiskAsync(cancellationToken),
                "vdi_delete" => await DeleteDiskAsync(cancellationToken),
                "vdi_attach" => Attach(),
                "vdi_activate" => await ActivateAsync(cancellationToken),
                "vdi_deactivate" or "vdi_detach" => await DeactivateAsync(cancellationToken),
                "vdi_snapshot" => await ForkAsync(isSnapshot: true, cancellationToken),
                "vdi_clone" => await ForkAsync(isSnapshot: false, cancellationToken),
                "vdi_compose" => await ComposeAsync(cancellationToken),
                "vdi_resize" => await ResizeAsync(cancellationToken),
                _ => throw new DriverException(38, $"{request.Command} is not implemented"),
            };
        }
        catch (IOException e)
        {
            throw DriverException.Of(e, NumberOf(request.Command));
        }
        catch (UnauthorizedAccessException e)
        {
            throw new DriverException(NumberOf(request.Command), e.Message);
        }
    }

    private static int NumberOf(string command) => command switch
    {
        "sr_scan" => 40,
        "vdi_create" => 78,
        "vdi_delete" => 80,
        "vdi_clone" => 81,
        "vdi_snapshot" => 82,
        "vdi_resize" => DriverException.ResizeFailed,
        "vdi_attach" or "vdi_detach" or "vdi_activate" or "vdi_deactivate" => 46,
        _ => 202,
    };

    private static RpcStruct Info() => RpcValue.Struct(
        ("name", "VHD files in a folder"),
        ("description", "SR of VHD files in a local folder, each active disk served by its own tapdisk"),
        ("vendor", "Storage"),
        ("copyright", ""),
        ("driver_version", "1.0"),
        ("required_api_version", "1.0"),
        ("capabilities", RpcValue.Strings(Capabilities)),
        ("configuration", RpcValue.Array(
        [
            RpcValue.Struct(("key", "location"), ("description", "the folder, an absolute path")),
            RpcValue.Struct(("key", "gc"), ("description", "\"off\": no collector is started")),
        ])));

    private RpcString Probe()
    {
        bool isSr = File.Exists(Path.Combine(request.Location, ".sr.json"));
        string sr = isSr ? $"<SR><UUID>{DiskFolder.Open(request.Location).Record.Uuid}</UUID></SR>" : "";
        return new RpcString($"<?xml version=\"1.0\" ?><SRlist>{sr}</SRlist>");
    }

    private RpcNil Create()
    {
        DiskFolder.Create(request.Location, new FolderRecord(request.SrUuid, "", "", request.SizeArgument(0), MadeFolder: false));
        return new RpcNil();
    }

    private async Task<RpcValue> DeleteSrAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        await CollectorProcess.StopAsync(folder.Path, cancellationToken);
        using IDisposable held = await folder.LockAsync(cancellationToken);
        folder.Destroy();
        return new RpcNil();
    }

    /// <summary>The database gets what is new, loses what is gone, and is corrected where a size differs.</summary>
    private async Task<RpcValue> ScanAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using XenApi xen = new(request.SessionRef);
        if (request.IsMaster)
        {
            using IDisposable held = await folder.LockAsync(cancellationToken);
            await ReconcileAsync(folder, xen);
        }

        await TellSpaceAsync(folder, xen);
        if (request.IsMaster)
            CollectorProcess.StartFor(folder, request.IsCollectorOff);
        return new RpcNil();
    }

    private async Task ReconcileAsync(DiskFolder folder, XenApi xen)
    {
        (IReadOnlyList<Disk> disks, IReadOnlyList<string> damaged) = folder.List();
        foreach (string key in damaged)
            await Console.Error.WriteLineAsync($"{key}.vhd cannot be read; its record is left as it is");
        RpcValue records = await xen.CallAsync("VDI.get_all_records_where", $"field \"SR\" = \"{request.SrRef}\"");
        Dictionary<string, KeyValuePair<string, RpcValue>> known =
            records.AsStruct().Members.ToDictionary(static m => m.Value.AsStruct().Get("location").AsString(), static m => m);
        foreach (Disk disk in disks)
        {
            if (!known.Remove(disk.Key, out KeyValuePair<string, RpcValue> record))
                await IntroduceAsync(xen, disk, "", "", "user", isSnapshot: false, snapshotOf: "OpaqueRef:NULL", []);
            else if (record.Value.AsStruct().Get("virtual_size").AsLong() != disk.VirtualSizeBytes
                || record.Value.AsStruct().Get("physical_utilisation").AsLong() != disk.PhysicalSizeBytes)
                await TellSizesAsync(xen, record.Key, disk);
        }

        foreach ((string location, KeyValuePair<string, RpcValue> record) in known)
        {
            if (!damaged.Contains(location))
                await xen.CallAsync("VDI.db_forget", record.Key);
        }
    }

    private async Task<RpcValue> DetachAsync(CancellationToken cancellationToken)
    {
        await CollectorProcess.StopAsync(DiskFolder.Open(request.Location).Path, cancellationToken);
        return new RpcNil();
    }

    private async Task<RpcValue> UpdateAsync()
    {
        using XenApi xen = new(request.SessionRef);
        await TellSpaceAsync(DiskFolder.Open(request.Location), xen);
        return new RpcNil();
    }

    private async Task<RpcValue> CreateDiskAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using IDisposable held = await folder.LockAsync(cancellationToken);
        string key = request.FixedUuid ?? Guid.NewGuid().ToString();
        if (folder.Has(key))
            throw new DriverException(43, $"disk {key} exists");
        Disk disk = folder.Create(key, request.SizeArgument(0));
        return await IntroducedAsync(
            folder, disk, request.Argument(1), request.Argument(2), request.VdiType, request.FlagArgument(4), request.Argument(6),
            request.SmConfig);
    }

    private async Task<RpcValue> DeleteDiskAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using IDisposable held = await folder.LockAsync(cancellationToken);
        await tap.CheckClosedAsync(folder.Find(request.VdiLocation).Path, cancellationToken);
        folder.Delete(request.VdiLocation);
        using XenApi xen = new(request.SessionRef);
        await xen.CallAsync("VDI.db_forget", request.VdiRef);
        await TellSpaceAsync(folder, xen);
        CollectorProcess.StartFor(folder, request.IsCollectorOff);
        return new RpcNil();
    }

    private RpcStruct Attach()
    {
        DiskFolder.Open(request.Location).Find(request.VdiLocation);
        return RpcValue.Struct(
            ("params_nbd", tap.NbdUri(request.SrUuid, request.VdiLocation)),
            ("o_direct", true),
            ("o_direct_reason", "SR_NOT_SUPPORTED"),
            ("xenstore_data",
                RpcValue.Map([KeyValuePair.Create("storage-type", "filevhd"), KeyValuePair.Create("vdi-uuid", request.VdiLocation)])));
    }

    private async Task<RpcValue> ActivateAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using IDisposable held = await folder.LockAsync(cancellationToken);
        Disk disk = folder.Find(request.VdiLocation);
        await tap.ActivateAsync(request.SrUuid, disk.Key, disk.Path, isReadOnly: !request.FlagArgument(0), cancellationToken);
        return new RpcNil();
    }

    /// <summary>
    /// Without the folder's lock: letting go must work while somebody else works on the folder, and when the folder is gone.
    /// </summary>
    private async Task<RpcValue> DeactivateAsync(CancellationToken cancellationToken)
    {
        await tap.DeactivateAsync(request.SrUuid, request.VdiLocation, cancellationToken);
        return new RpcNil();
    }

    /// <summary>Only while no tapdisk has it open: the size is read when an image is opened.</summary>
    private async Task<RpcValue> ResizeAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using IDisposable held = await folder.LockAsync(cancellationToken);
        await tap.CheckClosedAsync(folder.Find(request.VdiLocation).Path, cancellationToken);
        Disk disk = folder.Resize(request.VdiLocation, request.SizeArgument(0));
        using XenApi xen = new(request.SessionRef);
        await TellSizesAsync(xen, request.VdiRef, disk);
        await TellSpaceAsync(folder, xen);
        return RpcValue.Struct(("uuid", disk.Key), ("location", disk.Key));
    }

    private async Task<RpcValue> ForkAsync(bool isSnapshot, CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using IDisposable held = await folder.LockAsync(cancellationToken);
        Disk source = folder.Find(request.VdiLocation);
        Disk copy = await tap.WhilePausedAsync(source.Path, () => folder.Fork(source.Key, Guid.NewGuid().ToString()), cancellationToken);
        RpcValue introduced = await IntroducedAsync(
            folder, copy, "", "", "user", isSnapshot, isSnapshot ? request.VdiRef : "OpaqueRef:NULL", []);
        CollectorProcess.StartFor(folder, request.IsCollectorOff);
        return introduced;
    }

    /// <summary>The parent, given by its reference, is no disk of its own any more.</summary>
    private async Task<RpcValue> ComposeAsync(CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(request.Location);
        using XenApi xen = new(request.SessionRef);
        string parentRef = request.Argument(0);
        string parent = (await xen.CallAsync("VDI.get_location", parentRef)).AsString();
        using IDisposable held = await folder.LockAsync(cancellationToken);
        await tap.CheckClosedAsync(folder.Find(request.VdiLocation).Path, cancellationToken);
        await tap.CheckClosedAsync(folder.Find(parent).Path, cancellationToken);
        folder.Compose(parent, request.VdiLocation);
        await xen.CallAsync("VDI.db_forget", parentRef);
        await TellSpaceAsync(folder, xen);
        CollectorProcess.StartFor(folder, request.IsCollectorOff);
        return new RpcNil();
    }

    /// <summary>A disk that the database does not take is not left in the folder.</summary>
    private async Task<RpcValue> IntroducedAsync(
        DiskFolder folder, Disk disk, string label, string description, string type, bool isSnapshot, string snapshotOf,
        Dictionary<string, string> smConfig)
    {
        using XenApi xen = new(request.SessionRef);
        try
        {
            await IntroduceAsync(xen, disk, label, description, type, isSnapshot, snapshotOf, smConfig);
        }
        catch (DriverException)
        {
            folder.Delete(disk.Key);
            throw;
        }

        await TellSpaceAsync(folder, xen);
        return RpcValue.Struct(("uuid", disk.Key), ("location", disk.Key));
    }

    private Task IntroduceAsync(
        XenApi xen, Disk disk, string label, string description, string type, bool isSnapshot, string snapshotOf,
        Dictionary<string, string> smConfig)
    {
        Dictionary<string, string> config = new(smConfig) { ["vdi_type"] = "vhd" };
        if (disk.Parent is { } parent)
            config["vhd-parent"] = Path.GetFileNameWithoutExtension(parent);
        return xen.CallAsync(
            "VDI.db_introduce", disk.Key, label, description, request.SrRef, type, false, false, RpcValue.Map([]), disk.Key,
            RpcValue.Map([]),
            RpcValue.Map(config), true, Text(disk.VirtualSizeBytes), Text(disk.PhysicalSizeBytes), "", isSnapshot,
            new RpcDateTime("19700101T00:00:00Z"), snapshotOf, false);
    }

    private static async Task TellSizesAsync(XenApi xen, string vdiRef, Disk disk)
    {
        await xen.CallAsync("VDI.set_virtual_size", vdiRef, Text(disk.VirtualSizeBytes));
        await xen.CallAsync("VDI.set_physical_utilisation", vdiRef, Text(disk.PhysicalSizeBytes));
    }

    private async Task TellSpaceAsync(DiskFolder folder, XenApi xen)
    {
        (long total, long free, long _) = folder.Space();
        long allocated = folder.List().Disks.Sum(static d => d.VirtualSizeBytes);
        await xen.CallAsync("SR.set_virtual_allocation", request.SrRef, Text(allocated));
        await xen.CallAsync("SR.set_physical_size", request.SrRef, Text(total));
        await xen.CallAsync("SR.set_physical_utilisation", request.SrRef, Text(total - free));
    }

    private static string Text(long value) => value.ToString(CultureInfo.InvariantCulture);
}
