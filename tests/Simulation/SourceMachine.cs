// The source's host: its disks, its data path with the mirrors, the guest's domain; and the two ports through which its daemon asks for them.
using Migration;

namespace Simulation;

internal enum DomainState
{
    None,
    Incoming,
    Loaded,
    Running,
    Paused,
    Frozen,
}

internal sealed class SourceMachine(World world)
{
    public BlockDisk[] Disks { get; } = [.. world.Plan.Disks.Select(static _ => new BlockDisk())];

    public Mirror?[] Mirrors { get; } = new Mirror?[world.Plan.Disks.Count];

    public DomainState Domain { get; private set; } = DomainState.Running;

    public bool HasVm { get; private set; } = true;

    /// <summary>Grows with each write of the guest, so that an old memory is known for one.</summary>
    public int Memory { get; set; }

    public int Outstanding { get; set; }

    public List<TaskCompletionSource<bool>> Draining { get; } = [];

    /// <summary>Writes of a guest that is gone are nobody's.</summary>
    public int Boots { get; private set; }

    public void Drained()
    {
        foreach (TaskCompletionSource<bool> waiting in Draining)
            waiting.TrySetResult(true);
        Draining.Clear();
    }

    public void Crash()
    {
        Domain = DomainState.None;
        EndOfGuest();
        for (int d = 0; d < Disks.Length; d++)
        {
            Mirrors[d]?.Break("lost: the source's host is gone", isLost: true);
            Mirrors[d] = null;
            Disks[d].LosePower(world.Rng);
        }
    }

    /// <summary>The guest's disks are served by a new process, which knows of no mirror; the guest goes on.</summary>
    public void RestartDataPath()
    {
        for (int d = 0; d < Disks.Length; d++)
        {
            Mirrors[d]?.Break("lost: the source's data path was restarted", isLost: true);
            Mirrors[d] = null;
        }
    }

    public void GuestDies()
    {
        if (Domain is not (DomainState.Running or DomainState.Paused))
            return;
        Domain = DomainState.None;
        EndOfGuest();
    }

    private void EndOfGuest()
    {
        Boots++;
        Outstanding = 0;
        Drained();
    }

    /// <summary>VM.start: from the disks, when nothing of the VM is there.</summary>
    public void Boot()
    {
        if (!HasVm || Domain != DomainState.None || Disks.Any(static d => d.IsHeld || d.IsDestroyed))
            return;
        Memory = world.NextVersion();
        Domain = DomainState.Running;
        world.Oracle.SourceRuns(isBoot: true);
    }

    public bool Stop()
    {
        if (Domain is DomainState.Running)
            Domain = DomainState.Paused;
        return Domain == DomainState.Paused ? true : throw Gone();
    }

    public bool Freeze()
    {
        if (world.Breaks == Breakage.FreezeDestroys)
        {
            Release();
            return true;
        }

        if (Domain is not (DomainState.Paused or DomainState.Frozen))
            throw Gone();
        if (world.Breaks != Breakage.FreezeSkipped)
            Domain = DomainState.Frozen;
        return true;
    }

    public bool Resume()
    {
        if (Domain is DomainState.Paused or DomainState.Frozen)
        {
            Domain = DomainState.Running;
            world.Oracle.SourceRuns(isBoot: false);
        }

        return true; // A guest that is gone was ended by its host; it is started by whoever may.
    }

    public bool Release()
    {
        if (HasVm)
            world.Oracle.SourceDestroys("the domain");
        Domain = DomainState.None;
        HasVm = false;
        Array.Clear(Mirrors);
        return true;
    }

    public bool Restore()
    {
        HasVm = true;
        foreach (BlockDisk disk in Disks)
            disk.IsHeld = false;
        return true;
    }

    public bool Destroy(int d)
    {
        if (!Disks[d].IsDestroyed)
            world.Oracle.SourceDestroys($"disk {world.Plan.Disks[d].Device}");
        Disks[d].IsDestroyed = true;
        Disks[d].IsHeld = false;
        return true;
    }

    public static MigrationException Gone() => new("DOMAIN_GONE", [], MigrationSide.Source, "the domain is not there any more");
}

/// <summary>What one incarnation of the source's daemon asks of its host.</summary>
internal sealed class SourcePorts(World world, Incarnation daemon) : ISourceStorage, ISourceDomain
{
    private static readonly TimeSpan ConnectLimit = TimeSpan.FromMilliseconds(1200);

    private SourceMachine Machine => world.A;

    public Task StartMirrorAsync(
        DiskPlan disk, DiskTarget target, bool wasMirrored, long bytesPerSecond, MigrationOptions options, CancellationToken cancellationToken) =>
        Do($"mirror {disk.Device}", () =>
        {
            int d = world.IndexOf(disk);
            Mirror? mirror = Machine.Mirrors[d];
            if (mirror is { State: not MirrorState.Finished } && mirror.Export == target.Name)
                return true; // Asked again; that it failed since, its status tells. A mirror goes on behind a new export only.
            if (Machine.Disks[d].IsDestroyed || Machine.Domain == DomainState.None)
                throw SourceMachine.Gone();
            if (!world.IsUp(world.Network.Peers) || !world.B.IsOpen(target.Name))
                throw new IOException("the export cannot be reached");
            mirror = Machine.Mirrors[d] ??= new Mirror(world, d, Machine.Disks[d], isTargetUnknown: wasMirrored);
            mirror.Connect(target.Name);
            return true;
        }, cancellationToken, ConnectLimit, world.IndexOf(disk));

