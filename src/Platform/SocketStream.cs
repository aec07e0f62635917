// A connected socket for a connection that has a thread of its own. The runtime's asynchronous sockets wake one thread that wakes another
// for each message; here the thread that waits is the one that works, which halves the wake-ups of a lone request.
using System.Diagnostics;
using System.Net.Sockets;
using System.Runtime.InteropServices;

namespace Platform;

/// <summary>
/// Reading waits, on the caller's thread, also in its asynchronous form: only the connection's own thread
/// reads. Writing waits on that thread too; anywhere else it completes later when the peer's buffer is full. One reader and one writer at a
/// time. A wait ends with <see cref="StopReceiving"/> or <see cref="Cut"/>, from any thread; tokens are not looked at.
/// The socket must not have been used asynchronously.
/// </summary>
public sealed partial class SocketStream : PeerStream
{
    private const int NoSignal = 0x4000;
    private const int DontWait = 0x40;
    private const int Again = 11;
    private const int Interrupted = 4;
    private const int SocketLevel = 1;
    private const int SendBufferForce = 32;

    // Of a unix socket: room for a long reply and its followers. TCP sizes its own by what the line needs.
    private const int UnixSendBufferBytes = 1024 * 1024;

    // While messages come this close together, looking again is cheaper than sleeping: waking a halted processor takes 20 us and more. Others
    // that want the processor get it at each look.
    private static readonly TimeSpan SpinTime = TimeSpan.FromMicroseconds(50);
    private static readonly TimeSpan WorthSpinning = TimeSpan.FromMicroseconds(100);

    private readonly Socket socket;
    private readonly bool ownsSocket;
    private int ownThread;
    private bool maySpin;
    private bool hasLimit;

    public SocketStream(Socket connected, bool ownsSocket = true)
    {
        socket = connected;
        this.ownsSocket = ownsSocket;
        if (connected.AddressFamily != AddressFamily.Unix)
            return;
        int wanted = UnixSendBufferBytes;
        if (setsockopt(socket.SafeHandle, SocketLevel, SendBufferForce, ref wanted, sizeof(int)) != 0)
            connected.SendBufferSize = wanted; // As far as the system lets us.
    }

    /// <summary>The calling thread is the connection's own: it may wait for the peer.</summary>
    public void BelongToThisThread() => ownThread = Environment.CurrentManagedThreadId;

    /// <summary>A wait for the peer that takes longer fails with an <see cref="IOException"/>.</summary>
    public void LimitSilence(TimeSpan limit)
    {
        socket.SendTimeout = socket.ReceiveTimeout = (int)Math.Clamp(limit.TotalMilliseconds, 1, int.MaxValue);
        hasLimit = true;
    }

    public override void StopReceiving() => Shutdown(0);

    public override void Cut() => Shutdown(2);

    public override unsafe int Read(Span<byte> buffer)
    {
        fixed (byte* start = buffer)
        {
            long begun = Stopwatch.GetTimestamp();
            while (maySpin)
            {
                nint received = recv(socket.SafeHandle, start, (nuint)buffer.Length, DontWait);
                if (received >= 0)
                    return (int)received;
                if (Marshal.GetLastPInvokeError() != Again || Stopwatch.GetElapsedTime(begun) > SpinTime)
                    break;
                Thread.Yield();
            }

            while (true)
            {
                nint received = recv(socket.SafeHandle, start, (nuint)buffer.Length, 0);
                if (received >= 0)
                {
                    maySpin = Stopwatch.GetElapsedTime(begun) < WorthSpinning;
                    return (int)received;
                }

                WaitAfterError(Posix.PollIn);
            }
        }
    }

    public override void Write(ReadOnlySpan<byte> buffer)
    {
        for (int sent = 0; sent < buffer.Length;)
            sent += SendSome(buffer[sent..], default, mayWait: true);
    }

    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) =>
        WriteAsync(buffer, default);

    /// <summary>Two pieces in one system call.</summary>
    public ValueTask WriteAsync(ReadOnlyMemory<byte> first, ReadOnlyMemory<byte> second)
    {
        bool mayWait = ownThread == Environment.CurrentManagedThreadId;
        while (!first.IsEmpty || !second.IsEmpty)
        {
            int sent = SendSome(first.Span, second.Span, mayWait);
            if (sent < 0)
                return new ValueTask(WriteLaterAsync(first, second));
            int ofFirst = Math.Min(sent, first.Length);
            first = first[ofFirst..];
            second = second[(sent - ofFirst)..];
        }

        return ValueTask.CompletedTask;
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing && ownsSocket)
        {
            Cut(); // Whoever waits in a system call keeps the descriptor alive; this wakes him.
            socket.Dispose();
        }

        base.Dispose(disposing);
    }

    // The peer does not take its bytes: a thread waits for it, not the caller.
    private Task WriteLaterAsync(ReadOnlyMemory<byte> first, ReadOnlyMemory<byte> second) => Task.Factory.StartNew(
        () =>
        {
            Write(first.Span);
            Write(second.Span);
        },
        CancellationToken.None,
        TaskCreationOptions.LongRunning,
        TaskScheduler.Default);

    /// <returns>How many bytes went; -1 when none can go now and waiting is not allowed.</returns>
    private unsafe int SendSome(ReadOnlySpan<byte> first, ReadOnlySpan<byte> second, bool mayWait)
    {
        fixed (byte* start = first, next = second)
        {
            Piece* pieces = stackalloc Piece[2];
            pieces[0] = new Piece { Start = start, Length = (nuint)first.Length };
            pieces[1] = new Piece { Start = next, Length = (nuint)second.Length };
            Message message = new() { Pieces = pieces, PieceCount = 2 };
            while (true)
            {
                nint sent = sendmsg(socket.SafeHandle, &message, NoSignal | (mayWait ? 0 : DontWait));
                if (sent >= 0)
                    return (int)sent;
                if (!mayWait && Marshal.GetLastPInvokeError() == Again)
                    return -1;
                WaitAfterError(Posix.PollOut);
            }
        }
    }

    private void WaitAfterError(short events)
    {
        int errno = Marshal.GetLastPInvokeError();
        switch (errno)
        {
            case Interrupted:
                return;
            case Again when hasLimit:
                throw new IOException("the peer gave no sign in time", new SocketException((int)SocketError.TimedOut));
            case Again:
                Posix.WaitFor(socket.SafeHandle, events, -1);
                return;
            default:
                throw new IOException(Marshal.GetPInvokeErrorMessage(errno), new SocketException(errno));
        }
    }

    private void Shutdown(int how)
    {
        try
        {
            _ = shutdown(socket.SafeHandle, how); // Fails when the peer is gone: nobody waits then.
        }
        catch (ObjectDisposedException)
        {
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static unsafe partial nint recv(SafeHandle socket, byte* buffer, nuint length, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static unsafe partial nint sendmsg(SafeHandle socket, Message* message, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int shutdown(SafeHandle socket, int how);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setsockopt(SafeHandle socket, int level, int option, ref int value, int length);

    private unsafe struct Piece
    {
        public byte* Start;
        public nuint Length;
    }

    private unsafe struct Message
    {
        public void* Name;
        public uint NameLength;
        public Piece* Pieces;
        public nuint PieceCount;
        public void* Control;
        public nuint ControlLength;
        public int Flags;
    }
}
