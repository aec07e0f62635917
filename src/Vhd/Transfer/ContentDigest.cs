// The digest of a disk's content, as docs/formats/digest.md defines it: leaves of 64 KiB, blocks of 2 MiB, one root. Holes are not read;
// the digests of all-zero leaves and blocks are constants. Filled block by block, from several threads, in any order.
using System.Security.Cryptography;
using Platform;

namespace Vhd.Transfer;

/// <param name="Root">64 hex digits.</param>
/// <param name="Blocks">The digests of all blocks, 32 bytes each, in order.</param>
public sealed record DiskDigest(string Root, ReadOnlyMemory<byte> Blocks, long VirtualSizeBytes);

public sealed class ContentDigest
{
    public const int LeafBytes = 64 * 1024;
    public const int BlockBytes = 2 * 1024 * 1024;
    public const int HashBytes = SHA256.HashSizeInBytes;

    private static readonly byte[] ZeroLeaf = SHA256.HashData(new byte[LeafBytes]);

    private readonly long lengthBytes;
    private readonly byte[] blocks;

    /// <summary>Of a disk of zeros, until blocks are put in.</summary>
    public ContentDigest(long lengthBytes)
    {
        this.lengthBytes = lengthBytes;
        int count = checked((int)((lengthBytes + BlockBytes - 1) / BlockBytes));
        blocks = new byte[(long)count * HashBytes];
        byte[] zeroBlock = OfLeaves(LeavesOf(BlockBytes));
        for (int block = 0; block < count; block++)
            zeroBlock.CopyTo(blocks, (long)block * HashBytes);
        if (lengthBytes % BlockBytes != 0)
            OfLeaves(LeavesOf((int)(lengthBytes % BlockBytes))).CopyTo(blocks, (count - 1L) * HashBytes);
    }

    /// <summary>Reads an image with its parents (or a raw disk) and digests what it holds.</summary>
    public static DiskDigest Of(string path, bool isRaw, int threads, TransferProgress? progress, CancellationToken cancellationToken)
    {
        using DiskSource source = DiskSource.Open(path, isRaw, isLayerOnly: false, isDirect: false);
        ContentDigest digest = new(source.LengthBytes);
        List<int> planned = CopyPass.Plan(source, BlockBytes);
        if (progress is not null)
            progress.TotalBytes = planned.Count * (long)BlockBytes;
        TransferThreads.Run(
            threads,
            planned,
            (_, supply) =>
            {
                BlockHasher hasher = new(digest);
                while (supply.TryTake(out int block))
                {
                    hasher.HashBlock(source, block, supply);
                    progress?.Add(BlockBytes);
                }
            },
            cancellationToken);
        return digest.Result();
    }

    public DiskDigest Result() => new(Convert.ToHexStringLower(SHA256.HashData(blocks)), blocks, lengthBytes);

    internal int LengthOf(int block) => (int)Math.Min(BlockBytes, lengthBytes - (long)block * BlockBytes);

    /// <summary>The digests of a range of zeros' leaves.</summary>
    internal static byte[] LeavesOf(int zeroBytes)
    {
        byte[] leaves = new byte[(zeroBytes + LeafBytes - 1) / LeafBytes * HashBytes];
        for (int leaf = 0; leaf < leaves.Length / HashBytes; leaf++)
            ZeroLeaf.CopyTo(leaves, leaf * HashBytes);
        if (zeroBytes % LeafBytes != 0)
            SHA256.HashData(new byte[zeroBytes % LeafBytes], leaves.AsSpan(leaves.Length - HashBytes));
        return leaves;
    }

    internal void Put(int block, ReadOnlySpan<byte> leaves) => SHA256.HashData(leaves, blocks.AsSpan(block * HashBytes, HashBytes));

    private static byte[] OfLeaves(byte[] leaves) => SHA256.HashData(leaves);
}

/// <summary>One thread's hashing: a megabyte is read and its sixteen leaves are hashed side by side while it is in the cache.</summary>
internal sealed class BlockHasher(ContentDigest digest)
{
    private const int PieceBytes = Sha256Lanes.Count * ContentDigest.LeafBytes;

    private readonly AlignedBuffer buffer = new(PieceBytes);
    private readonly byte[] leaves = new byte[ContentDigest.BlockBytes / ContentDigest.LeafBytes * ContentDigest.HashBytes];

    public void HashBlock(DiskSource source, int block, BlockSupply supply)
    {
        int length = digest.LengthOf(block);
        for (int at = 0; at < length; at += PieceBytes)
        {
            supply.ThrowIfStopped();
            Span<byte> piece = buffer.Span[..Math.Min(PieceBytes, length - at)];
            source.Read((long)block * ContentDigest.BlockBytes + at, piece);
            HashLeaves(piece, leaves.AsSpan(at / ContentDigest.LeafBytes * ContentDigest.HashBytes));
        }

        int count = (length + ContentDigest.LeafBytes - 1) / ContentDigest.LeafBytes;
        digest.Put(block, leaves.AsSpan(0, count * ContentDigest.HashBytes));
    }

    internal static void HashLeaves(ReadOnlySpan<byte> piece, Span<byte> digests)
    {
        if (piece.Length == PieceBytes && Sha256Lanes.IsSupported)
        {
            Sha256Lanes.Hash(piece, digests);
            return;
        }

        for (int at = 0; at < piece.Length; at += ContentDigest.LeafBytes)
        {
            SHA256.HashData(piece.Slice(at, Math.Min(ContentDigest.LeafBytes, piece.Length - at)), digests);
            digests = digests[ContentDigest.HashBytes..];
        }
    }
}
