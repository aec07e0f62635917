// The transmission phase of the client: who is in flight, the reader of replies, and the end of the connection.
using System.Runtime.CompilerServices;
using System.Buffers.Binary;
using Platform;

namespace Nbd;

internal sealed class ClientConnection : IAsyncDisposable
{
    private static readonly TimeSpan GoodbyeTimeout = TimeSpan.FromSeconds(1);

    private readonly ClientHandshake handshake;
    private readonly ClientReplies replies;
    private readonly TimeProvider time;
    private readonly TimeSpan requestTimeout;
    private readonly WireWriter writer;
    private readonly SemaphoreSlim slots;
    private readonly Lock gate = new();
    private readonly Dictionary<ulong, ClientRequest> inFlight = [];
    private readonly CancellationTokenSource closed = new();
    private readonly TaskCompletionSource<BlockIoException> lost = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly ITimer? watch;
    private readonly TaskCompletionSource ended = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private BlockIoException? failure;
    private ulong lastCookie;
    private long lastSignAt;

    public ClientConnection(ClientHandshake handshake, ClientExport export, NbdClientOptions options)
    {
        this.handshake = handshake;
        time = options.Time;
        requestTimeout = options.RequestTimeout;
        writer = new WireWriter(handshake.Stream, e => Fail(Errno.ESHUTDOWN, "the NBD connection was lost: " + e.Message, e));
        slots = new SemaphoreSlim(options.MaxRequestsInFlight);
        lastSignAt = time.GetTimestamp();
        replies = new ClientReplies(handshake.Reader, export, Find, Remove, () => Volatile.Write(ref lastSignAt, time.GetTimestamp()));
        if (requestTimeout != Timeout.InfiniteTimeSpan)
            watch = time.CreateTimer(_ => CheckTimeout(), null, requestTimeout / 8, requestTimeout / 8);
    }

    public bool IsOpen => !closed.IsCancellationRequested;

    public Task<BlockIoException> Lost => lost.Task;

    public TimeSpan StalledFor
    {
        get
        {
            long oldest = OldestStart();
            return oldest == long.MaxValue
                ? TimeSpan.Zero
                : time.GetElapsedTime(Math.Max(oldest, Volatile.Read(ref lastSignAt)));
        }
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    public async ValueTask RunAsync(ClientRequest request, CancellationToken cancellationToken)
    {
        await WaitForSlotAsync(cancellationToken);
        lock (gate)
        {
            if (failure is not null)
            {
                slots.Release();
                throw new BlockIoException(Errno.ESHUTDOWN, failure.Message, failure);
            }

            request.Start(++lastCookie, time.GetTimestamp());
            inFlight.Add(request.Cookie, request);
        }

        // Not awaited: while we drain the queue for others, our own reply may come. It never throws; the connection's end is told to Fail.
        _ = writer.SendAsync(request);
        if (!cancellationToken.CanBeCanceled)
        {
            await request.Completion;
            return;
        }

        using CancellationTokenRegistration registration = cancellationToken.UnsafeRegister(_ => Cancel(request, cancellationToken), null);
        await request.Completion;
    }

    public async ValueTask DisposeAsync()
    {
        if (IsOpen)
        {
            // A goodbye that the server may not be there to hear.
            Task goodbye = writer.SendAsync(new ClientRequest(Command.Disconnect, CommandFlags.None, 0, 0));
            SendBatch.Flush();
            try
            {
                await goodbye.WaitAsync(GoodbyeTimeout, time);
            }
            catch (TimeoutException)
            {
            }
        }

        Fail(Errno.ESHUTDOWN, "the NBD client was closed", null);
        await ended.Task;
        if (watch is not null)
            await watch.DisposeAsync();
        handshake.Dispose();
    }

    /// <summary>The rest of the connection's thread: returns when the connection is gone, and everybody has been told.</summary>
    public void ReadReplies()
    {
        try
        {
            SendBatch.Open();
            replies.Run();
            Fail(Errno.ESHUTDOWN, "the NBD server closed the connection", null);
        }
        catch (Exception e)
        {
            // Whatever it was, the connection is at its end, and nobody may wait for it.
            Fail(Errno.ESHUTDOWN, "the NBD connection was lost: " + e.Message, e);
        }
        finally
        {
            SendBatch.Flush();
            ended.SetResult();
        }
    }

    public void Abandon(string reason) => Fail(Errno.ESHUTDOWN, reason, null);

    private async ValueTask WaitForSlotAsync(CancellationToken cancellationToken)
    {
        if (slots.Wait(0, CancellationToken.None))
            return;
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, closed.Token);
        try
        {
            await slots.WaitAsync(either.Token);
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw new BlockIoException(Errno.ESHUTDOWN, failure!.Message, failure);
        }
    }

    private void Cancel(ClientRequest request, CancellationToken cancellationToken)
    {
        if (request.TryWithdraw())
        {
            Remove(request);
            request.Released();
        }

        request.Settle(new OperationCanceledException(cancellationToken));
    }

    private ClientRequest? Find(ulong cookie)
    {
        lock (gate)
            return inFlight.GetValueOrDefault(cookie);
    }

    private void Remove(ClientRequest request)
    {
        lock (gate)
        {
            if (!inFlight.Remove(request.Cookie))
                return;
        }

        slots.Release();
    }

    private long OldestStart()
    {
        lock (gate)
        {
            long oldest = long.MaxValue;
            foreach (ClientRequest request in inFlight.Values)
                oldest = Math.Min(oldest, request.StartedAt);
            return oldest;
        }
    }

    private void CheckTimeout()
    {
        long oldest = OldestStart();
        if (oldest != long.MaxValue && time.GetElapsedTime(oldest) >= requestTimeout)
            Fail(Errno.ETIMEDOUT, $"the NBD server did not answer within {requestTimeout.TotalSeconds:0.###} s", null);
    }

    private void Fail(Errno errno, string message, Exception? cause)
    {
        BlockIoException reason = new(errno, message, cause);
        ClientRequest[] rest;
        lock (gate)
        {
            if (failure is not null)
                return;
            failure = reason;
            rest = [.. inFlight.Values];
        }

        closed.Cancel();
        handshake.Abort();
        lost.TrySetResult(reason);
        foreach (ClientRequest request in rest)
        {
            Remove(request);
            request.Settle(reason);
        }
    }
}
