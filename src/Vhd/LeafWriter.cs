// Writing to the leaf. A request goes data -> sector bitmap -> table entry, each a finished pwrite before the next, and is answered after
// all three: that survives the process. For a loss of power two more rules (docs/formats/vhd.md): a block's unclaimed sectors are zeros on
// the disk, and a bit that hides a parent's data is written only after the data is durable. Bits are never cleared, so a batmap stays true
// and is never rewritten.
using System.Buffers.Binary;
using Platform;

namespace Vhd;

internal sealed class LeafWriter
{
    private readonly VhdLayer leaf;
    private readonly LayerStack? parents;
    private readonly LeafGrowth? growth;
    private readonly SyncGroup sync;
    private readonly bool mustScrub;
    private volatile bool hasWritten;
    private volatile bool hasFailed;

    public LeafWriter(VhdLayer leaf, LayerStack? parents)
    {
        this.leaf = leaf;
        this.parents = parents;
        sync = new SyncGroup(leaf.File);
        growth = leaf.IsFlat ? null : new LeafGrowth(leaf.File, sync, leaf.Metadata!);
        mustScrub = !leaf.IsFlat && !leaf.Metadata!.IsTidy;
    }

    public Task SyncAsync() => sync.RunAsync();

    /// <summary>The same, on this thread.</summary>
    public void SyncNow() => sync.RunNow();

    /// <summary>A write ended half-way: from now on an unclaimed sector may hold something.</summary>
    public void Failed() => hasFailed = true;

    /// <summary>Puts the data where it belongs; it is not claimed before <see cref="Claim"/>.</summary>
    /// <returns>True when it must be durable before it is claimed.</returns>
    public bool PutData(long offsetBytes, ReadOnlySpan<byte> source)
    {
        Begin();
        if (leaf.IsFlat)
        {
            leaf.File.Write(offsetBytes, source);
            return false;
        }

        bool mustSync = false;
        while (!source.IsEmpty)
        {
            Piece piece = PieceAt(offsetBytes, source.Length);
            EnsurePlaced(piece.Block);
            leaf.File.Write(piece.FileOffset(leaf), source[..piece.LengthBytes]);
            mustSync = mustSync || HidesParent(piece);
            source = source[piece.LengthBytes..];
            offsetBytes += piece.LengthBytes;
        }

        return mustSync;
    }

    /// <summary>
    /// The same within one block, by a caller that syncs before it claims; see <see cref="ClaimBlock"/>.
    /// </summary>
    public void PutInBlock(int block, int fromSector, ReadOnlySpan<byte> source)
    {
        Begin();
        EnsurePlaced(block);
        leaf.File.Write(leaf.DataOffsetOf(block) + fromSector * (long)VhdFooter.SectorBytes, source);
    }

    /// <summary>Makes many sectors of a block the leaf's own at once; their data is durable.</summary>
    public void ClaimBlock(int block, SectorBitmap added)
    {
        VhdLayer.Stripe stripe = leaf.StripeOf(block);
        lock (stripe)
        {
            SectorBitmap bitmap = leaf.BitmapOf(block);
            Span<byte> bytes = stackalloc byte[leaf.Metadata!.Header!.BitmapBytes];
            if (bitmap.WriteUnionTo(bytes, added))
                leaf.File.Write(leaf.BitmapOffsetOf(block), bytes);
            if (stripe.Unlinked.Contains(block))
                Link(block, stripe);
            bitmap.Add(added);
        }
    }

    /// <summary>Makes a range the leaf's own, after its data is in the file.</summary>
    public void Claim(long offsetBytes, long lengthBytes)
    {
        while (!leaf.IsFlat && lengthBytes > 0)
        {
            Piece piece = PieceAt(offsetBytes, lengthBytes);
            ClaimSectors(piece.Block, piece.From, piece.To);
            offsetBytes += piece.LengthBytes;
            lengthBytes -= piece.LengthBytes;
        }
    }

    /// <summary>
    /// The range reads as zeros at return; space it took is freed. Only what must hide a parent, or stay allocated, is claimed.
    /// </summary>
    public void WriteZeroes(long offsetBytes, long lengthBytes, bool isKept)
    {
        Begin();
        if (leaf.IsFlat)
        {
            leaf.File.Zero(offsetBytes, lengthBytes);
            return;
        }

        while (lengthBytes > 0)
        {
            Piece piece = PieceAt(offsetBytes, lengthBytes);
            ZeroPiece(piece, isKept);
            offsetBytes += piece.LengthBytes;
            lengthBytes -= piece.LengthBytes;
        }
    }

