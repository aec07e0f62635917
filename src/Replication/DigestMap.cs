// The content digest of a disk, kept current while it is written (decision D3).
//
// Leaf: SHA-256 of 64 KiB. Block: SHA-256 of the digests of its 32 leaves (2 MiB). Root: SHA-256 of all block digests. The last leaf and
// the last block are as long as the disk is. A write makes its leaves stale when it begins and again when it ends: a leaf hashed in
// between stays stale. Holes are not read: their digests are constants. Memory: 36 bytes per block, plus the leaf digests of at most 4096
// blocks that were written after they were hashed.
using System.Buffers;
using System.Numerics;
using System.Security.Cryptography;
using Platform;

namespace Replication;

/// <summary>What <see cref="DigestMap.ComputeAsync"/> found, and how many blocks it had to hash for it.</summary>
public sealed record DigestResult(string Root, int RehashedBlocks);

public sealed class DigestMap : IDisposable
{
    public const int LeafBytes = 64 * 1024;
    public const int BlockBytes = 2 * 1024 * 1024;

    private const int LeavesPerBlock = BlockBytes / LeafBytes;
    private const int HashBytes = SHA256.HashSizeInBytes;
    private const int CachedBlocks = 4096;
    private const uint AllStale = uint.MaxValue;
    private static readonly byte[] ZeroLeaf = SHA256.HashData(new byte[LeafBytes]);

    private readonly long lengthBytes;
    private readonly byte[] blockDigests;
    private readonly uint[] staleLeaves;
    private readonly bool[] wasHashed;
    private readonly Dictionary<int, byte[]> leafDigests = [];
    private readonly Queue<int> cachedInOrder = new();
    private readonly Lock gate = new();
    private readonly SemaphoreSlim oneComputation = new(1);

    public DigestMap(long lengthBytes)
    {
        this.lengthBytes = lengthBytes;
        int blocks = checked((int)((lengthBytes + BlockBytes - 1) / BlockBytes));
        blockDigests = new byte[(long)blocks * HashBytes];
        staleLeaves = new uint[blocks];
        wasHashed = new bool[blocks];
        Array.Fill(staleLeaves, AllStale);
    }

    /// <summary>The whole computation, without memory of an earlier one: what an incremental digest must equal.</summary>
    public static async Task<string> DigestOfAsync(IBlockDevice device, CancellationToken cancellationToken)
    {
        using DigestMap map = new(device.LengthBytes);
        return (await map.ComputeAsync(device, cancellationToken)).Root;
    }

    /// <summary>A write begins, or has ended: both must be told.</summary>
    public void MarkStale(long offsetBytes, long writtenBytes)
    {
        if (writtenBytes == 0)
            return;
        long firstLeaf = offsetBytes / LeafBytes;
        long lastLeaf = (offsetBytes + writtenBytes - 1) / LeafBytes;
        lock (gate)
        {
            for (long block = firstLeaf / LeavesPerBlock; block <= lastLeaf / LeavesPerBlock; block++)
            {
                int from = (int)Math.Max(firstLeaf - (block * LeavesPerBlock), 0);
                int to = (int)Math.Min(lastLeaf - (block * LeavesPerBlock), LeavesPerBlock - 1);
                staleLeaves[block] |= AllStale >> (LeavesPerBlock - 1 - to) & AllStale << from;
            }
        }
    }

    /// <summary>Hashes what is stale, on two cores. One computation at a time; another waits.</summary>
    /// <exception cref="BlockIoException">The device cannot be read; what was not hashed stays stale.</exception>
    public async Task<DigestResult> ComputeAsync(IBlockDevice device, CancellationToken cancellationToken)
    {
        Invariant.Holds(device.LengthBytes == lengthBytes, "a digest map belongs to one disk");
        await oneComputation.WaitAsync(cancellationToken);
        try
        {
            int[] stale = StaleBlocks();
            ParallelOptions twoCores = new() { MaxDegreeOfParallelism = 2, CancellationToken = cancellationToken };
            await Parallel.ForEachAsync(stale, twoCores, async (block, token) => await RehashAsync(device, block, token));
            return new DigestResult(Convert.ToHexStringLower(SHA256.HashData(blockDigests)), stale.Length);
        }
        finally
        {
            oneComputation.Release();
        }
    }

    /// <summary>
    /// The digest of a part, in whole leaves (the disk's end may cut the last): the hash of the digests, in order, of the blocks that lie in it whole and of
    /// the leaves of those that it cuts. Reads what is stale in it, and at most the two blocks at its ends.
    /// </summary>
    /// <returns>In hex.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The range is empty, not in whole leaves, or not in the disk.</exception>
    public async Task<string> RangeAsync(IBlockDevice device, long offsetBytes, long rangeBytes, CancellationToken cancellationToken)
    {
        Invariant.Holds(device.LengthBytes == lengthBytes, "a digest map belongs to one disk");
        bool isInside = offsetBytes >= 0 && rangeBytes > 0 && offsetBytes <= lengthBytes - rangeBytes;
        long end = isInside ? offsetBytes + rangeBytes : 0;
        if (!isInside || offsetBytes % LeafBytes != 0 || (end % LeafBytes != 0 && end != lengthBytes))
            throw new ArgumentOutOfRangeException(nameof(offsetBytes), $"{offsetBytes}+{rangeBytes} is not in whole leaves of {LeafBytes} bytes of {lengthBytes}");
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        await oneComputation.WaitAsync(cancellationToken);
        try
        {
            for (long at = offsetBytes; at < end;)
            {
                int block = (int)(at / BlockBytes);
                long start = (long)block * BlockBytes;
                long next = Math.Min(Math.Min(start + BlockBytes, lengthBytes), end);
                bool isWhole = at == start && next == Math.Min(start + BlockBytes, lengthBytes);
                if (!isWhole)
                {
                    byte[] leaves = await RehashAsync(device, block, cancellationToken);
                    int first = (int)(at - start) / LeafBytes, last = (int)(next - start - 1) / LeafBytes;
                    hash.AppendData(leaves, first * HashBytes, (last - first + 1) * HashBytes);
                }
                else
                {
                    if (IsStale(block))
                        await RehashAsync(device, block, cancellationToken);
                    lock (gate)
                        hash.AppendData(blockDigests, block * HashBytes, HashBytes);
                }

                at = next;
            }

            return Convert.ToHexStringLower(hash.GetHashAndReset());
        }
        finally
        {
            oneComputation.Release();
        }
    }

