using Microsoft.Win32.SafeHandles;

namespace Platform;

/// <summary>A raw image in a file, or a block device. Its holes are not looked for: everything is data.</summary>
public sealed class RawFile : IBlockDevice
{
    private const int ZeroesBytes = 1024 * 1024;
    private readonly SafeFileHandle file;

    /// <exception cref="IOException">The file cannot be opened, or its size is not a multiple of 512 bytes.</exception>
    public RawFile(string path, bool isReadOnly)
    {
        file = File.OpenHandle(path, FileMode.Open, isReadOnly ? FileAccess.Read : FileAccess.ReadWrite, FileShare.ReadWrite);
        IsReadOnly = isReadOnly;
        LengthBytes = RandomAccess.GetLength(file);
        if (LengthBytes % BlockSizeBytes == 0)
            return;
        file.Dispose();
        throw new BlockIoException(Errno.EINVAL, $"{path} has {LengthBytes} bytes, which is not a multiple of {BlockSizeBytes}");
    }

    public long LengthBytes { get; }

    public int BlockSizeBytes => 512;

    public bool IsReadOnly { get; }

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, destination.Length, isWrite: false);
        for (int done = 0; done < destination.Length;)
        {
            int read = RandomAccess.Read(file, destination.Span[done..], offsetBytes + done);
            if (read == 0)
                throw new BlockIoException(Errno.EIO, "the file became shorter than the disk");
            done += read;
        }

        return ValueTask.CompletedTask;
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        RandomAccess.Write(file, source.Span, offsetBytes);
        return SyncIf(flags.HasFlag(WriteFlags.Fua));
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        if (flags.HasFlag(WriteFlags.NoHole) || !Posix.TryPunchHole(file, offsetBytes, lengthBytes))
        {
            byte[] zeroes = new byte[Math.Min(lengthBytes, ZeroesBytes)];
            for (long done = 0; done < lengthBytes; done += zeroes.Length)
                RandomAccess.Write(file, zeroes.AsSpan(0, (int)Math.Min(zeroes.Length, lengthBytes - done)), offsetBytes + done);
        }

        return SyncIf(flags.HasFlag(WriteFlags.Fua));
    }

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        WriteZeroesAsync(offsetBytes, lengthBytes, flags & WriteFlags.Fua, cancellationToken);

    public ValueTask FlushAsync(CancellationToken cancellationToken) => SyncIf(!IsReadOnly);

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

    private ValueTask SyncIf(bool wanted)
    {
        if (wanted)
            Posix.SyncData(file);
        return ValueTask.CompletedTask;
    }
}
