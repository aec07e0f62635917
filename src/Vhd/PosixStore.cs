// Image files as they are on a real machine: pread, pwrite, fdatasync, punched holes, through the page cache.
using Microsoft.Win32.SafeHandles;
using Platform;

namespace Vhd;

internal sealed class PosixStore : IVhdStore
{
    public static readonly PosixStore Instance = new();

    public IVhdFile Open(string path, bool isWritable) => new PosixFile(Posix.OpenRegularFile(path, isWritable));

    public bool Exists(string path) => Path.Exists(path);

    public IVhdFile Create(string path, long reserveBytes) =>
        new PosixFile(File.OpenHandle(path, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.ReadWrite, FileOptions.None, reserveBytes));

    public void Publish(string temporaryPath, string path) => Publish(temporaryPath, path, isSynced: true);

    public void Publish(string temporaryPath, string path, bool isSynced)
    {
        // A link, because it refuses a name that is taken; a rename would replace what is there.
        Posix.CreateHardLink(temporaryPath, path);
        File.Delete(temporaryPath);
        if (isSynced)
            Posix.SyncDirectory(Path.GetDirectoryName(Path.GetFullPath(path))!);
    }

    public void Delete(string path)
    {
        if (File.Exists(path))
            File.Delete(path);
    }

    public IReadOnlyList<string> NamesIn(string folder) =>
        [.. Directory.EnumerateFiles(folder).Select(static path => Path.GetFileName(path))];

    public void Link(string existingPath, string path) => Posix.CreateHardLink(existingPath, path);

    public void Rename(string fromPath, string toPath) => File.Move(fromPath, toPath, overwrite: true);

    public void SyncFolder(string folder) => Posix.SyncDirectory(folder);
}

internal sealed class PosixFile(SafeFileHandle handle) : IVhdFile
{
    private static readonly byte[] Zeros = new byte[64 * 1024];

    public SafeFileHandle Handle => handle;

    public string CanonicalPath { get; } = Posix.CanonicalPathOf(handle);

    public long LengthBytes => RandomAccess.GetLength(handle);

    public DateTimeOffset ModifiedAt => File.GetLastWriteTimeUtc(handle);

    public int Read(long offsetBytes, Span<byte> destination)
    {
        int done = 0;
        while (done < destination.Length)
        {
            int read = RandomAccess.Read(handle, destination[done..], offsetBytes + done);
            if (read == 0)
                break;
            done += read;
        }

        return done;
    }

    public void Write(long offsetBytes, ReadOnlySpan<byte> source) => RandomAccess.Write(handle, source, offsetBytes);

    public void Zero(long offsetBytes, long lengthBytes)
    {
        // Under a page there is no hole to gain and a plain write is the cheaper call.
        if (lengthBytes >= 4096 && Posix.TryPunchHole(handle, offsetBytes, lengthBytes))
            return;
        for (long done = 0; done < lengthBytes; done += Zeros.Length)
            Write(offsetBytes + done, Zeros.AsSpan(0, (int)Math.Min(Zeros.Length, lengthBytes - done)));
    }

    public void SetLength(long lengthBytes) => RandomAccess.SetLength(handle, lengthBytes);

    public long DataEndBytes() => Posix.DataEndOf(handle, LengthBytes);

    public void Sync() => Posix.SyncData(handle);

    public void Dispose() => handle.Dispose();
}
