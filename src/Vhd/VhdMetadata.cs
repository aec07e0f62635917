// What an image file says about itself, read and checked before a byte of content is served: footers, header, block table, batmap. Whatever
// the header claims, no more is read or kept than the file really holds. Agrees with research/storage.md 8.1-8.3; what is refused is in
// docs/formats/vhd.md.
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Platform;

namespace Vhd;

internal sealed class VhdMetadata
{
    // Huge pages of a tmpfs are the coarsest holes there are.
    private const int MaxHoleGrainBytes = 4 << 20;
    private const int MaxListed = 1000;

    private readonly List<VhdProblem> warnings = [];
    private readonly List<VhdProblem>? found;
    private readonly List<(long Start, long End, string Name)> reserved = [];
    private readonly IVhdFile file;
    private readonly string path;
    private readonly long fileBytes;

    private readonly long givenSizeBytes;

    private VhdMetadata(IVhdFile file, string path, long sizeBytes, List<VhdProblem>? found)
    {
        this.found = found;
        this.file = file;
        this.path = path;
        givenSizeBytes = sizeBytes;
        fileBytes = file.LengthBytes;
    }

    public VhdFooter Footer { get; private set; } = null!;

    /// <summary>The footer as stored, so that a rewrite keeps what we do not know.</summary>
    public byte[] FooterBytes { get; } = new byte[VhdFooter.LengthBytes];

    /// <summary>The footer's size of the disk, unless the reader was given another.</summary>
    public long SizeBytes => givenSizeBytes == 0 ? Footer.CurrentSizeBytes : givenSizeBytes;

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

    public IReadOnlyList<VhdProblem> Warnings => warnings;

    public int AllocatedBlocks { get; private set; }

    /// <summary>Closed in order by its last writer: the footer follows the last block and nothing follows the footer.</summary>
    public bool IsTidy => TrailingFooterBytes == DataEndBytes && fileBytes == DataEndBytes + VhdFooter.LengthBytes;

    /// <summary>Where a batmap's header is, in an image that has one.</summary>
    public long BatmapHeaderBytes => VhdFooter.WholeSectors(Header!.TableEndBytes);

    private int BlockSpanBytes => Header!.BitmapBytes + Header.BlockBytes;

    /// <summary>Where blocks and metadata must end.</summary>
    public long UsableEndBytes => TrailingFooterBytes < 0 ? fileBytes : TrailingFooterBytes;

    /// <exception cref="VhdException">The image is refused.</exception>
    public static VhdMetadata Read(IVhdFile file, string path, bool isHeaderChecked = true, long sizeBytes = 0)
    {
        VhdMetadata metadata = new(file, path, sizeBytes, null);
        metadata.ReadAll(isHeaderChecked);
        return metadata;
    }

    /// <summary>The same for one who wants to know everything that is wrong: bad blocks are listed and not a reason to stop.</summary>
    /// <exception cref="VhdException">What is wrong hides what may be wrong behind it.</exception>
    public static VhdMetadata Inspect(IVhdFile file, string path, List<VhdProblem> found)
    {
        VhdMetadata metadata = new(file, path, 0, found);
        try
        {
            metadata.ReadAll(isHeaderChecked: true);
        }
        finally
        {
            found.AddRange(metadata.warnings);
        }

        return metadata;
    }

    private void ReadAll(bool isHeaderChecked)
    {
        ReadFooter();
        if (Footer.Type == VhdType.Fixed)
            CheckFixed();
        else
            ReadDynamic(isHeaderChecked);
    }

    /// <summary>Only who an image is: enough to tell one parent from another.</summary>
    public static VhdFooter ReadFooter(IVhdFile file, string path)
    {
        VhdMetadata metadata = new(file, path, 0, null);
        metadata.ReadFooter();
        return metadata.Footer;
    }

    /// <summary>
    /// Changes both footers, one sector each, one after the other: the trailing one counts, and when it is missing the copy does.
    /// </summary>
    public void RewriteFooters(byte[] bytes)
    {
        if (TrailingFooterBytes >= 0)
        {
            int stored = (int)Math.Min(bytes.Length, file.LengthBytes - TrailingFooterBytes);
            file.Write(TrailingFooterBytes, bytes.AsSpan(0, stored));
            file.Sync();
        }

        if (Header is not null)
            file.Write(0, bytes);
        file.Sync();
    }

