// Moving many bytes: files past the page cache, holes, and file to socket or pipe without a copy in user space.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Platform;

public static partial class Posix
{
    /// <summary>What offset, length and memory of a direct transfer must be multiples of; enough for every disk of the field.</summary>
    public const int DirectAlignmentBytes = 4096;

    private const int OpenDirectFlag = 0x4000;
    private const int SeekToData = 3;
    private const int SeekToHole = 4;
    private const int NoSuchData = 6; // ENXIO: nothing but a hole up to the end.
    private const int Interrupted = 4;
    private const int SetPipeSize = 1031;

    /// <summary>A second descriptor of an open file that goes past the page cache.</summary>
    /// <exception cref="BlockIoException">The file system cannot do that.</exception>
    public static SafeFileHandle OpenDirect(SafeFileHandle file, bool isWritable)
    {
        int fd = open($"/proc/self/fd/{file.DangerousGetHandle()}", (isWritable ? OpenReadWrite : 0) | OpenDirectFlag | OpenCloseOnExec);
        return fd >= 0
            ? new SafeFileHandle(fd, ownsHandle: true)
            : throw new BlockIoException(
                (Errno)Marshal.GetLastPInvokeError(),
                $"{CanonicalPathOf(file)} cannot be opened for direct I/O: {Marshal.GetLastPInvokeErrorMessage()}");
    }

    /// <summary>Whether a transfer may go past the page cache: where it is in the file, how long it is, and where in memory.</summary>
    public static unsafe bool IsAlignedForDirect(long offsetBytes, ReadOnlySpan<byte> memory)
    {
        fixed (byte* start = memory)
            return ((offsetBytes | (long)memory.Length | (long)start) & (DirectAlignmentBytes - 1)) == 0;
    }

    /// <summary>
    /// The first byte at or after an offset that is not in a hole; <paramref name="endBytes"/> when there is none before it.
    /// </summary>
    public static long NextData(SafeFileHandle file, long offsetBytes, long endBytes)
    {
        long found = lseek64(file, offsetBytes, SeekToData);
        if (found < 0)
            return Marshal.GetLastPInvokeError() == NoSuchData ? endBytes : offsetBytes;
        return Math.Min(found, endBytes);
    }

    /// <summary>The first byte at or after an offset that is in a hole, or <paramref name="endBytes"/>.</summary>
    public static long NextHole(SafeFileHandle file, long offsetBytes, long endBytes)
    {
        long found = lseek64(file, offsetBytes, SeekToHole);
        return found < 0 ? endBytes : Math.Min(found, endBytes);
    }

    /// <summary>Moves bytes of a file into a socket or pipe, all of them, waiting as long as the reader makes us wait.</summary>
    /// <exception cref="BlockIoException">The file ended, or the reader has gone.</exception>
    public static void SendFile(SafeHandle target, SafeFileHandle source, long offsetBytes, long lengthBytes)
    {
        while (lengthBytes > 0)
        {
            nint sent = sendfile(target, source, ref offsetBytes, (nint)Math.Min(lengthBytes, 1 << 30));
            if (sent > 0)
                lengthBytes -= sent;
            else if (sent == 0)
                throw new BlockIoException(Errno.EIO, "the file ended inside of what was to be sent; it was cut");
            else if (Marshal.GetLastPInvokeError() != Interrupted)
                throw new BlockIoException((Errno)Marshal.GetLastPInvokeError(), $"sending failed: {Marshal.GetLastPInvokeErrorMessage()}");
        }
    }

    /// <summary>Writes to a pipe, socket or file at its own position, all of it.</summary>
    public static void WriteAll(SafeHandle target, ReadOnlySpan<byte> bytes)
    {
        while (!bytes.IsEmpty)
        {
            nint written = write(target, bytes, bytes.Length);
            if (written >= 0)
                bytes = bytes[(int)written..];
            else if (Marshal.GetLastPInvokeError() != Interrupted)
                throw new BlockIoException((Errno)Marshal.GetLastPInvokeError(), $"writing failed: {Marshal.GetLastPInvokeErrorMessage()}");
        }
    }

    /// <summary>Asks for a longer pipe; what cannot have one keeps what it has.</summary>
    public static void TryGrowPipe(SafeHandle pipe, int lengthBytes) => _ = fcntl(pipe, SetPipeSize, lengthBytes);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "lseek")]
    private static partial long lseek64(SafeFileHandle fd, long offset, int whence);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint sendfile(SafeHandle target, SafeFileHandle source, ref long offset, nint count);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(SafeHandle fd, ReadOnlySpan<byte> bytes, nint count);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(SafeHandle fd, int command, int argument);
}
