using Microsoft.Win32.SafeHandles;
using Platform;

namespace Demo;

/// <summary>A raw image, read-only, as a device: its holes are the filesystem's guess, found by looking for zeros.</summary>
internal sealed class RawFile : IBlockDevice
{
    private readonly SafeFileHandle file;

    public RawFile(string path)
    {
        file = File.OpenHandle(path);
        LengthBytes = RandomAccess.GetLength(file);
    }

    public long LengthBytes { get; }

    public int BlockSizeBytes => 512;

    public bool IsReadOnly => true;

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, destination.Length, isWrite: false);
        for (int done = 0; done < destination.Length;)
        {
            int read = RandomAccess.Read(file, destination.Span[done..], offsetBytes + done);
            done += read > 0 ? read : throw new BlockIoException(Errno.EIO, "the file is shorter than it was");
        }

        return ValueTask.CompletedTask;
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken) => throw ReadOnly();

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => throw ReadOnly();

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => throw ReadOnly();

    public ValueTask FlushAsync(CancellationToken cancellationToken) => ValueTask.CompletedTask;

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
        ValueTask.FromResult<IReadOnlyList<BlockExtent>>([new BlockExtent(offsetBytes, lengthBytes, ExtentKind.Data)]);

    public ValueTask DisposeAsync()
    {
        file.Dispose();
        return ValueTask.CompletedTask;
    }

    private static BlockIoException ReadOnly() => new(Errno.EPERM, "the image is read-only");
}
