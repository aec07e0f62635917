// A file that bytes are moved from or to: through the page cache, or past it where offset, length and memory allow.
using Microsoft.Win32.SafeHandles;
using Platform;

namespace Vhd.Transfer;

internal sealed class DiskFile : IDisposable
{
    private readonly SafeFileHandle? direct;
    private readonly string path;

    public DiskFile(IVhdFile file, string path, bool isDirect, bool isWritable)
    {
        this.path = path;
        Handle = ((PosixFile)file).Handle;
        direct = isDirect ? Posix.OpenDirect(Handle, isWritable) : null;
    }

    /// <summary>The image's own descriptor; it is not ours to close.</summary>
    public SafeFileHandle Handle { get; }

    public void ReadExactly(long offsetBytes, Span<byte> destination)
    {
        for (int done = 0; done < destination.Length;)
        {
            Span<byte> rest = destination[done..];
            int read = RandomAccess.Read(For(offsetBytes + done, rest), rest, offsetBytes + done);
            if (read == 0)
                throw new BlockIoException(
                    Errno.EIO, $"{path}: the file ends inside of {destination.Length} bytes at byte {offsetBytes}; it was cut");
            done += read;
        }
    }

    public void Write(long offsetBytes, ReadOnlySpan<byte> source) => RandomAccess.Write(For(offsetBytes, source), source, offsetBytes);

    public void Dispose() => direct?.Dispose();

    private SafeFileHandle For(long offsetBytes, ReadOnlySpan<byte> memory) =>
        direct is not null && Posix.IsAlignedForDirect(offsetBytes, memory) ? direct : Handle;
}
