// The destination's host: what was made on it, the exports by name, the domain that was loaded; and the port through which its daemon asks for them.
using Migration;

namespace Simulation;

internal sealed class DestinationMachine(World world)
{
    private readonly Dictionary<string, string> exports = []; // Name -> device.
    private readonly HashSet<string> datapaths = [];
    private readonly Dictionary<string, string> diskIds = []; // Device -> id.
    private string secret = "";
    private int loaded;

    public Dictionary<string, BlockDisk> Disks { get; } = []; // By device.

    public DomainState Domain { get; private set; }

    public bool HasVm { get; private set; }

    public int Memory { get; set; }

    public bool HasOpenExports => exports.Count > 0;

    public bool HasLeftovers => Disks.Count > 0 || exports.Count > 0 || datapaths.Count > 0 || HasVm || Domain != DomainState.None;

    /// <summary>What is there beyond a VM with its disks.</summary>
    public bool HasTransferLeftovers => exports.Count > 0 || datapaths.Count > 0 || Domain is DomainState.Incoming or DomainState.Loaded;

    public string Leftovers =>
        $"{Disks.Count} disks, {exports.Count} exports, {datapaths.Count} data paths, {(HasVm ? "a VM" : "no VM")}, domain {Domain}";

    public static MemoryDigest DigestOf(int memory) => new($"m{memory}", 4096);

    public bool IsOpen(string export) => exports.TryGetValue(export, out string? device) && datapaths.Contains(device);

    public bool IsReceiving(string name) => Domain == DomainState.Incoming && name == secret;

    public void Load(int memory)
    {
        loaded = Memory = memory;
        Domain = DomainState.Loaded;
    }

    /// <returns>Null when it was written, else why not.</returns>
    public string? WriteThrough(string export, int disk, int block, int version)
    {
        string device = world.Plan.Disks[disk].Device;
        if (world.Breaks == Breakage.OldExportsLive ? !Disks.ContainsKey(device) : !IsOpen(export))
            return "lost: the export is closed";
        if (world.TargetError is { } ordered)
            return ordered;
        if (world.Chance(400))
        {
            world.Faults.DiskErrors++;
            return world.Rng.OneIn(2) ? "no space left on the target" : "input/output error on the target";
        }

        if (Domain == DomainState.Running)
            world.Violation($"the source wrote block {block} of {device} while the destination runs on it");
        Disks[device].Now[block] = version;
        if (world.FlipAt == (disk, block))
        {
            world.FlipAt = null;
            world.Faults.Flips++;
            world.HasFlipped = true;
            Disks[device].Now[block] ^= 1 << 30;
        }

        return null;
    }

    public string? FlushThrough(string export)
    {
        if (!exports.TryGetValue(export, out string? device) || !datapaths.Contains(device))
            return "lost: the export is closed";
        Disks[device].Flush();
        return null;
    }

    public void CrashHost()
    {
        Domain = DomainState.None;
        exports.Clear();
        datapaths.Clear();
        foreach (BlockDisk disk in Disks.Values)
            disk.LosePower(world.Rng);
    }

    public void CrashDataPath()
    {
        if (Domain == DomainState.Running)
            return;
        exports.Clear();
        datapaths.Clear();
    }

    public void CrashDomain()
    {
        if (Domain != DomainState.Running)
            Domain = DomainState.None;
    }

    public string Make(Resource resource)
    {
        switch (resource.Kind)
        {
            case ResourceKind.Disk:
                if (world.Chance(150))
                {
                    world.Faults.DiskErrors++;
                    throw new MigrationException("SR_FULL", [], MigrationSide.Destination, "no space left");
                }

                if (Disks.ContainsKey(resource.Device))
                    world.Violation($"a second disk {resource.Device} is made and the first one forgotten");
                Disks[resource.Device] = new BlockDisk();
                return diskIds[resource.Device] = $"disk-{world.NextVersion()}";
            case ResourceKind.Datapath:
                if (!Disks.ContainsKey(resource.Device))
                    throw Missing(resource.Device);
                datapaths.Add(resource.Device);
                return $"datapath-{resource.Device}";
            case ResourceKind.Export:
                if (!datapaths.Contains(resource.Device))
                    throw Missing(resource.Device);
                string name = $"export-{world.NextVersion()}";
                exports[name] = resource.Device;
                return name;
            case ResourceKind.Vm:
                HasVm = true;
                return "vm";
            default:
                if (Domain == DomainState.Running)
                    world.Violation("an incoming domain is made over one that runs");
                secret = $"secret-{world.NextVersion()}";
                Domain = DomainState.Incoming;
                return secret;
        }
    }

