// Merging an image, and all between, into an ancestor. Whatever is written to the ancestor lies under sectors that the child holds, so the
// disk read through the child is the same before, during and after; a run that was cut short is simply run again. In the ancestor each
// batch of data is durable before a bitmap claims it (docs/formats/vhd.md, "Merging").
using Platform;

namespace Vhd;

public sealed record VhdCoalesceOptions
{
    /// <summary>The image to merge into; the parent when not given. It must be below the image in its chain.</summary>
    public string? AncestorPath { get; init; }

    /// <summary>When given, no parent is opened outside of this folder.</summary>
    public string? RootDirectory { get; init; }
}

/// <summary>How far a merge is.</summary>
public readonly record struct VhdCoalesceProgress(long DoneBlocks, long TotalBlocks, long WrittenBytes);

/// <summary>What a merge did: sectors held above the ancestor, all of them now in it.</summary>
public readonly record struct VhdCoalesceResult(long Sectors, long WrittenBytes, string AncestorPath);

public static class VhdCoalesce
{
    /// <summary>
    /// Makes the ancestor hold what the image shows, and zeros past the image's end. The ancestor must have no other
    /// descendants, and neither image a writer. It grows first when it is smaller. The image itself is not changed and not deleted.
    /// Durable at return; cancelled or killed, run again.
    /// </summary>
    /// <exception cref="VhdException">BadRequest: no parent, or the ancestor is not in the chain; what is wrong with an image.</exception>
    public static VhdCoalesceResult Run(
        string childPath, VhdCoalesceOptions options, IProgress<VhdCoalesceProgress>? progress, CancellationToken cancellationToken) =>
        Run(PosixStore.Instance, childPath, options, progress, cancellationToken);

    internal static VhdCoalesceResult Run(
        IVhdStore store,
        string childPath,
        VhdCoalesceOptions options,
        IProgress<VhdCoalesceProgress>? progress,
        CancellationToken cancellationToken)
    {
        VhdOpenOptions open = new() { IsReadOnly = true, RootDirectory = options.RootDirectory };
        VhdChain child = VhdChain.Open(store, childPath, open);
        try
        {
            int depth = DepthOf(store, child, childPath, options.AncestorPath);
            VhdLayer ancestor = child.Layers[depth];
            string ancestorPath = ancestor.File.CanonicalPath;
            if (ancestor.SizeBytes < child.LengthBytes)
                Grow(store, ancestor, ancestorPath, child.LengthBytes);
            VhdLayer[] above = [.. child.Layers.Take(depth)];
            if (ancestor.Metadata is null)
            {
                using VhdLayer raw = VhdLayer.OpenRaw(store, ancestorPath, isWritable: true);
                Merge merge = new(above, raw, new LeafWriter(raw, null), progress);
                return merge.Run(cancellationToken) with { AncestorPath = ancestorPath };
            }

            VhdChain target = VhdChain.Open(store, ancestorPath, open with { IsReadOnly = false });
            try
            {
                Merge merge = new(above, target.Layers[0], target.Writer, progress);
                return merge.Run(cancellationToken) with { AncestorPath = ancestorPath };
            }
            finally
            {
                target.Abandon();
            }
        }
        finally
        {
            child.Abandon();
        }
    }

    private static int DepthOf(IVhdStore store, VhdChain child, string childPath, string? ancestorPath)
    {
        if (child.Layers.Count < 2)
            throw new VhdException(VhdError.BadRequest, childPath, "it has no parent to be merged into");
        if (ancestorPath is null)
            return 1;
        string canonical;
        using (IVhdFile file = VhdLayer.OpenFile(store, ancestorPath, isWritable: false))
            canonical = file.CanonicalPath;
        for (int depth = 1; depth < child.Layers.Count; depth++)
        {
            if (child.Layers[depth].File.CanonicalPath == canonical)
                return depth;
        }

        throw new VhdException(VhdError.BadRequest, childPath, $"{ancestorPath} is not below it in its chain; nothing was changed");
    }

    private static void Grow(IVhdStore store, VhdLayer ancestor, string path, long sizeBytes)
    {
        if (ancestor.Metadata is not null)
        {
            VhdResize.Apply(store, path, sizeBytes, mayLoseData: false);
            return;
        }

        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        // Less than a sector at the end was never part of the disk.
        if (file.LengthBytes > ancestor.SizeBytes)
            file.Zero(ancestor.SizeBytes, file.LengthBytes - ancestor.SizeBytes);
        file.SetLength(sizeBytes);
        file.Sync();
    }

    /// <summary>One merge: block by block in the order of the uppermost image's file, a sync for each batch.</summary>
    private sealed class Merge(VhdLayer[] above, VhdLayer target, LeafWriter writer, IProgress<VhdCoalesceProgress>? progress)
    {
        private const int BatchBytes = 64 << 20;
        private const int BufferBytes = 256 << 10;

        // Two runs with less between them are read in one call: that is cheaper than a second call.
        private const int MaxGapBytes = 16 << 10;

