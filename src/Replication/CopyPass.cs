// The background copy of a mirror: every chunk that is not known to be the same on both sides is read from the source and sent, a few at
// a time, with the guest first: fewer in flight while it writes, none that it is writing, no more than the rate allows. It lives as long
// as the target's life, and goes on after the disk is synced: a chunk may become dirty again, and what the guest leaves unflushed is
// bounded here.
using System.Buffers;
using System.Threading.Channels;
using Platform;

namespace Replication;

internal sealed class CopyPass : IDisposable
{
    private const int MostInFlight = 8;
    private const int MostInFlightBesideGuest = 1;
    private const int ZeroScanBytes = 4096;
    private const long ExtentStepBytes = 1L << 30;
    private static readonly TimeSpan Quick = TimeSpan.FromMilliseconds(100);
    private static readonly TimeSpan Slow = TimeSpan.FromMilliseconds(400);

    private readonly IBlockDevice source;
    private readonly TargetSide target;
    private readonly ChunkMap map;
    private readonly TokenBucket rate;
    private readonly TimeProvider time;
    private readonly Func<Task<bool>> flushTarget;
    private readonly CancellationTokenSource stop = new();
    private readonly Channel<bool> wake =
        Channel.CreateBounded<bool>(new BoundedChannelOptions(1) { FullMode = BoundedChannelFullMode.DropWrite });

    private readonly List<Task> flights = [];
    private readonly Task running;
    private int inFlight;
    private int window = MostInFlightBesideGuest;
    private long seenGuestLeases;

    /// <summary>Starts at once.</summary>
    public CopyPass(
        IBlockDevice source, TargetSide target, ChunkMap map, TokenBucket rate, TimeProvider time, Func<Task<bool>> flushTarget)
    {
        this.source = source;
        this.target = target;
        this.map = map;
        this.rate = rate;
        this.time = time;
        this.flushTarget = flushTarget;
        TotalBytes = map.UnequalBytes;
        running = RunAsync();
    }

    /// <summary>What there was to copy when the source's extents were known; until then what there may be.</summary>
    public long TotalBytes { get; private set; }

    /// <summary>Everything was copied, and the target has flushed it. What was found dirty since shows in the map.</summary>
    public bool IsCaughtUp { get; private set; }

    /// <summary>Ends it; nothing of it is in flight afterwards.</summary>
    public async Task StopAsync()
    {
        stop.Cancel();
        await running;
    }

    public void Dispose() => stop.Dispose();

    private async Task RunAsync()
    {
        await Task.Yield();
        map.WorkAppeared += Wake;
        try
        {
            await SkipWhatIsNotThereAsync();
            TotalBytes = map.UnequalBytes;
            while (!target.IsLost)
                await StepAsync();
        }
        catch (OperationCanceledException) when (stop.IsCancellationRequested)
        {
        }
        catch (IOException e)
        {
            target.Lose($"the source's extents cannot be read: {e.Message}", isDiskError: true);
        }
        catch (InvariantException e)
        {
            target.Lose(e.Message, isDiskError: true); // The guest goes on; whoever stops the pass hears of it.
            throw;
        }
        finally
        {
            map.WorkAppeared -= Wake;
            await Task.WhenAll(flights);
        }
    }

    private async Task StepAsync()
    {
        if (map.UnflushedChunks > ChunkMap.UnflushedLimit)
            await flushTarget();
        flights.RemoveAll(static flight => flight.IsCompletedSuccessfully);
        await rate.WaitAsync(stop.Token);
        for (int most = Window(); Volatile.Read(ref inFlight) < most && map.TryLeaseForCopy() is { } lease;)
        {
            IsCaughtUp = false;
            Interlocked.Increment(ref inFlight);
            flights.Add(CopyAsync(lease));
        }

        if (!IsCaughtUp && Volatile.Read(ref inFlight) == 0 && map.UnequalChunks == 0)
            IsCaughtUp = await flushTarget() && map.UnequalChunks == 0;
        await wake.Reader.ReadAsync(stop.Token);
    }

    private void Wake() => wake.Writer.TryWrite(true);

    private int Window()
    {
        bool guestIsWriting = map.GuestLeases != seenGuestLeases;
        seenGuestLeases = map.GuestLeases;
        return Math.Min(window, guestIsWriting ? MostInFlightBesideGuest : MostInFlight);
    }

    // On a target that was never written, what the source does not hold reads as zeros already.
    private async Task SkipWhatIsNotThereAsync()
    {
        long emptyFrom = 0;
        for (long at = 0; at < source.LengthBytes;)
        {
            foreach (BlockExtent extent in await source.ExtentsAsync(at, Math.Min(ExtentStepBytes, source.LengthBytes - at), stop.Token))
            {
                at = extent.EndBytes;
                if (extent.Kind != ExtentKind.Data)
                    continue;
                map.NothingToCopy(emptyFrom, extent.OffsetBytes - emptyFrom);
                emptyFrom = extent.EndBytes;
            }
        }

        map.NothingToCopy(emptyFrom, source.LengthBytes - emptyFrom);
    }

    private async Task CopyAsync(ChunkMap.Lease lease)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(ChunkMap.ChunkBytes);
        bool isOnTarget = false;
        try
        {
            await Task.Yield();
            Memory<byte> chunk = buffer.AsMemory(0, lease.LengthBytes);
            await source.ReadAsync(lease.OffsetBytes, chunk, stop.Token);
            isOnTarget = await SendAsync(lease, chunk);
        }
        catch (OperationCanceledException) when (stop.IsCancellationRequested)
        {
        }
        catch (IOException e)
        {
            target.Lose($"the source cannot be read at {lease.OffsetBytes}: {e.Message}", isDiskError: true);
        }
        finally
        {
            map.Copied(lease, isOnTarget, target.Epoch);
            lease.Dispose();
            ArrayPool<byte>.Shared.Return(buffer);
            Interlocked.Decrement(ref inFlight);
            Wake();
        }
    }

    private async Task<bool> SendAsync(ChunkMap.Lease lease, Memory<byte> chunk)
    {
        long begun = time.GetTimestamp();
        List<Task<bool>> parts = [];
        for (int at = 0; at < chunk.Length;)
        {
            bool isZero = IsZero(chunk, at);
            int end = at;
            while (end < chunk.Length && IsZero(chunk, end) == isZero)
                end = Math.Min(end + ZeroScanBytes, chunk.Length);
            if (!isZero)
            {
                rate.Charge(end - at);
                parts.Add(target.TryWriteAsync(lease.OffsetBytes + at, chunk[at..end], WriteFlags.None).AsTask());
            }
            else if (lease.WasDirty)
            {
                parts.Add(target.TryWriteZeroesAsync(lease.OffsetBytes + at, end - at, WriteFlags.None).AsTask());
            }

            at = end;
        }

        bool[] sent = await Task.WhenAll(parts);
        Adapt(time.GetElapsedTime(begun));
        return Array.TrueForAll(sent, static isSent => isSent) && !target.IsLost;
    }

    // On a slow line the guest's writes queue behind ours: then fewer of ours.
    private void Adapt(TimeSpan took)
    {
        if (took < Quick)
            window = Math.Min(window + 1, MostInFlight);
        else if (took > Slow)
            window = Math.Max(window / 2, 1);
    }

    private static bool IsZero(Memory<byte> chunk, int at) =>
        chunk.Span.Slice(at, Math.Min(ZeroScanBytes, chunk.Length - at)).IndexOfAnyExcept((byte)0) < 0;
}
