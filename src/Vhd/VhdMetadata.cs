// What an image file says about itself, read and checked before a byte of content is served: footers, header, block table, batmap. Whatever
// the header claims, no more is read or kept than the file really holds. Agrees with research/storage.md 8.1-8.3; what is refused is in
// docs/formats/vhd.md.
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Platform;

namespace Vhd;

internal sealed class VhdMetadata
{
    private readonly List<string> warnings = [];
    private readonly List<(long Start, long End, string Name)> reserved = [];
    private readonly IVhdFile file;
    private readonly string path;
    private readonly long fileBytes;

    private VhdMetadata(IVhdFile file, string path)
    {
        this.file = file;
        this.path = path;
        fileBytes = file.LengthBytes;
    }

    public VhdFooter Footer { get; private set; } = null!;

    /// <summary>The footer as stored, so that a rewrite keeps what we do not know.</summary>
    public byte[] FooterBytes { get; } = new byte[VhdFooter.LengthBytes];

    /// <summary>Where the trailing footer begins; -1 when only the copy at the front is good.</summary>
    public long TrailingFooterBytes { get; private set; } = -1;

    public VhdHeader? Header { get; private set; }

    /// <summary>For each block of the disk the sector its bitmap is at, or <see cref="VhdHeader.Unused"/>.</summary>
    public uint[] Table { get; private set; } = [];

    /// <summary>
    /// One bit for each block, most significant first: the block is full, its bitmap need not be read. Empty when absent or not to be
    /// trusted.
    /// </summary>
    public byte[] Batmap { get; private set; } = [];

    /// <summary>The first byte after everything that is used, where the trailing footer of a cleanly closed image is.</summary>
    public long DataEndBytes { get; private set; }

    /// <summary>The first byte after everything that is no block.</summary>
    public long MetadataEndBytes { get; private set; }

    public IReadOnlyList<string> Warnings => warnings;

    public int AllocatedBlocks { get; private set; }

    /// <summary>Closed in order by its last writer: the footer follows the last block and nothing follows the footer.</summary>
    public bool IsTidy => TrailingFooterBytes == DataEndBytes && fileBytes == DataEndBytes + VhdFooter.LengthBytes;

    private int BlockSpanBytes => Header!.BitmapBytes + Header.BlockBytes;

    private long UsableEndBytes => TrailingFooterBytes < 0 ? fileBytes : TrailingFooterBytes;

    /// <exception cref="VhdException">The image is refused.</exception>
    public static VhdMetadata Read(IVhdFile file, string path, bool isHeaderChecked = true)
    {
        VhdMetadata metadata = new(file, path);
        metadata.ReadFooter();
        if (metadata.Footer.Type == VhdType.Fixed)
            metadata.CheckFixed();
        else
            metadata.ReadDynamic(isHeaderChecked);
        return metadata;
    }

    /// <summary>Only who an image is: enough to tell one parent from another.</summary>
    public static VhdFooter ReadFooter(IVhdFile file, string path)
    {
        VhdMetadata metadata = new(file, path);
        metadata.ReadFooter();
        return metadata.Footer;
    }

    private void ReadFooter()
    {
        if (fileBytes < VhdFooter.LengthBytes - 1)
            throw new VhdException(VhdError.NotAnImage, path, $"{fileBytes} bytes are too short for a VHD footer of 512");
        string reason = "";
        // Old writers left the last byte of the footer out.
        for (int length = VhdFooter.LengthBytes; length >= VhdFooter.LengthBytes - 1 && Footer is null && fileBytes >= length; length--)
        {
            FooterBytes[^1] = 0;
            ReadExactly(fileBytes - length, FooterBytes.AsSpan(0, length));
            VhdFooter? trailing = VhdFooter.TryRead(FooterBytes, path, out string why);
            reason = reason.Length == 0 ? why : reason;
            if (trailing is null)
                continue;
            Footer = trailing;
            TrailingFooterBytes = fileBytes - length;
        }

        if (Footer is null)
            ReadFooterCopy(reason);
        else if (Footer.Type != VhdType.Fixed)
            CompareFooterCopy();
    }

    private void ReadFooterCopy(string reason)
    {
        string copyReason = "the file is too short";
        if (fileBytes >= VhdFooter.LengthBytes + VhdHeader.LengthBytes)
        {
            ReadExactly(0, FooterBytes);
            Footer = VhdFooter.TryRead(FooterBytes, path, out copyReason)!;
        }

        // A fixed image has no copy: offset 0 is the guest's first sector, which must never speak for the image.
        if (Footer is null || Footer.Type == VhdType.Fixed)
            throw new VhdException(
                VhdError.NotAnImage, path, $"not a VHD: at byte {Math.Max(0, fileBytes - 512)} {reason}; the copy at byte 0: {copyReason}");
        warnings.Add($"the trailing footer at byte {fileBytes - VhdFooter.LengthBytes} is bad ({reason}); the copy at byte 0 is used");
    }

    private void CompareFooterCopy()
    {
        byte[] copy = new byte[VhdFooter.LengthBytes];
        if (file.Read(0, copy) < copy.Length || !copy.AsSpan().SequenceEqual(FooterBytes))
            warnings.Add("the footer copy at byte 0 is damaged or differs from the trailing footer, which is used");
    }

