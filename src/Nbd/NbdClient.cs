// The client's end as a block device. Requests are matched to replies by cookie; many are in flight; the connection has a thread of its own, which
// owns the receiving half and runs what waits for a reply.
using System.Runtime.CompilerServices;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using Platform;

namespace Nbd;

public sealed record NbdClientOptions
{
    /// <summary>The certificate to insist on. Null: no TLS, and an nbds URI is refused.</summary>
    public NbdTls? Tls { get; init; }

    /// <summary>A server that only greets in the old style will do (the original tapdisk, on a connection handed to it). Never with TLS.</summary>
    public bool AcceptsOldStyle { get; init; }

    /// <summary>Connect and handshake together.</summary>
    public TimeSpan ConnectTimeout { get; init; } = TimeSpan.FromSeconds(10);

    /// <summary>
    /// A request that is not answered in time ends the connection: everything in flight fails with ETIMEDOUT. Infinite: wait for ever.
    /// </summary>
    public TimeSpan RequestTimeout { get; init; } = Timeout.InfiniteTimeSpan;

    public int MaxRequestsInFlight { get; init; } = 64;

    public TimeProvider Time { get; init; } = TimeProvider.System;
}

/// <summary>
/// An export of an NBD server. When the connection is lost, running and later calls fail with <see cref="Errno.ESHUTDOWN"/>; there is no
/// reconnect, because only the caller knows whether it is still the same disk. A cancelled call returns once its buffer is out of use; what
/// it asked for may still happen on the server. What continues after a call runs on the connection's thread: it must not wait there.
/// </summary>
public sealed class NbdClient : IBlockDevice
{
    private const uint ZeroPieceBytes = 1024 * 1024;

    private readonly ClientConnection connection;
    private readonly ClientExport export;

    private NbdClient(ClientConnection connection, ClientExport export)
    {
        this.connection = connection;
        this.export = export;
        BlockSizeBytes = export.MinimumBlockBytes;
    }

    public long LengthBytes => export.SizeBytes;

    public int BlockSizeBytes { get; }

    /// <summary>The longest READ or WRITE that goes out as one request; longer calls are split.</summary>
    public int MaxPayloadBytes => export.MaximumBlockBytes;

    public bool IsReadOnly => export.Flags.HasFlag(TransmissionFlags.ReadOnly);

    /// <summary>
    /// False when the server offers no FLUSH (the original tapdisk): then a flush, and FUA, complete at once and promise nothing.
    /// </summary>
    public bool CanFlush => export.Flags.HasFlag(TransmissionFlags.SendFlush);

    /// <summary>False when the server tells nothing about allocation: then everything is Data.</summary>
    public bool HasExtents => export.HasAllocationContext;

    /// <summary>Reads that are all zeros may come as holes, without their bytes.</summary>
    public bool HasStructuredReplies => export.HasStructuredReplies;

    /// <summary>False after the connection was lost.</summary>
    public bool IsConnected => connection.IsOpen;

    /// <summary>Completes when the connection is gone, with the reason: what pushes a mirror's failure instead of being polled.</summary>
    public Task<BlockIoException> Lost => connection.Lost;

    /// <summary>How long the server has owed an answer without giving any sign; zero when nothing is in flight.</summary>
    public TimeSpan StalledFor => connection.StalledFor;

    /// <exception cref="BlockIoException">ENOENT: no such export. EACCES: the server wants TLS, or refuses us. ETIMEDOUT. ESHUTDOWN: not
    /// reachable.</exception>
    /// <exception cref="NbdProtocolException">The peer does not speak fixed newstyle NBD, or its certificate is not the pinned
    /// one.</exception>
    public static async Task<NbdClient> ConnectAsync(NbdUri uri, NbdClientOptions options, CancellationToken cancellationToken)
    {
        (Socket socket, Action connect) = NbdSocket.Prepare(uri, options);
        try
        {
            return await ConnectAsync(socket, connect, uri.ExportName, options, cancellationToken);
        }
        catch (SocketException e)
        {
            throw NbdSocket.Unreachable(uri, e);
        }
    }

    /// <summary>The same over a connection that somebody else made (a passed file descriptor). The socket becomes the client's.</summary>
    public static Task<NbdClient> ConnectAsync(
        Socket connected, string exportName, NbdClientOptions options, CancellationToken cancellationToken) =>
        ConnectAsync(connected, static () => { }, exportName, options, cancellationToken);

    /// <param name="open">Called on the connection's thread.</param>
    internal static async Task<NbdClient> ConnectAsync(
        Func<PeerStream> open, Action cut, string exportName, NbdClientOptions options, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = new(options.ConnectTimeout, options.Time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(limit.Token, cancellationToken);
        using CancellationTokenRegistration onLimit = either.Token.Register(cut);
        TaskCompletionSource<NbdClient> opened = new(TaskCreationOptions.RunContinuationsAsynchronously);
        _ = DedicatedThread.Run("NBD client", () => Serve(open, cut, exportName, options, opened));
        try
        {
            return await opened.Task.WaitAsync(either.Token);
        }
        catch (OperationCanceledException) when (either.IsCancellationRequested)
        {
            if (!opened.TrySetCanceled(either.Token) && opened.Task.IsCompletedSuccessfully)
                await (await opened.Task).DisposeAsync();
            cancellationToken.ThrowIfCancellationRequested();
            throw new BlockIoException(
                Errno.ETIMEDOUT, $"the NBD server did not finish the handshake within {options.ConnectTimeout.TotalSeconds:0.#} s");
        }
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    public async ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, destination.Length, isWrite: false);
        for (int done = 0, length; done < destination.Length; done += length)
        {
            length = Math.Min(destination.Length - done, MaxPayloadBytes);
            ClientRequest request = new(Command.Read, CommandFlags.None, offsetBytes + done, (uint)length)
            {
                Destination = destination.Slice(done, length),
            };
            await connection.RunAsync(request, cancellationToken);
        }
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    public async ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        for (int done = 0, length; done < source.Length; done += length)
        {
            length = Math.Min(source.Length - done, MaxPayloadBytes);
            ClientRequest request = new(Command.Write, FuaOf(flags), offsetBytes + done, (uint)length)
            {
                Payload = source.Slice(done, length),
            };
            await connection.RunAsync(request, cancellationToken);
        }

        await FlushForFuaAsync(flags, cancellationToken);
    }

