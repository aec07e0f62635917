// The server's side of the transmission phase. The connection's thread reads requests, and runs them itself while the device answers at once:
// that costs no thread switch, and the replies of a crowd share a system call. When the device takes its time, a crowd is handed to the
// pool, so that requests do not wait for each other. Memory is bounded twice: a request keeps its slot, and a payload its share of the byte
// budget, until its reply has been taken by the socket; a client that does not read is not read from.
using System.Buffers.Binary;
using System.Diagnostics;
using Platform;

namespace Nbd;

internal sealed class ServerTransmission : IDisposable
{
    public const int AllocationContextId = 1;

    // A device call above this is one that waits for a disk: 40 us, and the time to copy the bytes.
    private const long QuickMicroseconds = 40;
    private const long QuickBytesPerMicrosecond = 2048;

    // So many calls are looked at closely after one that took long; one that slept weighs as much as so many that did not.
    private const int SuspiciousCalls = 64;
    private const int SlowWeight = 8;
    private const int DistrustLimit = 4 * SlowWeight;
    private const int MaxDistrust = 2 * DistrustLimit;

    private readonly PeerStream stream;
    private readonly ServerHandshake handshake;
    private readonly NbdExport export;
    private readonly NbdServerOptions options;
    private readonly SemaphoreSlim slots;
    private readonly CancellationTokenSource broken = new(); // The client cannot be answered: stop reading.
    private readonly CancellationTokenSource hardStop; // The drain timeout has passed: the stream goes, and device calls are asked to end.
    private readonly ManualResetEventSlim idle = new();
    private int running = 1; // The requests, and one for the loop that starts them.
    private int suspicion;
    private int distrust;
    private volatile Exception? fault;

    public ServerTransmission(PeerStream stream, ServerHandshake handshake, NbdExport export, NbdServerOptions options)
    {
        this.stream = stream;
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

    public NbdSessionEnd Run(CancellationToken cancellationToken)
    {
        using CancellationTokenSource stop =
            CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, export.Closing, broken.Token);
        using CancellationTokenRegistration limit = stop.Token.Register(StopReading);
        using CancellationTokenRegistration close = hardStop.Token.Register(handshake.Abort);
        NbdSessionEnd end;
        try
        {
            end = ReadRequests(stop.Token);
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

        SendBatch.Flush();
        hardStop.CancelAfter(options.DrainTimeout);
        RequestEnded();
        idle.Wait(CancellationToken.None);
        if (fault is { } bug)
            throw new InvariantException("a request ended as no device may end it: " + bug);
        return end;
    }

    public void Dispose()
    {
        slots.Dispose();
        idle.Dispose();
        broken.Dispose();
        hardStop.Dispose();
    }

    /// <summary>The request has done with the device, and its reply is with the writer.</summary>
    public void RequestEnded()
    {
        if (Interlocked.Decrement(ref running) == 0)
            idle.Set();
    }

    /// <summary>The last reply of a request has been taken by the socket.</summary>
    public void ReleaseSlot() => slots.Release();

    /// <summary>A bug, ours or the device's: the connection ends and whoever serves it is told.</summary>
    public void Fault(Exception bug)
    {
        fault = bug;
        broken.Cancel();
    }

    /// <summary>To be kept until <see cref="EndCall"/>: around what a device does on the calling thread.</summary>
    public DeviceCall BeginCall() =>
        new(Stopwatch.GetTimestamp(), Volatile.Read(ref suspicion) > 0 ? Posix.VoluntarySwitches() : -1);

    /// <summary>
    /// Whether the device made the thread wait. A call that took long is only a suspicion (the thread may have lost its processor); then
    /// the kernel is asked whether the thread slept. Racing threads may lose a count: it is a measure, not a balance.
    /// </summary>
    public void EndCall(DeviceCall call, long lengthBytes)
    {
        bool isLong = Stopwatch.GetElapsedTime(call.BeganAt).TotalMicroseconds > QuickMicroseconds + lengthBytes / QuickBytesPerMicrosecond;
        if (isLong)
            suspicion = SuspiciousCalls;
        if (call.VoluntarySwitches < 0)
            return;
        suspicion--;
        if (isLong && Posix.VoluntarySwitches() != call.VoluntarySwitches)
            distrust = Math.Min(distrust + SlowWeight, MaxDistrust);
        else if (distrust > 0)
            distrust--;
    }

    private void StopReading()
    {
        hardStop.CancelAfter(options.DrainTimeout);
        stream.StopReceiving();
    }

    private NbdSessionEnd ReadRequests(CancellationToken cancellationToken)
    {
        SendBatch.Open();
        Span<byte> header = stackalloc byte[Protocol.RequestHeaderBytes];
        while (true)
        {
            bool isThere = handshake.Reader.TryRead(header);
            cancellationToken.ThrowIfCancellationRequested(); // A busy client's bytes go on arriving for a while.
            if (!isThere)
                return new NbdSessionEnd(true, "the client closed the connection");
            if (BinaryPrimitives.ReadUInt32BigEndian(header) != Protocol.RequestMagic)
                throw new NbdProtocolException("a request does not start with its magic");
            ServerRequest request = new(this, header);
            if (request.Command == Command.Disconnect)
                return new NbdSessionEnd(true, "the client disconnected");
            if (!slots.Wait(0, CancellationToken.None))
                WaitForSlot(cancellationToken);
            request.Check(export.IsReadOnly, handshake.HasAllocationContext);
            if (request.Command == Command.Write)
                ReceivePayload(request);
            Interlocked.Increment(ref running);
            if (distrust >= DistrustLimit && handshake.Reader.BufferedBytes >= Protocol.RequestHeaderBytes)
                ThreadPool.UnsafeQueueUserWorkItem(request, preferLocal: false);
            else
                request.Execute();
        }
    }

    private void WaitForSlot(CancellationToken cancellationToken)
    {
        SendBatch.Flush();
        slots.Wait(cancellationToken);
    }

    private void ReceivePayload(ServerRequest request)
    {
        if (request.IsRefused)
        {
            handshake.Reader.Skip(request.LengthBytes); // Otherwise the payload would be read as requests.
            return;
        }

        int length = (int)request.LengthBytes;
        Budget.Acquire(length); // Ends with the connection at the latest: then every reply is released.
        PooledBuffer buffer = BufferPool.Rent(length);
        try
        {
            handshake.Reader.Read(buffer.Memory(length).Span);
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

/// <summary>When a device's work on a thread began, and how often that thread had slept before; -1: not asked.</summary>
internal readonly record struct DeviceCall(long BeganAt, long VoluntarySwitches);