    private void CheckFixed()
    {
        if (Footer.CurrentSizeBytes > TrailingFooterBytes)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"a fixed image of {Footer.CurrentSizeBytes} bytes has only {TrailingFooterBytes} before its footer");
        DataEndBytes = TrailingFooterBytes;
    }

    private void ReadDynamic(bool isHeaderChecked)
    {
        long headerOffset = Footer.DataOffsetBytes;
        if (headerOffset < VhdFooter.LengthBytes || headerOffset > fileBytes - VhdHeader.LengthBytes)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"the footer puts the header at byte {(ulong)headerOffset}, outside of the file of {fileBytes} bytes");
        byte[] bytes = new byte[VhdHeader.LengthBytes];
        ReadExactly(headerOffset, bytes);
        Header = VhdHeader.Read(bytes, headerOffset, path, isHeaderChecked);
        CheckTablePlace(headerOffset);
        CheckParentFields();
        ReadTable();
        ReadBatmap();
        CheckBlocks();
    }

    private void CheckTablePlace(long headerOffset)
    {
        VhdHeader header = Header!;
        long needed = (Footer.CurrentSizeBytes + header.BlockBytes - 1) / header.BlockBytes;
        if (header.MaxTableEntries < needed)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"the block table has {header.MaxTableEntries} entries; a disk of {Footer.CurrentSizeBytes} bytes needs {needed}");
        long start = header.TableOffsetBytes;
        long length = header.MaxTableEntries * 4L;
        if (start < 0 || start > UsableEndBytes - length)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"the block table at byte {(ulong)start} of {length} bytes passes the end of the file ({fileBytes} bytes): truncated?");
        if (start < VhdFooter.LengthBytes || (start < headerOffset + VhdHeader.LengthBytes && headerOffset < start + length))
            throw new VhdException(VhdError.Damaged, path, $"the block table at byte {start} lies over the footer copy or the header");
    }

    private void CheckParentFields()
    {
        bool hasParent = Header!.ParentName.Length > 0 || Header.Locators.Count > 0;
        if (Footer.Type == VhdType.Differencing && !hasParent)
            throw new VhdException(
                VhdError.Damaged, path, "a differencing image that names no parent (no locators, no parent name in the header)");
    }

    private void ReadTable()
    {
        int entries = (int)((Footer.CurrentSizeBytes + Header!.BlockBytes - 1) / Header.BlockBytes);
        Table = new uint[entries];
        ReadExactly(Header.TableOffsetBytes, MemoryMarshal.AsBytes(Table.AsSpan()));
        if (BitConverter.IsLittleEndian)
            BinaryPrimitives.ReverseEndianness(Table, Table);
    }

    private void ReadBatmap()
    {
        // Only the field's own creator writes one, right after the table.
        long headerOffset = (Header!.TableEndBytes + VhdFooter.SectorBytes - 1) / VhdFooter.SectorBytes * VhdFooter.SectorBytes;
        byte[] header = new byte[VhdFooter.SectorBytes];
        if (Footer.CreatorApplication != VhdFooter.OurCreator || file.Read(headerOffset, header) < header.Length)
            return;
        BatmapHeader batmap = BatmapHeader.Read(header);
        if (!batmap.IsPresent)
        {
            warnings.Add($"no batmap at byte {headerOffset}, where creator 'tap' has one; bitmaps are read instead");
            return;
        }

        long length = BatmapHeader.MapBytes(Footer.CurrentSizeBytes);
        if (batmap.Version != BatmapHeader.KnownVersion || batmap.OffsetBytes < 0 || batmap.OffsetBytes > UsableEndBytes - length)
        {
            warnings.Add($"the batmap header at byte {headerOffset} is wrong; bitmaps are read instead");
            return;
        }

        byte[] map = new byte[length];
        ReadExactly(batmap.OffsetBytes, map);
        if (batmap.Checksum != VhdFooter.Checksum(map, int.MaxValue))
            warnings.Add($"the batmap's checksum at byte {headerOffset} is wrong; bitmaps are read instead");
        else if (ClaimsAbsentBlock(map))
            warnings.Add("the batmap calls a block full that is not allocated; bitmaps are read instead");
        else
            Batmap = map;
        reserved.Add((headerOffset, headerOffset + VhdFooter.SectorBytes, "batmap header"));
        reserved.Add((batmap.OffsetBytes, batmap.OffsetBytes + length, "batmap"));
    }

    private bool ClaimsAbsentBlock(byte[] map)
    {
        for (int i = 0; i < map.Length; i++)
        {
            for (int bit = 0; map[i] != 0 && bit < 8; bit++)
            {
                int block = i * 8 + bit;
                if ((map[i] & (0x80 >> bit)) != 0 && (block >= Table.Length || Table[block] == VhdHeader.Unused))
                    return true;
            }
        }

        return false;
    }

    private void CheckBlocks()
    {
        reserved.Add((0, VhdFooter.LengthBytes, "footer copy"));
        reserved.Add((Footer.DataOffsetBytes, Footer.DataOffsetBytes + VhdHeader.LengthBytes, "header"));
        reserved.Add((Header!.TableOffsetBytes, Header.TableEndBytes, "block table"));
        foreach (ParentLocator locator in Header.Locators)
        {
            // One that lies outside of the file is ignored here and refused where it is read.
            if (locator.OffsetBytes >= 0 && locator.OffsetBytes <= UsableEndBytes - locator.SpaceBytes)
                reserved.Add((locator.OffsetBytes, locator.OffsetBytes + locator.SpaceBytes, "parent locator"));
        }

        uint[] starts = Array.FindAll(Table, static entry => entry != VhdHeader.Unused);
        AllocatedBlocks = starts.Length;
        Array.Sort(starts);
        foreach ((long start, long end, string name) in reserved.OrderBy(static area => area.Start))
        {
            int next = Array.BinarySearch(starts, (uint)Math.Clamp((start - BlockSpanBytes) / VhdFooter.SectorBytes + 1, 0, uint.MaxValue));
            next = next < 0 ? ~next : next;
            if (next < starts.Length && starts[next] * 512L < end && starts[next] * 512L + BlockSpanBytes > start)
                throw Damaged(starts[next], $"lies over the {name}");
        }

        for (int i = 1; i < starts.Length; i++)
        {
            if (starts[i] - starts[i - 1] < BlockSpanBytes / VhdFooter.SectorBytes)
                throw Damaged(starts[i], $"overlaps block {Array.IndexOf(Table, starts[i - 1])}");
        }

        if (starts.Length > 0)
            CheckLastBlock(starts[^1]);
        MetadataEndBytes = (reserved.Max(static area => area.End) + 511) / 512 * 512;
        long blocksEnd = starts.Length == 0 ? 0 : starts[^1] * 512L + BlockSpanBytes;
        DataEndBytes = (Math.Max(MetadataEndBytes, blocksEnd) + 511) / 512 * 512;
    }

    /// <summary>
    /// A writer that died may leave its last block cut short: that is an image still, where nothing beyond the cut is claimed.
    /// </summary>
    private void CheckLastBlock(uint sector)
    {
        long dataStart = sector * 512L + Header!.BitmapBytes;
        if (dataStart > UsableEndBytes)
            throw Damaged(sector, $"passes the end of the file ({UsableEndBytes} bytes before the footer)");
        if (dataStart + Header.BlockBytes <= UsableEndBytes)
            return;
        byte[] bytes = new byte[Header.BitmapBytes];
        ReadExactly(sector * 512L, bytes);
        SectorBitmap bitmap = SectorBitmap.FromBytes(0, bytes, Header.BlockBytes / 512);
        int cut = (int)((UsableEndBytes - dataStart) / 512);
        if (bitmap.RunEnd(cut, Header.BlockBytes / 512, out bool isSet) < Header.BlockBytes / 512 || isSet)
            throw Damaged(sector, $"is cut short by the end of the file ({UsableEndBytes} bytes before the footer): truncated?");
        warnings.Add($"block {Array.IndexOf(Table, sector)} is cut short by the end of the file; nothing beyond is claimed");
    }

    private VhdException Damaged(uint sector, string what)
    {
        int block = Array.IndexOf(Table, sector);
        long entryAt = Header!.TableOffsetBytes + block * 4L;
        return new VhdException(
            VhdError.Damaged,
            path,
            $"block {block} at byte {sector * 512L} (table entry at byte {entryAt}) {what}; restore the image from a copy");
    }

    private void ReadExactly(long offsetBytes, Span<byte> destination)
    {
        if (file.Read(offsetBytes, destination) < destination.Length)
            throw new VhdException(
                VhdError.Damaged, path, $"the file ends inside of {destination.Length} bytes at byte {offsetBytes}: is it shrinking?");
    }
}