    /// <summary>Makes the batmap one that says nothing, before something changes that it speaks of.</summary>
    public void ResetBatmap()
    {
        if (!Batmap.AsSpan().ContainsAnyExcept((byte)0) || !Footer.HasBatmap)
            return;
        byte[] header = new byte[VhdFooter.SectorBytes];
        ReadExactly(BatmapHeaderBytes, header);
        BatmapHeader batmap = BatmapHeader.Read(header);
        // A map that its checksum does not fit is not used: a crash in between costs a warning.
        file.Write(batmap.OffsetBytes, new byte[Batmap.Length]);
        file.Sync();
        BatmapHeader.SayEmpty(header);
        file.Write(BatmapHeaderBytes, header);
        file.Sync();
        Batmap = [];
    }

    public long EntriesFor(long sizeBytes) => (sizeBytes + Header!.BlockBytes - 1) / Header.BlockBytes;

    /// <summary>The table as stored from the first entry that a size does not need.</summary>
    public byte[] EntriesBeyond(long sizeBytes, out long atBytes)
    {
        byte[] rest = new byte[(Header!.MaxTableEntries - EntriesFor(sizeBytes)) * 4];
        atBytes = Header.TableOffsetBytes + EntriesFor(sizeBytes) * 4;
        ReadExactly(atBytes, rest);
        return rest;
    }

    /// <summary>The bitmap of the block that a size ends in, if it claims anything beyond; null when not.</summary>
    public SectorBitmap? BitsBeyond(long sizeBytes, out int firstSector, out long bitmapBytes)
    {
        firstSector = (int)(sizeBytes % Header!.BlockBytes) / VhdFooter.SectorBytes;
        uint last = Table[EntriesFor(sizeBytes) - 1];
        bitmapBytes = last * (long)VhdFooter.SectorBytes;
        if (firstSector == 0 || last == VhdHeader.Unused)
            return null;
        byte[] stored = new byte[Header.BitmapBytes];
        ReadExactly(bitmapBytes, stored);
        int sectors = Header.BlockBytes / VhdFooter.SectorBytes;
        SectorBitmap bitmap = SectorBitmap.FromBytes(0, stored, sectors);
        return bitmap.RunEnd(firstSector, sectors, out bool isSet) < sectors || isSet ? bitmap : null;
    }

    public bool SpeaksBeyond(long sizeBytes) =>
        EntriesBeyond(sizeBytes, out _).AsSpan().ContainsAnyExcept((byte)0xFF) || BitsBeyond(sizeBytes, out _, out _) is not null;

