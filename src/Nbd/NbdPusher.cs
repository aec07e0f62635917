// Bulk writes to an NBD server from plain threads, one connection for each: a request's header and payload go out in the caller's thread,
// answers are taken when the window of requests is full or when they are there already. The kernel moves file content itself (sendfile)
// where there is no TLS. Blocking calls; the socket's own timeouts bound a silent peer, closing the socket ends a cancelled one.
using System.Buffers.Binary;
using System.Net.Sockets;
using Microsoft.Win32.SafeHandles;
using Platform;

namespace Nbd;

/// <summary>One connection of a bulk copy. Not for several threads.</summary>
public sealed class NbdPusher : IBlockPusher, IAsyncDisposable
{
    private const int Depth = 16;
    private const int ReplyLimitBytes = 4096 + 64;
    private const int BufferBytes = 2 * 1024 * 1024;
    private const int ZeroPieceBytes = 1024 * 1024;

    private readonly Socket socket;
    private readonly ClientHandshake handshake;
    private readonly ClientExport export;
    private readonly CancellationTokenRegistration onCancel;
    private readonly CancellationToken cancellationToken;
    private readonly byte[] header = new byte[Protocol.RequestHeaderBytes];
    private readonly byte[] reply = new byte[ReplyLimitBytes];
    private readonly HashSet<ulong> inFlight = [];
    private readonly bool isPlain;
    private ulong lastCookie;
    private byte[] buffer = [];

    private NbdPusher(Socket socket, ClientHandshake handshake, ClientExport export, CancellationToken cancellationToken)
    {
        this.socket = socket;
        this.handshake = handshake;
        this.export = export;
        this.cancellationToken = cancellationToken;
        isPlain = handshake.Stream is SocketStream;
        socket.SendBufferSize = BufferBytes;
        onCancel = cancellationToken.Register(() => socket.Shutdown(SocketShutdown.Both));
    }

    public long LengthBytes => export.SizeBytes;

    public bool IsReadOnly => export.Flags.HasFlag(TransmissionFlags.ReadOnly);

    /// <summary>A second connection sees what the first one wrote, and a flush on one covers all.</summary>
    public bool IsMultiConnection => export.Flags.HasFlag(TransmissionFlags.CanMultiConn);

