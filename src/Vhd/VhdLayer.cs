// One link of a chain, open: where its sectors are. Lookups take no lock; a bitmap is read from the file when it is first needed and kept
// in a cache of fixed size. A slot holds one block's bitmap; whoever loads or changes it holds the block's stripe, and a slot's blocks
// share one stripe, so a bitmap that a reader finds in its slot is never stale.
using Platform;

namespace Vhd;

/// <summary>A run of a layer: held by it, at <see cref="FileOffsetBytes"/>, or not.</summary>
internal readonly record struct LayerRun(bool IsPresent, long EndBytes, long FileOffsetBytes);

internal sealed class VhdLayer : IDisposable
{
    /// <summary>Locks for blocks, by number modulo. A power of two, and a divisor of the number of slots.</summary>
    public const int StripeCount = 64;

    private readonly SectorBitmap?[] slots;
    private readonly Stripe[] stripes;
    private readonly uint[] table;
    private readonly int sectorsPerBlock;

    private VhdLayer(IVhdFile file, string path, VhdMetadata? metadata, long sizeBytes, int bitmapSlots)
    {
        File = file;
        Path = path;
        Metadata = metadata;
        SizeBytes = sizeBytes;
        table = metadata?.Table ?? [];
        sectorsPerBlock = (metadata?.Header?.BlockBytes ?? 0) / VhdFooter.SectorBytes;
        slots = new SectorBitmap?[IsFlat ? 0 : bitmapSlots];
        stripes = new Stripe[IsFlat ? 0 : StripeCount];
        for (int i = 0; i < stripes.Length; i++)
            stripes[i] = new Stripe();
    }

    public IVhdFile File { get; }

    public string Path { get; }

    /// <summary>Null for a raw parent.</summary>
    public VhdMetadata? Metadata { get; }

    public long SizeBytes { get; }

    /// <summary>A raw file or a fixed image: an offset of the disk is an offset of the file.</summary>
    public bool IsFlat => Metadata?.Header is null;

    public int BlockBytes => Metadata!.Header!.BlockBytes;

    public int SectorsPerBlock => sectorsPerBlock;

    public int BlockCount => table.Length;

