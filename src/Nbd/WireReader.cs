// The receiving half of a connection, for both ends: headers come through a pipe's buffer, long payloads go past it straight into place.
using System.Buffers;
using System.IO.Pipelines;

namespace Nbd;

internal sealed class WireReader(Stream stream) : IDisposable
{
    private const int BufferBytes = 64 * 1024;
    private const int DirectReadBytes = 16 * 1024; // From here on a copy costs more than a system call.

    private readonly PipeReader pipe = PipeReader.Create(stream, new StreamPipeReaderOptions(bufferSize: BufferBytes, leaveOpen: true));

    /// <summary>Bytes that have arrived and were not yet read.</summary>
    public long BufferedBytes { get; private set; }

    /// <summary>Fills the destination. False when the peer closed before its first byte.</summary>
    /// <exception cref="EndOfStreamException">The peer closed in the middle.</exception>
    public async ValueTask<bool> TryReadAsync(Memory<byte> destination, CancellationToken cancellationToken)
    {
        for (int done = 0; done < destination.Length;)
        {
            int taken = BufferedBytes == 0 && destination.Length - done >= DirectReadBytes
                ? await stream.ReadAsync(destination[done..], cancellationToken)
                : await TakeAsync(destination[done..], cancellationToken);
            if (taken == 0)
                return done == 0 ? false : throw new EndOfStreamException("the peer closed the connection in the middle of a message");
            done += taken;
        }

        return true;
    }

    /// <exception cref="EndOfStreamException">The peer closed before the last byte.</exception>
    public async ValueTask ReadAsync(Memory<byte> destination, CancellationToken cancellationToken)
    {
        if (!await TryReadAsync(destination, cancellationToken))
            throw new EndOfStreamException("the peer closed the connection");
    }

    /// <summary>Reads past bytes that nobody wants, in bounded memory.</summary>
    public async ValueTask SkipAsync(long lengthBytes, CancellationToken cancellationToken)
    {
        while (lengthBytes > 0)
        {
            ReadResult result = await pipe.ReadAsync(cancellationToken);
            if (result.Buffer.IsEmpty && result.IsCompleted)
                throw new EndOfStreamException("the peer closed the connection in the middle of a message");
            lengthBytes -= Consume(result, lengthBytes);
        }
    }

    public void Dispose() => pipe.Complete();

    private async ValueTask<int> TakeAsync(Memory<byte> destination, CancellationToken cancellationToken)
    {
        ReadResult result = await pipe.ReadAsync(cancellationToken);
        long taken = Math.Min(result.Buffer.Length, destination.Length);
        result.Buffer.Slice(0, taken).CopyTo(destination.Span);
        return (int)Consume(result, taken);
    }

    private long Consume(ReadResult result, long wantedBytes)
    {
        long taken = Math.Min(result.Buffer.Length, wantedBytes);
        BufferedBytes = result.Buffer.Length - taken;
        pipe.AdvanceTo(result.Buffer.GetPosition(taken));
        return taken;
    }
}
