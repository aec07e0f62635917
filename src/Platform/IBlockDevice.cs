// The waist of the data path: whatever has bytes at offsets (a VHD chain, an NBD peer, a mirror, a fault injector in a test) is one of these.
namespace Platform;

/// <summary>What a range of a device is known to hold.</summary>
public enum ExtentKind
{
    /// <summary>Allocated here; may still be all zeros.</summary>
    Data,

    /// <summary>Allocated or known, and reads as zeros.</summary>
    Zero,

    /// <summary>Not allocated anywhere in the chain; reads as zeros.</summary>
    Hole,
}

/// <summary>A run of bytes of one kind.</summary>
public readonly record struct BlockExtent(long OffsetBytes, long LengthBytes, ExtentKind Kind)
{
    public long EndBytes => OffsetBytes + LengthBytes;
}

[Flags]
public enum WriteFlags
{
    None = 0,

    /// <summary>Durable before it is answered.</summary>
    Fua = 1,

    /// <summary>Write-zeroes only: the range must stay allocated (NBD's NO_HOLE).</summary>
    NoHole = 2,
}

/// <summary>
/// A random-access device. Offsets and lengths are multiples of <see cref="BlockSizeBytes"/> and inside <see cref="LengthBytes"/>; anything else
/// is <see cref="BlockIoException"/> with <see cref="Errno.EINVAL"/> (or ENOSPC past the end of a write) and changes nothing.
/// Calls may overlap in time; overlapping writes have no order among themselves. A buffer belongs to the device until the call completes.
/// Acknowledged writes survive the death of the process; they survive the loss of power after <see cref="FlushAsync"/> or with FUA.
/// </summary>
public interface IBlockDevice : IAsyncDisposable
{
    long LengthBytes { get; }

    int BlockSizeBytes { get; }

    bool IsReadOnly { get; }

    ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken);

    ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken);

    /// <summary>The range reads as zeros afterwards.</summary>
    ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken);

    /// <summary>A hint that the range is not needed; afterwards it reads as what it was, or as zeros.</summary>
    ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken);

    ValueTask FlushAsync(CancellationToken cancellationToken);

    /// <summary>
    /// Adjacent, non-empty extents that start exactly at <paramref name="offsetBytes"/> and describe at least its first block and at most the
    /// range asked for; a device may answer less than asked (it bounds its own work), never nothing.
    /// </summary>
    ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken);
}
