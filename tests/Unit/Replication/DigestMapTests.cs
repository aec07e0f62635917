using System.Security.Cryptography;
using Platform;
using Replication;
using Support;

namespace Unit.ReplicationTests;

public sealed class DigestMapTests
{
    private const int LengthBytes = (5 * DigestMap.BlockBytes) + (3 * DigestMap.LeafBytes) + 1536;

    [Fact]
    public async Task The_root_is_the_tree_that_the_format_describes()
    {
        using MemoryDisk disk = await MemoryDisk.CreateAsync(1);
        string root = await DigestMap.DigestOfAsync(disk.Memory, default);
        List<byte> blocks = [];
        for (int block = 0; block < LengthBytes; block += DigestMap.BlockBytes)
        {
            List<byte> leaves = [];
            int end = Math.Min(block + DigestMap.BlockBytes, LengthBytes);
            for (int leaf = block; leaf < end; leaf += DigestMap.LeafBytes)
                leaves.AddRange(SHA256.HashData(disk.Memory.Bytes.AsSpan(leaf, Math.Min(DigestMap.LeafBytes, end - leaf))));
            blocks.AddRange(SHA256.HashData(leaves.ToArray()));
        }

        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(blocks.ToArray())), root);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public async Task An_incremental_digest_equals_a_full_one_and_reads_only_what_was_written(int seed)
    {
        using MemoryDisk disk = await MemoryDisk.CreateAsync(seed);
        Random random = new(seed);
        await disk.Map.ComputeAsync(disk.Memory, default);
        for (int round = 0; round < 12; round++)
        {
            long offset = random.Next(LengthBytes / 512) * 512L;
            int length = (int)Math.Min(random.Next(1, 400) * 512L, LengthBytes - offset);
            byte[] data = new byte[length];
            random.NextBytes(data);
            await (round % 4 == 3
                ? disk.Device.WriteZeroesAsync(offset, length, WriteFlags.None, default)
                : disk.Device.WriteAsync(offset, data, WriteFlags.None, default));
            DigestResult incremental = await disk.Map.ComputeAsync(disk.Memory, default);
            Assert.Equal(await DigestMap.DigestOfAsync(disk.Memory, default), incremental.Root);
            Assert.InRange(incremental.RehashedBlocks, 1, 2);
            Assert.Equal(0, (await disk.Map.ComputeAsync(disk.Memory, default)).RehashedBlocks);
        }
    }

    [Fact]
    public async Task A_leaf_hashed_while_a_write_to_it_is_in_flight_stays_stale()
    {
        using MemoryDisk disk = await MemoryDisk.CreateAsync(4);
        await disk.Map.ComputeAsync(disk.Memory, default);
        disk.Map.MarkStale(0, 512);
        await disk.Map.ComputeAsync(disk.Memory, default); // Between the write's begin and its end.
        disk.Memory.Bytes[0] ^= 1;
        disk.Map.MarkStale(0, 512);
        DigestResult after = await disk.Map.ComputeAsync(disk.Memory, default);
        Assert.Equal(1, after.RehashedBlocks);
        Assert.Equal(await DigestMap.DigestOfAsync(disk.Memory, default), after.Root);
    }

    [Fact]
    public async Task The_digest_of_a_range_is_that_of_its_whole_blocks_and_of_the_leaves_of_the_others_and_follows_a_write()
    {
        using MemoryDisk disk = await MemoryDisk.CreateAsync(5);
        await disk.Map.ComputeAsync(disk.Memory, default);
        await disk.Device.WriteAsync(2 * DigestMap.BlockBytes, new byte[] { 7 }.Concat(new byte[511]).ToArray(), WriteFlags.None, default);
        const int leaf = DigestMap.LeafBytes, block = DigestMap.BlockBytes;
        foreach ((long from, long to) in ((long, long)[])
            [(0, LengthBytes), (block - leaf, (2 * block) + leaf), (leaf, 2 * leaf), (0, block), (5 * block, LengthBytes), ((5 * block) + (3 * leaf), LengthBytes)])
            Assert.Equal(Reference(disk, from, to), await disk.Map.RangeAsync(disk.Memory, from, to - from, default));
        foreach ((long from, long length) in ((long, long)[])[(0, 0), (512, leaf), (0, leaf + 512), (-leaf, leaf), (LengthBytes - 512, 512), (0, LengthBytes + 512)])
            await Assert.ThrowsAsync<ArgumentOutOfRangeException>(() => disk.Map.RangeAsync(disk.Memory, from, length, default));
    }

    private static string Reference(MemoryDisk disk, long from, long to)
    {
        List<byte> digests = [];
        for (int block = 0; block < LengthBytes; block += DigestMap.BlockBytes)
        {
            int end = Math.Min(block + DigestMap.BlockBytes, LengthBytes);
            List<byte> all = [], inside = [];
            for (int leaf = block; leaf < end; leaf += DigestMap.LeafBytes)
            {
                byte[] digest = SHA256.HashData(disk.Memory.Bytes.AsSpan(leaf, Math.Min(DigestMap.LeafBytes, end - leaf)));
                all.AddRange(digest);
                if (leaf >= from && leaf < to)
                    inside.AddRange(digest);
            }

            digests.AddRange(inside.Count == all.Count ? SHA256.HashData(all.ToArray()) : [.. inside]);
        }

        return Convert.ToHexStringLower(SHA256.HashData(digests.ToArray()));
    }

    private sealed class MemoryDisk : IDisposable
    {
        private MemoryDisk()
        {
            Map = new DigestMap(LengthBytes);
            Device = new DigestDevice(Memory, Map);
        }

        public MemoryBlockDevice Memory { get; } = new(LengthBytes);

        public DigestMap Map { get; }

        public DigestDevice Device { get; }

        /// <summary>Random data across a block's border, holes elsewhere.</summary>
        public static async Task<MemoryDisk> CreateAsync(int seed)
        {
            MemoryDisk disk = new();
            byte[] data = new byte[DigestMap.BlockBytes + 4096];
            new Random(seed).NextBytes(data);
            await disk.Memory.WriteAsync(DigestMap.BlockBytes - 2048, data, WriteFlags.None, default);
            return disk;
        }

        public void Dispose() => Map.Dispose();
    }
}
