// A block's sector bitmap in memory: most significant bit first, set = this image holds the sector. Readers take no lock: bits are only
// ever set, a word at a time, after the sector's data and everything that makes it found again are in the file.
using System.Buffers.Binary;
using System.Numerics;

namespace Vhd;

internal sealed class SectorBitmap
{
    private readonly ulong[] words;

    private SectorBitmap(int block, ulong[] words)
    {
        Block = block;
        this.words = words;
    }

    public int Block { get; }

    public static SectorBitmap Empty(int block, int sectors) => new(block, new ulong[sectors / 64]);

    public static SectorBitmap Full(int block, int sectors)
    {
        SectorBitmap bitmap = Empty(block, sectors);
        Array.Fill(bitmap.words, ulong.MaxValue);
        return bitmap;
    }

    public static SectorBitmap FromBytes(int block, ReadOnlySpan<byte> bytes, int sectors)
    {
        SectorBitmap bitmap = Empty(block, sectors);
        for (int i = 0; i < bitmap.words.Length; i++)
            bitmap.words[i] = BinaryPrimitives.ReadUInt64BigEndian(bytes[(i * 8)..]);
        return bitmap;
    }

    /// <summary>The end of the run of equal bits that starts at a sector, at most <paramref name="limit"/>.</summary>
    public int RunEnd(int sector, int limit, out bool isSet)
    {
        ulong word = Volatile.Read(ref words[sector >> 6]);
        isSet = (word << (sector & 63)) >> 63 != 0;
        ulong flip = isSet ? ulong.MaxValue : 0;
        ulong different = (word ^ flip) << (sector & 63);
        if (different != 0)
            return Math.Min(limit, sector + BitOperations.LeadingZeroCount(different));
        for (int at = (sector | 63) + 1; at < limit; at += 64)
        {
            different = Volatile.Read(ref words[at >> 6]) ^ flip;
            if (different != 0)
                return Math.Min(limit, at + BitOperations.LeadingZeroCount(different));
        }

        return limit;
    }

    public bool IsSet(int from, int to) => RunEnd(from, to, out bool isSet) == to && isSet;

    public bool IsFull => IsSet(0, words.Length * 64);

    /// <summary>
    /// Takes, in a map with a byte for each eight sectors, what is free and held here; what is held in part becomes
    /// <paramref name="mixed"/>.
    /// </summary>
    public void OwnGroups(Span<byte> owners, byte owner, byte free, byte mixed)
    {
        for (int group = 0; group < owners.Length; group++)
        {
            byte held = (byte)(Volatile.Read(ref words[group >> 3]) >> (56 - 8 * (group & 7)));
            if (held != 0 && owners[group] == free)
                owners[group] = held == byte.MaxValue ? owner : mixed;
        }
    }

    /// <summary>The bitmap as stored, with a range of bits set in addition.</summary>
    public void WriteTo(Span<byte> bytes, int setFrom, int setTo)
    {
        bytes.Clear();
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt64BigEndian(bytes[(i * 8)..], words[i] | MaskOf(i, setFrom, setTo));
    }

    /// <summary>The bitmap as stored, without the bits from a sector on.</summary>
    public void WriteCutTo(Span<byte> bytes, int fromSector)
    {
        bytes.Clear();
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt64BigEndian(bytes[(i * 8)..], words[i] & MaskOf(i, 0, fromSector));
    }

    /// <summary>The bitmap as stored, with another's bits in addition.</summary>
    /// <returns>False when they are all set already.</returns>
    public bool WriteUnionTo(Span<byte> bytes, SectorBitmap added)
    {
        bytes.Clear();
        ulong isNew = 0;
        for (int i = 0; i < words.Length; i++)
        {
            isNew |= added.words[i] & ~words[i];
            BinaryPrimitives.WriteUInt64BigEndian(bytes[(i * 8)..], words[i] | added.words[i]);
        }

        return isNew != 0;
    }

    /// <summary>Shows another's bits to readers. The caller is the block's only writer.</summary>
    public void Add(SectorBitmap added)
    {
        for (int i = 0; i < words.Length; i++)
            Volatile.Write(ref words[i], words[i] | added.words[i]);
    }

    /// <summary>Forgets everything. Only for a bitmap that is no image's.</summary>
    public void Clear() => Array.Clear(words);

    /// <summary>Shows a range to readers. The caller is the block's only writer.</summary>
    public void Set(int from, int to)
    {
        for (int i = from >> 6; i <= (to - 1) >> 6; i++)
            Volatile.Write(ref words[i], words[i] | MaskOf(i, from, to));
    }

    private static ulong MaskOf(int word, int from, int to)
    {
        int first = Math.Clamp(from - word * 64, 0, 64);
        int last = Math.Clamp(to - word * 64, 0, 64);
        if (first >= last)
            return 0;
        ulong upTo = last == 64 ? ulong.MaxValue : ~(ulong.MaxValue >> last);
        return upTo & (ulong.MaxValue >> first);
    }
}
