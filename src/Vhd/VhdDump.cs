// What an image file holds as it is stored, for whoever looks into one (vhd-util read): the block table, sector bitmaps, the batmap, one
// block's own bytes. Nothing here looks at parents, and nothing changes the file.
using Platform;

namespace Vhd;

/// <summary>One image, open to be looked into. Blocks and sectors are those of its disk.</summary>
public sealed class VhdDump : IDisposable
{
    private readonly IVhdFile file;
    private readonly VhdMetadata metadata;
    private readonly string path;
    private readonly byte[] bitmap;
    private long bitmapBlock = -1;

    private VhdDump(IVhdFile file, string path)
    {
        this.file = file;
        this.path = path;
        metadata = VhdMetadata.Read(file, path);
        bitmap = new byte[metadata.Header?.BitmapBytes ?? 0];
    }

    /// <summary>0 for a fixed image.</summary>
    public int BlockBytes => metadata.Header?.BlockBytes ?? 0;

    /// <summary>Sectors of 512 bytes in a block.</summary>
    public int SectorsPerBlock => BlockBytes / VhdFooter.SectorBytes;

    /// <exception cref="VhdException">The image is refused.</exception>
    public static VhdDump Open(string path)
    {
        IVhdFile file = VhdLayer.OpenFile(PosixStore.Instance, path, isWritable: false);
        try
        {
            return new VhdDump(file, path);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Footer, header, locators and batmap header under the field's labels, line by line; also of an image that is refused, as far as
    /// there is something to be shown.
    /// </summary>
    /// <exception cref="VhdException">CannotOpen only.</exception>
    public static IReadOnlyList<string> HeaderLines(string path, bool isHex)
    {
        using IVhdFile file = VhdLayer.OpenFile(PosixStore.Instance, path, isWritable: false);
        return new HeaderText(file, isHex).Lines();
    }

    /// <summary>Where a block begins in the file, with its bitmap; null when it is absent.</summary>
    /// <exception cref="VhdException">BadRequest: the disk has no such block, or the image no blocks.</exception>
    public long? BlockOffsetBytes(long block)
    {
        RequireBlock(block);
        uint start = metadata.Table[block];
        return start == VhdHeader.Unused ? null : start * (long)VhdFooter.SectorBytes;
    }

    /// <summary>Where a sector's place in the file is, whether or not the image holds the sector; null when its block is absent.</summary>
    public long? SectorOffsetBytes(long sector)
    {
        RequireSector(sector);
        return BlockOffsetBytes(sector / SectorsPerBlock) + bitmap.Length + sector % SectorsPerBlock * VhdFooter.SectorBytes;
    }

    /// <summary>
    /// A block's bitmap as stored: most significant bit first, set = this image holds the sector. Good until the next call.
    /// </summary>
    public ReadOnlyMemory<byte> BitmapOf(long block)
    {
        if (BlockOffsetBytes(block) is not { } offset)
            throw new VhdException(VhdError.BadRequest, path, $"block {block} is not allocated and has no bitmap");
        if (bitmapBlock != block)
        {
            bitmapBlock = -1;
            metadata.ReadExactly(offset, bitmap);
            bitmapBlock = block;
        }

        return bitmap;
    }

    /// <summary>Whether this image itself holds a sector.</summary>
    public bool Holds(long sector)
    {
        RequireSector(sector);
        int bit = (int)(sector % SectorsPerBlock);
        return BlockOffsetBytes(sector / SectorsPerBlock) is not null
            && (BitmapOf(sector / SectorsPerBlock).Span[bit / 8] & (0x80 >> (bit % 8))) != 0;
    }

    /// <summary>The batmap as stored: most significant bit first, set = every sector of the block is held.</summary>
    /// <exception cref="VhdException">BadRequest: there is none.</exception>
    public byte[] Batmap()
    {
        byte[] stored = BatmapHeader.ReadStored(file, metadata)
            ?? throw new VhdException(VhdError.BadRequest, path, "it has no batmap");
        BatmapHeader header = BatmapHeader.Read(stored);
        long length = header.Sectors * (long)VhdFooter.SectorBytes;
        if (header.OffsetBytes < 0 || length > BatmapHeader.RoomFor(metadata.Header!.MaxTableEntries)
            || header.OffsetBytes > file.LengthBytes - length)
            throw new VhdException(VhdError.Damaged, path, $"its batmap of {length} bytes at byte {header.OffsetBytes} is not in the file");
        byte[] map = new byte[length];
        metadata.ReadExactly(header.OffsetBytes, map);
        return map;
    }

    /// <summary>Which blocks are allocated: a bit for each block of the disk, most significant first, padded to whole bytes.</summary>
    public byte[] AllocationMap()
    {
        RequireBlocks();
        byte[] map = new byte[(metadata.Table.Length + 7) / 8];
        for (int block = 0; block < metadata.Table.Length; block++)
        {
            if (metadata.Table[block] != VhdHeader.Unused)
                map[block / 8] |= (byte)(0x80 >> (block % 8));
        }

        return map;
    }

    /// <summary>A block's data as stored, what the image does not hold included; zeros for what the file ends before.</summary>
    public void ReadBlock(long block, Span<byte> destination)
    {
        if (BlockOffsetBytes(block) is not { } offset)
            throw new VhdException(VhdError.BadRequest, path, $"block {block} is not allocated and has no data");
        Invariant.Holds(destination.Length == BlockBytes, "a block is read whole");
        destination[file.Read(offset + bitmap.Length, destination)..].Clear();
    }

    public void Dispose() => file.Dispose();

    private void RequireBlocks()
    {
        if (metadata.Header is null)
            throw new VhdException(VhdError.BadRequest, path, "a fixed image has no blocks, no table and no bitmaps");
    }

    private void RequireBlock(long block)
    {
        RequireBlocks();
        if (block < 0 || block >= metadata.Table.Length)
            throw new VhdException(VhdError.BadRequest, path, $"block {block} is past the end of a disk of {metadata.Table.Length} blocks");
    }

    private void RequireSector(long sector)
    {
        RequireBlocks();
        long sectors = metadata.SizeBytes / VhdFooter.SectorBytes;
        if (sector < 0 || sector >= sectors)
            throw new VhdException(VhdError.BadRequest, path, $"sector {sector} is past the end of a disk of {sectors} sectors");
    }
}
