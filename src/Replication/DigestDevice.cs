using Platform;

using System.Runtime.CompilerServices;
namespace Replication;

/// <summary>Tells a <see cref="DigestMap"/> of every write that passes through. Owns the inner device.</summary>
public sealed class DigestDevice(IBlockDevice inner, DigestMap map) : IBlockDevice
{
    public long LengthBytes => inner.LengthBytes;

    public int BlockSizeBytes => inner.BlockSizeBytes;

    public bool IsReadOnly => inner.IsReadOnly;

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) =>
        inner.ReadAsync(offsetBytes, destination, cancellationToken);

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        map.MarkStale(offsetBytes, source.Length);
        return MarkedAsync(inner.WriteAsync(offsetBytes, source, flags, cancellationToken), offsetBytes, source.Length);
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        map.MarkStale(offsetBytes, lengthBytes);
        return MarkedAsync(inner.WriteZeroesAsync(offsetBytes, lengthBytes, flags, cancellationToken), offsetBytes, lengthBytes);
    }

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        map.MarkStale(offsetBytes, lengthBytes);
        return MarkedAsync(inner.TrimAsync(offsetBytes, lengthBytes, flags, cancellationToken), offsetBytes, lengthBytes);
    }

    public ValueTask FlushAsync(CancellationToken cancellationToken) => inner.FlushAsync(cancellationToken);

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
        inner.ExtentsAsync(offsetBytes, lengthBytes, cancellationToken);

    public ValueTask DisposeAsync() => inner.DisposeAsync();

    // A failed write may have changed something all the same.
    private ValueTask MarkedAsync(ValueTask write, long offsetBytes, long lengthBytes)
    {
        if (!write.IsCompletedSuccessfully)
            return AwaitedAsync(write, offsetBytes, lengthBytes);
        map.MarkStale(offsetBytes, lengthBytes);
        return ValueTask.CompletedTask;
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private async ValueTask AwaitedAsync(ValueTask write, long offsetBytes, long lengthBytes)
    {
        try
        {
            await write;
        }
        finally
        {
            map.MarkStale(offsetBytes, lengthBytes);
        }
    }
}
