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
    private readonly Func<long, long, bool> parentsHold;
    private readonly LeafGrowth? growth;
    private readonly SyncGroup sync;
    private readonly bool mustScrub;
    private volatile bool hasWritten;
    private volatile bool hasFailed;

    /// <param name="parentsHold">Whether any parent holds data in a range of the disk (from, to).</param>
    public LeafWriter(VhdLayer leaf, Func<long, long, bool> parentsHold)
    {
        this.leaf = leaf;
        this.parentsHold = parentsHold;
        sync = new SyncGroup(leaf.File);
        growth = leaf.IsFlat ? null : new LeafGrowth(leaf.File, sync, leaf.Metadata!);
        mustScrub = !leaf.IsFlat && !leaf.Metadata!.IsTidy;
    }

    public Task SyncAsync() => sync.RunAsync();

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

    /// <summary>Leaves the file as a cleanly closed image, unless a sync failed: then it stays as a crash would leave it.</summary>
    public void Close()
    {
        if (!hasWritten)
            return;
        sync.CheckHealthy();
        if (growth is null)
            sync.RunNow();
        else
            growth.Close();
    }

    private void Begin()
    {
        sync.CheckHealthy();
        hasWritten = true;
        growth?.Begin();
    }

    private void ZeroPiece(Piece piece, bool isKept)
    {
        if (!leaf.IsAllocated(piece.Block) && !isKept && !parentsHold(piece.DiskOffset(leaf), piece.DiskOffset(leaf) + piece.LengthBytes))
            return;
        EnsurePlaced(piece.Block);
        long dataOffset = leaf.DataOffsetOf(piece.Block);
        for (int from = piece.From; from < piece.To;)
        {
            int to = leaf.BitmapOf(piece.Block).RunEnd(from, piece.To, out bool isSet);
            Piece run = new(piece.Block, from, to);
            bool isNew = !isSet && (isKept || parentsHold(run.DiskOffset(leaf), run.DiskOffset(leaf) + run.LengthBytes));
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
            if (!isSet && parentsHold(blockStart + from * 512L, blockStart + to * 512L))
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
        SectorBitmap bitmap = leaf.BitmapOf(block);
        long dataOffset = leaf.DataOffsetOf(block);
        for (int from = 0; from < leaf.SectorsPerBlock;)
        {
            int to = bitmap.RunEnd(from, leaf.SectorsPerBlock, out bool isSet);
            if (!isSet)
                leaf.File.Zero(dataOffset + from * 512L, (to - from) * 512L);
            from = to;
        }

        sync.RunNow();
        stripe.Scrubbed.Add(block);
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
