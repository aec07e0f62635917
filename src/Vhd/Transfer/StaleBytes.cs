// Making a range of an existing file zeros without writing zeros over zeros: holes are skipped, the rest is read, and only what is not zero
// is freed or written. Reading is cheaper than writing, and an image that is refreshed in place is mostly what it was.
using Platform;

namespace Vhd.Transfer;

internal sealed class StaleBytes(IVhdFile file)
{
    private const int PieceBytes = 256 * 1024;
    private readonly byte[] buffer = new byte[PieceBytes];

    /// <returns>Bytes that had to be changed.</returns>
    public long Clear(long fromBytes, long toBytes)
    {
        long changed = 0;
        toBytes = Math.Min(toBytes, file.LengthBytes);
        for (long at = fromBytes; at < toBytes;)
        {
            at = Posix.NextData(((PosixFile)file).Handle, at, toBytes);
            int length = (int)Math.Min(PieceBytes, toBytes - at);
            Span<byte> piece = buffer.AsSpan(0, length);
            int read = length == 0 ? 0 : file.Read(at, piece);
            int first = piece[..read].IndexOfAnyExcept((byte)0);
            if (first >= 0)
            {
                int last = piece[..read].LastIndexOfAnyExcept((byte)0);
                file.Zero(at + first, last + 1 - first);
                changed += last + 1 - first;
            }

            at += length;
        }

        return changed;
    }
}