        private readonly LayerStack stack = new(above);
        private readonly byte[] buffer = new byte[BufferBytes];
        // Past the end of the image the ancestor becomes zeros: an image above it, once grown, saw zeros there and still must.
        private readonly long sizeBytes = target.SizeBytes;
        private readonly int blockBytes = target.IsFlat ? VhdHeader.DefaultBlockBytes : target.BlockBytes;
        private readonly List<(int Block, SectorBitmap Bits)> unclaimed = [];
        private readonly Stack<SectorBitmap> spare = [];
        private SectorBitmap? claims;
        private long batchBytes;
        private long sectors;
        private long writtenBytes;

        public VhdCoalesceResult Run(CancellationToken cancellationToken)
        {
            try
            {
                int[] blocks = BlocksInFileOrder();
                for (int i = 0; i < blocks.Length; i++)
                {
                    cancellationToken.ThrowIfCancellationRequested();
                    MergeBlock(blocks[i]);
                    if (batchBytes >= BatchBytes)
                        EndBatch();
                    progress?.Report(new VhdCoalesceProgress(i + 1, blocks.Length, writtenBytes));
                }
            }
            catch (OperationCanceledException)
            {
                EndBatch();
                writer.Close();
                throw;
            }

            EndBatch();
            writer.Close();
            return new VhdCoalesceResult(sectors, writtenBytes, "");
        }

        private int[] BlocksInFileOrder()
        {
            long count = (sizeBytes + blockBytes - 1) / blockBytes;
            List<(long Order, int Block)> found = [];
            long visibleEnd = above.Min(static layer => layer.SizeBytes);
            for (int block = 0; block < count;)
            {
                long start = (long)block * blockBytes;
                StackRun run = stack.Walk(start, sizeBytes);
                long end = Math.Min(start + blockBytes, sizeBytes);
                if (run.IsPresent || run.EndBytes < end || end > visibleEnd)
                    found.Add((run.IsPresent ? run.FileOffsetBytes : start, block));
                // A hole is passed over up to the block that it ends in.
                block = run.IsPresent || run.IsPastEnd ? block + 1 : Math.Max(block + 1, (int)(run.EndBytes / blockBytes));
            }

            found.Sort();
            return [.. found.Select(static each => each.Block)];
        }

        private void MergeBlock(int block)
        {
            long end = Math.Min((long)(block + 1) * blockBytes, sizeBytes);
            for (long at = (long)block * blockBytes; at < end;)
            {
                StackRun run = stack.Walk(at, end);
                if (run.IsPastEnd)
                    writer.WriteZeroes(at, run.EndBytes - at, isKept: false);
                at = run.IsPresent ? CopyRuns(block, run, at, end) : run.EndBytes;
            }

            if (claims is not null)
                unclaimed.Add((block, claims));
            claims = null;
        }

        /// <summary>Copies a run, and those that follow it closely in the same file, as far as the buffer reaches.</summary>
        private long CopyRuns(int block, StackRun run, long atBytes, long endBytes)
        {
            long limit = Math.Min(endBytes, atBytes + buffer.Length);
            long shift = run.FileOffsetBytes - atBytes;
            int depth = run.Depth;
            Span<(int From, int To)> pieces = stackalloc (int, int)[64];
            int count = 0;
            long at = atBytes;
            while (run.Depth == depth && run.FileOffsetBytes - at == shift && at < limit && count < pieces.Length)
            {
                long end = Math.Min(run.EndBytes, limit);
                pieces[count++] = ((int)(at - atBytes), (int)(end - atBytes));
                at = end;
                StackRun gap = at < limit ? stack.Walk(at, limit) : default;
                if (at >= limit || gap.IsPresent || gap.IsPastEnd || gap.EndBytes - at > MaxGapBytes || gap.EndBytes >= limit)
                    break;
                at = gap.EndBytes;
                run = stack.Walk(at, limit);
            }

            int last = pieces[count - 1].To;
            above[depth].ReadExactly(atBytes + shift, buffer.AsSpan(0, last));
            foreach ((int from, int to) in pieces[..count])
                Put(block, atBytes + from, buffer.AsSpan(from, to - from));
            return atBytes + last;
        }

        private void Put(int block, long offsetBytes, Span<byte> data)
        {
            sectors += data.Length / VhdFooter.SectorBytes;
            if (!data.ContainsAnyExcept((byte)0))
            {
                writer.WriteZeroes(offsetBytes, data.Length, isKept: false);
                return;
            }

            writtenBytes += data.Length;
            batchBytes += data.Length;
            if (target.IsFlat)
            {
                writer.PutData(offsetBytes, data);
                return;
            }

            int from = (int)(offsetBytes - (long)block * blockBytes) / VhdFooter.SectorBytes;
            writer.PutInBlock(block, from, data);
            if (claims is null && !spare.TryPop(out claims))
                claims = SectorBitmap.Empty(0, blockBytes / VhdFooter.SectorBytes);
            claims.Set(from, from + data.Length / VhdFooter.SectorBytes);
        }

        private void EndBatch()
        {
            if (unclaimed.Count > 0)
                writer.SyncNow();
            foreach ((int block, SectorBitmap bits) in unclaimed)
            {
                writer.ClaimBlock(block, bits);
                bits.Clear();
                spare.Push(bits);
            }

            unclaimed.Clear();
            batchBytes = 0;
        }
    }
}
