// A disk through a stream and back, whole and as a child of a base; and streams that are cut or damaged, which leave no file.
using Microsoft.Win32.SafeHandles;
using Support;
using Unit.VhdTests;
using Vhd;
using Vhd.Transfer;

namespace Unit.VhdTransferTests;

public sealed class StreamTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [Theory]
    [InlineData(61, 1)]
    [InlineData(62, 2)]
    [InlineData(63, 4)]
    public async Task A_disk_goes_through_a_stream_whole(int seed, int depth)
    {
        (string leaf, byte[] content) = await RandomDisks.ChainAsync(directory, "a", seed, depth);
        byte[] stream = Export(leaf, null);
        string arrived = directory.File("arrived.vhd");
        Import(stream, arrived, null);
        Assert.Equal(content, await GoldenImages.ContentOfAsync(arrived));
        Assert.Empty(VhdImage.ReadInfo(arrived).Warnings);
    }

    [Fact]
    public async Task What_lies_above_a_base_arrives_as_its_child()
    {
        (string leaf, byte[] content) = await RandomDisks.ChainAsync(directory, "a", 64, depth: 3);
        string below = directory.File("a0.vhd"), arrived = directory.File("arrived.vhd");
        byte[] stream = Export(leaf, below);
        Import(stream, arrived, below);
        Assert.Equal(content, await GoldenImages.ContentOfAsync(arrived));
        Assert.Equal(below, VhdImage.ReadInfo(arrived).ParentPath);
        Assert.Equal(VhdError.BadRequest, Refused(() => Export(below, leaf)));
        File.Delete(arrived);
        Assert.Equal(VhdError.ParentMissing, Refused(() => Import(stream, arrived, null)));
        Assert.Equal(VhdError.ParentMismatch, Refused(() => Import(stream, arrived, leaf)));
        Assert.Equal(VhdError.BadRequest, Refused(() => Import(Export(below, null), arrived, below)));
        Assert.False(File.Exists(arrived));
    }

    [Fact]
    public async Task An_empty_disk_goes_through_a_stream()
    {
        string empty = directory.File("empty.vhd"), arrived = directory.File("arrived.vhd");
        VhdImage.CreateDynamic(empty, 5 << 20);
        Import(Export(empty, null), arrived, null);
        Assert.Equal(new byte[5 << 20], await GoldenImages.ContentOfAsync(arrived));
    }

    [Fact]
    public async Task A_stream_that_is_cut_damaged_or_too_long_leaves_no_file()
    {
        (string leaf, _) = await RandomDisks.ChainAsync(directory, "a", 65, depth: 1);
        byte[] stream = Export(leaf, null);
        string arrived = directory.File("arrived.vhd");
        int before = Directory.GetFileSystemEntries(directory.Path).Length;
        foreach (int cut in new[] { 0, 1, 511, 512, 1535, 1536, 2048, 4096, 100_000, stream.Length - 512, stream.Length - 1 })
            Refused(() => Import(stream[..cut], arrived, null));
        // The front speaks for itself: cookies, checksums, table. So does the end.
        foreach (int at in new[] { 0, 20, 48, 60, 64, 512, 528, 540, 544, 548, 1536, stream.Length - 512, stream.Length - 100 })
        {
            byte[] damaged = (byte[])stream.Clone();
            damaged[at] ^= 0x11;
            Refused(() => Import(damaged, arrived, null));
        }

        Refused(() => Import([.. stream, 0], arrived, null));
        Refused(() => Import(new byte[1 << 20], arrived, null));
        Assert.Equal(before, Directory.GetFileSystemEntries(directory.Path).Length);
        Import(stream, arrived, null);
    }

    private byte[] Export(string path, string? below)
    {
        string file = directory.File("stream");
        using (SafeFileHandle output = File.OpenHandle(file, FileMode.Create, FileAccess.Write))
            StreamExport.Run(path, below, output, null, CancellationToken.None);
        byte[] stream = File.ReadAllBytes(file);
        File.Delete(file);
        return stream;
    }

    private static void Import(byte[] stream, string path, string? below) =>
        StreamImport.Run(new MemoryStream(stream), path, below, isSynced: true, null, CancellationToken.None);

    private static VhdError Refused(Action action) => Assert.Throws<VhdException>(action).Error;
}