    /// <param name="sizeBytes">Another size than the footer's, for which the table has room; 0 for the footer's.</param>
    public static VhdLayer OpenImage(IVhdStore store, string path, bool isWritable, int bitmapSlots, long sizeBytes = 0)
    {
        IVhdFile file = OpenFile(store, path, isWritable);
        try
        {
            VhdMetadata metadata = VhdMetadata.Read(file, path, sizeBytes: sizeBytes);
            if (isWritable && metadata.Stray is { } stray)
                throw new VhdException(
                    VhdError.Damaged, path, $"{stray} is outside of the file, where a new block could come to lie over it; the image can be read");
            return new VhdLayer(file, path, metadata, metadata.SizeBytes, bitmapSlots);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>
    /// For who is about to read or write content: of an encrypted image that would be the cipher's bytes, and plain ones among them.
    /// </summary>
    public void RefuseEncrypted()
    {
        if (Metadata is not null && BatmapHeader.KeyOf(BatmapHeader.ReadStored(File, Metadata)) is not null)
            throw new VhdException(VhdError.Unsupported, Path, "the image is encrypted, which is not served here; nothing was changed");
    }

    public static VhdLayer OpenRaw(IVhdStore store, string path, bool isWritable = false)
    {
        IVhdFile file = OpenFile(store, path, isWritable);
        return new VhdLayer(file, path, null, file.LengthBytes / VhdFooter.SectorBytes * VhdFooter.SectorBytes, 0);
    }

    public static IVhdFile OpenFile(IVhdStore store, string path, bool isWritable)
    {
        try
        {
            return store.Open(path, isWritable);
        }
        catch (BlockIoException e)
        {
            throw new VhdException(VhdError.CannotOpen, path, e.Message, e);
        }
    }

    /// <summary>The run that starts at an offset and ends at <paramref name="endBytes"/> or before.</summary>
    public LayerRun Find(long offsetBytes, long endBytes)
    {
        if (offsetBytes >= SizeBytes)
            return new LayerRun(false, endBytes, 0);
        endBytes = Math.Min(endBytes, SizeBytes);
        if (IsFlat)
            return new LayerRun(true, endBytes, offsetBytes);
        int block = (int)(offsetBytes / BlockBytes);
        uint start = Volatile.Read(ref table[block]);
        if (start == VhdHeader.Unused)
            return new LayerRun(false, UnallocatedEnd(block, endBytes), 0);
        long blockStart = (long)block * BlockBytes;
        int from = (int)(offsetBytes - blockStart) / VhdFooter.SectorBytes;
        int limit = (int)(Math.Min(endBytes - blockStart, BlockBytes) / VhdFooter.SectorBytes);
        int end = BitmapOf(block).RunEnd(from, limit, out bool isSet);
        return new LayerRun(isSet, blockStart + (long)end * VhdFooter.SectorBytes, DataOffsetOf(start) + offsetBytes - blockStart);
    }

    public void ReadExactly(long fileOffsetBytes, Span<byte> destination)
    {
        if (File.Read(fileOffsetBytes, destination) < destination.Length)
            throw new BlockIoException(
                Errno.EIO, $"{Path}: the file ends inside of {destination.Length} bytes at byte {fileOffsetBytes}; it was cut");
    }

    /// <summary>The block's bitmap as it is now.</summary>
    public SectorBitmap BitmapOf(int block)
    {
        SectorBitmap? cached = Volatile.Read(ref slots[block % slots.Length]);
        if (cached is not null && cached.Block == block)
            return cached;
        lock (stripes[block % StripeCount])
            return LoadBitmap(block);
    }

    /// <summary>Where a byte of the disk is in the file, if the layer holds it.</summary>
    public long FileOffsetOf(int block, long offsetBytes) =>
        IsFlat ? offsetBytes : DataOffsetOf(block) + offsetBytes - (long)block * BlockBytes;

    /// <summary>The lock that changes of a block are made under, with what only a writer keeps.</summary>
    public Stripe StripeOf(int block) => stripes[block % StripeCount];

    public bool IsAllocated(int block) => Volatile.Read(ref table[block]) != VhdHeader.Unused;

    public long BitmapOffsetOf(int block) => Volatile.Read(ref table[block]) * (long)VhdFooter.SectorBytes;

    public long DataOffsetOf(int block) => DataOffsetOf(Volatile.Read(ref table[block]));

    /// <summary>Shows a new, empty block to readers. The caller holds its stripe.</summary>
    public void Place(int block, long offsetBytes)
    {
        Volatile.Write(ref slots[block % slots.Length], SectorBitmap.Empty(block, sectorsPerBlock));
        Volatile.Write(ref table[block], checked((uint)(offsetBytes / VhdFooter.SectorBytes)));
    }

    /// <summary>Shows a block in another place, with the same content. The caller holds its stripe.</summary>
    public void MoveTo(int block, long offsetBytes) =>
        Volatile.Write(ref table[block], checked((uint)(offsetBytes / VhdFooter.SectorBytes)));

    public void Dispose() => File.Dispose();

    private long DataOffsetOf(uint start) => start * (long)VhdFooter.SectorBytes + Metadata!.Header!.BitmapBytes;

    private SectorBitmap LoadBitmap(int block)
    {
        ref SectorBitmap? slot = ref slots[block % slots.Length];
        if (slot is { } present && present.Block == block)
            return present;
        SectorBitmap loaded;
        byte[] batmap = Metadata!.Batmap;
        if (block / 8 < batmap.Length && (batmap[block / 8] & (0x80 >> (block % 8))) != 0)
        {
            loaded = SectorBitmap.Full(block, sectorsPerBlock);
        }
        else
        {
            Span<byte> bytes = stackalloc byte[Metadata.Header!.BitmapBytes];
            ReadExactly(BitmapOffsetOf(block), bytes);
            loaded = SectorBitmap.FromBytes(block, bytes, sectorsPerBlock);
        }

        Volatile.Write(ref slot, loaded);
        return loaded;
    }

    private long UnallocatedEnd(int block, long endBytes)
    {
        int last = (int)((endBytes + BlockBytes - 1) / BlockBytes);
        int allocated = table.AsSpan(block, last - block).IndexOfAnyExcept(VhdHeader.Unused);
        return allocated < 0 ? endBytes : Math.Min(endBytes, (long)(block + allocated) * BlockBytes);
    }

    internal sealed class Stripe
    {
        /// <summary>Blocks placed in memory whose table entry is not in the file yet: nothing in them may be acknowledged.</summary>
        public HashSet<int> Unlinked { get; } = [];

        /// <summary>Blocks whose unclaimed sectors are known to be zeros in the file.</summary>
        public HashSet<int> Scrubbed { get; } = [];
    }
}