    /// <summary>
    /// Moves every block that begins before an offset out of the way, to the end of the file; what it leaves is unused. At each moment
    /// the table names a whole block, the old one or its copy.
    /// </summary>
    public void MakeWay(long beforeBytes)
    {
        growth!.StartBehind(beforeBytes);
        Begin();
        byte[] buffer = new byte[VhdHeader.DefaultBlockBytes];
        for (int block = 0; block < leaf.BlockCount; block++)
        {
            if (leaf.IsAllocated(block) && leaf.BitmapOffsetOf(block) < beforeBytes)
                Move(block, buffer);
        }
    }

    private void Move(int block, byte[] buffer)
    {
        VhdLayer.Stripe stripe = leaf.StripeOf(block);
        lock (stripe)
        {
            SectorBitmap bitmap = leaf.BitmapOf(block);
            long start = growth!.Take();
            int bitmapBytes = leaf.Metadata!.Header!.BitmapBytes;
            // What nobody claims is not taken along: in its new place it is zeros, durably.
            for (int from = 0; from < leaf.SectorsPerBlock;)
            {
                int limit = Math.Min(leaf.SectorsPerBlock, from + buffer.Length / VhdFooter.SectorBytes);
                int to = bitmap.RunEnd(from, limit, out bool isSet);
                Span<byte> data = buffer.AsSpan(0, (to - from) * VhdFooter.SectorBytes);
                if (isSet)
                {
                    leaf.ReadExactly(leaf.DataOffsetOf(block) + from * (long)VhdFooter.SectorBytes, data);
                    leaf.File.Write(start + bitmapBytes + from * (long)VhdFooter.SectorBytes, data);
                }

                from = to;
            }

            bitmap.WriteTo(buffer.AsSpan(0, bitmapBytes), 0, 0);
            leaf.File.Write(start, buffer.AsSpan(0, bitmapBytes));
            sync.RunNow();
            leaf.MoveTo(block, start);
            Link(block, stripe);
            sync.RunNow();
            stripe.Scrubbed.Add(block);
        }
    }

    /// <summary>
    /// Begins and so, with <see cref="Close"/>, gives an image that was not closed in order its final shape.
    /// </summary>
    public void Tidy() => Begin();

    /// <summary>Leaves the file as a cleanly closed image, unless a sync failed: then it stays as a crash would leave it.</summary>
    public void Close()
    {
        if (!hasWritten)
            return;
        sync.CheckHealthy();
        if (growth is null)
        {
            sync.RunNow();
            return;
        }

        // A cleanly closed image promises zeros where nobody claims, in the blocks that this session did not touch as well.
        if (mustScrub || hasFailed)
            ScrubAll();
        growth.Close();
    }

    private bool ParentsHold(long fromBytes, long toBytes) => parents is not null && parents.HoldsAny(fromBytes, toBytes);

    private void Begin()
    {
        sync.CheckHealthy();
        hasWritten = true;
        growth?.Begin();
    }

    private void ZeroPiece(Piece piece, bool isKept)
    {
        if (!leaf.IsAllocated(piece.Block) && !isKept && !ParentsHold(piece.DiskOffset(leaf), piece.DiskOffset(leaf) + piece.LengthBytes))
            return;
        EnsurePlaced(piece.Block);
        long dataOffset = leaf.DataOffsetOf(piece.Block);
        for (int from = piece.From; from < piece.To;)
        {
            int to = leaf.BitmapOf(piece.Block).RunEnd(from, piece.To, out bool isSet);
            Piece run = new(piece.Block, from, to);
            bool isNew = !isSet && (isKept || ParentsHold(run.DiskOffset(leaf), run.DiskOffset(leaf) + run.LengthBytes));
            // An unclaimed sector is zeros in the file already.
            if (isSet || (isNew && hasFailed))
                leaf.File.Zero(dataOffset + from * 512L, run.LengthBytes);
            if (isNew && hasFailed)
                sync.RunNow();
            if (isNew)
                ClaimSectors(piece.Block, from, to);
            from = to;
        }
    }

