// Memory outside the managed heap that two processes can look at. It is unmapped when nobody refers to it any more, never before: a span of
// it in use must not outlive the object.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Platform;

public sealed partial class MappedMemory
{
    private const int ProtectRead = 1;
    private const int ProtectWrite = 2;
    private const int MapShared = 1;
    private const int MapPrivate = 2;
    private const int MapAnonymous = 0x20;
    private const uint CloseOnExec = 1;
    private static readonly SafeFileHandle NoFile = new(-1, ownsHandle: false);

    private readonly unsafe byte* start;
    private readonly int lengthBytes;
    private readonly SafeFileHandle file;

    private unsafe MappedMemory(SafeFileHandle file, int lengthBytes, int flags)
    {
        this.file = file;
        nint mapped = mmap(0, (nuint)lengthBytes, ProtectRead | ProtectWrite, flags, file, 0);
        if (mapped == -1)
        {
            GC.SuppressFinalize(this);
            throw new IOException($"cannot map {lengthBytes} bytes of memory: {Marshal.GetLastPInvokeErrorMessage()}");
        }

        start = (byte*)mapped;
        this.lengthBytes = lengthBytes;
        GC.AddMemoryPressure(lengthBytes);
    }

    unsafe ~MappedMemory()
    {
        _ = munmap((nint)start, (nuint)lengthBytes);
        GC.RemoveMemoryPressure(lengthBytes);
    }

    public unsafe Span<byte> Bytes => new(start, lengthBytes);

    /// <summary>Where another process of this user finds it, as long as this one lives; only of shared memory.</summary>
    public string Path => $"/proc/{Environment.ProcessId}/fd/{file.DangerousGetHandle()}";

    /// <summary>Zeros, for this process.</summary>
    public static MappedMemory Private(int lengthBytes) => new(NoFile, lengthBytes, MapPrivate | MapAnonymous);

    /// <summary>Zeros, without a name in any filesystem: gone with the last process that maps it.</summary>
    public static MappedMemory Shared(string name, int lengthBytes)
    {
        int descriptor = memfd_create(name, CloseOnExec);
        if (descriptor < 0)
            throw new IOException($"cannot make shared memory: {Marshal.GetLastPInvokeErrorMessage()}");
        SafeFileHandle file = new(descriptor, ownsHandle: true);
        RandomAccess.SetLength(file, lengthBytes);
        return new MappedMemory(file, lengthBytes, MapShared);
    }

    /// <summary>What another process shares.</summary>
    /// <param name="path">Its <see cref="Path"/>.</param>
    /// <exception cref="IOException">It is gone, or has another length.</exception>
    public static MappedMemory Open(string path, int lengthBytes)
    {
        using SafeFileHandle file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        long found = RandomAccess.GetLength(file);
        return found == lengthBytes
            ? new MappedMemory(file, lengthBytes, MapShared)
            : throw new IOException($"{path} has {found} bytes, not {lengthBytes}");
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint mmap(nint address, nuint length, int protection, int flags, SafeFileHandle file, long offset);

    [LibraryImport("libc")]
    private static partial int munmap(nint address, nuint length);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int memfd_create(string name, uint flags);
}
