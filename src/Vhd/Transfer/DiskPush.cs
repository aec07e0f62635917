// A disk to a device on the other side of a wire. Each connection has a thread; a block is read, hashed and looked through for zeros while
// it is in the cache, and what holds something goes out, from the file itself where one file holds it.
using Platform;

namespace Vhd.Transfer;

public sealed record PushOptions
{
    public bool IsSourceRaw { get; init; }

    /// <summary>The target is known to be zeros: what the source does not hold is not sent.</summary>
    public bool IsTargetZero { get; init; }

    /// <summary>Looks for zeros in what is allocated.</summary>
    public bool HasZeroScan { get; init; } = true;

    /// <summary>Digests the content on the way.</summary>
    public bool HasDigest { get; init; } = true;

    public TransferProgress? Progress { get; init; }
}

/// <param name="PushedBytes">Content that was sent; zeros are not counted.</param>
public sealed record PushResult(long VirtualSizeBytes, long PushedBytes, string? Digest);

public sealed class DiskPush
{
    private const int BlockBytes = ContentDigest.BlockBytes;
    private const int PieceBytes = 1024 * 1024;

    // Under this a copy into the socket is cheaper than to find and pin the file's pages.
    private const int SendFileBytes = 64 * 1024;

    private readonly DiskSource source;
    private readonly PushOptions options;
    private readonly ContentDigest? digest;
    private long pushedBytes;

    private DiskPush(DiskSource source, PushOptions options)
    {
        this.source = source;
        this.options = options;
        digest = options.HasDigest ? new ContentDigest(source.LengthBytes) : null;
    }

    /// <param name="pushers">Connections to the same device; each gets a thread.</param>
    /// <exception cref="VhdException">The source is refused, or the target is smaller.</exception>
    /// <exception cref="BlockIoException">Reading, or the device, failed; what the target holds then is neither disk.</exception>
    public static PushResult Run(
        string path, IReadOnlyList<IBlockPusher> pushers, PushOptions options, CancellationToken cancellationToken)
    {
        using DiskSource source = DiskSource.Open(path, options.IsSourceRaw, isLayerOnly: false, isDirect: false);
        if (pushers[0].LengthBytes < source.LengthBytes)
            throw new VhdException(
                VhdError.BadRequest, path, $"has {source.LengthBytes} bytes, the target only {pushers[0].LengthBytes}; nothing was sent");
        DiskPush push = new(source, options);
        push.Run(pushers, cancellationToken);
        return new PushResult(source.LengthBytes, push.pushedBytes, push.digest?.Result().Root);
    }

    private void Run(IReadOnlyList<IBlockPusher> pushers, CancellationToken cancellationToken)
    {
        List<int> blocks = CopyPass.Plan(source, BlockBytes);
        if (options.Progress is not null)
            options.Progress.TotalBytes = blocks.Count * (long)BlockBytes;
        if (!options.IsTargetZero)
            ZeroBetween(blocks, pushers[0]);
        TransferThreads.Run(pushers.Count, blocks, (number, supply) => Push(pushers[number], supply), cancellationToken);
        pushers[0].Flush();
    }

    private void ZeroBetween(List<int> blocks, IBlockPusher pusher)
    {
        long at = 0;
        foreach (int block in blocks)
        {
            long start = (long)block * BlockBytes;
            if (start > at)
                pusher.WriteZeroes(at, start - at);
            at = Math.Min(start + BlockBytes, source.LengthBytes);
        }

        if (at < source.LengthBytes)
            pusher.WriteZeroes(at, source.LengthBytes - at);
        pusher.Finish();
    }

    private void Push(IBlockPusher pusher, BlockSupply supply)
    {
        Lane lane = new(this, pusher);
        while (supply.TryTake(out int block))
        {
            if (options.HasZeroScan || digest is not null)
                lane.PushThrough(block, supply);
            else
                lane.PushRuns(block);
            options.Progress?.Add(BlockBytes);
        }

        pusher.Finish();
        Interlocked.Add(ref pushedBytes, lane.PushedBytes);
    }

    private sealed class Lane(DiskPush push, IBlockPusher pusher)
    {
        private readonly AlignedBuffer buffer = new(PieceBytes);
        private readonly List<SourceRun> runs = [];
        private readonly byte[] leaves = new byte[BlockBytes / ContentDigest.LeafBytes * ContentDigest.HashBytes];

        public long PushedBytes { get; private set; }

        public void PushThrough(int block, BlockSupply supply)
        {
            long start = (long)block * BlockBytes;
            int length = (int)Math.Min(BlockBytes, push.source.LengthBytes - start);
            for (int at = 0; at < length; at += PieceBytes)
            {
                supply.ThrowIfStopped();
                Span<byte> piece = buffer.Span[..Math.Min(PieceBytes, length - at)];
                push.source.Read(start + at, piece);
                if (push.digest is not null)
                    BlockHasher.HashLeaves(piece, leaves.AsSpan(at / ContentDigest.LeafBytes * ContentDigest.HashBytes));
                PushPiece(start + at, piece);
            }

            int count = (length + ContentDigest.LeafBytes - 1) / ContentDigest.LeafBytes;
            push.digest?.Put(block, leaves.AsSpan(0, count * ContentDigest.HashBytes));
        }

        public void PushRuns(int block)
        {
            long at = (long)block * BlockBytes;
            long end = Math.Min(at + BlockBytes, push.source.LengthBytes);
            push.source.RunsOf(at, end, runs);
            foreach (SourceRun run in runs)
            {
                Zero(at, run.OffsetBytes);
                pusher.WriteFrom(run.File.Handle, run.FileOffsetBytes, run.OffsetBytes, (int)run.LengthBytes);
                PushedBytes += run.LengthBytes;
                at = run.EndBytes;
            }

            Zero(at, end);
        }

        private void PushPiece(long offsetBytes, ReadOnlySpan<byte> piece)
        {
            while (!piece.IsEmpty)
            {
                int length = ZeroScan.RunLength(offsetBytes, piece, out bool isZero);
                if (isZero)
                    Zero(offsetBytes, offsetBytes + length);
                else
                    PushRun(offsetBytes, piece[..length]);
                piece = piece[length..];
                offsetBytes += length;
            }
        }

        private void PushRun(long offsetBytes, ReadOnlySpan<byte> data)
        {
            PushedBytes += data.Length;
            push.source.RunsOf(offsetBytes, offsetBytes + data.Length, runs);
            if (data.Length >= SendFileBytes && runs is [{ } run] && run.LengthBytes == data.Length)
                pusher.WriteFrom(run.File.Handle, run.FileOffsetBytes, offsetBytes, data.Length);
            else
                pusher.Write(offsetBytes, data);
        }

        private void Zero(long fromBytes, long toBytes)
        {
            if (toBytes > fromBytes && !push.options.IsTargetZero)
                pusher.WriteZeroes(fromBytes, toBytes - fromBytes);
        }
    }
}
