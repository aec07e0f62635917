// The memory stream's framing (docs/formats/memory-stream.md), the same in both directions. A frame is u32 payload length, u32 CRC32C
// over everything else, u64 number counted from 0 per direction, u8 type, payload; big-endian. Every wait on the peer has a deadline.
using System.Buffers.Binary;
using Platform;

namespace Xenops.Streaming;

internal enum FrameType : byte
{
    VmRecord = 1,
    Pages = 2,
    ZeroPages = 3,
    RoundEnd = 4,
    DeviceState = 5,
    End = 6,
    Welcome = 128,
    RoundReceived = 129,
    Refused = 130,
}

internal readonly record struct Frame(FrameType Type, ReadOnlyMemory<byte> Payload);

/// <summary>The peer broke the format, refused, went away, or was silent for too long.</summary>
internal sealed class MemoryStreamException(string message, Exception? cause = null) : IOException(message, cause);

/// <summary>One writer and one reader at a time. A payload that was read is valid until the next read.</summary>
internal sealed class FrameStream(Stream stream, TimeProvider time, TimeSpan silenceLimit) : IAsyncDisposable
{
    public const int HeaderSizeBytes = 17;
    public const int PayloadLimitBytes = 512 * 1024;

    private byte[] outgoing = new byte[1024];
    private byte[] incoming = new byte[1024];
    private ulong framesWritten;
    private ulong framesRead;

    public long BytesWritten { get; private set; }

    public long BytesRead { get; private set; }

    public Stream Stream => stream;

    public async Task WriteAsync(FrameType type, ReadOnlyMemory<byte> payload, CancellationToken cancellationToken)
    {
        Invariant.Holds(payload.Length <= PayloadLimitBytes, "a frame's payload is bounded");
        int length = HeaderSizeBytes + payload.Length;
        if (outgoing.Length < length)
            outgoing = new byte[length];
        BinaryPrimitives.WriteInt32BigEndian(outgoing, payload.Length);
        BinaryPrimitives.WriteUInt64BigEndian(outgoing.AsSpan(8), framesWritten++);
        outgoing[16] = (byte)type;
        payload.CopyTo(outgoing.AsMemory(HeaderSizeBytes));
        BinaryPrimitives.WriteUInt32BigEndian(outgoing.AsSpan(4), Crc32C.Of(outgoing.AsSpan(0, 4), outgoing.AsSpan(8, length - 8)));
        await WithinLimitAsync("accept", async token =>
        {
            await stream.WriteAsync(outgoing.AsMemory(0, length), token);
            await stream.FlushAsync(token);
            return true;
        }, cancellationToken);
        BytesWritten += length;
    }

    /// <exception cref="MemoryStreamException">What came is not the next frame.</exception>
    public async Task<Frame> ReadAsync(CancellationToken cancellationToken)
    {
        byte[] header = new byte[HeaderSizeBytes];
        await FillAsync(header, cancellationToken);
        uint length = BinaryPrimitives.ReadUInt32BigEndian(header);
        if (length > PayloadLimitBytes)
            throw new MemoryStreamException($"frame {framesRead} claims {length} bytes; the limit is {PayloadLimitBytes}");
        if (incoming.Length < length)
            incoming = new byte[length];
        Memory<byte> payload = incoming.AsMemory(0, (int)length);
        await FillAsync(payload, cancellationToken);
        if (BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(4)) != Crc(header, payload.Span))
            throw new MemoryStreamException($"frame {framesRead} has a wrong checksum");
        ulong number = BinaryPrimitives.ReadUInt64BigEndian(header.AsSpan(8));
        if (number != framesRead)
            throw new MemoryStreamException($"frame {framesRead} was expected, frame {number} came");
        framesRead++;
        BytesRead += HeaderSizeBytes + length;
        return new Frame((FrameType)header[16], payload);
    }

    /// <summary>Returns when the peer has closed its direction.</summary>
    /// <exception cref="MemoryStreamException">It sent another byte instead.</exception>
    public async Task ReadEndAsync(CancellationToken cancellationToken)
    {
        byte[] one = new byte[1];
        if (await WithinLimitAsync("close", async token => await stream.ReadAsync(one, token), cancellationToken) != 0)
            throw new MemoryStreamException("there are bytes after the end record");
    }

    /// <summary>
    /// Reads and drops what the peer still sends, until it closes or the limit passes. Closing a socket with unread bytes resets the connection,
    /// and a reset can overtake the last frame that was written.
    /// </summary>
    public async Task DrainAsync(TimeSpan limit, CancellationToken cancellationToken)
    {
        using CancellationTokenSource deadline = new(limit, time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(deadline.Token, cancellationToken);
        byte[] dropped = new byte[64 * 1024];
        try
        {
            while (await stream.ReadAsync(dropped, either.Token) > 0)
            {
            }
        }
        catch (Exception e) when (e is IOException or OperationCanceledException)
        {
            // It went, or we do: there is nobody left to hear the reason.
        }
    }

    public ValueTask DisposeAsync() => stream.DisposeAsync();

    private static uint Crc(byte[] header, ReadOnlySpan<byte> payload)
    {
        Span<byte> covered = stackalloc byte[HeaderSizeBytes - 4];
        header.AsSpan(0, 4).CopyTo(covered);
        header.AsSpan(8).CopyTo(covered[4..]);
        return Crc32C.Of(covered, payload);
    }

    private async Task FillAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        int read = await WithinLimitAsync(
            "send", async token =>
                await stream.ReadAtLeastAsync(buffer, buffer.Length, throwOnEndOfStream: false, token), cancellationToken);
        if (read < buffer.Length)
            throw new MemoryStreamException($"the stream ends inside frame {framesRead}, before its end record");
    }

    private async Task<T> WithinLimitAsync<T>(string what, Func<CancellationToken, Task<T>> io, CancellationToken cancellationToken)
    {
        using CancellationTokenSource silence = new(silenceLimit, time);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, silence.Token);
        try
        {
            return await io(limit.Token);
        }
        catch (OperationCanceledException) when (silence.IsCancellationRequested && !cancellationToken.IsCancellationRequested)
        {
            throw new MemoryStreamException($"the peer did not {what} anything for {silenceLimit.TotalSeconds:0.#} s");
        }
        catch (Exception e) when (e is IOException and not MemoryStreamException or ObjectDisposedException)
        {
            throw new MemoryStreamException($"the connection was lost: {e.Message}", e);
        }
    }
}