    /// <summary>The table as stored, for so many entries; what the disk does not use is unused.</summary>
    public byte[] WholeTable(uint entries)
    {
        byte[] stored = new byte[VhdFooter.WholeSectors(entries * 4L)];
        Span<uint> words = MemoryMarshal.Cast<byte, uint>(stored.AsSpan())[..(int)entries];
        words.Fill(VhdHeader.Unused);
        Table.AsSpan(0, (int)Math.Min(Table.Length, entries)).CopyTo(words);
        if (BitConverter.IsLittleEndian)
            BinaryPrimitives.ReverseEndianness(words, words);
        return stored;
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

    /// <summary>
    /// A power cut while a fixed image grows (FixedResize) leaves its footer where its data ends, before a hole. The guest could not
    /// forge it there: it writes nothing behind its disk, and the footer must say that it is right behind the disk.
    /// </summary>
    private bool FindLostFooter()
    {
        long dataEnd = file.DataEndBytes();
        if (dataEnd == 0 || dataEnd >= fileBytes)
            return false;
        byte[] tail = new byte[Math.Min(MaxHoleGrainBytes, dataEnd)];
        long start = dataEnd - tail.Length;
        if (file.Read(start, tail) < tail.Length)
            return false;
        int last = tail.AsSpan().LastIndexOfAnyExcept((byte)0);
        // A footer's last byte that is not zero is in its first 86.
        long at = last < 0 ? -1 : (start + last) / VhdFooter.SectorBytes * VhdFooter.SectorBytes;
        if (at < start || at + VhdFooter.LengthBytes > fileBytes)
            return false;
        byte[] bytes = new byte[VhdFooter.LengthBytes];
        ReadExactly(at, bytes);
        if (VhdFooter.TryRead(bytes, path, out _) is not { Type: VhdType.Fixed } lost || lost.CurrentSizeBytes != at)
            return false;
        bytes.CopyTo(FooterBytes, 0);
        Footer = lost;
        TrailingFooterBytes = at;
        Warn(
            VhdFault.FooterMissing,
            at,
            $"the footer at byte {at} is followed by a hole: a change of size was cut short; do it again or repair the image");
        return true;
    }

    private void ReadFooterCopy(string reason)
    {
        string copyReason = "the file is too short";
        if (fileBytes >= VhdFooter.LengthBytes + VhdHeader.LengthBytes)
        {
            ReadExactly(0, FooterBytes);
            Footer = VhdFooter.TryRead(FooterBytes, path, out copyReason)!;
        }

        VhdFooter? copy = Footer?.Type == VhdType.Fixed ? null : Footer;
        if (FindLostFooter())
        {
            if (copy is null)
                return;
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"no footer at the end, and two others that contradict each other, at byte 0 and {TrailingFooterBytes}");
        }

        // A fixed image has no copy: offset 0 is the guest's first sector, which must never speak for the image.
        if (Footer is null || Footer.Type == VhdType.Fixed)
            throw new VhdException(
                VhdError.NotAnImage, path, $"not a VHD: at byte {Math.Max(0, fileBytes - 512)} {reason}; the copy at byte 0: {copyReason}");
        Warn(
            VhdFault.FooterMissing,
            fileBytes - VhdFooter.LengthBytes,
            $"the trailing footer at byte {fileBytes - VhdFooter.LengthBytes} is bad ({reason}); the copy at byte 0 is used");
    }