/// <summary>The batmap's header: one sector after the table. Agrees with research/storage.md 8.3.</summary>
internal readonly record struct BatmapHeader(bool IsPresent, long OffsetBytes, uint Sectors, uint Version, uint Checksum)
{
    public const uint KnownVersion = 0x0001_0002;

    /// <summary>
    /// How much of the map the checksum covers: as the field's library derives it from the disk's size, rounding down before up.
    /// </summary>
    public static long MapBytes(long sizeBytes) => Math.Max(1, ((sizeBytes >> 24) + 511) / 512) * 512;

    public static BatmapHeader Read(ReadOnlySpan<byte> bytes) => new(
        bytes[..8].SequenceEqual("tdbatmap"u8),
        BinaryPrimitives.ReadInt64BigEndian(bytes[8..]),
        BinaryPrimitives.ReadUInt32BigEndian(bytes[16..]),
        BinaryPrimitives.ReadUInt32BigEndian(bytes[20..]),
        BinaryPrimitives.ReadUInt32BigEndian(bytes[24..]));

    public byte[] ToBytes()
    {
        byte[] bytes = new byte[VhdFooter.SectorBytes];
        "tdbatmap"u8.CopyTo(bytes);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(8), OffsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(16), Sectors);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(20), Version);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(24), Checksum);
        return bytes;
    }
}
