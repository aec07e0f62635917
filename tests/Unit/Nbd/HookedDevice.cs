using Platform;

namespace Unit.NbdTests;

/// <summary>A device whose every request first does what the test says: wait, fail, count.</summary>
internal sealed class HookedDevice(IBlockDevice inner, Func<string, long, CancellationToken, Task> before) : IBlockDevice
{
    private int running;

    public int Running => Volatile.Read(ref running);

    public long LengthBytes => inner.LengthBytes;

    public int BlockSizeBytes => inner.BlockSizeBytes;

    public bool IsReadOnly => inner.IsReadOnly;

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) =>
        AfterAsync("read", offsetBytes, () => inner.ReadAsync(offsetBytes, destination, cancellationToken), cancellationToken);

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken) =>
        AfterAsync("write " + flags, offsetBytes, () => inner.WriteAsync(offsetBytes, source, flags, cancellationToken), cancellationToken);

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        AfterAsync("zero " + flags, offsetBytes, () => inner.WriteZeroesAsync(offsetBytes, lengthBytes, flags, cancellationToken), cancellationToken);

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        AfterAsync("trim " + flags, offsetBytes, () => inner.TrimAsync(offsetBytes, lengthBytes, flags, cancellationToken), cancellationToken);

    public ValueTask FlushAsync(CancellationToken cancellationToken) =>
        AfterAsync("flush", 0, () => inner.FlushAsync(cancellationToken), cancellationToken);

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
        inner.ExtentsAsync(offsetBytes, lengthBytes, cancellationToken);

    public ValueTask DisposeAsync() => inner.DisposeAsync();

    private async ValueTask AfterAsync(string what, long offsetBytes, Func<ValueTask> request, CancellationToken cancellationToken)
    {
        Interlocked.Increment(ref running);
        try
        {
            await before(what, offsetBytes, cancellationToken);
            await request();
        }
        finally
        {
            Interlocked.Decrement(ref running);
        }
    }
}
