using Microsoft.Win32.SafeHandles;
using Platform;

namespace Support;

/// <summary>A raw file as a device, holes and all: what foreign tools can compare byte by byte. 512-byte blocks.</summary>
public sealed class FileBlockDevice : IBlockDevice
{
    private readonly SafeFileHandle file;

    public FileBlockDevice(string path, long lengthBytes, bool isReadOnly = false)
    {
        file = File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.ReadWrite);
        if (RandomAccess.GetLength(file) != lengthBytes)
            RandomAccess.SetLength(file, lengthBytes);
        LengthBytes = lengthBytes;
        IsReadOnly = isReadOnly;
    }

    public long LengthBytes { get; }

    public int BlockSizeBytes => 512;

    public bool IsReadOnly { get; }

    public int SyncCount { get; private set; }

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, destination.Length, isWrite: false);
        for (int done = 0; done < destination.Length;)
        {
            int read = RandomAccess.Read(file, destination.Span[done..], offsetBytes + done);
            if (read == 0)
                throw new BlockIoException(Errno.EIO, "the file is shorter than the device");
            done += read;
        }

        return ValueTask.CompletedTask;
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        RandomAccess.Write(file, source.Span, offsetBytes);
        return SyncIf(flags);
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        if (flags.HasFlag(WriteFlags.NoHole) || !Posix.TryPunchHole(file, offsetBytes, lengthBytes))
        {
            byte[] zeroes = new byte[Math.Min(lengthBytes, 1024 * 1024)];
            for (long done = 0; done < lengthBytes; done += zeroes.Length)
                RandomAccess.Write(file, zeroes.AsSpan(0, (int)Math.Min(zeroes.Length, lengthBytes - done)), offsetBytes + done);
        }

        return SyncIf(flags);
    }

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        WriteZeroesAsync(offsetBytes, lengthBytes, flags & WriteFlags.Fua, cancellationToken);

    public ValueTask FlushAsync(CancellationToken cancellationToken) => SyncIf(WriteFlags.Fua);

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: false);
        return ValueTask.FromResult<IReadOnlyList<BlockExtent>>([new BlockExtent(offsetBytes, lengthBytes, ExtentKind.Data)]);
    }

    public ValueTask DisposeAsync()
    {
        file.Dispose();
        return ValueTask.CompletedTask;
    }

    private ValueTask SyncIf(WriteFlags flags)
    {
        if (flags.HasFlag(WriteFlags.Fua))
        {
            SyncCount++;
            Posix.SyncData(file);
        }

        return ValueTask.CompletedTask;
    }
}