    public async ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        if (!export.Flags.HasFlag(TransmissionFlags.SendWriteZeroes))
        {
            await WriteZeroBytesAsync(offsetBytes, lengthBytes, flags, cancellationToken);
            return;
        }

        CommandFlags wire = FuaOf(flags) | (flags.HasFlag(WriteFlags.NoHole) ? CommandFlags.NoHole : 0);
        await RunRangeAsync(Command.WriteZeroes, wire, offsetBytes, lengthBytes, cancellationToken);
        await FlushForFuaAsync(flags, cancellationToken);
    }

    /// <summary>Does nothing where the server offers no TRIM: it is a hint.</summary>
    public async ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        if (!export.Flags.HasFlag(TransmissionFlags.SendTrim))
            return;
        await RunRangeAsync(Command.Trim, FuaOf(flags), offsetBytes, lengthBytes, cancellationToken);
        await FlushForFuaAsync(flags, cancellationToken);
    }

    public async ValueTask FlushAsync(CancellationToken cancellationToken)
    {
        if (CanFlush)
            await connection.RunAsync(new ClientRequest(Command.Flush, CommandFlags.None, 0, 0), cancellationToken);
    }

    public async ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: false);
        if (lengthBytes == 0 || !HasExtents)
            return lengthBytes == 0 ? [] : [new BlockExtent(offsetBytes, lengthBytes, ExtentKind.Data)];
        ClientRequest request =
            new(Command.BlockStatus, CommandFlags.None, offsetBytes, (uint)Math.Min(lengthBytes, Protocol.RangeLimitBytes));
        await connection.RunAsync(request, cancellationToken);
        return request.Extents;
    }

    /// <summary>Ends the connection at once, without a word to the server: what is in flight fails with ESHUTDOWN.</summary>
    public void Cut() => connection.Abandon("the NBD connection was given up");

    /// <summary>Says goodbye and closes; whatever is still in flight fails with ESHUTDOWN.</summary>
    public ValueTask DisposeAsync() => connection.DisposeAsync();

    private CommandFlags FuaOf(WriteFlags flags) =>
        flags.HasFlag(WriteFlags.Fua) && export.Flags.HasFlag(TransmissionFlags.SendFua) ? CommandFlags.Fua : CommandFlags.None;

    private ValueTask FlushForFuaAsync(WriteFlags flags, CancellationToken cancellationToken) =>
        flags.HasFlag(WriteFlags.Fua) && !export.Flags.HasFlag(TransmissionFlags.SendFua)
            ? FlushAsync(cancellationToken)
            : ValueTask.CompletedTask;

    private async Task RunRangeAsync(
        Command command, CommandFlags flags, long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        for (long done = 0, length; done < lengthBytes; done += length)
        {
            length = Math.Min(lengthBytes - done, Protocol.RangeLimitBytes);
            await connection.RunAsync(new ClientRequest(command, flags, offsetBytes + done, (uint)length), cancellationToken);
        }
    }

    private async Task WriteZeroBytesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        byte[] zeroes = new byte[Math.Min(lengthBytes, ZeroPieceBytes)];
        for (long done = 0, length; done < lengthBytes; done += length)
        {
            length = Math.Min(lengthBytes - done, zeroes.Length);
            await WriteAsync(offsetBytes + done, zeroes.AsMemory(0, (int)length), flags & WriteFlags.Fua, cancellationToken);
        }
    }

    private static Task<NbdClient> ConnectAsync(
        Socket socket, Action connect, string exportName, NbdClientOptions options, CancellationToken cancellationToken) =>
        ConnectAsync(
            () =>
            {
                connect();
                return NbdSocket.StreamOf(socket);
            },
            socket.Dispose,
            exportName,
            options,
            cancellationToken);

    // The life of the connection's thread: it connects, shakes hands, tells who asked, and then reads replies to the end.
    private static bool Serve(
        Func<PeerStream> open, Action cut, string exportName, NbdClientOptions options, TaskCompletionSource<NbdClient> opened)
    {
        NbdClient client;
        try
        {
            client = Negotiate(open(), exportName, options);
        }
        catch (Exception e)
        {
            cut();
            return opened.TrySetException(e); // The thread's boundary: whoever connects hears of it.
        }

        if (!opened.TrySetResult(client))
            client.connection.Abandon("nobody waits for the NBD client any more");
        client.connection.ReadReplies();
        return true;
    }

    private static NbdClient Negotiate(PeerStream stream, string exportName, NbdClientOptions options)
    {
        ClientHandshake handshake = new(stream);
        try
        {
            ClientExport export = handshake.Run(exportName, options);
            return new NbdClient(new ClientConnection(handshake, export, options), export);
        }
        catch (Exception e) when (e is ObjectDisposedException || e is IOException and not (BlockIoException or NbdProtocolException))
        {
            handshake.Dispose();
            throw new BlockIoException(Errno.ESHUTDOWN, "the server ended the handshake: " + e.Message, e);
        }
        catch
        {
            handshake.Dispose();
            throw;
        }
    }
}
