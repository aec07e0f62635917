// A dynamic or differencing image being filled. Blocks get a place when their first byte comes, so a block of zeros costs nothing; bitmaps
// are exact; the block table is written once, at the end.
//
// In place, a hole of the source costs 512 bytes: the block keeps its place and its bitmap says what it holds. Under what it does not hold
// there are zeros still, the house's rule, because some readers (qemu) do not look at bitmaps. While the copy runs the image is poisoned,
// the field's mark for "half-done": killed, it is refused by every tool instead of being taken for either disk.
using System.Buffers.Binary;
using Platform;

namespace Vhd.Transfer;

internal sealed class VhdTarget : CopyTarget
{
    private static readonly byte[] Poison = "v_poison"u8.ToArray();

    private readonly VhdLayer layer;
    private readonly VhdMetadata metadata;
    private readonly DiskFile disk;
    private readonly bool isExisting;
    private readonly bool claimsZeros;
    private readonly uint[] table;
    private readonly Lock gate = new();
    private long nextBytes;

    /// <param name="isExisting">It may hold something; otherwise it is new and empty.</param>
    /// <param name="claimsZeros">Zeros that the source holds are held by the target too: they hide its parent's content.</param>
    public VhdTarget(VhdLayer layer, bool isExisting, bool claimsZeros, bool isDirect)
    {
        this.layer = layer;
        this.isExisting = isExisting;
        this.claimsZeros = claimsZeros;
        metadata = layer.Metadata!;
        table = (uint[])metadata.Table.Clone();
        nextBytes = metadata.DataEndBytes;
        disk = new DiskFile(layer.File, layer.Path, isDirect, isWritable: true);
    }

    public override int BlockBytes => layer.BlockBytes;

    /// <summary>Marks an existing image as half-written, before its first byte is changed.</summary>
    public void Disable(bool isSynced)
    {
        if (metadata.TrailingFooterBytes >= 0)
            layer.File.Write(metadata.TrailingFooterBytes, Poison);
        layer.File.Write(0, Poison);
        if (isSynced)
            layer.File.Sync();
        DropBatmap();
    }

    public override CopyLane OpenLane() => new Lane(this);

    public override void Finish(IReadOnlyList<int> planned, bool isSynced)
    {
        if (isExisting)
            ReleaseAllBut(planned);
        WriteTable();
        long end = DataEnd();
        layer.File.Write(end, metadata.FooterBytes);
        layer.File.SetLength(end + VhdFooter.LengthBytes);
        if (isSynced)
            layer.File.Sync();
        if (!isExisting)
            return;
        layer.File.Write(0, metadata.FooterBytes);
        if (isSynced)
            layer.File.Sync();
    }

    public override void Dispose()
    {
        disk.Dispose();
        layer.Dispose();
    }

    private long Take(int block)
    {
        VhdHeader header = metadata.Header!;
        lock (gate)
        {
            // Data begins on 4 KiB; the gap lies before the bitmap.
            long start = (nextBytes + header.BitmapBytes + 4095) / 4096 * 4096 - header.BitmapBytes;
            if (start / VhdFooter.SectorBytes >= VhdHeader.Unused)
                throw new BlockIoException(Errno.ENOSPC, "a VHD's block table cannot name a block beyond 2 TiB of file");
            nextBytes = start + header.BitmapBytes + header.BlockBytes;
            table[block] = (uint)(start / VhdFooter.SectorBytes);
            return start;
        }
    }

    private void ReleaseAllBut(IReadOnlyList<int> planned)
    {
        int next = 0;
        for (int block = 0; block < table.Length; block++)
        {
            while (next < planned.Count && planned[next] < block)
                next++;
            if (table[block] != VhdHeader.Unused && (next == planned.Count || planned[next] != block))
                Release(block);
        }
    }

    /// <summary>The block's space is given back and its place is no longer named.</summary>
    private void Release(int block)
    {
        layer.File.Zero(layer.BitmapOffsetOf(block), metadata.Header!.BitmapBytes + BlockBytes);
        table[block] = VhdHeader.Unused;
    }

