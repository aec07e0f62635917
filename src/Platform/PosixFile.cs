// Opening a file whose name somebody else chose: never waits (a FIFO would), never follows into anything but a regular file.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Platform;

public static partial class Posix
{
    private const int OpenNonBlocking = 0x800;
    private const int OpenCloseOnExec = 0x80000;
    private const int StatxEmptyPath = 0x1000;
    private const int StatxModeOffset = 28;
    private const int FileTypeMask = 0xF000;
    private const int RegularFile = 0x8000;

    /// <summary>Opens an existing regular file; takes no lock, so that a live image can be looked at.</summary>
    /// <exception cref="BlockIoException">With the errno of open(2), or EINVAL for a folder, FIFO, socket or device.</exception>
    public static unsafe SafeFileHandle OpenRegularFile(string path, bool isWritable)
    {
        int fd = path.Contains('\0', StringComparison.Ordinal)
            ? throw new BlockIoException(Errno.EINVAL, "a file name cannot hold a NUL")
            : open(path, (isWritable ? OpenReadWrite : 0) | OpenNonBlocking | OpenCloseOnExec);
        if (fd < 0)
            throw new BlockIoException((Errno)Marshal.GetLastPInvokeError(), $"cannot open {path}: {Marshal.GetLastPInvokeErrorMessage()}");
        SafeFileHandle file = new(fd, ownsHandle: true);
        byte* status = stackalloc byte[256];
        int mode = statx(file, "", StatxEmptyPath, 1, status) == 0 ? *(ushort*)(status + StatxModeOffset) : 0;
        if ((mode & FileTypeMask) == RegularFile)
            return file;
        file.Dispose();
        throw new BlockIoException(Errno.EINVAL, $"{path} is not a regular file");
    }

    /// <summary>The one true path of an open file, every symbolic link resolved.</summary>
    public static string CanonicalPathOf(SafeFileHandle file) =>
        new FileInfo($"/proc/self/fd/{file.DangerousGetHandle()}").LinkTarget
        ?? throw new BlockIoException(Errno.ENOENT, "an open file has no path");

    /// <summary>The one true path of a folder.</summary>
    public static string CanonicalFolder(string path)
    {
        using SafeFileHandle folder = OpenDirectory(path);
        return CanonicalPathOf(folder);
    }

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static unsafe partial int statx(SafeFileHandle folder, string path, int flags, uint mask, byte* status);
}
