// The source's effects on real things: its tapdisks and its xenopsd.
using Migration;
using Platform;
using StorageAccess;
using StorageAccess.Tap;
using Xapi.Database;
using Xapi.Storage;
using Xapi.Vms;
using Xenops;
using DiskDigest = Migration.DiskDigest;

namespace Xapi.Migration;

public sealed class SourceSide(
    PoolDatabase database, StorageHost storage, StorageMessages vdis, XenopsHost xenops, MigrationPlan plan, string hostRef) : ISourceStorage, ISourceDomain
{
    /// <summary>How long the end of an export at the destination may take to be noticed here.</summary>
    private static readonly TimeSpan LossLimit = TimeSpan.FromSeconds(10);

    private static readonly TimeSpan LossStep = TimeSpan.FromMilliseconds(100);

    private readonly TapdiskOf tapdisks = new(storage.Layer, storage.Tap);

    private XenopsClient Client => xenops.Client;

    private string VmUuid => plan.Vm;

    public async Task StartMirrorAsync(
        DiskPlan disk, DiskTarget target, bool wasMirrored, long bytesPerSecond, MigrationOptions options, CancellationToken cancellationToken)
    {
        MirrorTarget mirror = new(
            $"nbds://{target.Host}:{target.Port}", new Secret(target.Name), target.FingerprintSha256, options.StallLimit, bytesPerSecond);
        try
        {
            TapdiskDisk tap = await FindAsync(disk, cancellationToken);
            MirrorStatus status = await tapdisks.Extensions.MirrorStatusAsync(tap.ProcessId, tap.Minor, cancellationToken);
            bool isOnTarget = status.Phase is not (MirrorPhase.None or MirrorPhase.Finished) && status.Target == MirrorStatus.TargetId(mirror.Name);
            if (isOnTarget)
                return; // Asked again after a crash; that it failed since, its status tells.
            if (!wasMirrored)
                await tapdisks.Extensions.MirrorStartAsync(tap.ProcessId, tap.Minor, mirror, cancellationToken);
            else
                await ResumeMirrorAsync(disk, tap, mirror, status, cancellationToken);
        }
        catch (TapException e)
        {
            bool isHere = e.ErrnoNumber is TapException.NoSuchProcess or TapException.NoSuchDevice or TapException.Busy or (int)Errno.EINVAL;
            throw new MigrationException(
                isHere ? "VM_MIGRATE_FAILED" : "MIRROR_FAILED", isHere ? [] : [disk.SourceDisk], isHere ? MigrationSide.Source : MigrationSide.Destination,
                $"the mirror of disk {disk.Device} cannot begin: {e.Message}", e, isTransient: !isHere);
        }
    }

    private async Task ResumeMirrorAsync(
        DiskPlan disk, TapdiskDisk tap, MirrorTarget mirror, MirrorStatus status, CancellationToken cancellationToken)
    {
        // The destination has ended the old export; the loss of the connection is on its way here.
        for (TimeSpan waited = TimeSpan.Zero; IsAlive(status) && waited < LossLimit; waited += LossStep)
        {
            await Task.Delay(LossStep, cancellationToken);
            status = await tapdisks.Extensions.MirrorStatusAsync(tap.ProcessId, tap.Minor, cancellationToken);
        }

        if (IsAlive(status))
            await tapdisks.Extensions.MirrorGiveUpAsync(tap.ProcessId, tap.Minor, cancellationToken);
        await tapdisks.Extensions.MirrorResumeAsync(tap.ProcessId, tap.Minor, mirror, cancellationToken);
    }

    private static bool IsAlive(MirrorStatus status) => status.Phase is MirrorPhase.Copying or MirrorPhase.Synced or MirrorPhase.Stalled;

    public async Task<MirrorProgress> MirrorStatusAsync(DiskPlan disk, CancellationToken cancellationToken)
    {
        MirrorStatus status;
        try
        {
            TapdiskDisk tap = await FindAsync(disk, cancellationToken);
            status = await tapdisks.Extensions.MirrorStatusAsync(tap.ProcessId, tap.Minor, cancellationToken);
        }
        catch (TapException e) when (e.ErrnoNumber is TapException.NoSuchProcess or TapException.NoSuchDevice)
        {
            // With it went what it knew of the differences: no new attempt can go on from here.
            return new MirrorProgress(false, false, $"the source's data path is gone: {e.Message}", 0, 0, 0);
        }

        string? failure = status.Phase switch
        {
            MirrorPhase.Failed => status.Error.Length == 0 ? "failed" : status.Error,
            MirrorPhase.None => "the mirror is gone",
            _ => null,
        };
        return new MirrorProgress(
            status.Phase is MirrorPhase.Synced or MirrorPhase.Finished, status.Phase == MirrorPhase.Stalled, failure, status.TotalBytes, status.CopiedBytes,
            status.SentBytes, status.IsLost || status.Phase == MirrorPhase.None, status.DirtyBytes);
    }

    public async Task FinishMirrorAsync(DiskPlan disk, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await FindAsync(disk, cancellationToken);
        await tapdisks.Extensions.MirrorFinishAsync(tap.ProcessId, tap.Minor, cancellationToken);
    }

    public async Task StopMirrorAsync(DiskPlan disk, CancellationToken cancellationToken)
    {
        if (storage.Layer.Datapaths().All(row => row.Datapath != DatapathOf(disk)))
            return; // The disk is not open: there is no mirror either.
        TapdiskDisk tap = await FindAsync(disk, cancellationToken);
        await tapdisks.Extensions.MirrorStopAsync(tap.ProcessId, tap.Minor, cancellationToken);
    }

    public async Task<DiskDigest> DigestAsync(DiskPlan disk, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await FindAsync(disk, cancellationToken);
        StorageAccess.Tap.DiskDigest digest = await tapdisks.Extensions.DigestAsync(tap.ProcessId, tap.Minor, cancellationToken);
        return new DiskDigest(disk.Device, digest.Root, digest.LengthBytes);
    }

    public async Task SetRateAsync(DiskPlan disk, long bytesPerSecond, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await FindAsync(disk, cancellationToken);
        MirrorStatus status = await tapdisks.Extensions.MirrorStatusAsync(tap.ProcessId, tap.Minor, cancellationToken);
        if (status.Phase is not (MirrorPhase.None or MirrorPhase.Finished))
            await tapdisks.Extensions.MirrorRateAsync(tap.ProcessId, tap.Minor, bytesPerSecond, cancellationToken);
    }

    public async Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, CancellationToken cancellationToken)
    {
        TapdiskDisk tap = await tapdisks.FindAsync(
            new SrId(disk.SourceStorage), new VdiId(disk.SourceDisk), DatapathOf(disk), "digest-range", MigrationSide.Source, cancellationToken);
        return await tapdisks.Extensions.DigestRangeAsync(tap.ProcessId, tap.Minor, range.OffsetBytes, range.LengthBytes, cancellationToken);
    }

    public Task HoldAsync(DiskPlan disk, DateTimeOffset until, CancellationToken cancellationToken)
    {
        if (FindVdi(disk) is { } vdi)
            HeldDisks.Hold(database, vdi, plan, until);
        return Task.CompletedTask;
    }

    public Task RestoreAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        Dictionary<string, string> vdiOf = plan.Disks.ToDictionary(static d => d.Device, disk => FindVdi(disk) ?? throw new MigrationException(
            "VDI_NOT_AVAILABLE", [disk.SourceDisk], MigrationSide.Source, $"the disk {disk.Device} that was held is not there any more"));
        database.Transaction(() =>
        {
            if (database.FindByUuid("VM", plan.Vm) is null)
            {
                string vm = VmRows.Import(database, plan.Domain, vdiOf, plan.Migration);
                database.RemoveFromMap("VM", vm, "other_config", VmRows.ImportKey);
            }

            foreach (string vdi in vdiOf.Values)
                HeldDisks.Release(database, vdi);
        });
        return Task.CompletedTask;
    }

    public async Task DestroyAsync(DiskPlan disk, CancellationToken cancellationToken)
    {
        if (FindVdi(disk) is { } vdi)
            await vdis.DestroyVdiAsync("migration", vdi, cancellationToken);
    }

    public Task PrecopyAsync(MigrationPlan plan, MemoryTarget target, CancellationToken cancellationToken) => Client.PrecopyAsync(
        plan.Migration, VmUuid, new StreamTarget(plan.Migration, target.Host, target.Port, new Secret(target.Secret), target.FingerprintSha256),
        plan.Options.DowntimeLimit, cancellationToken);

    public Task<DateTimeOffset> StopAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        Client.StopAsync(plan.Migration, VmUuid, cancellationToken);

    public async Task<MemoryDigest> TransferAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        ImageSummary image = await Client.TransferAsync(plan.Migration, VmUuid, cancellationToken);
        return new MemoryDigest(image.Digest, image.Bytes);
    }

    public Task FreezeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Client.FreezeAsync(plan.Migration, VmUuid, cancellationToken);

    public Task ResumeAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        Client.ResumeAsync(plan.Migration, VmUuid, reattach: true, cancellationToken);

    public async Task ReleaseAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        try
        {
            await Client.VmRemoveAsync(plan.Migration, VmUuid, cancellationToken);
        }
        catch (XenopsException e) when (e.Tag == "Does_not_exist")
        {
            // Removed by an earlier try.
        }

        if (database.FindByUuid("VM", VmUuid) is { } vm)
        {
            VmRows.SetPowerState(database, vm, "Halted", hostRef);
            VmRows.Destroy(database, vm);
        }
    }

    private string? FindVdi(DiskPlan disk) =>
        database.FindByUuid("SR", disk.SourceStorage) is { } sr ? VdiRows.Find(database, sr, disk.SourceDisk) : null;

    private DatapathId DatapathOf(DiskPlan disk) => new($"vbd/{VmUuid}/{disk.Device}");

    private Task<TapdiskDisk> FindAsync(DiskPlan disk, CancellationToken cancellationToken) => tapdisks.FindAsync(
        new SrId(disk.SourceStorage), new VdiId(disk.SourceDisk), DatapathOf(disk), "mirror", MigrationSide.Source, cancellationToken);
}
