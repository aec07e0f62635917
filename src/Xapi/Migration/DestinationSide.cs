// The destination's effects on real things. Each resource is found again by what the journal keeps of it, or by the migration's name on it.
using System.Globalization;
using System.Net;
using Migration;
using Platform;
using StorageAccess;
using StorageAccess.Tap;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Storage;
using Xapi.Vms;
using Xenops;
using DiskDigest = Migration.DiskDigest;

namespace Xapi.Migration;

/// <param name="address">Where peers reach this host's data ports.</param>
public sealed class DestinationSide(
    PoolDatabase database, MigrationStore store, StorageHost storage, StorageMessages vdis, XenopsHost xenops, VmMessages vms, IPAddress address,
    string certificatePath, string fingerprint, string hostRef) : IDestinationResources
{
    /// <summary>How long the end of the memory stream may take to be verified here.</summary>
    private static readonly TimeSpan LoadedLimit = TimeSpan.FromSeconds(30);

    /// <summary>Control domain's number, as the field writes it.</summary>
    private const string ControlDomain = "0";

    private readonly TapdiskOf tapdisks = new(storage.Layer, storage.Tap);

    private StorageLayer Layer => storage.Layer;

    public Task<string> MakeAsync(Resource resource, DestinationState state, CancellationToken cancellationToken) => resource.Kind switch
    {
        ResourceKind.Disk => MakeDiskAsync(Disk(state, resource), state, cancellationToken),
        ResourceKind.Datapath => MakeDatapathAsync(Disk(state, resource), state, cancellationToken),
        ResourceKind.Export => MakeExportAsync(Disk(state, resource), state, cancellationToken),
        ResourceKind.Vm => Task.FromResult(MakeVm(state)),
        ResourceKind.Domain => MakeDomainAsync(state, cancellationToken),
        _ => throw new InvariantException($"{resource} is of no known kind"),
    };

    public async Task DestroyAsync(Resource resource, string? id, DestinationState state, CancellationToken cancellationToken)
    {
        switch (resource.Kind)
        {
            case ResourceKind.Domain:
                await xenops.Client.DiscardAsync(state.Plan.Migration, state.Plan.Migration, cancellationToken);
                break;
            case ResourceKind.Vm:
                if (VmRows.FindImported(database, state.Plan.Migration) is { } vm)
                    VmRows.Destroy(database, vm);
                break;
            case ResourceKind.Export:
                if (id is not null && await IsServedAsync(Disk(state, resource), state, cancellationToken))
                    await CloseExportAsync(Disk(state, resource), state, cancellationToken);
                break; // Without an id it was not answered for: it ends with its tapdisk, below. When that is gone it ended already.
            case ResourceKind.Datapath:
                await Layer.DestroyAsync(state.Plan.Migration, DatapathOf(state, resource.Device), allowLeak: false, cancellationToken);
                break;
            case ResourceKind.Disk:
                await DestroyDiskAsync(Disk(state, resource), id, state, cancellationToken);
                break;
        }
    }

    public async Task<bool> IsThereAsync(Resource resource, string id, DestinationState state, CancellationToken cancellationToken) => resource.Kind switch
    {
        ResourceKind.Disk => await IsOnStorageAsync(Disk(state, resource), id, state, cancellationToken),
        ResourceKind.Datapath or ResourceKind.Export => await IsServedAsync(Disk(state, resource), state, cancellationToken),
        ResourceKind.Vm => database.Exists("VM", id),
        ResourceKind.Domain => await StateOfDomainAsync(state, cancellationToken) == "Incoming",
        _ => throw new InvariantException($"{resource} is of no known kind"),
    };

    public async Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, DestinationState state, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await FindAsync(disk, state, "digest-range", cancellationToken);
        return await tapdisks.Extensions.DigestRangeAsync(tap.ProcessId, tap.Minor, range.OffsetBytes, range.LengthBytes, cancellationToken);
    }

    public async Task<DateTimeOffset> BootAsync(DestinationState state, CancellationToken cancellationToken)
    {
        string vm = state.IdOf(new Resource(ResourceKind.Vm, ""))!;
        if (await StateOfDomainAsync(state, cancellationToken) is not ("Running" or "Paused"))
            await vms.BootAsync(state.Plan.Migration, vm, cancellationToken);
        MarkRunning(vm);
        return DateTimeOffset.UtcNow;
    }

    public Task CheckStoppedAsync(DestinationState state, CancellationToken cancellationToken)
    {
        Ownership ownership = store.OwnershipOf(state.Plan.Vm);
        if (ownership.Migration != state.Plan.Migration || ownership.Owner != Owner.Here)
        {
            string why = $"the VM has changed hands since: its owner is {ownership.Owner} by migration {ownership.Migration}";
            throw new MigrationException("OPERATION_NOT_ALLOWED", [why], MigrationSide.Destination, why);
        }

        if (database.FindByUuid("VM", state.Plan.Vm) is { } vm)
            vms.GiveUp(vm, state.Plan.Migration);
        return Task.CompletedTask;
    }

    public PreparedDestination Describe(DestinationState state)
    {
        DiskTarget[] disks =
        [
            .. state.Plan.Disks.Select(disk =>
            {
                (int port, string name) = PortAndSecret(state.IdOf(new Resource(ResourceKind.Export, disk.Device))!);
                return new DiskTarget(disk.Device, address.ToString(), port, name, fingerprint, LocationOf(state, disk.Device));
            }),
        ];
        (int memoryPort, string secret) = PortAndSecret(state.IdOf(new Resource(ResourceKind.Domain, ""))!);
        return new PreparedDestination(
            disks, new MemoryTarget(address.ToString(), memoryPort, secret, fingerprint), state.IdOf(new Resource(ResourceKind.Vm, ""))!);
    }

    public async Task ProbeAsync(DestinationState state, CancellationToken cancellationToken)
    {
        DomainStat stat = await xenops.Client.VmStatAsync(state.Plan.Migration, state.Plan.Vm, cancellationToken);
        if (stat.State != "Incoming")
            throw new MigrationException("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the incoming domain is {stat.State}");
        if (!database.GetBool("host", hostRef, "enabled"))
            throw new MigrationException("HOST_DISABLED", [hostRef], MigrationSide.Destination, "the destination host was disabled meanwhile");
        foreach (DiskPlan disk in state.Plan.Disks)
            await FindAsync(disk, state, "export", cancellationToken);
        foreach (string sr in state.Plan.Disks.Select(static d => d.DestinationStorage).Distinct(StringComparer.Ordinal))
        {
            SrInfo info = await Layer.SrStatAsync(state.Plan.Migration, new SrId(sr), cancellationToken);
            if (info.FreeSpaceBytes <= 0)
            {
                throw new MigrationException(
                    "SR_FULL", ["1", $"{info.FreeSpaceBytes}"], MigrationSide.Destination, $"the destination's storage {info.NameLabel} has filled up meanwhile");
            }
        }
    }

    public async Task<DiskDigest> DigestAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await FindAsync(disk, state, "digest", cancellationToken);
        StorageAccess.Tap.DiskDigest digest = await tapdisks.Extensions.DigestAsync(tap.ProcessId, tap.Minor, cancellationToken);
        return new DiskDigest(disk.Device, digest.Root, digest.LengthBytes);
    }

    public async Task<MemoryDigest> LoadedAsync(DestinationState state, CancellationToken cancellationToken)
    {
        ImageSummary image = await xenops.Client.LoadedAsync(state.Plan.Migration, state.Plan.Migration, LoadedLimit, cancellationToken);
        return new MemoryDigest(image.Digest, image.Bytes);
    }

    public Task CloseExportsAsync(DestinationState state, CancellationToken cancellationToken) =>
        Task.WhenAll(state.Plan.Disks.Select(disk => CloseExportAsync(disk, state, cancellationToken)));

    public async Task<DateTimeOffset> RunAsync(DestinationState state, CancellationToken cancellationToken)
    {
        DateTimeOffset at;
        try
        {
            at = await xenops.Client.RunAsync(state.Plan.Migration, state.Plan.Migration, cancellationToken);
        }
        catch (XenopsException e) when (e.Tag == "Does_not_exist")
        {
            throw new MigrationException(
                MigrationException.DomainVanished, [], MigrationSide.Destination, "the loaded guest is gone with the process that held it", e);
        }

        MarkRunning(state.IdOf(new Resource(ResourceKind.Vm, ""))!);
        return at;
    }

    public async Task ReleaseAsync(DestinationState state, CancellationToken cancellationToken)
    {
        foreach (DiskPlan disk in state.Plan.Disks)
        {
            await Layer.DestroyAsync(state.Plan.Migration, DatapathOf(state, disk.Device), allowLeak: false, cancellationToken);
            if (VdiRows.Find(database, SrRef(disk), LocationOf(state, disk.Device)) is { } vdi)
                database.RemoveFromMap("VDI", vdi, "sm_config", MirrorKey);
        }
    }

    private void MarkRunning(string vm) => database.Transaction(() =>
    {
        VmRows.SetPowerState(database, vm, "Running", hostRef);
        database.RemoveFromMap("VM", vm, "other_config", VmRows.ImportKey);
    });

    /// <summary>Null when xenopsd does not hold the VM.</summary>
    private async Task<string?> StateOfDomainAsync(DestinationState state, CancellationToken cancellationToken)
    {
        try
        {
            return (await xenops.Client.VmStatAsync(state.Plan.Migration, state.Plan.Vm, cancellationToken)).State;
        }
        catch (XenopsException e) when (e.Tag == "Does_not_exist")
        {
            return null;
        }
    }

    private async Task<bool> IsOnStorageAsync(DiskPlan disk, string location, DestinationState state, CancellationToken cancellationToken)
    {
        try
        {
            await Layer.VdiStatAsync(state.Plan.Migration, new SrId(disk.DestinationStorage), new VdiId(location), cancellationToken);
            return true;
        }
        catch (StorageException e) when (e.Tag == "Vdi_does_not_exist")
        {
            return false;
        }
    }

    /// <summary>The datapath is active and its tapdisk answers for the disk.</summary>
    private async Task<bool> IsServedAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        if (Layer.Datapaths().All(row => row.Datapath != DatapathOf(state, disk.Device)))
            return false;
        try
        {
            TapdiskDisk tap = await FindAsync(disk, state, "export", cancellationToken);
            await tapdisks.Extensions.MirrorStatusAsync(tap.ProcessId, tap.Minor, cancellationToken); // Fails when the disk is not open there.
            return true;
        }
        catch (TapException e) when (e.ErrnoNumber is TapException.NoSuchProcess or TapException.NoSuchDevice)
        {
            return false;
        }
    }

    private const string NoSpace = "SR_BACKEND_FAILURE_44";

    /// <summary>The field's mark on a VDI that is being mirrored into.</summary>
    public const string MirrorKey = "base_mirror";

    /// <summary>A storage that promises the room for whole disks can be too small although what the disk holds would fit (the plan knows only that).</summary>
    private async Task<string> MakeDiskAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        try
        {
            return await CreateDiskAsync(disk, state, cancellationToken);
        }
        catch (StorageException e) when (e.Code == NoSpace)
        {
            SrInfo info = await Layer.SrStatAsync(state.Plan.Migration, new SrId(disk.DestinationStorage), cancellationToken);
            throw new MigrationException(
                "SR_FULL", [$"{disk.LengthBytes}", $"{info.FreeSpaceBytes}"], MigrationSide.Destination,
                $"the destination's storage {info.NameLabel} has no room for disk {disk.Device}: {e.Message}", e);
        }
    }

    private async Task<string> CreateDiskAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        VdiInfo made = await Layer.VdiCreateAsync(
            state.Plan.Migration,
            new SrId(disk.DestinationStorage),
            new VdiInfo
            {
                Vdi = new VdiId(""),
                NameLabel = disk.NameLabel,
                NameDescription = disk.NameDescription,
                VirtualSizeBytes = disk.LengthBytes,
                SmConfig = new Dictionary<string, string> { [MirrorKey] = MirrorName(state, disk.Device) },
            },
            cancellationToken);
        if (made.VirtualSizeBytes != disk.LengthBytes)
        {
            await Layer.VdiDestroyAsync(state.Plan.Migration, new SrId(disk.DestinationStorage), made.Vdi, cancellationToken);
            throw new MigrationException(
                "VDI_INCOMPATIBLE_TYPE", [disk.SourceDisk], MigrationSide.Destination,
                $"the destination's storage made a disk of {made.VirtualSizeBytes} bytes for {disk.LengthBytes}: a mirror needs the same size");
        }

        string vdi = VdiRows.Ensure(database, SrRef(disk), made);
        database.SetInMap("VDI", vdi, "sm_config", MirrorKey, MirrorName(state, disk.Device));
        return made.Vdi.Value;
    }

    private async Task<string> MakeDatapathAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        DatapathId datapath = DatapathOf(state, disk.Device);
        SrId sr = new(disk.DestinationStorage);
        VdiId vdi = new(LocationOf(state, disk.Device));
        await Layer.AttachAsync(state.Plan.Migration, datapath, sr, vdi, ControlDomain, VdiAccess.ReadWrite, cancellationToken);
        await Layer.ActivateAsync(state.Plan.Migration, datapath, sr, vdi, ControlDomain, cancellationToken);
        return datapath.Value;
    }

    private async Task<string> MakeExportAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await FindAsync(disk, state, "export", cancellationToken);
        Secret name = Secret.Create();
        int port = await tapdisks.Extensions.ExportAsync(
            tap.ProcessId, tap.Minor, new IPEndPoint(address, 0).ToString(), certificatePath, certificatePath, name, cancellationToken);
        return $"{port} {name.Reveal()}";
    }

    private string MakeVm(DestinationState state)
    {
        Dictionary<string, string> vdiOf = state.Plan.Disks.ToDictionary(
            static d => d.Device, d => VdiRows.Find(database, SrRef(d), LocationOf(state, d.Device))!);
        return VmRows.Import(database, state.Plan.Domain, vdiOf, state.Plan.Migration);
    }

    private async Task<string> MakeDomainAsync(DestinationState state, CancellationToken cancellationToken)
    {
        Vm vm = VmRows.ForXenops(database, state.IdOf(new Resource(ResourceKind.Vm, ""))!);
        ReceiveEndpoint endpoint = await xenops.Client.ReceiveAsync(state.Plan.Migration, state.Plan.Migration, vm, cancellationToken);
        return $"{endpoint.Port} {endpoint.Secret}";
    }

    private async Task CloseExportAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken)
    {
        (_, string name) = PortAndSecret(state.IdOf(new Resource(ResourceKind.Export, disk.Device))!);
        try
        {
            TapdiskDisk tap = await FindAsync(disk, state, "export", cancellationToken);
            await tapdisks.Extensions.UnexportAsync(tap.ProcessId, tap.Minor, new Secret(name), cancellationToken);
        }
        catch (TapException e) when (e.ErrnoNumber is TapException.NoSuchProcess or TapException.NoSuchDevice && state.Loaded is null)
        {
            // Its tapdisk died, and the export with it. Only when nothing will run from it.
        }
    }

    private async Task DestroyDiskAsync(DiskPlan disk, string? location, DestinationState state, CancellationToken cancellationToken)
    {
        SrId sr = new(disk.DestinationStorage);
        if (location is null)
        {
            SrScan scan = await Layer.SrScanAsync(state.Plan.Migration, sr, cancellationToken);
            VdiInfo? found = scan.Vdis.FirstOrDefault(v => v.SmConfig.GetValueOrDefault(MirrorKey) == MirrorName(state, disk.Device));
            if (found is null)
                return;
            location = found.Vdi.Value;
        }

        if (VdiRows.Find(database, SrRef(disk), location) is { } vdi)
            await vdis.DestroyVdiAsync(state.Plan.Migration, vdi, cancellationToken);
        else
            await Layer.VdiDestroyAsync(state.Plan.Migration, sr, new VdiId(location), cancellationToken);
    }

    private Task<TapdiskDisk> FindAsync(DiskPlan disk, DestinationState state, string capability, CancellationToken cancellationToken) => tapdisks.FindAsync(
        new SrId(disk.DestinationStorage), new VdiId(LocationOf(state, disk.Device)), DatapathOf(state, disk.Device), capability,
        MigrationSide.Destination, cancellationToken);

    private string SrRef(DiskPlan disk) => database.ByUuid("SR", disk.DestinationStorage);

    private static string LocationOf(DestinationState state, string device) =>
        state.IdOf(new Resource(ResourceKind.Disk, device)) ?? throw new InvariantException($"disk {device} is not made");

    private static DatapathId DatapathOf(DestinationState state, string device) => new($"mirror/{state.Plan.Migration}/{device}");

    private static string MirrorName(DestinationState state, string device) => $"{state.Plan.Migration}/{device}";

    private static DiskPlan Disk(DestinationState state, Resource resource) => state.Plan.Disks.Single(d => d.Device == resource.Device);

    private static (int Port, string Secret) PortAndSecret(string id)
    {
        string[] parts = id.Split(' ');
        return (int.Parse(parts[0], CultureInfo.InvariantCulture), parts[1]);
    }
}
