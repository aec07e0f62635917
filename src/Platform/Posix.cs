// The calls of the C library that the framework does not offer. Each returns 0 or an errno, or throws BlockIoException.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Platform;

public static partial class Posix
{
    private const int UsageOfThread = 1;
    private const int UsageLongs = 18; // struct rusage: two times of two longs each, then fourteen longs.
    private const int UsageVoluntarySwitches = 16;
    private const int FallocKeepSize = 1;
    private const int FallocPunchHole = 2;
    private const int SeekData = 3;
    private const int OpenReadWrite = 2;
    private const int AtCurrentFolder = -100;
    private const int AtSymlinkNoFollow = 0x100;
    private const uint StatxType = 1;
    private const uint StatxOwner = 8;
    private const uint Root = 0;
    private const int ModeTypeMask = 0xf000;
    private const int ModeSocket = 0xc000;
    private const int LockExclusive = 2;
    private const int LockNonBlocking = 4;

    /// <summary>Leaves the parent's session, so that a terminal's or a parent's signals do not reach this process.</summary>
    public static void Detach()
    {
        _ = setsid(); // EPERM when it leads a group already: then it is detached.
    }

    /// <summary>Points standard input, output and error at /dev/null: a detached process must not die of a closed pipe.</summary>
    public static void CloseStandardStreams()
    {
        int fd = open("/dev/null", OpenReadWrite);
        if (fd < 0)
            return;
        for (int standard = 0; standard <= 2; standard++)
            _ = dup2(fd, standard);
        _ = close(fd);
    }

    /// <summary>Frees a byte range of a file; it reads as zeros. False where the filesystem cannot.</summary>
    public static bool TryPunchHole(SafeFileHandle file, long offsetBytes, long lengthBytes) =>
        fallocate(file, FallocPunchHole | FallocKeepSize, offsetBytes, lengthBytes) == 0;

    /// <summary>
    /// Where the last run of data of a file ends, at the grain of the filesystem's holes: nothing but a hole follows. The file's length
    /// where the filesystem knows no holes.
    /// </summary>
    public static long DataEndOf(SafeFileHandle file, long lengthBytes)
    {
        long withData = 0, without = lengthBytes;
        while (withData < without)
        {
            long middle = withData + (without - withData) / 2;
            if (lseek(file, middle, SeekData) >= 0)
                withData = middle + 1;
            else
                without = middle;
        }

        return without;
    }

    /// <summary>Takes a folder's advisory lock (flock), as the field's C tools do; null while another process holds it. Disposing releases it.</summary>
    public static SafeFileHandle? TryLockDirectory(string path)
    {
        SafeFileHandle directory = OpenDirectory(path);
        if (flock(directory, LockExclusive | LockNonBlocking) == 0)
            return directory;
        directory.Dispose();
        return null;
    }

    /// <summary>Makes a name in a folder durable (a created, renamed or removed file).</summary>
    public static void SyncDirectory(string path)
    {
        using SafeFileHandle directory = OpenDirectory(path);
        if (fsync(directory) != 0)
            throw new BlockIoException(Errno.EIO, $"fsync of folder {path} failed: {Marshal.GetLastPInvokeErrorMessage()}");
    }

    /// <summary>Makes a file's data and size durable.</summary>
    public static void SyncData(SafeFileHandle file)
    {
        if (fdatasync(file) != 0)
            throw new BlockIoException(Errno.EIO, $"fdatasync failed: {Marshal.GetLastPInvokeErrorMessage()}");
    }

    /// <summary>Sends a signal. False when there is no such process.</summary>
    public static bool TryKill(int processId, int signal) => kill(processId, signal) == 0;

    /// <summary>Sends a signal to every process of a group.</summary>
    public static bool TryKillGroup(int processGroupId, int signal) => kill(-processGroupId, signal) == 0;

    public static void CreateHardLink(string existingPath, string newPath)
    {
        if (link(existingPath, newPath) != 0)
            throw new IOException($"cannot link {newPath} to {existingPath}: {Marshal.GetLastPInvokeErrorMessage()}");
    }

    /// <summary>Whether a path names a unix socket. Symbolic links are not followed; a path that cannot be looked at is none.</summary>
    public static bool IsSocket(string path)
    {
        Span<byte> status = stackalloc byte[256]; // struct statx: the same on every architecture, mode (u16) at 28.
        return statx(AtCurrentFolder, path, AtSymlinkNoFollow, StatxType, status) == 0
            && (BitConverter.ToUInt16(status[28..]) & ModeTypeMask) == ModeSocket;
    }

    /// <summary>Whether what a path leads to belongs to root or to the user that we are: anybody else may change it at any time.</summary>
    public static bool IsOwnersTrusted(string path) => OwnerOf(path) is { } owner && (owner == Root || owner == OwnerOf("/proc/self"));

    private static uint? OwnerOf(string path)
    {
        Span<byte> status = stackalloc byte[256]; // struct statx: uid (u32) at 20.
        return statx(AtCurrentFolder, path, 0, StatxOwner, status) == 0 ? BitConverter.ToUInt32(status[20..]) : null;
    }

    private static SafeFileHandle OpenDirectory(string path)
    {
        int fd = open(path, OpenCloseOnExec); // A daemon started under a folder's lock must not inherit the lock.
        if (fd < 0)
            throw new BlockIoException(Errno.ENOENT, $"cannot open folder {path}: {Marshal.GetLastPInvokeErrorMessage()}");
        return new SafeFileHandle(fd, ownsHandle: true);
    }

    /// <summary>How often the calling thread has given up the processor to wait for something.</summary>
    public static long VoluntarySwitches()
    {
        Span<long> usage = stackalloc long[UsageLongs];
        return getrusage(UsageOfThread, usage) == 0 ? usage[UsageVoluntarySwitches] : 0;
    }

    [LibraryImport("libc")]
    private static partial int getrusage(int who, Span<long> usage);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setsid();

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int dup2(int from, int to);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int close(int fd);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fallocate(SafeFileHandle fd, int mode, long offset, long length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial long lseek(SafeFileHandle fd, long offset, int whence);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int flock(SafeFileHandle fd, int operation);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fsync(SafeFileHandle fd);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fdatasync(SafeFileHandle fd);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int kill(int pid, int signal);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int statx(int folder, string path, int flags, uint mask, Span<byte> status);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int link(string oldPath, string newPath);
}
