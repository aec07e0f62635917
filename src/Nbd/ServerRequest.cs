// One request on its way through the server: checked, run against the device, answered with one simple reply or with structured chunks.
using System.Buffers.Binary;
using Platform;

namespace Nbd;

internal sealed class ServerRequest(ServerTransmission session, ReadOnlySpan<byte> header) : IThreadPoolWorkItem
{
    // A longer structured read is answered in pieces of this, to bound memory and stay in cache.
    private const int PieceBytes = 1024 * 1024;
    private const int ExtentLimitCount = 8192;

    private readonly CommandFlags flags = (CommandFlags)BinaryPrimitives.ReadUInt16BigEndian(header[4..]);
    private readonly ulong cookie = BinaryPrimitives.ReadUInt64BigEndian(header[8..]);
    private readonly long offsetBytes = (long)BinaryPrimitives.ReadUInt64BigEndian(header[16..]); // Negative when absurd: refused by Check.
    private Errno? refusal;

    public Command Command { get; } = (Command)BinaryPrimitives.ReadUInt16BigEndian(header[6..]);

    public uint LengthBytes { get; } = BinaryPrimitives.ReadUInt32BigEndian(header[24..]);

    /// <summary>A write's payload, with its share of the byte budget.</summary>
    public PooledBuffer? Buffer { get; set; }

    public bool IsRefused => refusal is not null;

    /// <summary>Refuses what the device must not see. Nothing has been read or changed yet.</summary>
    public void Check(bool isReadOnly, bool hasAllocationContext)
    {
        CommandFlags allowed = Command switch
        {
            Command.Read => CommandFlags.Fua | (session.IsStructured ? CommandFlags.DontFragment : 0),
            Command.WriteZeroes => CommandFlags.Fua | CommandFlags.NoHole, // FAST_ZERO is not offered: nobody here can promise it.
            Command.BlockStatus => CommandFlags.Fua | CommandFlags.RequestOne,
            _ => CommandFlags.Fua,
        };
        bool isWrite = Command is Command.Write or Command.WriteZeroes or Command.Trim;
        refusal = Command switch
        {
            > Command.BlockStatus or (Command)5 => Errno.EINVAL,
            _ when (flags & ~allowed) != 0 => Errno.EINVAL,
            Command.Flush => null,
            Command.BlockStatus when !hasAllocationContext => Errno.EINVAL,
            _ when isWrite && isReadOnly => Errno.EPERM,
            Command.Read or Command.Write when LengthBytes > Protocol.PayloadLimitBytes => Errno.EOVERFLOW,
            _ when LengthBytes == 0 => Errno.EINVAL,
            _ when offsetBytes < 0 || offsetBytes > session.Device.LengthBytes - LengthBytes => isWrite ? Errno.ENOSPC : Errno.EINVAL,
            _ when (offsetBytes | LengthBytes) % session.Device.BlockSizeBytes != 0 => Errno.EINVAL,
            _ => null,
        };
    }

    /// <summary>
    /// Starts the request; it ends with <see cref="ServerTransmission.RequestEnded"/>, which the connection's end waits for.
    /// </summary>
    public void Execute() => _ = RunAsync();

    private async Task RunAsync()
    {
        try
        {
            await (refusal is { } errno ? AnswerErrorAsync(errno) : RunCommandAsync());
        }
        catch (IOException e)
        {
            await AnswerErrorAsync(Protocol.ToWire(BlockIoException.ErrnoOf(e)));
        }
        catch (OperationCanceledException)
        {
            await AnswerErrorAsync(Errno.ESHUTDOWN);
        }
        catch (ObjectDisposedException)
        {
            await AnswerErrorAsync(Errno.ESHUTDOWN);
        }
        catch (Exception e)
        {
            session.Fault(e);
            await AnswerErrorAsync(Errno.EIO);
        }
        finally
        {
            session.RequestEnded();
        }
    }

    private Task RunCommandAsync() => Command switch
    {
        Command.Read => ReadAsync(),
        Command.BlockStatus => BlockStatusAsync(),
        _ => ChangeAsync(),
    };