    private void CompareFooterCopy()
    {
        byte[] copy = new byte[VhdFooter.LengthBytes];
        if (file.Read(0, copy) < copy.Length || !copy.AsSpan().SequenceEqual(FooterBytes))
            Warn(VhdFault.FooterCopyDiffers, 0, "the footer copy at byte 0 is damaged or differs from the trailing footer, which is used");
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
        long needed = (SizeBytes + header.BlockBytes - 1) / header.BlockBytes;
        if (header.MaxTableEntries < needed)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"the block table has {header.MaxTableEntries} entries; a disk of {SizeBytes} bytes needs {needed}");
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
        int entries = (int)EntriesFor(SizeBytes);
        Table = new uint[entries];
        ReadExactly(Header!.TableOffsetBytes, MemoryMarshal.AsBytes(Table.AsSpan()));
        if (BitConverter.IsLittleEndian)
            BinaryPrimitives.ReverseEndianness(Table, Table);
    }

    private void ReadBatmap()
    {
        long headerOffset = BatmapHeaderBytes;
        byte[] header = new byte[VhdFooter.SectorBytes];
        if (!Footer.HasBatmap || file.Read(headerOffset, header) < header.Length)
            return;
        BatmapHeader batmap = BatmapHeader.Read(header);
        if (!batmap.IsPresent)
        {
            Warn(VhdFault.BatmapBad, headerOffset, $"no batmap at byte {headerOffset}, where this creator has one; bitmaps are read instead");
            return;
        }

        long length = BatmapHeader.MapBytes(Footer.CurrentSizeBytes);
        if (batmap.Version != BatmapHeader.KnownVersion || batmap.OffsetBytes < 0 || batmap.OffsetBytes > UsableEndBytes - length)
        {
            Warn(VhdFault.BatmapBad, headerOffset, $"the batmap header at byte {headerOffset} is wrong; bitmaps are read instead");
            return;
        }

        byte[] map = new byte[length];
        ReadExactly(batmap.OffsetBytes, map);
        if (batmap.Checksum != VhdFooter.Checksum(map, int.MaxValue))
            Warn(VhdFault.BatmapBad, headerOffset, $"the batmap's checksum at byte {headerOffset} is wrong; bitmaps are read instead");
        else if (ClaimsAbsentBlock(map))
            Warn(VhdFault.BatmapBad, batmap.OffsetBytes, "the batmap calls a block full that is not allocated; bitmaps are read instead");
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

        uint[] starts = AllocatedStarts();
        AllocatedBlocks = starts.Length;
        foreach ((long start, long end, string name) in reserved.OrderBy(static area => area.Start))
        {
            int next = Array.BinarySearch(starts, (uint)Math.Clamp((start - BlockSpanBytes) / VhdFooter.SectorBytes + 1, 0, uint.MaxValue));
            next = next < 0 ? ~next : next;
            if (next < starts.Length && starts[next] * 512L < end && starts[next] * 512L + BlockSpanBytes > start)
                Report(starts[next], $"lies over the {name}");
        }

        for (int i = 1; i < starts.Length; i++)
        {
            if (starts[i] - starts[i - 1] < BlockSpanBytes / VhdFooter.SectorBytes)
                Report(starts[i], $"overlaps block {Array.IndexOf(Table, starts[i - 1])}");
        }

        if (starts.Length > 0)
            CheckLastBlock(starts[^1]);
        MetadataEndBytes = (reserved.Max(static area => area.End) + 511) / 512 * 512;
        long blocksEnd = starts.Length == 0 ? 0 : starts[^1] * 512L + BlockSpanBytes;
        DataEndBytes = (Math.Max(MetadataEndBytes, blocksEnd) + 511) / 512 * 512;
    }

    /// <summary>The first sectors of all blocks in the file's order; skips what is absent a vector at a time.</summary>
    private uint[] AllocatedStarts()
    {
        ReadOnlySpan<uint> table = Table;
        uint[] starts = new uint[table.Length - table.Count(VhdHeader.Unused)];
        int at = 0;
        for (int i = 0; i < starts.Length; i++)
        {
            at += table[at..].IndexOfAnyExcept(VhdHeader.Unused);
            starts[i] = table[at++];
        }

        Array.Sort(starts);
        return starts;
    }

    /// <summary>
    /// A writer that died may leave its last block cut short: that is an image still, where nothing beyond the cut is claimed.
    /// </summary>
    private void CheckLastBlock(uint sector)
    {
        long dataStart = sector * 512L + Header!.BitmapBytes;
        if (dataStart > UsableEndBytes)
            Report(sector, $"passes the end of the file ({UsableEndBytes} bytes before the footer)");
        if (dataStart > UsableEndBytes || dataStart + Header.BlockBytes <= UsableEndBytes)
            return;
        byte[] bytes = new byte[Header.BitmapBytes];
        ReadExactly(sector * 512L, bytes);
        SectorBitmap bitmap = SectorBitmap.FromBytes(0, bytes, Header.BlockBytes / 512);
        int cut = (int)((UsableEndBytes - dataStart) / 512);
        if (bitmap.RunEnd(cut, Header.BlockBytes / 512, out bool isSet) < Header.BlockBytes / 512 || isSet)
            Report(sector, $"is cut short by the end of the file ({UsableEndBytes} bytes before the footer): truncated?");
        else
            Warn(
                VhdFault.BlockCut,
                sector * 512L,
                $"block {Array.IndexOf(Table, sector)} is cut short by the end of the file; nothing beyond is claimed");
    }

    /// <summary>A block that is where it cannot be: refused, or listed for who wants to know them all.</summary>
    private void Report(uint sector, string what)
    {
        int block = Array.IndexOf(Table, sector);
        long entryAt = Header!.TableOffsetBytes + block * 4L;
        string message = $"block {block} at byte {sector * 512L} (table entry at byte {entryAt}) {what}; restore the image from a copy";
        if (found is null)
            throw new VhdException(VhdError.Damaged, path, message);
        if (found.Count < MaxListed)
            found.Add(new VhdProblem(VhdSeverity.Error, VhdFault.BlockMisplaced, path, message, entryAt));
    }

    private void Warn(VhdFault fault, long offsetBytes, string message) =>
        warnings.Add(new VhdProblem(VhdSeverity.Warning, fault, path, message, offsetBytes));

    public void ReadExactly(long offsetBytes, Span<byte> destination)
    {
        if (file.Read(offsetBytes, destination) < destination.Length)
            throw new VhdException(
                VhdError.Damaged, path, $"the file ends inside of {destination.Length} bytes at byte {offsetBytes}: is it shrinking?");
    }
}
