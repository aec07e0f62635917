// Copies of random chains, new and in place, against the content they must have; and what is left behind when they fail.
using System.Text;
using Platform;
using Support;
using Unit.VhdTests;
using Vhd;
using Vhd.Transfer;

namespace Unit.VhdTransferTests;

public sealed class DiskCopyTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public async Task A_chain_is_copied_in_every_format_with_every_way_of_reading(int seed)
    {
        (string leaf, byte[] content) = await RandomDisks.ChainAsync(directory, "a", seed, depth: seed);
        foreach (DiskFormat format in Enum.GetValues<DiskFormat>())
        {
            string path = directory.File($"{format}");
            CopyOptions options = new() { Format = format, Threads = seed, IsVerified = true };
            DiskCopy.Run(leaf, path, options, CancellationToken.None);
            Assert.Equal(content, await ContentAsync(path, format));
            // And back to where it came from: a raw disk with holes.
            string back = directory.File($"{format}-back");
            DiskCopy.Run(path, back, new CopyOptions { IsSourceRaw = format == DiskFormat.Raw }, CancellationToken.None);
            Assert.Equal(content, await GoldenImages.ContentOfAsync(back));
            Assert.Empty(VhdImage.ReadInfo(back).Warnings);
        }
    }

    [Theory]
    [InlineData(11)]
    [InlineData(12)]
    [InlineData(13)]
    [InlineData(14)]
    public async Task In_place_the_target_becomes_the_source_whatever_it_held(int seed)
    {
        (string source, byte[] content) = await RandomDisks.ChainAsync(directory, "a", seed, depth: 2);
        foreach (DiskFormat format in Enum.GetValues<DiskFormat>())
        {
            (string other, _) = await RandomDisks.ChainAsync(directory, $"b{format}", seed + 100, depth: 1, content.Length);
            string target = directory.File($"{format}");
            DiskCopy.Run(other, target, new CopyOptions { Format = format }, CancellationToken.None);
            CopyOptions inPlace = new() { Format = format, IsInPlace = true };
            DiskCopy.Run(source, target, inPlace, CancellationToken.None);
            Assert.Equal(content, await ContentAsync(target, format));
            if (format == DiskFormat.Raw)
                continue;
            Assert.Empty(VhdImage.ReadInfo(target).Warnings);
            if (format == DiskFormat.Vhd)
                Assert.Equal(content, ContentWithoutBitmaps(target, content.Length));
        }
    }

    [Fact]
    public async Task A_block_of_zeros_that_is_allocated_costs_nothing_in_the_copy()
    {
        string source = directory.File("zeros.vhd"), target = directory.File("copy.vhd");
        VhdImage.CreateDynamic(source, 8 << 20);
        await using (VhdChain chain = VhdChain.Open(source, new VhdOpenOptions()))
        {
            await chain.WriteAsync(0, new byte[4 << 20], WriteFlags.None, CancellationToken.None);
            await chain.WriteAsync(5 << 20, "x"u8.ToArray().Concat(new byte[8191]).ToArray(), WriteFlags.None, CancellationToken.None);
        }

        CopyResult result = DiskCopy.Run(source, target, new CopyOptions(), CancellationToken.None);
        Assert.Equal(4096, result.WrittenBytes);
        Assert.Equal(1, VhdImage.ReadInfo(target).AllocatedBlocks);
    }

    [Fact]
    public async Task A_layer_is_copied_with_the_zeros_that_hide_its_parent()
    {
        (string parent, byte[] content) = await RandomDisks.ChainAsync(directory, "a", 21, depth: 1);
        string child = directory.File("child.vhd"), copy = directory.File("copy.vhd");
        VhdImage.CreateSnapshot(child, parent);
        await using (VhdChain chain = VhdChain.Open(child, new VhdOpenOptions()))
        {
            await chain.WriteAsync(0, new byte[content.Length / 1024 * 512], WriteFlags.None, CancellationToken.None);
            await chain.WriteAsync(1024, Encoding.ASCII.GetBytes(new string('d', 512)), WriteFlags.None, CancellationToken.None);
        }

        CopyOptions layer = new() { IsLayerOnly = true };
        CopyResult result = DiskCopy.Run(child, copy, layer, CancellationToken.None);
        Assert.InRange(result.WrittenBytes, 512, 4096);
        Assert.Equal(await GoldenImages.ContentOfAsync(child), await GoldenImages.ContentOfAsync(copy));
        Assert.Equal(VhdImage.ReadInfo(child).ParentUuid, VhdImage.ReadInfo(copy).ParentUuid);
        DiskCopy.Run(child, copy, layer with { IsInPlace = true }, CancellationToken.None);
        Assert.Equal(await GoldenImages.ContentOfAsync(child), await GoldenImages.ContentOfAsync(copy));
    }

    [Fact]
    public async Task A_copy_that_is_stopped_leaves_no_file_and_one_in_place_leaves_an_image_that_is_refused()
    {
        (string source, byte[] content) = await RandomDisks.ChainAsync(directory, "a", 31, depth: 1);
        string target = directory.File("target.vhd");
        VhdImage.CreateDynamic(target, content.Length);
        string[] before = Directory.GetFiles(directory.Path);
        CancellationToken stopped = new(canceled: true);
        Assert.ThrowsAny<OperationCanceledException>(() => DiskCopy.Run(source, directory.File("new.vhd"), new CopyOptions(), stopped));
        Assert.Equal(before, Directory.GetFiles(directory.Path));
        Assert.ThrowsAny<OperationCanceledException>(
            () => DiskCopy.Run(source, target, new CopyOptions { IsInPlace = true }, stopped));
        Assert.Contains("v_poison", Assert.Throws<VhdException>(() => VhdImage.ReadInfo(target)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_target_that_cannot_be_is_refused_and_unchanged()
    {
        (string source, byte[] content) = await RandomDisks.ChainAsync(directory, "a", 41, depth: 2);
        string smaller = directory.File("smaller.vhd");
        VhdImage.CreateDynamic(smaller, content.Length - 512);
        string parent = VhdImage.ReadInfo(source).ParentPath!;
        CopyOptions inPlace = new() { IsInPlace = true };
        Refuses(VhdError.AlreadyExists, smaller, new CopyOptions());
        Refuses(VhdError.BadRequest, smaller, inPlace);
        Refuses(VhdError.BadRequest, source, inPlace);
        Refuses(VhdError.BadRequest, parent, inPlace);
        Refuses(VhdError.CannotOpen, directory.File("none.vhd"), inPlace);
        Refuses(VhdError.CannotWrite, directory.File("no/such/folder.vhd"), new CopyOptions());

        void Refuses(VhdError error, string target, CopyOptions options)
        {
            byte[] before = File.Exists(target) ? File.ReadAllBytes(target) : [];
            Assert.Equal(error, Assert.Throws<VhdException>(() => DiskCopy.Run(source, target, options, CancellationToken.None)).Error);
            Assert.Equal(before, File.Exists(target) ? File.ReadAllBytes(target) : []);
        }
    }

    private static async Task<byte[]> ContentAsync(string path, DiskFormat format) =>
        format == DiskFormat.Raw ? await File.ReadAllBytesAsync(path) : await GoldenImages.ContentOfAsync(path);

    /// <summary>As a reader that does not look at sector bitmaps (qemu) sees a dynamic image.</summary>
    private static byte[] ContentWithoutBitmaps(string path, int lengthBytes)
    {
        byte[] file = File.ReadAllBytes(path);
        byte[] content = new byte[lengthBytes];
        for (int block = 0; block * (2 << 20) < lengthBytes; block++)
        {
            uint sector = System.Buffers.Binary.BinaryPrimitives.ReadUInt32BigEndian(file.AsSpan(1536 + block * 4));
            int length = Math.Min(2 << 20, lengthBytes - block * (2 << 20));
            if (sector != uint.MaxValue)
                file.AsSpan((int)sector * 512 + 512, length).CopyTo(content.AsSpan(block * (2 << 20)));
        }

        return content;
    }
}
