// The synchronous mirror (decision D2, journey of a guest write: docs/journeys/guest-write.md).
//
// Invariants: acknowledged => the source has it. Synced => what was acknowledged is on the target. Failed never becomes Synced without a
// resume. No chunk is copied and written at once. What may differ is marked before the guest is answered. Reads never wait and never
// leave the source.
using System.Runtime.CompilerServices;
using Platform;
using StorageAccess.Tap;

namespace Replication;

/// <param name="StallLimit">A target that does not answer for this long is given up; the longest a guest's write waits for it.</param>
/// <param name="RateLimitBytesPerSecond">Of the background copy only; 0 is no limit.</param>
public sealed record MirrorOptions(TimeSpan StallLimit, long RateLimitBytesPerSecond)
{
    /// <summary>At the start: both sides hold the same already, and nothing is copied but what is written from now on.</summary>
    public bool IsTargetEqual { get; init; }

    /// <summary>At the start: the target may hold anything (an earlier mirror's bytes), and everything is sent, zeros too.</summary>
    public bool IsTargetUnknown { get; init; }
}

/// <summary>
/// A disk whose every write goes to a source and a target, with a background pass that copies what was there before. The guest comes
/// first: a target that fails is left behind, and can be caught up with <see cref="ResumeAsync"/>. Owns the target, not the source.
/// Status, rate and stop never wait for the target. Resume, finish and dispose must not overlap each other.
/// </summary>
public sealed class MirrorDevice : IBlockDevice
{
    private static readonly TimeSpan PhaseStep = TimeSpan.FromMilliseconds(50);
    private static readonly TimeSpan StalledAfter = TimeSpan.FromMilliseconds(700);

    private readonly IBlockDevice source;
    private readonly TimeProvider time;
    private readonly ChunkMap map;
    private readonly TokenBucket rate;
    private readonly SemaphoreSlim oneFlush = new(1);
    private TaskCompletionSource failed = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly Lock gate = new();
    private TargetSide side;
    private CopyPass pass;
    private string? error;
    private bool isDiskError;
    private bool isFinished;
    private long sentInEarlierLives;
    private long totalInEarlierLives;

    /// <summary>
    /// Starts mirroring. The caller guarantees that no write to the source is in flight, and that the target reads as zeros,
    /// unless the options say what else it holds.
    /// </summary>
    /// <exception cref="BlockIoException">EINVAL: the sizes differ, or the target cannot be written in the source's blocks; nothing was
    /// started.</exception>
    public MirrorDevice(IBlockDevice source, IBlockDevice target, MirrorOptions options, TimeProvider time)
    {
        Check(source, target);
        this.source = source;
        this.time = time;
        map = new ChunkMap(source.LengthBytes);
        if (options.IsTargetEqual)
            map.NothingToCopy(0, source.LengthBytes);
        if (options.IsTargetUnknown)
            map.NothingIsKnown();
        rate = new TokenBucket(time, options.RateLimitBytesPerSecond);
        lock (gate)
            (side, pass) = Begin(target, options);
    }

    public long LengthBytes => source.LengthBytes;

    public int BlockSizeBytes => source.BlockSizeBytes;

    public bool IsReadOnly => source.IsReadOnly;

    public ChunkMap Map => map;

    public MirrorStatus Status
    {
        get
        {
            TimeSpan wait = side.OldestWait;
            lock (gate)
            {
                long total = Math.Max(totalInEarlierLives, pass.TotalBytes);
                long copied = Math.Max(0, total - map.UnequalBytes);
                return new MirrorStatus(Phase(wait), total, copied, sentInEarlierLives + side.SentBytes, map.UnequalChunks, error ?? "")
                {
                    DirtyBytes = map.DirtyBytes,
                    IsLost = error is not null && !isDiskError,
                };
            }
        }
    }

    /// <summary>Completes when the mirror is in another phase than the given one: at once when it fails, else within some 50 ms.</summary>
    public async Task<MirrorStatus> PhaseOtherThanAsync(MirrorPhase phase, CancellationToken cancellationToken)
    {
        while (true)
        {
            Task failing;
            lock (gate)
                failing = failed.Task;
            MirrorStatus status = Status;
            if (status.Phase != phase)
                return status;
            await Task.WhenAny(failing, Task.Delay(PhaseStep, time, cancellationToken));
            cancellationToken.ThrowIfCancellationRequested();
        }
    }

