// A guest's memory: pages of 4 KiB and the log of those written since they were last looked at, seen by the guest's process and by
// xenopsd. Words are little-endian, as on the machines we run on. Invariant: a page is marked after it is written. A reader takes the marks
// first and the bytes second, so that a write which it missed, or saw half of, is still in the log for the next round.
using System.Numerics;
using System.Runtime.InteropServices;
using Platform;

namespace Xenops;

public sealed class GuestMemory
{
    public const int PageSizeBytes = 4096;

    private readonly MappedMemory mapping;
    private readonly int logBytes;

    public GuestMemory(long lengthBytes)
        : this(lengthBytes, MappedMemory.Private)
    {
    }

    /// <param name="map">Given the length of what is mapped: the log, then the pages.</param>
    private GuestMemory(long lengthBytes, Func<int, MappedMemory> map)
    {
        Invariant.Holds(lengthBytes > 0 && lengthBytes % PageSizeBytes == 0, "a guest has whole pages");
        PageCount = (int)(lengthBytes / PageSizeBytes);
        logBytes = ((PageCount + 63) / 64 * sizeof(long) + PageSizeBytes - 1) / PageSizeBytes * PageSizeBytes;
        mapping = map(logBytes + PageCount * PageSizeBytes);
    }

    /// <summary>Memory that another process can open.</summary>
    public static GuestMemory Share(long lengthBytes, string name) => new(lengthBytes, mapped => MappedMemory.Shared(name, mapped));

    /// <summary>Another process's memory.</summary>
    /// <exception cref="IOException">It is gone, or is of another length.</exception>
    public static GuestMemory Open(long lengthBytes, string path) => new(lengthBytes, mapped => MappedMemory.Open(path, mapped));

    /// <summary>Where another process opens it; only of memory that is shared.</summary>
    public string Path => mapping.Path;

    public int PageCount { get; }

    public int DirtyCount
    {
        get
        {
            int count = 0;
            Span<long> dirty = Dirty;
            for (int i = 0; i < dirty.Length; i++)
                count += BitOperations.PopCount((ulong)Volatile.Read(ref dirty[i]));
            return count;
        }
    }

    /// <summary>The live bytes; whoever copies them while the guest runs may see half of a write, which is then in the log.</summary>
    public ReadOnlySpan<byte> Page(int page) => PageAt(page);

    public void Write(int page, ReadOnlySpan<byte> content, int offsetBytes = 0)
    {
        content.CopyTo(PageAt(page)[offsetBytes..]);
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
        Span<long> dirty = Dirty;
        for (int i = 0; i < dirty.Length; i++)
        {
            ulong marks = (ulong)Interlocked.Exchange(ref dirty[i], 0);
            for (; marks != 0; marks &= marks - 1)
                pages.Add(i * 64 + BitOperations.TrailingZeroCount(marks));
        }

        return pages;
    }

    private Span<long> Dirty => MemoryMarshal.Cast<byte, long>(mapping.Bytes[..((PageCount + 63) / 64 * sizeof(long))]);

    private Span<byte> PageAt(int page)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)page, (uint)PageCount);
        return mapping.Bytes.Slice(logBytes + page * PageSizeBytes, PageSizeBytes);
    }

    private ref long Word(int page, int word) => ref MemoryMarshal.Cast<byte, long>(PageAt(page))[word];

    private void Mark(int page) => Interlocked.Or(ref Dirty[page >> 6], 1L << page);
}
