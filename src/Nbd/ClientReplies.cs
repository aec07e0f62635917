// The receiving half of the client: simple replies and structured chunks, each checked against the request it answers before a byte is
// believed.
using System.Buffers.Binary;
using Platform;

namespace Nbd;

internal sealed class ClientReplies(
    WireReader reader, ClientExport export, Func<ulong, ClientRequest?> find, Action<ClientRequest> remove, Action onSign)
{
    private const int ErrorLimitBytes = 4096 + 64;
    private const int ExtentsLimitBytes = 4 + 8 * 1024 * 1024; // A million extents in one reply.

    private readonly byte[] header = new byte[32];

    /// <summary>Until the server closes between two messages.</summary>
    /// <exception cref="NbdProtocolException">A reply that no honest server sends; the stream cannot be trusted any further.</exception>
    public void Run()
    {
        while (reader.TryRead(header.AsSpan(0, Protocol.SimpleReplyBytes)))
        {
            onSign();
            uint magic = BinaryPrimitives.ReadUInt32BigEndian(header);
            ulong cookie = BinaryPrimitives.ReadUInt64BigEndian(header.AsSpan(8));
            if (magic is not (Protocol.SimpleReplyMagic or Protocol.StructuredReplyMagic))
                throw new NbdProtocolException("a reply does not start with its magic");
            ClientRequest request = find(cookie) ?? throw new NbdProtocolException("a reply to a request that is not in flight");
            if (magic == Protocol.SimpleReplyMagic)
                TakeSimple(request, BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(4)));
            else
                TakeChunk(request);
        }
    }

    private void TakeSimple(ClientRequest request, uint error)
    {
        if (request.Command == Command.BlockStatus || (request.Command == Command.Read && export.HasStructuredReplies))
            throw new NbdProtocolException($"a simple reply to {request.Command}, which needs a structured one");
        if (error == 0 && request.Command == Command.Read)
            Receive(request, 0, (int)request.LengthBytes);
        Finish(request, error == 0 ? null : Protocol.FromWire(error));
    }

    private void TakeChunk(ClientRequest request)
    {
        bool isDone = (BinaryPrimitives.ReadUInt16BigEndian(header.AsSpan(4)) & (ushort)ChunkFlags.Done) != 0;
        ChunkType type = (ChunkType)BinaryPrimitives.ReadUInt16BigEndian(header.AsSpan(6));
        reader.Read(header.AsSpan(16, 4));
        uint length = BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(16));
        if (!export.HasStructuredReplies)
            throw new NbdProtocolException("a structured reply, which was not negotiated");
        switch (type)
        {
            case ChunkType.None when isDone && length == 0:
                break;
            case ChunkType.OffsetData when request.Command == Command.Read && length > 8:
                TakeData(request, length - 8);
                break;
            case ChunkType.OffsetHole when request.Command == Command.Read && length == 12:
                TakeHole(request);
                break;
            case ChunkType.BlockStatus when request.Command == Command.BlockStatus && length is > 4 and <= ExtentsLimitBytes
                && length % 8 == 4:
                TakeExtents(request, (int)length);
                break;
            case var _ when (type & ChunkType.ErrorBit) != 0 && length is >= 6 and <= ErrorLimitBytes:
                TakeError(request, (int)length);
                break;
            default:
                throw new NbdProtocolException($"a chunk of type 0x{(ushort)type:x} with {length} bytes cannot answer {request.Command}");
        }

        if (isDone)
            FinishStructured(request);
    }

    private void TakeData(ClientRequest request, uint length)
    {
        reader.Read(header.AsSpan(20, 8));
        int at = Cover(request, BinaryPrimitives.ReadUInt64BigEndian(header.AsSpan(20)), length);
        Receive(request, at, (int)length);
    }

    private void TakeHole(ClientRequest request)
    {
        reader.Read(header.AsSpan(20, 12));
        uint length = BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(28));
        int at = Cover(request, BinaryPrimitives.ReadUInt64BigEndian(header.AsSpan(20)), length);
        if (!request.TryBeginReceive())
            return;
        request.Destination.Span.Slice(at, (int)length).Clear();
        request.EndReceive();
    }

    /// <summary>Where in the destination a piece belongs; refuses what is outside the request, empty, or there already.</summary>
    private static int Cover(ClientRequest request, ulong offsetBytes, uint length)
    {
        long at = (long)(offsetBytes - (ulong)request.OffsetBytes);
        if (length == 0 || at < 0 || at > (long)request.LengthBytes - length || !request.Covered.TryAdd(at, length))
            throw new NbdProtocolException("a piece of a read that was not asked for, or had already come");
        return (int)at;
    }

    private void Receive(ClientRequest request, int at, int length)
    {
        if (!request.TryBeginReceive())
        {
            reader.Skip(length);
            return;
        }

        try
        {
            reader.Read(request.Destination.Slice(at, length).Span);
        }
        finally
        {
            request.EndReceive();
        }
    }

    private void TakeExtents(ClientRequest request, int length)
    {
        byte[] bytes = new byte[length];
        reader.Read(bytes);
        if (BinaryPrimitives.ReadUInt32BigEndian(bytes) != export.AllocationContextId || request.Extents.Count > 0)
            throw new NbdProtocolException("block status of a context that was not asked for, or twice");
        List<BlockExtent> extents = [];
        long at = request.OffsetBytes;
        long end = at + request.LengthBytes;
        for (int i = 4; i < length; i += 8)
        {
            long run = BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(i));
            if (run == 0 || at >= end)
                throw new NbdProtocolException("block status with an empty extent, or more than was asked for");
            AllocationFlags flags = (AllocationFlags)BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(i + 4));
            extents.Add(new BlockExtent(at, Math.Min(run, end - at), KindOf(flags)));
            at += run; // The last one may go on beyond the request; nothing may follow it.
        }

        request.Extents = extents;
    }

    private void TakeError(ClientRequest request, int length)
    {
        byte[] bytes = new byte[length];
        reader.Read(bytes);
        request.ReplyError ??= Protocol.FromWire(BinaryPrimitives.ReadUInt32BigEndian(bytes));
    }

    private void FinishStructured(ClientRequest request)
    {
        if (request.ReplyError is null && request.Command == Command.Read && request.Covered.TotalBytes != request.LengthBytes)
            throw new NbdProtocolException($"a read of {request.LengthBytes} bytes ended after {request.Covered.TotalBytes}");
        if (request.ReplyError is null && request.Command == Command.BlockStatus && request.Extents.Count == 0)
            throw new NbdProtocolException("a block status without extents");
        Finish(request, request.ReplyError);
    }

    private void Finish(ClientRequest request, Errno? error)
    {
        remove(request);
        request.Settle(error is { } errno
            ? new BlockIoException(
                errno, $"the NBD server answered {errno} to {request.Command} at {request.OffsetBytes}+{request.LengthBytes}")
            : null);
    }

    private static ExtentKind KindOf(AllocationFlags flags) =>
        !flags.HasFlag(AllocationFlags.Zero) ? ExtentKind.Data : flags.HasFlag(AllocationFlags.Hole) ? ExtentKind.Hole : ExtentKind.Zero;
}