    private bool HidesParent(Piece piece)
    {
        SectorBitmap bitmap = leaf.BitmapOf(piece.Block);
        long blockStart = (long)piece.Block * leaf.BlockBytes;
        for (int from = piece.From; from < piece.To;)
        {
            int to = bitmap.RunEnd(from, piece.To, out bool isSet);
            if (!isSet && ParentsHold(blockStart + from * 512L, blockStart + to * 512L))
                return true;
            from = to;
        }

        return false;
    }

    private void EnsurePlaced(int block)
    {
        if (leaf.IsAllocated(block) && !mustScrub)
            return;
        VhdLayer.Stripe stripe = leaf.StripeOf(block);
        lock (stripe)
        {
            if (leaf.IsAllocated(block))
            {
                Scrub(block, stripe);
                return;
            }

            leaf.Place(block, growth!.Take());
            stripe.Unlinked.Add(block);
            stripe.Scrubbed.Add(block);
        }
    }

    /// <summary>
    /// Zeroes what nobody claims in a block that a dead writer may have left something in; once for each block of a session.
    /// </summary>
    private void Scrub(int block, VhdLayer.Stripe stripe)
    {
        if (!mustScrub || stripe.Scrubbed.Contains(block))
            return;
        ZeroUnclaimed(block);
        sync.RunNow();
        stripe.Scrubbed.Add(block);
    }

    private void ScrubAll()
    {
        for (int block = 0; block < leaf.BlockCount; block++)
        {
            if (leaf.IsAllocated(block) && (hasFailed || !leaf.StripeOf(block).Scrubbed.Contains(block)))
                ZeroUnclaimed(block);
        }
    }

    private void ZeroUnclaimed(int block)
    {
        SectorBitmap bitmap = leaf.BitmapOf(block);
        long dataOffset = leaf.DataOffsetOf(block);
        for (int from = 0; from < leaf.SectorsPerBlock;)
        {
            int to = bitmap.RunEnd(from, leaf.SectorsPerBlock, out bool isSet);
            if (!isSet)
                leaf.File.Zero(dataOffset + from * 512L, (to - from) * 512L);
            from = to;
        }
    }

    private void ClaimSectors(int block, int from, int to)
    {
        // A set bit in memory means that bitmap and table entry are in the file.
        if (leaf.BitmapOf(block).IsSet(from, to))
            return;
        VhdLayer.Stripe stripe = leaf.StripeOf(block);
        lock (stripe)
        {
            SectorBitmap bitmap = leaf.BitmapOf(block);
            Span<byte> bytes = stackalloc byte[leaf.Metadata!.Header!.BitmapBytes];
            bitmap.WriteTo(bytes, from, to);
            int first = from / 8 / 512 * 512;
            int end = (to - 1) / 8 / 512 * 512 + 512;
            leaf.File.Write(leaf.BitmapOffsetOf(block) + first, bytes[first..end]);
            if (stripe.Unlinked.Contains(block))
                Link(block, stripe);
            bitmap.Set(from, to);
        }
    }

    private void Link(int block, VhdLayer.Stripe stripe)
    {
        Span<byte> entry = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(entry, (uint)(leaf.BitmapOffsetOf(block) / VhdFooter.SectorBytes));
        leaf.File.Write(leaf.Metadata!.Header!.TableOffsetBytes + block * 4L, entry);
        stripe.Unlinked.Remove(block);
    }

    private Piece PieceAt(long offsetBytes, long lengthBytes)
    {
        int block = (int)(offsetBytes / leaf.BlockBytes);
        int inBlock = (int)(offsetBytes - (long)block * leaf.BlockBytes);
        int length = (int)Math.Min(lengthBytes, leaf.BlockBytes - inBlock);
        return new Piece(block, inBlock / VhdFooter.SectorBytes, (inBlock + length) / VhdFooter.SectorBytes);
    }

    /// <summary>The part of a request that lies in one block, in sectors of the block.</summary>
    private readonly record struct Piece(int Block, int From, int To)
    {
        public int LengthBytes => (To - From) * VhdFooter.SectorBytes;

        public long DiskOffset(VhdLayer layer) => (long)Block * layer.BlockBytes + From * (long)VhdFooter.SectorBytes;

        public long FileOffset(VhdLayer layer) => layer.DataOffsetOf(Block) + From * (long)VhdFooter.SectorBytes;
    }
}
