using Platform;

namespace Support;

/// <summary>A device in memory, with the whole contract: the model that others are compared with. 512-byte blocks.</summary>
public sealed class MemoryBlockDevice : IBlockDevice
{
    private readonly byte[] bytes;
    private readonly bool[] allocated;

    public MemoryBlockDevice(long lengthBytes, bool isReadOnly = false)
    {
        bytes = new byte[lengthBytes];
        allocated = new bool[lengthBytes / BlockSizeBytes];
        IsReadOnly = isReadOnly;
    }

    public byte[] Bytes => bytes;

    public int FlushCount { get; private set; }

    public long LengthBytes => bytes.Length;

    public int BlockSizeBytes => 512;

    public bool IsReadOnly { get; }

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, destination.Length, isWrite: false);
        lock (bytes)
            bytes.AsMemory((int)offsetBytes, destination.Length).CopyTo(destination);
        return ValueTask.CompletedTask;
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        lock (bytes)
        {
            source.CopyTo(bytes.AsMemory((int)offsetBytes));
            Mark(offsetBytes, source.Length, true);
        }

        return ValueTask.CompletedTask;
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        lock (bytes)
        {
            bytes.AsSpan((int)offsetBytes, (int)lengthBytes).Clear();
            Mark(offsetBytes, lengthBytes, flags.HasFlag(WriteFlags.NoHole));
        }

        return ValueTask.CompletedTask;
    }

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        WriteZeroesAsync(offsetBytes, lengthBytes, flags, cancellationToken);

    public ValueTask FlushAsync(CancellationToken cancellationToken)
    {
        FlushCount++;
        return ValueTask.CompletedTask;
    }

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: false);
        List<BlockExtent> extents = [];
        for (long at = offsetBytes; at < offsetBytes + lengthBytes;)
        {
            bool data = allocated[at / BlockSizeBytes];
            long end = at;
            while (end < offsetBytes + lengthBytes && allocated[end / BlockSizeBytes] == data)
                end += BlockSizeBytes;
            extents.Add(new BlockExtent(at, end - at, data ? ExtentKind.Data : ExtentKind.Hole));
            at = end;
        }

        return ValueTask.FromResult<IReadOnlyList<BlockExtent>>(extents);
    }

    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    private void Mark(long offsetBytes, long lengthBytes, bool value) =>
        allocated.AsSpan((int)(offsetBytes / BlockSizeBytes), (int)(lengthBytes / BlockSizeBytes)).Fill(value);
}
