// The server's side of the transmission phase. One loop reads requests; each runs on its own and answers when it is done, in any order. A lone
// request runs on the loop itself, so that a device that answers at once costs no thread switch. Memory is bounded twice: a request keeps its
// slot, and a payload its share of the byte budget, until its reply has been taken by the socket; a client that does not read is not read from.
using System.Buffers.Binary;
using Platform;

namespace Nbd;

internal sealed class ServerTransmission : IDisposable
{
    public const int AllocationContextId = 1;

    private readonly ServerHandshake handshake;
    private readonly NbdExport export;
    private readonly NbdServerOptions options;
    private readonly SemaphoreSlim slots;
    private readonly CancellationTokenSource broken = new(); // The client cannot be answered: stop reading.
    private readonly CancellationTokenSource hardStop; // The drain timeout has passed: the stream goes, and device calls are asked to end.
    private readonly TaskCompletionSource idle = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private int running = 1; // The requests, and one for the loop that starts them.
    private volatile Exception? fault;

    public ServerTransmission(ServerHandshake handshake, NbdExport export, NbdServerOptions options)
    {
        this.handshake = handshake;
        this.export = export;
        this.options = options;
        Writer = new WireWriter(handshake.Stream, _ => broken.Cancel());
        slots = new SemaphoreSlim(options.MaxRequestsInFlight);
        Budget = new ByteBudget(options.MaxBytesInFlight);
        hardStop = new CancellationTokenSource(Timeout.InfiniteTimeSpan, options.Time);
    }

    public WireWriter Writer { get; }

    public ByteBudget Budget { get; }

    public bool IsStructured => handshake.HasStructuredReplies;

    public IBlockDevice Device => export.Device;

    public CancellationToken DeviceStop => hardStop.Token;

    /// <summary>Nobody will see an answer any more.</summary>
    public bool IsOver => broken.IsCancellationRequested || hardStop.IsCancellationRequested;

    public async Task<NbdSessionEnd> RunAsync(CancellationToken cancellationToken)
    {
        using CancellationTokenSource stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, export.Closing, broken.Token);
        using CancellationTokenRegistration limit = stop.Token.Register(() => hardStop.CancelAfter(options.DrainTimeout));
        using CancellationTokenRegistration close = hardStop.Token.Register(handshake.Abort);
        NbdSessionEnd end;
        try
        {
            end = await ReadRequestsAsync(stop.Token);
        }
        catch (OperationCanceledException) when (stop.IsCancellationRequested)
        {
            end = broken.IsCancellationRequested
                ? new NbdSessionEnd(false, "the client no longer takes answers")
                : new NbdSessionEnd(true, export.Closing.IsCancellationRequested ? "the export was closed" : "the server was stopped");
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
            end = new NbdSessionEnd(false, e is NbdProtocolException ? e.Message : "the connection was lost: " + e.Message);
        }

        hardStop.CancelAfter(options.DrainTimeout);
        RequestEnded();
        await idle.Task;
        if (fault is { } bug)
            throw new InvariantException("a request ended as no device may end it: " + bug);
        return end;
    }

    public void Dispose()
    {
        slots.Dispose();
        broken.Dispose();
        hardStop.Dispose();
    }

    /// <summary>The request has done with the device, and its reply is with the writer.</summary>
    public void RequestEnded()
    {
        if (Interlocked.Decrement(ref running) == 0)
            idle.SetResult();
    }

    /// <summary>The last reply of a request has been taken by the socket.</summary>
    public void ReleaseSlot() => slots.Release();

    /// <summary>A bug, ours or the device's: the connection ends and whoever serves it is told.</summary>
    public void Fault(Exception bug)
    {
        fault = bug;
        broken.Cancel();
    }

    private async Task<NbdSessionEnd> ReadRequestsAsync(CancellationToken cancellationToken)
    {
        byte[] header = new byte[Protocol.RequestHeaderBytes];
        while (await handshake.Reader.TryReadAsync(header, cancellationToken))
        {
            if (BinaryPrimitives.ReadUInt32BigEndian(header) != Protocol.RequestMagic)
                throw new NbdProtocolException("a request does not start with its magic");
            ServerRequest request = new(this, header);
            if (request.Command == Command.Disconnect)
                return new NbdSessionEnd(true, "the client disconnected");
            await slots.WaitAsync(cancellationToken);
            request.Check(export.IsReadOnly, handshake.HasAllocationContext);
            if (request.Command == Command.Write)
                await ReceivePayloadAsync(request, cancellationToken);
            Interlocked.Increment(ref running);
            if (handshake.Reader.BufferedBytes >= Protocol.RequestHeaderBytes)
                ThreadPool.UnsafeQueueUserWorkItem(request, preferLocal: false);
            else
                request.Execute();
        }

        return new NbdSessionEnd(true, "the client closed the connection");
    }

    private async ValueTask ReceivePayloadAsync(ServerRequest request, CancellationToken cancellationToken)
    {
        if (request.IsRefused)
        {
            await handshake.Reader.SkipAsync(request.LengthBytes, cancellationToken); // Otherwise the payload would be read as requests.
            return;
        }

        int length = (int)request.LengthBytes;
        await Budget.AcquireAsync(length); // Ends with the connection at the latest: then every reply is released.
        PooledBuffer buffer = BufferPool.Rent(length);
        try
        {
            await handshake.Reader.ReadAsync(buffer.Memory(length), cancellationToken);
            request.Buffer = buffer;
        }
        finally
        {
            if (request.Buffer is null)
            {
                BufferPool.Return(buffer);
                Budget.Release(length);
            }
        }
    }
}
