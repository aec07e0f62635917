// A guest's memory: pages of 4 KiB and the log of those written since they were last looked at. Words are little-endian, as on the
// machines we run on. Invariant: a page is marked after it is written. A reader takes the marks first and the bytes second, so that a
// write which it missed, or saw half of, is still in the log for the next round.
using System.Numerics;
using System.Runtime.InteropServices;
using Platform;

namespace Xenops;

public sealed class GuestMemory
{
    public const int PageSizeBytes = 4096;

    private readonly byte[] bytes;
    private readonly long[] dirty;

    public GuestMemory(long lengthBytes)
    {
        Invariant.Holds(lengthBytes > 0 && lengthBytes % PageSizeBytes == 0, "a guest has whole pages");
        bytes = new byte[lengthBytes];
        dirty = new long[(PageCount + 63) / 64];
    }

    public int PageCount => bytes.Length / PageSizeBytes;

    public int DirtyCount
    {
        get
        {
            int count = 0;
            for (int i = 0; i < dirty.Length; i++)
                count += BitOperations.PopCount((ulong)Volatile.Read(ref dirty[i]));
            return count;
        }
    }

    /// <summary>The live bytes; whoever copies them while the guest runs may see half of a write, which is then in the log.</summary>
    public ReadOnlySpan<byte> Page(int page) => bytes.AsSpan(page * PageSizeBytes, PageSizeBytes);

    public void Write(int page, ReadOnlySpan<byte> content, int offsetBytes = 0)
    {
        content.CopyTo(bytes.AsSpan(page * PageSizeBytes, PageSizeBytes)[offsetBytes..]);
        Mark(page);
    }

    public long ReadWord(int page, int word) => Volatile.Read(ref Word(page, word));

    public void WriteWord(int page, int word, long value)
    {
        Volatile.Write(ref Word(page, word), value);
        Mark(page);
    }

    public long AddToWord(int page, int word, long increment)
    {
        long result = Interlocked.Add(ref Word(page, word), increment);
        Mark(page);
        return result;
    }

    public void MarkAll()
    {
        for (int page = 0; page < PageCount; page++)
            Mark(page);
    }

    /// <summary>Empties the log into a list of page numbers, ascending.</summary>
    public List<int> TakeDirty()
    {
        List<int> pages = [];
        for (int i = 0; i < dirty.Length; i++)
        {
            ulong marks = (ulong)Interlocked.Exchange(ref dirty[i], 0);
            for (; marks != 0; marks &= marks - 1)
                pages.Add(i * 64 + BitOperations.TrailingZeroCount(marks));
        }

        return pages;
    }

    private ref long Word(int page, int word) =>
        ref MemoryMarshal.Cast<byte, long>(bytes.AsSpan(page * PageSizeBytes, PageSizeBytes))[word];

    private void Mark(int page) => Interlocked.Or(ref dirty[page >> 6], 1L << page);
}