    public void SetRate(long bytesPerSecond) => rate.SetRate(bytesPerSecond);

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) =>
        source.ReadAsync(offsetBytes, destination, cancellationToken);

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        return WriteBothAsync(offsetBytes, source.Length, source, isZero: false, flags);
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        return WriteBothAsync(offsetBytes, lengthBytes, default, isZero: true, flags);
    }

    /// <summary>A trim writes zeros: what it leaves behind is each device's own choice otherwise, and the sides would differ.</summary>
    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        WriteZeroesAsync(offsetBytes, lengthBytes, flags & ~WriteFlags.NoHole, cancellationToken);

    /// <summary>A barrier on both sides. A target that cannot flush is lost; the guest hears only of the source.</summary>
    public async ValueTask FlushAsync(CancellationToken cancellationToken)
    {
        Task<bool> onTarget = FlushTargetAsync(side);
        try
        {
            await source.FlushAsync(CancellationToken.None);
        }
        finally
        {
            await onTarget;
        }
    }

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
        source.ExtentsAsync(offsetBytes, lengthBytes, cancellationToken);

    /// <summary>
    /// After Failed or Finished: goes on with the same disk behind a new connection, sending only what may differ. No request of the old
    /// connection may still reach the target (its export is ended first), or it would put old bytes over new ones.
    /// </summary>
    /// <exception cref="BlockIoException">EINVAL: the mirror lives, or the target does not fit; nothing changed, the target is
    /// the caller's.</exception>
    public async Task ResumeAsync(IBlockDevice target, MirrorOptions options)
    {
        lock (gate)
        {
            if (error is null && !isFinished)
                throw new BlockIoException(Errno.EINVAL, $"only a mirror that failed or finished can be resumed; this one is {Phase(TimeSpan.Zero)}");
        }

        Check(source, target);
        await pass.StopAsync();
        await side.DisposeAsync();
        rate.SetRate(options.RateLimitBytesPerSecond);
        lock (gate)
        {
            sentInEarlierLives += side.SentBytes;
            totalInEarlierLives = Math.Max(totalInEarlierLives, pass.TotalBytes);
            error = null;
            isDiskError = false;
            isFinished = false;
            failed = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            pass.Dispose();
            (side, pass) = Begin(target, options);
        }
    }

    /// <summary>Leaves the target behind as if it had failed: what differs is remembered.</summary>
    public void GiveUp(string reason) => side.Lose(reason);

    /// <summary>
    /// The switch-over: flushes both sides and lets go of the target, which then holds exactly what the source holds. A write that comes afterwards all
    /// the same goes to the source alone and is remembered: when the hand-over does not happen, the mirror is resumed from there.
    /// </summary>
    /// <exception cref="BlockIoException">EBUSY: not synced, or the guest is still writing; nothing changed.</exception>
    public async Task FinishAsync()
    {
        RequireSynced();
        await FlushAsync(CancellationToken.None);
        lock (gate)
        {
            RequireSynced();
            isFinished = true;
        }

        await pass.StopAsync();
        await side.DisposeAsync();
    }

    /// <summary>Stops mirroring, in whatever state it is. Requests that wait for the target are let go first.</summary>
    public async ValueTask DisposeAsync()
    {
        side.Lose("the mirror was stopped");
        await pass.StopAsync();
        pass.Dispose();
        await side.DisposeAsync();
        oneFlush.Dispose();
    }

    private static void Check(IBlockDevice source, IBlockDevice target)
    {
        if (target.LengthBytes != source.LengthBytes)
            throw new BlockIoException(Errno.EINVAL, $"the target has {target.LengthBytes} bytes, the source {source.LengthBytes}");
        if (target.IsReadOnly || target.BlockSizeBytes > source.BlockSizeBytes)
            throw new BlockIoException(
                Errno.EINVAL, $"the target is read-only or its blocks of {target.BlockSizeBytes} bytes are larger than the source's");
    }

    private (TargetSide Side, CopyPass Pass) Begin(IBlockDevice target, MirrorOptions options)
    {
        TargetSide begun = new(target, map.GainTarget(), options.StallLimit, time, OnLost);
        CopyPass copying = new(source, begun, map, rate, time, () => FlushTargetAsync(begun));
        return (begun, copying);
    }

    private MirrorPhase Phase(TimeSpan wait)
    {
        if (isFinished)
            return MirrorPhase.Finished;
        if (error is not null)
            return MirrorPhase.Failed;
        if (wait >= StalledAfter)
            return MirrorPhase.Stalled;
        return pass.IsCaughtUp && map.UnequalChunks == 0 ? MirrorPhase.Synced : MirrorPhase.Copying;
    }

    private void RequireSynced()
    {
        TimeSpan wait = side.OldestWait;
        lock (gate)
        {
            MirrorPhase phase = Phase(wait);
            if (phase != MirrorPhase.Synced || map.HasGuestLeases)
            {
                string why = phase == MirrorPhase.Synced
                    ? "the guest is still writing"
                    : $"the mirror is {phase}, {map.UnequalChunks} chunks may differ";
                throw new BlockIoException(Errno.EBUSY, $"{why}; nothing was changed");
            }
        }
    }

    // A write that began is finished on both sides whatever becomes of its caller: half a write would be a difference that nobody knows of.
    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private async ValueTask WriteBothAsync(long offsetBytes, long lengthBytes, ReadOnlyMemory<byte> data, bool isZero, WriteFlags flags)
    {
        using ChunkMap.Lease lease = await map.LeaseAsync(offsetBytes, lengthBytes);
        TargetSide target = side;
        ValueTask<bool> toTarget = isZero
            ? target.TryWriteZeroesAsync(offsetBytes, lengthBytes, flags)
            : target.TryWriteAsync(offsetBytes, data, flags);
        bool isOnSource = false;
        try
        {
            await (isZero
                ? source.WriteZeroesAsync(offsetBytes, lengthBytes, flags, CancellationToken.None)
                : source.WriteAsync(offsetBytes, data, flags, CancellationToken.None));
            isOnSource = true;
        }
        finally
        {
            bool isOnTarget = await toTarget;
            map.Wrote(offsetBytes, lengthBytes, isOnSource && isOnTarget, flags.HasFlag(WriteFlags.Fua), target.Epoch);
        }
    }

    // One at a time, so that each flush knows which chunks it covers.
    private async Task<bool> FlushTargetAsync(TargetSide target)
    {
        if (target.IsLost)
            return false;
        await oneFlush.WaitAsync();
        try
        {
            IReadOnlyCollection<int> covered = map.BeginFlush();
            bool isFlushed = await target.TryFlushAsync() && !target.IsLost;
            if (!isFlushed)
                map.FlushFailed(covered);
            return isFlushed;
        }
        finally
        {
            oneFlush.Release();
        }
    }

    private void OnLost(string reason, bool isOfDisk)
    {
        map.LoseTarget();
        lock (gate)
        {
            if (error is null)
                isDiskError = isOfDisk;
            error ??= reason;
            failed.TrySetResult();
        }
    }
}