    private async Task ChangeAsync()
    {
        WriteFlags write = flags.HasFlag(CommandFlags.Fua) ? WriteFlags.Fua : WriteFlags.None;
        if (flags.HasFlag(CommandFlags.NoHole))
            write |= WriteFlags.NoHole;
        try
        {
            DeviceCall call = session.BeginCall();
            ValueTask pending = Command switch
            {
                Command.Write => session.Device.WriteAsync(offsetBytes, Buffer!.Memory((int)LengthBytes), write, session.DeviceStop),
                Command.WriteZeroes => session.Device.WriteZeroesAsync(offsetBytes, LengthBytes, write, session.DeviceStop),
                Command.Trim => session.Device.TrimAsync(offsetBytes, LengthBytes, write, session.DeviceStop),
                _ => session.Device.FlushAsync(session.DeviceStop),
            };
            session.EndCall(call, Command == Command.Write ? LengthBytes : 0);
            await pending;
        }
        finally
        {
            if (Buffer is { } payload)
            {
                Buffer = null;
                BufferPool.Return(payload);
                session.Budget.Release((int)LengthBytes);
            }
        }

        await session.Writer.SendAsync(Reply.Simple(session, cookie, 0, null, 0));
    }

    private async Task ReadAsync()
    {
        bool mayFragment = session.IsStructured && !flags.HasFlag(CommandFlags.DontFragment);
        for (int done = 0, length; done < LengthBytes; done += length)
        {
            length = (int)(mayFragment ? Math.Min(PieceBytes, LengthBytes - done) : LengthBytes);
            PooledBuffer piece = await ReadPieceAsync(offsetBytes + done, length);
            bool isLast = done + length == LengthBytes;
            Reply reply = session.IsStructured
                ? Reply.Data(session, cookie, offsetBytes + done, piece, length, isLast)
                : Reply.Simple(session, cookie, 0, piece, length);
            await session.Writer.SendAsync(reply);
        }
    }

    private async ValueTask<PooledBuffer> ReadPieceAsync(long atBytes, int length)
    {
        await session.Budget.AcquireAsync(length);
        PooledBuffer piece = BufferPool.Rent(length);
        try
        {
            if (session.IsOver) // It waited for memory that the end of the connection set free.
                throw new OperationCanceledException("the connection has ended");
            DeviceCall call = session.BeginCall();
            ValueTask pending = session.Device.ReadAsync(atBytes, piece.Memory(length), session.DeviceStop);
            session.EndCall(call, length);
            await pending;
            return piece;
        }
        catch
        {
            BufferPool.Return(piece);
            session.Budget.Release(length);
            throw;
        }
    }

    private async Task BlockStatusAsync()
    {
        IReadOnlyList<BlockExtent> extents = await session.Device.ExtentsAsync(offsetBytes, LengthBytes, session.DeviceStop);
        int limit = flags.HasFlag(CommandFlags.RequestOne) ? 1 : ExtentLimitCount;
        PooledBuffer payload = BufferPool.Rent(4 + 8 * Math.Min(extents.Count, limit));
        Span<byte> bytes = payload.Memory(payload.CapacityBytes).Span;
        BinaryPrimitives.WriteUInt32BigEndian(bytes, ServerTransmission.AllocationContextId);
        int length = 4;
        for (int i = 0; i < extents.Count && (length - 4) / 8 < limit;)
        {
            // Neighbours that look the same on this wire become one.
            AllocationFlags state = StateOf(extents[i].Kind);
            long run = 0;
            for (; i < extents.Count && StateOf(extents[i].Kind) == state; i++)
                run += extents[i].LengthBytes;
            BinaryPrimitives.WriteUInt32BigEndian(bytes[length..], (uint)Math.Min(run, LengthBytes));
            BinaryPrimitives.WriteUInt32BigEndian(bytes[(length + 4)..], (uint)state);
            length += 8;
        }

        await session.Budget.AcquireAsync(length);
        await session.Writer.SendAsync(Reply.BlockStatus(session, cookie, payload, length));
    }

    private Task AnswerErrorAsync(Errno errno) => session.Writer.SendAsync(
        session.IsStructured && Command is Command.Read or Command.BlockStatus
            ? Reply.Error(session, cookie, errno)
            : Reply.Simple(session, cookie, errno, null, 0));

