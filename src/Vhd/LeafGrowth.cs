// Where new blocks go, and how the file grows without a moment at which a loss of power makes a wrong image (docs/formats/vhd.md, "What a
// crash can leave"). Space is reserved ahead: the footer goes to the new end first, synced; then the reserve, which held the old footer, is
// made zeros, synced. From there on table entries may point into the reserve in any order: a bitmap that never reached the disk is zeros
// and claims nothing.
using Platform;

namespace Vhd;

internal sealed class LeafGrowth(IVhdFile file, SyncGroup sync, VhdMetadata metadata)
{
    // A reserve is a hole: it costs no space, only two syncs each time it is renewed, so it doubles while the disk keeps growing.
    private const int MaxReserveBlocks = 64;

    // Never used up: were the last reserved block to end at the footer, a crash would leave what looks like an image that was closed in
    // order.
    private const int SlackBytes = 4096;

    private readonly Lock gate = new();
    private readonly int bitmapBytes = metadata.Header!.BitmapBytes;
    private readonly int blockBytes = metadata.Header!.BlockBytes;
    private long nextBytes = metadata.DataEndBytes;
    private long reserveEndBytes = metadata.DataEndBytes;
    private int reserveBlocks = 1;
    private volatile bool hasBegun;

    /// <summary>
    /// To be called before the first write of a session: from here until <see cref="Close"/> the file does not have the shape of a cleanly
    /// closed image, which is how the next writer knows that sectors nobody claims may hold leftovers.
    /// </summary>
    public void Begin()
    {
        if (hasBegun)
            return;
        lock (gate)
        {
            if (!hasBegun)
                Extend(EndOf(StartAfter(nextBytes)));
            hasBegun = true;
        }
    }

    /// <summary>Leaves room before an offset; to be called before <see cref="Begin"/>.</summary>
    public void StartBehind(long offsetBytes) => nextBytes = Math.Max(nextBytes, offsetBytes);

    /// <summary>The offset of a new block: zeros, durably.</summary>
    /// <exception cref="BlockIoException">ENOSPC: the table's 32-bit sector numbers, or the filesystem, are used up.</exception>
    public long Take()
    {
        lock (gate)
        {
            long start = StartAfter(nextBytes);
            if (start / VhdFooter.SectorBytes >= VhdHeader.Unused)
                throw new BlockIoException(Errno.ENOSPC, "a VHD's block table cannot name a block beyond 2 TiB of file");
            if (EndOf(start) + SlackBytes > reserveEndBytes)
                Extend(EndOf(start));
            nextBytes = EndOf(start);
            return start;
        }
    }

    /// <summary>
    /// Gives the file its final shape: the footer right after the last block, nothing after it. Everything is durable at return.
    /// </summary>
    public void Close()
    {
        if (!hasBegun)
            return;
        sync.RunNow();
        file.Write(nextBytes, metadata.FooterBytes);
        sync.RunNow();
        file.SetLength(nextBytes + VhdFooter.LengthBytes);
        sync.RunNow();
    }

    private void Extend(long atLeastBytes)
    {
        long oldLength = file.LengthBytes;
        long oldEnd = metadata.TrailingFooterBytes < 0 && !hasBegun ? oldLength : oldLength - VhdFooter.LengthBytes;
        long end = atLeastBytes + (reserveBlocks - 1) * (EndOf(StartAfter(atLeastBytes)) - atLeastBytes) + SlackBytes;
        // A longer reserve of a session that died is taken over: its footer stays where it is.
        end = (Math.Max(end, oldEnd) + 511) / 512 * 512;
        file.Write(end, metadata.FooterBytes);
        sync.RunNow();
        // What the last session used up is beyond our concern; the rest up to the old end may hold anything.
        long from = hasBegun ? reserveEndBytes : Math.Min(nextBytes, Math.Max(oldEnd, 0));
        long to = Math.Min(oldLength, end);
        if (to > from)
            file.Zero(from, to - from);
        sync.RunNow();
        reserveEndBytes = end;
        reserveBlocks = Math.Min(reserveBlocks * 2, MaxReserveBlocks);
    }

    /// <summary>Data begins on 4 KiB, so that it can be punched, cloned and read directly; the gap lies before the bitmap.</summary>
    private long StartAfter(long offsetBytes) => (offsetBytes + bitmapBytes + 4095) / 4096 * 4096 - bitmapBytes;

    private long EndOf(long startBytes) => startBytes + bitmapBytes + blockBytes;
}
