// The data oracle: what a disk must hold, block by block, from seeds alone. A block that was never written must read as zeros.
using System.Buffers.Binary;
using Platform;

namespace SrCheck;

/// <summary>Knows each 64 KiB block by the seed of its bytes; a copy of it is what a snapshot must hold.</summary>
internal sealed class DiskContent
{
    public const int BlockBytes = 64 * 1024;

    private const long WholeReadLimit = 32L << 20;
    private readonly SortedDictionary<long, int> seeds = [];

    public DiskContent()
    {
    }

    private DiskContent(DiskContent other) => seeds = new SortedDictionary<long, int>(other.seeds);

    public long WrittenBytes => (long)seeds.Count * BlockBytes;

    public DiskContent Copy() => new(this);

    /// <summary>Writes some blocks all over the disk, its first and last among them, and flushes.</summary>
    public async Task ScatterAsync(IBlockDevice device, Random random, int count)
    {
        long blocks = device.LengthBytes / BlockBytes;
        await WriteAsync(device, 0, random.Next());
        await WriteAsync(device, blocks - 1, random.Next());
        for (int i = 2; i < count; i++)
            await WriteAsync(device, random.NextInt64(blocks), random.Next());
        await device.FlushAsync(CancellationToken.None);
    }

    public async Task WriteAsync(IBlockDevice device, long block, int seed)
    {
        await device.WriteAsync(block * BlockBytes, Bytes(block, seed), WriteFlags.None, CancellationToken.None);
        seeds[block] = seed;
    }

    /// <summary>Zeros, by whatever way the device has.</summary>
    public async Task ZeroAsync(IBlockDevice device, long block)
    {
        await device.WriteZeroesAsync(block * BlockBytes, BlockBytes, WriteFlags.None, CancellationToken.None);
        seeds.Remove(block);
    }

    /// <summary>Reads it all (of a large disk: what was written and the blocks beside) and compares.</summary>
    /// <exception cref="Checks.CheckFailedException">The first difference.</exception>
    public async Task VerifyAsync(IBlockDevice device, string where)
    {
        if (seeds.Count != 0 && (seeds.Keys.Last() + 1) * BlockBytes > device.LengthBytes)
            throw new Checks.CheckFailedException($"{where}: the disk has {device.LengthBytes} bytes; what was written behind is lost");
        byte[] read = new byte[BlockBytes];
        foreach (long block in Interesting(device.LengthBytes / BlockBytes))
        {
            await device.ReadAsync(block * BlockBytes, read, CancellationToken.None);
            ReadOnlySpan<byte> expected = seeds.TryGetValue(block, out int seed) ? Bytes(block, seed) : new byte[BlockBytes];
            int at = read.AsSpan().CommonPrefixLength(expected);
            if (at == BlockBytes)
                continue;
            string wanted = seeds.ContainsKey(block) ? $"the pattern of seed {seed}" : "zeros, it was never written";
            bool isZero = read.AsSpan().IndexOfAnyExcept((byte)0) < 0;
            throw new Checks.CheckFailedException(
                $"{where}: block {block} (byte {block * BlockBytes + at}) should hold {wanted}; "
                + $"it holds {(isZero ? "zeros" : "something else")}");
        }
    }

    /// <summary>What was written, and nothing of the rest.</summary>
    public async Task VerifyBlocksAsync(IBlockDevice device, string where)
    {
        byte[] read = new byte[BlockBytes];
        foreach ((long block, int seed) in seeds)
        {
            await device.ReadAsync(block * BlockBytes, read, CancellationToken.None);
            if (!read.AsSpan().SequenceEqual(Bytes(block, seed)))
                throw new Checks.CheckFailedException($"{where}: block {block} does not hold the pattern of seed {seed}");
        }
    }

    private IEnumerable<long> Interesting(long blocks)
    {
        if (blocks * BlockBytes <= WholeReadLimit)
            return Enumerable.Range(0, (int)blocks).Select(static b => (long)b);
        return seeds.Keys.SelectMany(static b => new[] { b - 1, b, b + 1 }).Where(b => b >= 0 && b < blocks).Distinct();
    }

    private static byte[] Bytes(long block, int seed)
    {
        byte[] bytes = new byte[BlockBytes];
        new Random(HashCode(block, seed)).NextBytes(bytes);
        BinaryPrimitives.WriteInt64LittleEndian(bytes, block); // A block in the wrong place is seen even when its neighbour has its seed.
        return bytes;
    }

    private static int HashCode(long block, int seed) => unchecked((int)(block * 2654435761) ^ seed);
}
