// One life of a mirror's target: the device behind one connection, watched. A request that fails, or that is not answered within the
// stall limit, ends this life: the owner is told first (it marks what may differ), then every waiting request gives up, so that no guest
// waits longer than the limit.
using Nbd;
using Platform;

namespace Replication;

/// <summary>Requests to it answer false instead of failing. Owns the device.</summary>
internal sealed class TargetSide : IAsyncDisposable
{
    /// <summary>How long a request of a lost target may go on holding its buffer before it is abandoned with it.</summary>
    private static readonly TimeSpan Grace = TimeSpan.FromMilliseconds(250);

    private static readonly TimeSpan DisposeLimit = TimeSpan.FromSeconds(5);

    private readonly IBlockDevice device;
    private readonly TimeSpan stallLimit;
    private readonly TimeProvider time;
    private readonly Action<string, bool> onLost;
    private readonly ITimer watchdog;
    private readonly Lock gate = new();
    private readonly CancellationTokenSource lost = new(); // Never disposed: whoever loses the target may still be cancelling it.
    private readonly CancellationTokenSource abandoned;
    private readonly List<TargetRequest> waiting = [];
    private readonly Stack<TargetRequest> spare = new();
    private readonly TaskCompletionSource deviceGone = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private long sentBytes;
    private bool isLost;

    /// <param name="onLost">Told the reason, and whether it is an error of a disk, once, before any waiting request gives up.</param>
    public TargetSide(IBlockDevice device, int epoch, TimeSpan stallLimit, TimeProvider time, Action<string, bool> onLost)
    {
        this.device = device;
        this.stallLimit = stallLimit;
        this.time = time;
        this.onLost = onLost;
        Epoch = epoch;
        abandoned = new CancellationTokenSource(Timeout.InfiniteTimeSpan, time);
        abandoned.Token.Register(Abandon);
        TimeSpan period = TimeSpan.FromMilliseconds(Math.Clamp(stallLimit.TotalMilliseconds / 20, 5, 100));
        if (device is NbdClient client)
            _ = client.Lost.ContinueWith(LoseConnection, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        watchdog = time.CreateTimer(static state => ((TargetSide)state!).CheckStall(), this, period, period);
    }

    public int Epoch { get; }

    public long SentBytes => Interlocked.Read(ref sentBytes);

    public bool IsLost => Volatile.Read(ref isLost);

    /// <summary>How long the oldest unanswered request has waited.</summary>
    public TimeSpan OldestWait
    {
        get
        {
            lock (gate)
            {
                long oldest = long.MaxValue;
                foreach (TargetRequest request in waiting)
                    oldest = Math.Min(oldest, request.StartedAt);
                return oldest == long.MaxValue ? TimeSpan.Zero : time.GetElapsedTime(oldest);
            }
        }
    }

    public ValueTask<bool> TryWriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        if (!IsLost)
            Interlocked.Add(ref sentBytes, source.Length);
        return TryAsync(
            static (d, a, token) => d.WriteAsync(a.offsetBytes, a.source, a.flags, token), (offsetBytes, source, flags), "write");
    }

    public ValueTask<bool> TryWriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags) =>
        TryAsync(
            static (d, a, token) => d.WriteZeroesAsync(a.offsetBytes, a.lengthBytes, a.flags, token),
            (offsetBytes, lengthBytes, flags),
            "write-zeroes");

    public ValueTask<bool> TryFlushAsync() => TryAsync(static (d, _, token) => d.FlushAsync(token), 0, "flush");

    /// <summary>Ends this life. The first reason counts.</summary>
    /// <param name="isDiskError">A disk said no (full, unreadable): behind another connection it would say the same.</param>
    public void Lose(string reason, bool isDiskError = false)
    {
        lock (gate)
        {
            if (isLost)
                return;
            onLost(reason, isDiskError); // Inside the lock: whoever learns that the target is lost learns it after its owner.
            Volatile.Write(ref isLost, true);
        }

        watchdog.Dispose();
        abandoned.CancelAfter(Grace);
        if (device is NbdClient client)
            client.Cut(); // Whoever is stuck in the middle of a message to it is free, and so is its memory.
        _ = DisposeDeviceAsync(); // It never throws; DisposeAsync waits for it.
        lost.Cancel();
    }

    /// <summary>Lets go of the device, in order when it was not lost. Bounded.</summary>
    public async ValueTask DisposeAsync()
    {
        bool isFirst;
        lock (gate)
        {
            isFirst = !isLost;
            Volatile.Write(ref isLost, true);
        }

        watchdog.Dispose();
        if (isFirst)
            _ = DisposeDeviceAsync();
        try
        {
            await deviceGone.Task.WaitAsync(DisposeLimit, time);
        }
        catch (TimeoutException)
        {
            // It goes on alone; its failure is observed there.
        }
    }

    /// <summary>It waits no longer.</summary>
    public void Answered(TargetRequest request)
    {
        lock (gate)
        {
            TargetRequest last = waiting[^1];
            waiting[request.Slot] = last;
            last.Slot = request.Slot;
            waiting.RemoveAt(waiting.Count - 1);
        }
    }

    public void Reuse(TargetRequest request)
    {
        lock (gate)
            spare.Push(request);
    }

    private ValueTask<bool> TryAsync<T>(Func<IBlockDevice, T, CancellationToken, ValueTask> request, T arguments, string what)
    {
        TargetRequest? watched;
        lock (gate)
        {
            if (isLost)
                return ValueTask.FromResult(false);
            if (!spare.TryPop(out watched))
                watched = new TargetRequest(this);
            watched.Slot = waiting.Count;
            watched.StartedAt = time.GetTimestamp();
            waiting.Add(watched);
        }

        return watched.Watch(Begin(request, arguments), what);
    }

    // A request may throw before it returns its task; here that too becomes the task's.
    private ValueTask Begin<T>(Func<IBlockDevice, T, CancellationToken, ValueTask> request, T arguments)
    {
        try
        {
            return request(device, arguments, lost.Token);
        }
        catch (Exception e)
        {
            return ValueTask.FromException(e);
        }
    }

    private void Abandon()
    {
        TargetRequest[] rest;
        lock (gate)
            rest = [.. waiting];
        foreach (TargetRequest request in rest)
            request.Abandon();
    }

    // A target that dies is noticed also while nobody writes.
    private void LoseConnection(Task<BlockIoException> reason) => Lose($"the target was lost: {reason.Result.Message}");

    private void CheckStall()
    {
        if (OldestWait > stallLimit)
            Lose($"the target has not answered for {stallLimit.TotalMilliseconds:0} ms");
    }

    private async Task DisposeDeviceAsync()
    {
        try
        {
            await device.DisposeAsync();
        }
        catch (Exception e) when (e is IOException or OperationCanceledException or ObjectDisposedException)
        {
            // It is gone, which is what was wanted.
        }
        finally
        {
            deviceGone.SetResult();
        }
    }
}
