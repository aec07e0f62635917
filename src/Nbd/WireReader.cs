// The receiving half of a connection, for both ends: headers come through a buffer, long payloads go past it straight into place. It waits on
// the calling thread, which is the connection's own.
namespace Nbd;

internal sealed class WireReader(Stream stream)
{
    private const int BufferBytes = 64 * 1024;
    private const int DirectReadBytes = 16 * 1024; // From here on a copy costs more than a system call.

    private readonly byte[] buffer = new byte[BufferBytes];
    private int start;
    private int end;

    /// <summary>Bytes that have arrived and were not yet read.</summary>
    public int BufferedBytes => end - start;

    /// <summary>Fills the destination. False when the peer closed before its first byte.</summary>
    /// <exception cref="EndOfStreamException">The peer closed in the middle.</exception>
    public bool TryRead(Span<byte> destination)
    {
        for (int done = 0; done < destination.Length;)
        {
            int taken = BufferedBytes == 0 && destination.Length - done >= DirectReadBytes
                ? Receive(destination[done..])
                : Take(destination[done..]);
            if (taken == 0)
                return done == 0 ? false : throw new EndOfStreamException("the peer closed the connection in the middle of a message");
            done += taken;
        }

        return true;
    }

    /// <exception cref="EndOfStreamException">The peer closed before the last byte.</exception>
    public void Read(Span<byte> destination)
    {
        if (!TryRead(destination))
            throw new EndOfStreamException("the peer closed the connection");
    }

    /// <summary>Reads past bytes that nobody wants, in bounded memory.</summary>
    public void Skip(long lengthBytes)
    {
        while (lengthBytes > 0)
        {
            if (BufferedBytes == 0 && !TryFill())
                throw new EndOfStreamException("the peer closed the connection in the middle of a message");
            int skipped = (int)Math.Min(BufferedBytes, lengthBytes);
            start += skipped;
            lengthBytes -= skipped;
        }
    }

    private int Take(Span<byte> destination)
    {
        if (BufferedBytes == 0 && !TryFill())
            return 0;
        int taken = Math.Min(BufferedBytes, destination.Length);
        buffer.AsSpan(start, taken).CopyTo(destination);
        start += taken;
        return taken;
    }

    private bool TryFill()
    {
        start = 0;
        end = Receive(buffer);
        return end > 0;
    }

    private int Receive(Span<byte> destination)
    {
        SendBatch.Flush();
        return stream.Read(destination);
    }
}
