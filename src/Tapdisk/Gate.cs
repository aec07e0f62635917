// A place where a device can be exchanged while requests come: they wait at the gate for as long as it is held, and never see what is
// behind it change.
using System.Runtime.CompilerServices;
using Platform;

namespace Tapdisk;

/// <summary>
/// Passes requests to the device behind it, counts them, and can be held. It owns nothing. Who waits at a held gate is bounded by who calls
/// (the NBD server's requests in flight, the copy pass's chunks); a wait ends with its token or when the gate is shut.
/// </summary>
internal sealed class Gate(long lengthBytes, bool isReadOnly) : IBlockDevice
{
    private const int SectorBytes = 512;

    private readonly Lock gate = new();
    private IBlockDevice? device;
    private TaskCompletionSource opened = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private TaskCompletionSource? drained;
    private bool isShut;
    private int inFlight;
    private long reads;
    private long writes;
    private long sectorsRead;
    private long sectorsWritten;
    private long failedReads;
    private long failedWrites;

    public long LengthBytes { get; private set; } = lengthBytes;

    public int BlockSizeBytes => SectorBytes;

    public bool IsReadOnly => isReadOnly;

    public int InFlight => Volatile.Read(ref inFlight);

    public GateCounts Counts => new(
        Interlocked.Read(ref reads), Interlocked.Read(ref writes), Interlocked.Read(ref sectorsRead), Interlocked.Read(ref sectorsWritten),
        Interlocked.Read(ref failedReads), Interlocked.Read(ref failedWrites));

    /// <summary>
    /// Opens the gate onto a device, or exchanges the device of an open gate: requests that are inside stay with the old one.
    /// </summary>
    public void Open(IBlockDevice behind)
    {
        lock (gate)
        {
            device = behind;
            LengthBytes = behind.LengthBytes;
            opened.TrySetResult();
        }
    }

    /// <summary>Holds new requests and waits for those inside. On a time-out the gate is open again.</summary>
    /// <exception cref="TimeoutException">Requests stayed inside; nothing changed.</exception>
    public async Task HoldAsync(TimeSpan limit)
    {
        IBlockDevice? held;
        Task wait;
        lock (gate)
        {
            held = device;
            device = null;
            if (opened.Task.IsCompleted && !isShut)
                opened = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            drained = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            if (inFlight == 0)
                drained.SetResult();
            wait = drained.Task;
        }

        try
        {
            await wait.WaitAsync(limit);
        }
        catch (TimeoutException) when (held is not null)
        {
            Open(held);
            throw;
        }
    }

    /// <summary>For good: who waits, and who comes, is refused.</summary>
    public void Shut()
    {
        lock (gate)
        {
            isShut = true;
            device = null;
            opened.TrySetResult();
        }
    }

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        Interlocked.Increment(ref reads);
        Interlocked.Add(ref sectorsRead, destination.Length / SectorBytes);
        return PassAsync(
            static (d, a, token) => d.ReadAsync(a.offsetBytes, a.destination, token),
            (offsetBytes, destination),
            isWrite: false,
            cancellationToken);
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        CountWrite(source.Length);
        return PassAsync(
            static (d, a, token) => d.WriteAsync(a.offsetBytes, a.source, a.flags, token),
            (offsetBytes, source, flags),
            isWrite: true,
            cancellationToken);
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        CountWrite(lengthBytes);
        return PassAsync(
            static (d, a, token) => d.WriteZeroesAsync(a.offsetBytes, a.lengthBytes, a.flags, token),
            (offsetBytes, lengthBytes, flags),
            isWrite: true,
            cancellationToken);
    }

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        PassAsync(
            static (d, a, token) => d.TrimAsync(a.offsetBytes, a.lengthBytes, a.flags, token),
            (offsetBytes, lengthBytes, flags),
            isWrite: true,
            cancellationToken);

    public ValueTask FlushAsync(CancellationToken cancellationToken) =>
        PassAsync(static (d, _, token) => d.FlushAsync(token), 0, isWrite: true, cancellationToken);

    public async ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        IBlockDevice inside = TryEnter() ?? await WaitAsync(cancellationToken);
        try
        {
            return await inside.ExtentsAsync(offsetBytes, lengthBytes, cancellationToken);
        }
        finally
        {
            Leave();
        }
    }

    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    private void CountWrite(long lengthBytes)
    {
        Interlocked.Increment(ref writes);
        Interlocked.Add(ref sectorsWritten, lengthBytes / SectorBytes);
    }

    private ValueTask PassAsync<T>(
        Func<IBlockDevice, T, CancellationToken, ValueTask> request, T arguments, bool isWrite, CancellationToken cancellationToken)
    {
        IBlockDevice? inside = TryEnter();
        if (inside is null)
            return FinishAsync(null, default, request, arguments, isWrite, cancellationToken);
        ValueTask pending;
        try
        {
            pending = request(inside, arguments, cancellationToken);
        }
        catch
        {
            CountFailure(isWrite);
            Leave();
            throw;
        }

        if (!pending.IsCompletedSuccessfully)
            return FinishAsync(inside, pending, request, arguments, isWrite, cancellationToken);
        Leave();
        return ValueTask.CompletedTask;
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private async ValueTask FinishAsync<T>(
        IBlockDevice? inside,
        ValueTask pending,
        Func<IBlockDevice, T, CancellationToken, ValueTask> request,
        T arguments,
        bool isWrite,
        CancellationToken cancellationToken)
    {
        if (inside is null)
            pending = RequestAsync(await WaitAsync(cancellationToken), request, arguments, cancellationToken);
        try
        {
            await pending;
        }
        catch
        {
            CountFailure(isWrite);
            throw;
        }
        finally
        {
            Leave();
        }
    }

    // A request may throw before it returns its task; here that too becomes the task's.
    private static async ValueTask RequestAsync<T>(
        IBlockDevice inside,
        Func<IBlockDevice, T, CancellationToken, ValueTask> request,
        T arguments,
        CancellationToken cancellationToken) =>
        await request(inside, arguments, cancellationToken);

    private void CountFailure(bool isWrite) => Interlocked.Increment(ref isWrite ? ref failedWrites : ref failedReads);

    private IBlockDevice? TryEnter()
    {
        lock (gate)
        {
            if (device is not null)
                inFlight++;
            return device;
        }
    }

    private async ValueTask<IBlockDevice> WaitAsync(CancellationToken cancellationToken)
    {
        while (true)
        {
            Task open;
            lock (gate)
            {
                if (isShut)
                    throw new BlockIoException(Errno.ESHUTDOWN, "the disk was closed");
                if (device is not null)
                {
                    inFlight++;
                    return device;
                }

                open = opened.Task;
            }

            await open.WaitAsync(cancellationToken);
        }
    }

    private void Leave()
    {
        lock (gate)
        {
            if (--inFlight == 0)
                drained?.TrySetResult();
        }
    }
}

/// <summary>What passed a gate since it was made.</summary>
internal readonly record struct GateCounts(
    long Reads, long Writes, long SectorsRead, long SectorsWritten, long FailedReads, long FailedWrites);
