// Comparing two disks, block by block on plain threads. A hole on both sides is not read; what is equal is known by reading both through
// buffers that stay in the cache.
namespace Vhd.Transfer;

/// <summary>A range in which two disks differ.</summary>
public readonly record struct DiskDifference(long OffsetBytes, long LengthBytes);

internal static class ComparePass
{
    private const int BlockBytes = VhdHeader.DefaultBlockBytes;
    private const int PieceBytes = 512 * 1024;

    /// <summary>The first byte that differs; null when the disks are equal. The shorter one is taken to end in zeros.</summary>
    public static DiskDifference? First(
        DiskSource a, DiskSource b, int threads, TransferProgress? progress, CancellationToken cancellationToken)
    {
        List<int> blocks = Plan(a, b);
        if (progress is not null)
            progress.TotalBytes = blocks.Count * (long)BlockBytes;
        long first = long.MaxValue;
        TransferThreads.Run(
            threads,
            blocks,
            (_, supply) =>
            {
                PairReader pair = new(a, b, PieceBytes);
                while (supply.TryTake(out int block) && (long)block * BlockBytes < Volatile.Read(ref first))
                {
                    Lower(ref first, FirstIn(pair, block, supply));
                    progress?.Add(BlockBytes);
                }
            },
            cancellationToken);
        return first == long.MaxValue ? null : new DiskDifference(first, 1);
    }

    /// <summary>Every 4 KiB of the disk that differs, joined where they touch, in order.</summary>
    public static List<DiskDifference> All(
        DiskSource a, DiskSource b, int threads, TransferProgress? progress, CancellationToken cancellationToken)
    {
        List<int> blocks = Plan(a, b);
        if (progress is not null)
            progress.TotalBytes = blocks.Count * (long)BlockBytes;
        SortedDictionary<int, List<DiskDifference>> found = [];
        TransferThreads.Run(
            threads,
            blocks,
            (_, supply) =>
            {
                PairReader pair = new(a, b, PieceBytes);
                while (supply.TryTake(out int block))
                {
                    List<DiskDifference> inBlock = AllIn(pair, block, supply);
                    progress?.Add(BlockBytes);
                    if (inBlock.Count == 0)
                        continue;
                    lock (found)
                        found.Add(block, inBlock);
                }
            },
            cancellationToken);
        List<DiskDifference> joined = [];
        foreach (DiskDifference next in found.Values.SelectMany(static inBlock => inBlock))
            Join(joined, next.OffsetBytes, next.LengthBytes);
        return joined;
    }

    private static List<int> Plan(DiskSource a, DiskSource b)
    {
        List<int> mine = CopyPass.Plan(a, BlockBytes);
        List<int> theirs = CopyPass.Plan(b, BlockBytes);
        return theirs.Count == 0 || mine.SequenceEqual(theirs) ? mine : [.. mine.Union(theirs).Order()];
    }

    private static long FirstIn(PairReader pair, int block, BlockSupply supply)
    {
        long start = (long)block * BlockBytes;
        for (long at = start; at < start + BlockBytes && at < pair.EndBytes; at += PieceBytes)
        {
            supply.ThrowIfStopped();
            pair.Read(at);
            int same = pair.A.CommonPrefixLength(pair.B);
            if (same < pair.A.Length)
                return at + same;
        }

        return long.MaxValue;
    }

    private static List<DiskDifference> AllIn(PairReader pair, int block, BlockSupply supply)
    {
        List<DiskDifference> found = [];
        long start = (long)block * BlockBytes;
        for (long at = start; at < start + BlockBytes && at < pair.EndBytes; at += PieceBytes)
        {
            supply.ThrowIfStopped();
            pair.Read(at);
            if (pair.A.SequenceEqual(pair.B))
                continue;
            for (int i = 0; i < pair.A.Length; i += ZeroScan.GrainBytes)
            {
                int length = Math.Min(ZeroScan.GrainBytes, pair.A.Length - i);
                if (!pair.A.Slice(i, length).SequenceEqual(pair.B.Slice(i, length)))
                    Join(found, at + i, length);
            }
        }

        return found;
    }

    public static void Join(List<DiskDifference> found, long offsetBytes, long lengthBytes)
    {
        if (found.Count > 0 && found[^1].OffsetBytes + found[^1].LengthBytes == offsetBytes)
            found[^1] = found[^1] with { LengthBytes = found[^1].LengthBytes + lengthBytes };
        else
            found.Add(new DiskDifference(offsetBytes, lengthBytes));
    }

    private static void Lower(ref long first, long candidate)
    {
        for (long seen = Volatile.Read(ref first); candidate < seen; seen = Volatile.Read(ref first))
        {
            if (Interlocked.CompareExchange(ref first, candidate, seen) == seen)
                return;
        }
    }

    /// <summary>One thread's two buffers, filled with the same piece of both disks.</summary>
    private sealed class PairReader(DiskSource a, DiskSource b, int pieceBytes)
    {
        private readonly AlignedBuffer bufferA = new(pieceBytes);
        private readonly AlignedBuffer bufferB = new(pieceBytes);
        private int length;

        public long EndBytes { get; } = Math.Max(a.LengthBytes, b.LengthBytes);

        public ReadOnlySpan<byte> A => bufferA.Span[..length];

        public ReadOnlySpan<byte> B => bufferB.Span[..length];

        public void Read(long offsetBytes)
        {
            length = (int)Math.Min(pieceBytes, EndBytes - offsetBytes);
            Fill(a, offsetBytes, bufferA.Span[..length]);
            Fill(b, offsetBytes, bufferB.Span[..length]);
        }

        private static void Fill(DiskSource source, long offsetBytes, Span<byte> piece)
        {
            int inside = (int)Math.Clamp(source.LengthBytes - offsetBytes, 0, piece.Length);
            source.Read(offsetBytes, piece[..inside]);
            piece[inside..].Clear();
        }
    }
}
