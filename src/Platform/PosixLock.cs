// Advisory locks of files (flock): shared or exclusive, seen by every program of the field, let go by the kernel when the holder dies.
// A lock's file may be removed by its holder; who was waiting for it then finds that its file has no name any more and begins anew.
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Win32.SafeHandles;

namespace Platform;

/// <summary>A lock that is held. Disposing lets go.</summary>
public sealed class FileLock : IDisposable
{
    private const int MaxTextBytes = 64;

    private readonly SafeFileHandle file;
    private readonly string path;
    private readonly bool isExclusive;

    private FileLock(SafeFileHandle file, string path, bool isExclusive)
    {
        this.file = file;
        this.path = path;
        this.isExclusive = isExclusive;
    }

    /// <summary>Takes a lock at once, making its file when there is none; null while somebody else is in the way.</summary>
    /// <exception cref="BlockIoException">The file cannot be made or opened.</exception>
    public static FileLock? TryTake(string path, bool isExclusive)
    {
        while (true)
        {
            SafeFileHandle file = Posix.OpenLockFile(path, isExclusive);
            if (!Posix.TryLock(file, isExclusive))
            {
                file.Dispose();
                return null;
            }

            if (Posix.IsNamed(file))
                return new FileLock(file, path, isExclusive);
            file.Dispose(); // Its holder removed it while we waited for it.
        }
    }

    /// <summary>Whether somebody holds the lock, shared or exclusive. Makes no file.</summary>
    public static bool IsHeld(string path)
    {
        if (!File.Exists(path))
            return false;
        try
        {
            using SafeFileHandle file = Posix.OpenRegularFile(path, isWritable: false);
            return !Posix.TryLock(file, isExclusive: true);
        }
        catch (BlockIoException e) when (e.Errno == Errno.ENOENT)
        {
            return false;
        }
    }

    /// <summary>Replaces what the lock's file says; for a lock that is held exclusively.</summary>
    public void Write(string text)
    {
        Invariant.Holds(isExclusive, "only the one holder of a lock says something in its file");
        RandomAccess.SetLength(file, 0);
        RandomAccess.Write(file, Encoding.UTF8.GetBytes(text), 0);
    }

    /// <summary>What the holder says; empty when there is no such file. Not by the framework's file calls, which lock too.</summary>
    public static string Read(string path)
    {
        try
        {
            using SafeFileHandle file = Posix.OpenRegularFile(path, isWritable: false);
            Span<byte> text = stackalloc byte[MaxTextBytes];
            return Encoding.UTF8.GetString(text[..RandomAccess.Read(file, text, 0)]);
        }
        catch (BlockIoException e) when (e.Errno == Errno.ENOENT)
        {
            return "";
        }
    }

    /// <summary>The file goes too, unless others hold the lock.</summary>
    public void Dispose()
    {
        if (file.IsClosed)
            return;
        if (isExclusive || Posix.TryLock(file, isExclusive: true))
            Posix.TryUnlink(path);
        file.Dispose();
    }
}

public static partial class Posix
{
    private const int OpenCreate = 0x40;
    private const int LockShared = 1;
    private const int StatxLinksOffset = 16;
    private const uint StatxLinks = 4;
    private const int LockFileMode = 0x1A4; // rw-r--r--

    internal static SafeFileHandle OpenLockFile(string path, bool isWritable)
    {
        int fd = open(path, (isWritable ? OpenReadWrite : 0) | OpenCreate | OpenNonBlocking | OpenCloseOnExec, LockFileMode);
        return fd >= 0
            ? new SafeFileHandle(fd, ownsHandle: true)
            : throw new BlockIoException(
                (Errno)Marshal.GetLastPInvokeError(), $"cannot open {path}: {Marshal.GetLastPInvokeErrorMessage()}");
    }

    internal static bool TryLock(SafeFileHandle file, bool isExclusive) =>
        flock(file, (isExclusive ? LockExclusive : LockShared) | LockNonBlocking) == 0;

    internal static unsafe bool IsNamed(SafeFileHandle file)
    {
        byte* status = stackalloc byte[256];
        return statx(file, "", StatxEmptyPath, StatxLinks, status) == 0 && *(uint*)(status + StatxLinksOffset) > 0;
    }

    internal static void TryUnlink(string path) => _ = unlink(path);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags, int mode);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int unlink(string path);
}
