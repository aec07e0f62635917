// Random lives of a chain against a plain array: writes, zeroes, trims, snapshots, reopening, on real files.
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed class ModelTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    [InlineData(6)]
    public async Task A_chain_reads_as_an_array_whatever_was_done_to_it(int seed)
    {
        Random random = new(seed);
        long size = random.Next(3000, 24000) * 512L;
        MemoryBlockDevice model = new(size);
        string leaf = directory.File("0.vhd");
        if (seed % 3 == 0)
            VhdImage.CreateFixed(leaf, size);
        else
            VhdImage.CreateDynamic(leaf, size);
        for (int depth = 1; depth <= 6; depth++)
        {
            await using (VhdChain chain = VhdChain.Open(leaf, new VhdOpenOptions { RootDirectory = directory.Path }))
            {
                for (int i = 0; i < 40; i++)
                    await RequestAsync(random, chain, model);
                Assert.Equal(model.Bytes, await GoldenImages.ContentOfAsync(chain));
                await ExtentsCoverAsync(chain, model);
            }

            Assert.Equal(model.Bytes, await GoldenImages.ContentOfAsync(leaf));
            Assert.Empty(VhdImage.ReadInfo(leaf).Warnings);
            string child = directory.File($"{depth}.vhd");
            VhdImage.CreateSnapshot(child, leaf);
            leaf = child;
        }

        await using VhdChain whole = VhdChain.Open(leaf, new VhdOpenOptions { IsReadOnly = true });
        await VhdCopy.ExportAsync(whole, directory.File("flat.vhd"), ExportFormat.Vhd, null, CancellationToken.None);
        await VhdCopy.ExportAsync(whole, directory.File("flat.img"), ExportFormat.Raw, null, CancellationToken.None);
        Assert.Equal(model.Bytes, await GoldenImages.ContentOfAsync(directory.File("flat.vhd")));
        Assert.Equal(model.Bytes, File.ReadAllBytes(directory.File("flat.img")));
    }

    [Fact]
    public async Task Many_writers_at_once_lose_nothing()
    {
        const int writers = 8, sectorsEach = 3000;
        string path = directory.File("disk.vhd");
        VhdImage.CreateDynamic(path, writers * sectorsEach * 512L);
        await using (VhdChain chain = VhdChain.Open(path, new VhdOpenOptions()))
        {
            // Interleaved sectors: all writers meet in every bitmap, and many find the same block absent.
            await Task.WhenAll(Enumerable.Range(0, writers).Select(writer => Task.Run(async () =>
            {
                byte[] data = new byte[512];
                data.AsSpan().Fill((byte)(writer + 1));
                for (int i = 0; i < sectorsEach; i++)
                {
                    WriteFlags flags = i % 500 == 0 ? WriteFlags.Fua : WriteFlags.None;
                    await chain.WriteAsync((i * writers + writer) * 512L, data, flags, CancellationToken.None);
                }
            })));
        }

        byte[] content = await GoldenImages.ContentOfAsync(path);
        for (int sector = 0; sector < content.Length / 512; sector++)
            Assert.False(content.AsSpan(sector * 512, 512).ContainsAnyExcept((byte)(sector % writers + 1)), $"sector {sector}");
    }

    [Fact]
    public async Task Zeroes_hide_a_parent_and_cost_no_space_where_there_is_none()
    {
        VhdImage.CreateDynamic(directory.File("p.vhd"), 8 << 20);
        byte[] data = new byte[4096];
        data.AsSpan().Fill(7);
        await using (VhdChain parent = VhdChain.Open(directory.File("p.vhd"), new VhdOpenOptions()))
            await parent.WriteAsync(0, data, WriteFlags.None, CancellationToken.None);
        VhdImage.CreateSnapshot(directory.File("c.vhd"), directory.File("p.vhd"));
        await using (VhdChain child = VhdChain.Open(directory.File("c.vhd"), new VhdOpenOptions()))
            await child.WriteZeroesAsync(512, child.LengthBytes - 512, WriteFlags.None, CancellationToken.None);
        byte[] content = await GoldenImages.ContentOfAsync(directory.File("c.vhd"));
        Assert.Equal(512, content.Count(static b => b != 0));
        Assert.Equal(1, VhdImage.ReadInfo(directory.File("c.vhd")).AllocatedBlocks);
    }

    [Fact]
    public async Task A_disk_of_2040_GiB_opens_at_once_and_its_far_end_can_be_written()
    {
        string path = directory.File("large.vhd");
        VhdImage.CreateDynamic(path, 2040L << 30);
        byte[] data = new byte[512];
        data[0] = 1;
        await using (VhdChain chain = VhdChain.Open(path, new VhdOpenOptions()))
        {
            await chain.WriteAsync(chain.LengthBytes - 512, data, WriteFlags.Fua, CancellationToken.None);
            IReadOnlyList<BlockExtent> extents = await chain.ExtentsAsync(0, chain.LengthBytes, CancellationToken.None);
            long last = chain.LengthBytes - 512;
            Assert.Equal([new BlockExtent(0, last, ExtentKind.Hole), new BlockExtent(last, 512, ExtentKind.Data)], extents);
        }

        long before = GC.GetAllocatedBytesForCurrentThread(); // Of this thread: other tests run beside it.
        await using VhdChain again = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 20 << 20);
        await again.ReadAsync(again.LengthBytes - 512, data, CancellationToken.None);
        Assert.Equal(1, data[0]);
    }

    [Fact]
    public async Task Requests_outside_of_the_disk_or_off_its_sectors_are_refused_and_change_nothing()
    {
        VhdImage.CreateDynamic(directory.File("d.vhd"), 1 << 20);
        await using VhdChain chain = VhdChain.Open(directory.File("d.vhd"), new VhdOpenOptions());
        byte[] data = new byte[1024];
        CancellationToken none = CancellationToken.None;
        Assert.Equal(Errno.ENOSPC, await ErrnoAsync(() => chain.WriteAsync((1 << 20) - 512, data, WriteFlags.None, none)));
        Assert.Equal(Errno.EINVAL, await ErrnoAsync(() => chain.WriteAsync(1, data, WriteFlags.None, CancellationToken.None)));
        Assert.Equal(Errno.EINVAL, await ErrnoAsync(() => chain.ReadAsync(1 << 20, data, CancellationToken.None)));
        await using VhdChain reader = VhdChain.Open(directory.File("d.vhd"), new VhdOpenOptions { IsReadOnly = true });
        Assert.Equal(Errno.EPERM, await ErrnoAsync(() => reader.WriteAsync(0, data, WriteFlags.None, CancellationToken.None)));
    }

    private static async Task<Errno> ErrnoAsync(Func<ValueTask> request) =>
        (await Assert.ThrowsAsync<BlockIoException>(async () => await request())).Errno;

    private static async Task RequestAsync(Random random, VhdChain chain, MemoryBlockDevice model)
    {
        int sectors = (int)(chain.LengthBytes / 512);
        int sector = random.Next(sectors);
        int count = Math.Min(random.Next(4) == 0 ? random.Next(1, 6000) : random.Next(1, 40), sectors - sector);
        WriteFlags flags = random.Next(5) == 0 ? WriteFlags.NoHole : WriteFlags.None;
        CancellationToken none = CancellationToken.None;
        switch (random.Next(6))
        {
            case 0:
                await chain.WriteZeroesAsync(sector * 512L, count * 512L, flags, none);
                await model.WriteZeroesAsync(sector * 512L, count * 512L, flags, none);
                break;
            case 1:
                await chain.TrimAsync(sector * 512L, count * 512L, WriteFlags.None, none);
                await model.TrimAsync(sector * 512L, count * 512L, WriteFlags.None, none);
                break;
            case 2:
                await chain.FlushAsync(none);
                break;
            default:
                byte[] data = new byte[count * 512];
                random.NextBytes(data);
                await chain.WriteAsync(sector * 512L, data, WriteFlags.None, none);
                await model.WriteAsync(sector * 512L, data, WriteFlags.None, none);
                break;
        }
    }

    /// <summary>Extents tile the disk exactly, and a hole is zeros.</summary>
    private static async Task ExtentsCoverAsync(VhdChain chain, MemoryBlockDevice model)
    {
        for (long at = 0; at < chain.LengthBytes;)
        {
            foreach (BlockExtent extent in await chain.ExtentsAsync(at, chain.LengthBytes - at, CancellationToken.None))
            {
                Assert.Equal(at, extent.OffsetBytes);
                Assert.True(extent.LengthBytes > 0);
                if (extent.Kind == ExtentKind.Hole)
                    Assert.False(model.Bytes.AsSpan((int)at, (int)extent.LengthBytes).ContainsAnyExcept((byte)0));
                at = extent.EndBytes;
            }
        }
    }
}
