namespace Platform;

/// <summary>The errno values that cross our borders (Linux numbers, which are also NBD's).</summary>
public enum Errno
{
    EPERM = 1,
    ENOENT = 2,
    EIO = 5,
    ENOMEM = 12,
    EACCES = 13,
    EBUSY = 16,
    EEXIST = 17,
    EINVAL = 22,
    ENOSPC = 28,
    EROFS = 30,
    EPIPE = 32,
    EOVERFLOW = 75,
    ENOTSUP = 95,
    ESHUTDOWN = 108,
    ETIMEDOUT = 110,
}

/// <summary>An I/O request failed; the device is still there unless the errno says ESHUTDOWN.</summary>
public sealed class BlockIoException : IOException
{
    public BlockIoException(Errno errno, string message, Exception? innerException = null)
        : base(message, innerException) => Errno = errno;

    public Errno Errno { get; }

    /// <summary>Checks a request against a device's size, alignment and writability; the one place that does.</summary>
    public static void CheckRange(IBlockDevice device, long offsetBytes, long lengthBytes, bool isWrite)
    {
        if (offsetBytes < 0 || lengthBytes < 0 || offsetBytes > device.LengthBytes - lengthBytes)
            throw new BlockIoException(
                isWrite ? Errno.ENOSPC : Errno.EINVAL, $"range {offsetBytes}+{lengthBytes} is outside a device of {device.LengthBytes} bytes");
        if ((offsetBytes | lengthBytes) % device.BlockSizeBytes != 0)
            throw new BlockIoException(
                Errno.EINVAL, $"range {offsetBytes}+{lengthBytes} is not a multiple of the block size {device.BlockSizeBytes}");
        if (isWrite && device.IsReadOnly)
            throw new BlockIoException(Errno.EPERM, "the device is read-only");
    }

    /// <summary>The errno behind an <see cref="IOException"/> of the framework; EIO when it says nothing.</summary>
    public static Errno ErrnoOf(IOException exception) => exception switch
    {
        BlockIoException io => io.Errno,
        FileNotFoundException or DirectoryNotFoundException => Errno.ENOENT,
        { HResult: > 0 and < 200 } e when Enum.IsDefined((Errno)e.HResult) => (Errno)e.HResult,
        _ => Errno.EIO,
    };
}
