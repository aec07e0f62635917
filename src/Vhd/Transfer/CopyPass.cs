// The byte loop: read what the source holds of a block, look for zeros, write the rest, through one buffer for each thread.
using Platform;

namespace Vhd.Transfer;

/// <summary>How far a transfer is. Written by its threads, read by whoever shows it.</summary>
public sealed class TransferProgress
{
    private long doneBytes;

    /// <summary>What there is to be done, in bytes of the disk that may hold something; 0 until it is known.</summary>
    public long TotalBytes { get; internal set; }

    public long DoneBytes => Volatile.Read(ref doneBytes);

    internal void Add(long bytes) => Interlocked.Add(ref doneBytes, bytes);
}

internal sealed class CopyPass(DiskSource source, CopyTarget target, TransferProgress? progress)
{
    // Measured: 256 KiB stays in a core's cache, but the kernel's copy of a megabyte at once costs a quarter less CPU than four of 256 KiB.
    private const int PieceBytes = 1024 * 1024;

    // A disk is asked for more at once: there the request costs more than the cache.
    private const int DirectPieceBytes = 2 * 1024 * 1024;

    private long readBytes;
    private long writtenBytes;

    public long ReadBytes => readBytes;

    public long WrittenBytes => writtenBytes;

    /// <summary>Which blocks of the target's size the source may hold something of.</summary>
    public static List<int> Plan(DiskSource source, int blockBytes)
    {
        List<int> blocks = [];
        for (long at = source.NextHeld(0); at < source.LengthBytes;)
        {
            int block = (int)(at / blockBytes);
            blocks.Add(block);
            at = source.NextHeld((block + 1L) * blockBytes);
        }

        return blocks;
    }

    public void Run(IReadOnlyList<int> blocks, int threads, bool isDirect, CancellationToken cancellationToken)
    {
        if (progress is not null)
            progress.TotalBytes = blocks.Count * (long)target.BlockBytes;
        int pieceBytes = isDirect ? DirectPieceBytes : PieceBytes;
        TransferThreads.Run(threads, blocks, (_, supply) => CopyBlocks(supply, pieceBytes), cancellationToken);
    }

    private void CopyBlocks(BlockSupply supply, int pieceBytes)
    {
        AlignedBuffer buffer = new(pieceBytes + ZeroScan.GrainBytes);
        List<SourceRun> runs = [];
        CopyLane lane = target.OpenLane();
        long read = 0;
        while (supply.TryTake(out int block))
        {
            long start = (long)block * target.BlockBytes;
            source.RunsOf(start, Math.Min(start + target.BlockBytes, source.LengthBytes), runs);
            lane.BeginBlock(block);
            foreach (SourceRun run in runs)
            {
                read += run.LengthBytes;
                CopyRun(run, buffer.Span, pieceBytes, lane, supply);
            }

            lane.EndBlock();
            progress?.Add(target.BlockBytes);
        }

        Interlocked.Add(ref readBytes, read);
        Interlocked.Add(ref writtenBytes, lane.WrittenBytes);
    }

    private static void CopyRun(SourceRun run, Span<byte> buffer, int pieceBytes, CopyLane lane, BlockSupply supply)
    {
        for (long done = 0; done < run.LengthBytes;)
        {
            long offset = run.OffsetBytes + done;
            // In memory as on the disk relative to a page, and pieces end at pages: a page of zeros is one piece's alone.
            int lead = (int)(offset & (ZeroScan.GrainBytes - 1));
            int length = (int)Math.Min(run.LengthBytes - done, pieceBytes - lead);
            Span<byte> piece = buffer.Slice(lead, length);
            run.File.ReadExactly(run.FileOffsetBytes + done, piece);
            WritePiece(offset, piece, lane);
            supply.ThrowIfStopped();
            done += length;
        }
    }

    private static void WritePiece(long offsetBytes, ReadOnlySpan<byte> piece, CopyLane lane)
    {
        while (!piece.IsEmpty)
        {
            int length = ZeroScan.RunLength(offsetBytes, piece, out bool isZero);
            if (isZero)
                lane.WriteZeros(offsetBytes, length);
            else
                lane.Write(offsetBytes, piece[..length]);
            piece = piece[length..];
            offsetBytes += length;
        }
    }
}