    public bool Destroy(Resource resource, string? id)
    {
        switch (resource.Kind)
        {
            case ResourceKind.Disk:
                if (Disks.ContainsKey(resource.Device))
                    world.Oracle.DestinationDestroys(resource.Device);
                Disks.Remove(resource.Device);
                break;
            case ResourceKind.Datapath:
                datapaths.Remove(resource.Device);
                foreach (string export in exports.Where(e => e.Value == resource.Device).Select(static e => e.Key).ToArray())
                    exports.Remove(export);
                break;
            case ResourceKind.Export:
                if (id is not null && world.Breaks != Breakage.OldExportsLive)
                    exports.Remove(id);
                break;
            case ResourceKind.Vm:
                HasVm = false;
                break;
            default:
                if (Domain == DomainState.Running)
                    world.Violation("the destination destroys a domain that runs");
                Domain = DomainState.None;
                break;
        }

        return true;
    }

    public bool IsThere(Resource resource, string id) => resource.Kind switch
    {
        ResourceKind.Disk => Disks.ContainsKey(resource.Device) && diskIds[resource.Device] == id,
        ResourceKind.Datapath => datapaths.Contains(resource.Device),
        ResourceKind.Export => IsOpen(id),
        ResourceKind.Vm => HasVm,
        _ => Domain is DomainState.Incoming or DomainState.Loaded,
    };

    public DiskDigest Digest(DiskPlan disk)
    {
        if (!datapaths.Contains(disk.Device))
            throw Missing(disk.Device);
        return world.Breaks == Breakage.DigestEchoed ? world.A.Disks[world.IndexOf(disk)].Digest(disk) : Disks[disk.Device].Digest(disk);
    }

    public string Digest(DiskPlan disk, DigestRange range) => datapaths.Contains(disk.Device) ? Disks[disk.Device].Digest(range) : throw Missing(disk.Device);

    public MemoryDigest Loaded() => Domain == DomainState.Loaded
        ? world.Breaks == Breakage.DigestEchoed ? DigestOf(world.A.Memory) : DigestOf(Memory)
        : throw new MigrationException("DOMAIN_GONE", [], MigrationSide.Destination, $"the domain is {Domain}", isTransient: Domain == DomainState.None);

    public bool CloseExports()
    {
        if (datapaths.Count != world.Plan.Disks.Count)
            throw Missing("a data path");
        if (world.Breaks != Breakage.ExportsStayOpen)
            exports.Clear();
        return true;
    }

    public bool Run()
    {
        if (Domain == DomainState.Running && world.Breaks == Breakage.RunStartsAgain)
        {
            Memory = loaded;
            world.Oracle.DestinationRuns(isBoot: false);
        }

        if (Domain == DomainState.Running)
            return true;
        if (Domain != DomainState.Loaded)
            throw new MigrationException(MigrationException.DomainVanished, [], MigrationSide.Destination, "the loaded guest is gone");
        Domain = DomainState.Running;
        world.Oracle.DestinationRuns(isBoot: false);
        return true;
    }

    /// <summary>VM.start, or the saga's own start from the disks.</summary>
    public bool Boot()
    {
        if (Domain == DomainState.Running)
            return true;
        if (!HasVm || Disks.Count != world.Plan.Disks.Count || Domain != DomainState.None)
            throw Missing("the VM");
        Memory = world.NextVersion();
        Domain = DomainState.Running;
        world.Oracle.DestinationRuns(isBoot: true);
        return true;
    }

    public void ShutDown()
    {
        if (Domain == DomainState.Running)
            Domain = DomainState.None;
    }