    private static AllocationFlags StateOf(ExtentKind kind) => kind switch
    {
        ExtentKind.Data => AllocationFlags.Data,
        ExtentKind.Zero => AllocationFlags.Zero,
        _ => AllocationFlags.Hole | AllocationFlags.Zero,
    };

    /// <summary>
    /// A message to the client. It holds the request's slot (the last one) and its payload's bytes until the socket has it.
    /// </summary>
    private sealed class Reply : Outgoing
    {
        private readonly ServerTransmission session;
        private readonly PooledBuffer? buffer;
        private readonly int heldBytes;
        private readonly bool isLast;

        private Reply(ServerTransmission session, PooledBuffer? buffer, int heldBytes, bool isLast)
        {
            this.session = session;
            this.buffer = buffer;
            this.heldBytes = heldBytes;
            this.isLast = isLast;
            if (buffer is not null)
                Payload = buffer.Memory(heldBytes);
        }

        public static Reply Simple(ServerTransmission session, ulong cookie, Errno errno, PooledBuffer? buffer, int lengthBytes)
        {
            Reply reply = new(session, buffer, lengthBytes, isLast: true) { HeadLength = Protocol.SimpleReplyBytes };
            BinaryPrimitives.WriteUInt32BigEndian(reply.Head, Protocol.SimpleReplyMagic);
            BinaryPrimitives.WriteUInt32BigEndian(reply.Head[4..], (uint)errno);
            BinaryPrimitives.WriteUInt64BigEndian(reply.Head[8..], cookie);
            return reply;
        }

        public static Reply Data(ServerTransmission session, ulong cookie, long atBytes, PooledBuffer buffer, int lengthBytes, bool isLast)
        {
            Reply reply = new(session, buffer, lengthBytes, isLast);
            bool isZero = !reply.Payload.Span.ContainsAnyExcept((byte)0);
            if (isZero)
            {
                reply.Payload = default;
                reply.WriteChunk(ChunkType.OffsetHole, cookie, 12, 12);
                BinaryPrimitives.WriteUInt32BigEndian(reply.Head[28..], (uint)lengthBytes);
            }
            else
            {
                reply.WriteChunk(ChunkType.OffsetData, cookie, 8, 8 + lengthBytes);
            }

            BinaryPrimitives.WriteUInt64BigEndian(reply.Head[20..], (ulong)atBytes);
            return reply;
        }

        public static Reply BlockStatus(ServerTransmission session, ulong cookie, PooledBuffer buffer, int lengthBytes)
        {
            Reply reply = new(session, buffer, lengthBytes, isLast: true);
            reply.WriteChunk(ChunkType.BlockStatus, cookie, 0, lengthBytes);
            return reply;
        }

        public static Reply Error(ServerTransmission session, ulong cookie, Errno errno)
        {
            // u32 error, u16 length of a message, which we leave out.
            Reply reply = new(session, null, 0, isLast: true);
            reply.WriteChunk(ChunkType.Error, cookie, 6, 6);
            BinaryPrimitives.WriteUInt32BigEndian(reply.Head[20..], (uint)errno);
            return reply;
        }

        public override void Released()
        {
            if (buffer is not null)
            {
                BufferPool.Return(buffer);
                session.Budget.Release(heldBytes);
            }

            if (isLast)
                session.ReleaseSlot();
        }

        private void WriteChunk(ChunkType type, ulong cookie, int fieldBytes, int lengthBytes)
        {
            HeadLength = Protocol.ChunkHeaderBytes + fieldBytes;
            BinaryPrimitives.WriteUInt32BigEndian(Head, Protocol.StructuredReplyMagic);
            BinaryPrimitives.WriteUInt16BigEndian(Head[4..], (ushort)(isLast ? ChunkFlags.Done : ChunkFlags.None));
            BinaryPrimitives.WriteUInt16BigEndian(Head[6..], (ushort)type);
            BinaryPrimitives.WriteUInt64BigEndian(Head[8..], cookie);
            BinaryPrimitives.WriteUInt32BigEndian(Head[16..], (uint)lengthBytes);
        }
    }
}