    /// <exception cref="BlockIoException">As <see cref="NbdClient.ConnectAsync(NbdUri, NbdClientOptions, CancellationToken)"/>.</exception>
    public static async Task<NbdPusher> ConnectAsync(NbdUri uri, NbdClientOptions options, CancellationToken cancellationToken)
    {
        (Socket socket, Action connect) = NbdSocket.Prepare(uri, options);
        using CancellationTokenSource limit = new(options.ConnectTimeout, options.Time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(limit.Token, cancellationToken);
        using CancellationTokenRegistration cut = either.Token.Register(socket.Dispose);
        try
        {
            return await DedicatedThread.Run("NBD push", () => Connect(socket, connect, uri, options, cancellationToken));
        }
        catch (Exception e) when (either.IsCancellationRequested && e is IOException or SocketException or ObjectDisposedException)
        {
            cancellationToken.ThrowIfCancellationRequested();
            throw new BlockIoException(
                Errno.ETIMEDOUT, $"the NBD server did not finish the handshake within {options.ConnectTimeout.TotalSeconds:0.#} s");
        }
        catch (SocketException e)
        {
            throw NbdSocket.Unreachable(uri, e);
        }
        catch (IOException e) when (e is not (BlockIoException or NbdProtocolException))
        {
            throw new BlockIoException(Errno.ESHUTDOWN, "the server ended the handshake: " + e.Message, e);
        }
    }

    private static NbdPusher Connect(
        Socket socket, Action connect, NbdUri uri, NbdClientOptions options, CancellationToken cancellationToken)
    {
        try
        {
            connect();
            SocketStream stream = NbdSocket.StreamOf(socket);
            if (options.RequestTimeout != Timeout.InfiniteTimeSpan)
                stream.LimitSilence(options.RequestTimeout);
            ClientHandshake handshake = new(stream);
            ClientExport export = handshake.Run(uri.ExportName, options);
            return handshake.Reader.BufferedBytes == 0
                ? new NbdPusher(socket, handshake, export, cancellationToken)
                : throw new NbdProtocolException("the server sent something that nobody asked for");
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    public void Write(long offsetBytes, ReadOnlySpan<byte> data)
    {
        while (!data.IsEmpty)
        {
            ReadOnlySpan<byte> piece = data[..Math.Min(data.Length, export.MaximumBlockBytes)];
            Begin(Command.Write, offsetBytes, (uint)piece.Length);
            Send(piece);
            data = data[piece.Length..];
            offsetBytes += piece.Length;
        }
    }

    public void WriteFrom(SafeFileHandle file, long fileOffsetBytes, long offsetBytes, int lengthBytes)
    {
        if (!isPlain)
        {
            WriteThrough(file, fileOffsetBytes, offsetBytes, lengthBytes);
            return;
        }

        for (int done = 0, length; done < lengthBytes; done += length)
        {
            length = Math.Min(lengthBytes - done, export.MaximumBlockBytes);
            Begin(Command.Write, offsetBytes + done, (uint)length);
            Guarded(() => Posix.SendFile(socket.SafeHandle, file, fileOffsetBytes + done, length));
        }
    }

    public void WriteZeroes(long offsetBytes, long lengthBytes)
    {
        bool hasCommand = export.Flags.HasFlag(TransmissionFlags.SendWriteZeroes);
        byte[] zeros = hasCommand ? [] : new byte[Math.Min(lengthBytes, ZeroPieceBytes)];
        for (long done = 0, length; done < lengthBytes; done += length)
        {
            length = Math.Min(lengthBytes - done, hasCommand ? Protocol.RangeLimitBytes : zeros.Length);
            if (hasCommand)
                Begin(Command.WriteZeroes, offsetBytes + done, (uint)length);
            else
                Write(offsetBytes + done, zeros.AsSpan(0, (int)length));
        }
    }

    public void Finish()
    {
        while (inFlight.Count > 0)
            TakeReply();
    }

    public void Flush()
    {
        if (!export.Flags.HasFlag(TransmissionFlags.SendFlush))
            return;
        Begin(Command.Flush, 0, 0);
        Finish();
    }

    /// <summary>Says goodbye and closes.</summary>
    public async ValueTask DisposeAsync()
    {
        await onCancel.DisposeAsync();
        try
        {
            if (inFlight.Count == 0 && !cancellationToken.IsCancellationRequested)
                Begin(Command.Disconnect, 0, 0);
        }
        catch (BlockIoException)
        {
            // The server is gone: there is nobody to say it to.
        }

        handshake.Dispose();
    }

    private void WriteThrough(SafeFileHandle file, long fileOffsetBytes, long offsetBytes, int lengthBytes)
    {
        buffer = buffer.Length == 0 ? new byte[ZeroPieceBytes] : buffer;
        for (int done = 0, read; done < lengthBytes; done += read)
        {
            read = RandomAccess.Read(file, buffer.AsSpan(0, Math.Min(buffer.Length, lengthBytes - done)), fileOffsetBytes + done);
            if (read == 0)
                throw new BlockIoException(Errno.EIO, "the file ended inside of what was to be sent; it was cut");
            Write(offsetBytes + done, buffer.AsSpan(0, read));
        }
    }

    private void Begin(Command command, long offsetBytes, uint lengthBytes)
    {
        while (inFlight.Count >= Depth || (inFlight.Count > Depth / 2 && socket.Available >= Protocol.SimpleReplyBytes))
            TakeReply();
        BinaryPrimitives.WriteUInt32BigEndian(header, Protocol.RequestMagic);
        BinaryPrimitives.WriteUInt16BigEndian(header.AsSpan(4), 0);
        BinaryPrimitives.WriteUInt16BigEndian(header.AsSpan(6), (ushort)command);
        BinaryPrimitives.WriteUInt64BigEndian(header.AsSpan(8), ++lastCookie);
        BinaryPrimitives.WriteUInt64BigEndian(header.AsSpan(16), (ulong)offsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(header.AsSpan(24), lengthBytes);
        if (command != Command.Disconnect)
            inFlight.Add(lastCookie);
        Send(header);
    }

    private void TakeReply()
    {
        Receive(reply.AsSpan(0, Protocol.SimpleReplyBytes));
        uint magic = BinaryPrimitives.ReadUInt32BigEndian(reply);
        ulong cookie = BinaryPrimitives.ReadUInt64BigEndian(reply.AsSpan(8));
        uint error = 0;
        bool isDone = true;
        if (magic == Protocol.SimpleReplyMagic)
            error = BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(4));
        else if (magic == Protocol.StructuredReplyMagic)
            (error, isDone) = TakeChunk();
        else
            throw new NbdProtocolException("a reply does not start with its magic");
        if (!(isDone ? inFlight.Remove(cookie) : inFlight.Contains(cookie)))
            throw new NbdProtocolException("a reply to a request that is not in flight");
        if (error != 0)
            throw new BlockIoException(Protocol.FromWire(error), $"the server could not write: {Protocol.FromWire(error)}");
    }

    private (uint Error, bool IsDone) TakeChunk()
    {
        bool isDone = (BinaryPrimitives.ReadUInt16BigEndian(reply.AsSpan(4)) & (ushort)ChunkFlags.Done) != 0;
        ChunkType type = (ChunkType)BinaryPrimitives.ReadUInt16BigEndian(reply.AsSpan(6));
        Receive(reply.AsSpan(16, 4));
        uint length = BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(16));
        bool isError = type.HasFlag(ChunkType.ErrorBit);
        if (length > ReplyLimitBytes - 20 || (isError && length < 4) || (!isError && (type != ChunkType.None || length != 0)))
            throw new NbdProtocolException($"a chunk of type {type} with {length} bytes is no answer to a write");
        Receive(reply.AsSpan(20, (int)length));
        return (isError ? BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(20)) : 0, isDone);
    }

    private void Send(ReadOnlySpan<byte> bytes)
    {
        try
        {
            if (isPlain)
                Posix.WriteAll(socket.SafeHandle, bytes);
            else
                handshake.Stream.Write(bytes);
        }
        catch (IOException e)
        {
            throw Lost(e);
        }
    }

    private void Receive(Span<byte> bytes)
    {
        try
        {
            handshake.Stream.ReadExactly(bytes);
        }
        catch (IOException e)
        {
            throw Lost(e);
        }
    }

    private void Guarded(Action send)
    {
        try
        {
            send();
        }
        catch (BlockIoException e) when (e.Errno != Errno.EIO)
        {
            throw Lost(e);
        }
    }

    private Exception Lost(IOException e)
    {
        cancellationToken.ThrowIfCancellationRequested();
        return new BlockIoException(Errno.ESHUTDOWN, "the NBD connection was lost: " + e.Message, e);
    }
}