    public void Dispose() => oneComputation.Dispose();

    private bool IsStale(int block)
    {
        lock (gate)
            return staleLeaves[block] != 0;
    }

    private int[] StaleBlocks()
    {
        lock (gate)
            return [.. Enumerable.Range(0, staleLeaves.Length).Where(block => staleLeaves[block] != 0)];
    }

    /// <returns>The leaves' digests.</returns>
    private async ValueTask<byte[]> RehashAsync(IBlockDevice device, int block, CancellationToken cancellationToken)
    {
        byte[] leaves = Claim(block, out uint toHash);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BlockBytes);
        try
        {
            long start = (long)block * BlockBytes;
            int length = (int)Math.Min(BlockBytes, lengthBytes - start);
            int leafCount = (length + LeafBytes - 1) / LeafBytes;
            uint present = await PresentLeavesAsync(device, start, length, cancellationToken);
            await ReadLeavesAsync(device, start, buffer.AsMemory(0, length), toHash & present, cancellationToken);
            for (int leaf = 0; leaf < leafCount; leaf++)
            {
                if ((toHash >> leaf & 1) == 0)
                    continue;
                Span<byte> bytes = buffer.AsSpan(leaf * LeafBytes, Math.Min(LeafBytes, length - (leaf * LeafBytes)));
                HashLeaf(bytes, isPresent: (present >> leaf & 1) != 0, leaves.AsSpan(leaf * HashBytes, HashBytes));
            }

            Keep(block, leaves, leafCount);
            return leaves;
        }
        catch
        {
            lock (gate)
            {
                staleLeaves[block] = AllStale;
                leafDigests.Remove(block);
            }

            throw;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    // From here on a write that begins or ends makes its leaves stale again, whatever we read.
    private byte[] Claim(int block, out uint toHash)
    {
        lock (gate)
        {
            bool isCached = leafDigests.TryGetValue(block, out byte[]? leaves);
            toHash = isCached ? staleLeaves[block] : AllStale;
            staleLeaves[block] = 0;
            return isCached ? leaves! : new byte[LeavesPerBlock * HashBytes];
        }
    }

    private void Keep(int block, byte[] leaves, int leafCount)
    {
        byte[] digest = SHA256.HashData(leaves.AsSpan(0, leafCount * HashBytes));
        lock (gate)
        {
            digest.CopyTo(blockDigests.AsSpan(block * HashBytes));
            // Only a block that was written after it had been hashed is likely to be written again.
            if (wasHashed[block] && leafDigests.TryAdd(block, leaves))
                cachedInOrder.Enqueue(block);
            wasHashed[block] = true;
            while (leafDigests.Count > CachedBlocks && cachedInOrder.TryDequeue(out int oldest))
                leafDigests.Remove(oldest);
        }
    }

    private static void HashLeaf(Span<byte> bytes, bool isPresent, Span<byte> digest)
    {
        if (isPresent)
            SHA256.HashData(bytes, digest);
        else if (bytes.Length == LeafBytes)
            ZeroLeaf.CopyTo(digest);
        else
            SHA256.HashData(new byte[bytes.Length], digest);
    }

    private static async ValueTask<uint> PresentLeavesAsync(
        IBlockDevice device, long start, int length, CancellationToken cancellationToken)
    {
        uint present = 0;
        for (long at = start; at < start + length;)
        {
            foreach (BlockExtent extent in await device.ExtentsAsync(at, start + length - at, cancellationToken))
            {
                at = extent.EndBytes;
                if (extent.Kind != ExtentKind.Data)
                    continue;
                int from = (int)((extent.OffsetBytes - start) / LeafBytes);
                int to = (int)((extent.EndBytes - 1 - start) / LeafBytes);
                present |= AllStale >> (LeavesPerBlock - 1 - to) & AllStale << from;
            }
        }

        return present;
    }

    // Neighbours are read together.
    private static async ValueTask ReadLeavesAsync(
        IBlockDevice device, long start, Memory<byte> block, uint wanted, CancellationToken cancellationToken)
    {
        while (wanted != 0)
        {
            int from = BitOperations.TrailingZeroCount(wanted);
            int count = BitOperations.TrailingZeroCount(~(wanted >> from));
            wanted &= count + from >= LeavesPerBlock ? ~(AllStale << from) : ~(AllStale << from) | AllStale << (from + count);
            int at = from * LeafBytes;
            int end = Math.Min((from + count) * LeafBytes, block.Length);
            if (at < end)
                await device.ReadAsync(start + at, block[at..end], cancellationToken);
        }
    }
}