    public bool CheckStopped() => Domain != DomainState.Running
        ? true
        : throw new MigrationException("VM_BAD_POWER_STATE", [], MigrationSide.Destination, "the VM runs here");

    public bool Release()
    {
        if (world.Breaks == Breakage.ReleaseSkipped)
            return true;
        exports.Clear();
        datapaths.Clear();
        return true;
    }

    /// <summary>A patience that takes no heed of what was accepted.</summary>
    public void ThrowAway()
    {
        Domain = DomainState.None;
        foreach (string device in Disks.Keys.ToArray())
            Destroy(new Resource(ResourceKind.Disk, device), null);
        HasVm = false;
        Release();
    }

    private static MigrationException Missing(string what) =>
        new("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"{what} is not there", isTransient: true);
}

/// <summary>What one incarnation of the destination's daemon asks of its host.</summary>
internal sealed class DestinationPorts(World world, Incarnation daemon, TimeProvider time) : IDestinationResources
{
    private static readonly TimeSpan LoadedLimit = TimeSpan.FromSeconds(10);

    private DestinationMachine Machine => world.B;

    public Task<string> MakeAsync(Resource resource, DestinationState state, CancellationToken cancellationToken) =>
        Do($"make {resource}", () => Machine.Make(resource), cancellationToken);

    public Task DestroyAsync(Resource resource, string? id, DestinationState state, CancellationToken cancellationToken) =>
        Do($"destroy {resource}", () => Machine.Destroy(resource, id), cancellationToken);

    public Task<bool> IsThereAsync(Resource resource, string id, DestinationState state, CancellationToken cancellationToken) =>
        Do("is there", () => Machine.IsThere(resource, id), cancellationToken);

    public PreparedDestination Describe(DestinationState state) => new(
        [.. state.Plan.Disks.Select(d => new DiskTarget(
            d.Device, "b", 1, state.IdOf(new Resource(ResourceKind.Export, d.Device))!, "bb", state.IdOf(new Resource(ResourceKind.Disk, d.Device))!))],
        new MemoryTarget("b", 2, state.IdOf(new Resource(ResourceKind.Domain, ""))!, "bb"), "vm");

    public Task ProbeAsync(DestinationState state, CancellationToken cancellationToken) => Do("probe", () =>
        Machine.Domain == DomainState.Incoming
            ? true
            : throw new MigrationException("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the domain is {Machine.Domain}", isTransient: true),
        cancellationToken);

    public Task<DiskDigest> DigestAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken) =>
        Do("digest", () => Machine.Digest(disk), cancellationToken);

    public Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, DestinationState state, CancellationToken cancellationToken) =>
        Do("range digest", () => Machine.Digest(disk, range), cancellationToken);

    public async Task<MemoryDigest> LoadedAsync(DestinationState state, CancellationToken cancellationToken)
    {
        long start = time.GetTimestamp();
        while (Machine.Domain == DomainState.Incoming && time.GetElapsedTime(start) < LoadedLimit)
            await Task.Delay(TimeSpan.FromMilliseconds(500), time, cancellationToken);
        return await Do("loaded", Machine.Loaded, cancellationToken);
    }

    public Task CloseExportsAsync(DestinationState state, CancellationToken cancellationToken) => Do("close exports", Machine.CloseExports, cancellationToken);

    public Task<DateTimeOffset> RunAsync(DestinationState state, CancellationToken cancellationToken) => Do("run", () =>
    {
        Machine.Run();
        return time.GetUtcNow();
    }, cancellationToken);

    public Task<DateTimeOffset> BootAsync(DestinationState state, CancellationToken cancellationToken) => Do("boot", () =>
    {
        Machine.Boot();
        return time.GetUtcNow();
    }, cancellationToken);

    public Task CheckStoppedAsync(DestinationState state, CancellationToken cancellationToken) => Do("is stopped", Machine.CheckStopped, cancellationToken);

    public Task ReleaseAsync(DestinationState state, CancellationToken cancellationToken) => Do("release", Machine.Release, cancellationToken);

    private Task<T> Do<T>(string what, Func<T> work, CancellationToken cancellationToken) =>
        world.Local(daemon, what, work, TimeSpan.FromMilliseconds(15), cancellationToken);
}