    /// <summary>A batmap that calls a block full would be wrong as soon as the block is not; one of zeros never is.</summary>
    private void DropBatmap()
    {
        if (metadata.Batmap.AsSpan().ContainsAnyExcept((byte)0))
        {
            long headerOffset = metadata.Header!.TableEndBytes;
            byte[] header = new byte[VhdFooter.SectorBytes];
            _ = layer.File.Read(headerOffset, header);
            BatmapHeader batmap = BatmapHeader.Read(header);
            layer.File.Write(batmap.OffsetBytes, new byte[metadata.Batmap.Length]);
            BinaryPrimitives.WriteUInt32BigEndian(header.AsSpan(24), uint.MaxValue);
            layer.File.Write(headerOffset, header);
        }
    }

    private void WriteTable()
    {
        uint[] stored = new uint[table.Length];
        BinaryPrimitives.ReverseEndianness(table, stored);
        layer.File.Write(metadata.Header!.TableOffsetBytes, System.Runtime.InteropServices.MemoryMarshal.AsBytes(stored.AsSpan()));
    }

    private long DataEnd()
    {
        VhdHeader header = metadata.Header!;
        uint last = 0;
        foreach (uint start in table)
            last = start != VhdHeader.Unused && start > last ? start : last;
        long blocksEnd = last == 0 ? 0 : last * (long)VhdFooter.SectorBytes + header.BitmapBytes + header.BlockBytes;
        return Math.Max(blocksEnd, metadata.MetadataEndBytes);
    }

    private sealed class Lane : CopyLane
    {
        private readonly VhdTarget target;
        private readonly StaleBytes stale;
        private readonly SectorBitmap claimed;
        private readonly SectorBitmap written;
        private readonly byte[] bitmapBytes;
        private int block;
        private long blockStart;
        private long place;
        private bool wasPlaced;

        public Lane(VhdTarget target)
        {
            this.target = target;
            stale = new StaleBytes(target.layer.File);
            int sectors = target.layer.SectorsPerBlock;
            (claimed, written) = (SectorBitmap.Empty(0, sectors), SectorBitmap.Empty(0, sectors));
            bitmapBytes = new byte[target.metadata.Header!.BitmapBytes];
        }

        public override void BeginBlock(int block)
        {
            this.block = block;
            blockStart = (long)block * target.BlockBytes;
            claimed.Clear();
            written.Clear();
            wasPlaced = target.layer.IsAllocated(block);
            place = wasPlaced ? target.layer.BitmapOffsetOf(block) : -1;
        }

        public override void Write(long offsetBytes, ReadOnlySpan<byte> data)
        {
            Claim(offsetBytes, data.Length);
            target.disk.Write(place + bitmapBytes.Length + offsetBytes - blockStart, data);
            int from = (int)(offsetBytes - blockStart) / VhdFooter.SectorBytes;
            written.Set(from, from + data.Length / VhdFooter.SectorBytes);
            WrittenBytes += data.Length;
        }

        public override void WriteZeros(long offsetBytes, long lengthBytes)
        {
            if (target.claimsZeros)
                Claim(offsetBytes, lengthBytes);
        }

        public override void EndBlock()
        {
            if (place < 0)
                return;
            int sectors = target.layer.SectorsPerBlock;
            if (claimed.RunEnd(0, sectors, out bool isClaimed) == sectors && !isClaimed)
            {
                target.Release(block);
                return;
            }

            if (wasPlaced)
                ClearStale(sectors);
            claimed.WriteTo(bitmapBytes, 0, 0);
            target.layer.File.Write(place, bitmapBytes);
        }

        private void Claim(long offsetBytes, long lengthBytes)
        {
            if (place < 0)
                place = target.Take(block);
            int from = (int)(offsetBytes - blockStart) / VhdFooter.SectorBytes;
            claimed.Set(from, from + (int)(lengthBytes / VhdFooter.SectorBytes));
        }

        /// <summary>
        /// What was there and is not overwritten. In an image closed in order only what the block claimed can be anything.
        /// </summary>
        private void ClearStale(int sectors)
        {
            SectorBitmap? before = target.metadata.IsTidy ? target.layer.BitmapOf(block) : null;
            long data = place + bitmapBytes.Length;
            for (int from = 0; from < sectors;)
            {
                int to = written.RunEnd(from, sectors, out bool isWritten);
                while (from < to && !isWritten)
                {
                    bool isHeld = true;
                    int end = before?.RunEnd(from, to, out isHeld) ?? to;
                    if (isHeld)
                        stale.Clear(data + from * 512L, data + end * 512L);
                    from = end;
                }

                from = to;
            }
        }
    }
}