    public Task SetRateAsync(DiskPlan disk, long bytesPerSecond, CancellationToken cancellationToken) => Do("rate", () =>
    {
        if (Machine.Mirrors[world.IndexOf(disk)] is { } mirror)
            mirror.RateBytesPerSecond = bytesPerSecond;
        return true;
    }, cancellationToken);

    public Task<MirrorProgress> MirrorStatusAsync(DiskPlan disk, CancellationToken cancellationToken) => Do("status", () =>
    {
        if (Machine.Mirrors[world.IndexOf(disk)] is not { } mirror)
            return new MirrorProgress(false, false, "the mirror is gone", disk.LengthBytes, 0, 0, IsLost: true);
        long dirty = mirror.DirtyBlocks * DigestRange.LeafBytes;
        bool isSynced = mirror.State is MirrorState.Synced or MirrorState.Finished;
        if (world.Breaks == Breakage.DirtyIsSynced)
            isSynced = true;
        return new MirrorProgress(
            isSynced, false, isSynced ? null : mirror.Failure, disk.LengthBytes, disk.LengthBytes - dirty, mirror.SentBlocks * DigestRange.LeafBytes,
            mirror.IsLost, dirty);
    }, cancellationToken);

    public Task FinishMirrorAsync(DiskPlan disk, CancellationToken cancellationToken) => Do("finish", () =>
    {
        Mirror? mirror = Machine.Mirrors[world.IndexOf(disk)];
        if (mirror is not null && mirror.State != MirrorState.Finished && !world.IsUp(world.Network.Peers))
            throw new IOException("the target cannot be flushed");
        return mirror is not null && mirror.Finish()
            ? true
            : throw new MigrationException("MIRROR_FAILED", [disk.SourceDisk], MigrationSide.Source, "the two may differ", isTransient: mirror is null or { IsLost: true });
    }, cancellationToken, disk: world.IndexOf(disk));

    public Task StopMirrorAsync(DiskPlan disk, CancellationToken cancellationToken) => Do("stop mirror", () =>
    {
        int d = world.IndexOf(disk);
        Machine.Mirrors[d]?.Break("stopped", isLost: true);
        Machine.Mirrors[d] = null;
        return true;
    }, cancellationToken, disk: world.IndexOf(disk));

    public Task<DiskDigest> DigestAsync(DiskPlan disk, CancellationToken cancellationToken) =>
        Do("digest", () => Machine.Disks[world.IndexOf(disk)].Digest(disk), cancellationToken);

    public Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, CancellationToken cancellationToken) =>
        Do("range digest", () => Machine.Disks[world.IndexOf(disk)].Digest(range), cancellationToken);

    public Task HoldAsync(DiskPlan disk, DateTimeOffset until, CancellationToken cancellationToken) => Do("hold", () =>
    {
        world.Oracle.HoldIsUntil(until);
        Machine.Disks[world.IndexOf(disk)].IsHeld = true;
        return world.Breaks != Breakage.HoldDestroys || Machine.Destroy(world.IndexOf(disk));
    }, cancellationToken);

    public Task DestroyAsync(DiskPlan disk, CancellationToken cancellationToken) => Do("destroy", () => Machine.Destroy(world.IndexOf(disk)), cancellationToken);

    public Task PrecopyAsync(MigrationPlan plan, MemoryTarget target, CancellationToken cancellationToken) => Do("precopy", () =>
    {
        if (Machine.Domain != DomainState.Running)
            throw SourceMachine.Gone();
        if (!world.IsUp(world.Network.Peers) || !world.B.IsReceiving(target.Secret))
            throw new IOException("the memory stream broke");
        world.StreamSecret = target.Secret;
        return true;
    }, cancellationToken, TimeSpan.FromMilliseconds(world.Rng.Below(20) == 0 ? 3000 : 300));

    /// <summary>The guest's writes that are under way are part of its stopping.</summary>
    public async Task<DateTimeOffset> StopAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        await Do("stop", Machine.Stop, cancellationToken);
        if (Machine.Outstanding > 0 && world.Breaks != Breakage.StopDoesNotDrain)
        {
            TaskCompletionSource<bool> drained = new();
            Machine.Draining.Add(drained);
            await drained.Task;
        }

        return Time.GetUtcNow();
    }

    public Task<MemoryDigest> TransferAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do("transfer", () =>
    {
        if (Machine.Domain != DomainState.Paused)
            throw SourceMachine.Gone();
        if (!world.IsUp(world.Network.Peers) || !world.B.IsReceiving(world.StreamSecret))
            throw new IOException("the memory stream broke");
        int memory = Machine.Memory;
        if (world.StreamIsAltered || world.Chance(60))
        {
            world.Faults.DiskErrors++;
            world.B.Load(memory ^ 0x5a5a); // A stream that is altered on its way.
        }
        else
        {
            world.B.Load(memory);
        }

        return DestinationMachine.DigestOf(memory);
    }, cancellationToken, TimeSpan.FromMilliseconds(80));

    public Task FreezeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do("freeze", Machine.Freeze, cancellationToken);

    public Task ResumeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do("resume", Machine.Resume, cancellationToken);

    public Task ReleaseAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do("release", Machine.Release, cancellationToken);

    public Task RestoreAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do("restore", Machine.Restore, cancellationToken);

    private ProcessTime Time => new(world.Scheduler, daemon, () => world.SkewA);

    private Task<T> Do<T>(string what, Func<T> work, CancellationToken cancellationToken, TimeSpan? longest = null, int disk = -1) =>
        world.Local(daemon, what, work, longest ?? TimeSpan.FromMilliseconds(15), cancellationToken, disk);
}
