using System.Text.Json;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed class GoldenImageTests : IDisposable
{
    private readonly GoldenImages images = new();

    public static TheoryData<string> Files => [.. GoldenImages.Manifest.Select(static entry => entry.GetProperty("file").GetString()!)];

    public void Dispose() => images.Dispose();

    [Theory]
    [MemberData(nameof(Files))]
    public async Task An_image_of_the_fields_tools_reads_as_the_original_tapdisk_serves_it(string file)
    {
        JsonElement entry = GoldenImages.Manifest.Single(e => e.GetProperty("file").GetString() == file);
        // The manifest has no content for coalesce/mid, which had no parent there; with its parent it is what base-after became.
        JsonElement expected = entry.TryGetProperty("content_sha256", out _)
            ? entry
            : GoldenImages.Manifest.Single(e => e.GetProperty("file").GetString() == "coalesce/base-after.vhd");
        byte[] content = await GoldenImages.ContentOfAsync(images.PathOf(file));
        Assert.Equal(expected.GetProperty("content_bytes").GetInt64(), content.Length);
        Assert.Equal(expected.GetProperty("content_sha256").GetString(), GoldenImages.Sha256(content));
    }

    [Theory]
    [MemberData(nameof(Files))]
    public void An_image_is_described_as_the_fields_query_describes_it(string file)
    {
        JsonElement entry = GoldenImages.Manifest.Single(e => e.GetProperty("file").GetString() == file);
        string[] query = entry.GetProperty("query_vsfpd").GetString()!.Split('\n');
        VhdInfo info = VhdImage.ReadInfo(images.PathOf(file));
        Assert.Equal(query[0], (info.VirtualSizeBytes >> 20).ToString());
        Assert.Equal(query[1], info.PhysicalSizeBytes.ToString());
        Assert.Equal(query[3], info.IsHidden ? "hidden: 1" : "hidden: 0");
        string parent = info.ParentPath is null ? $"{file} has no parent" : Path.GetRelativePath(images.PathOf("."), info.ParentPath);
        Assert.Equal(file == "coalesce/mid.vhd" ? "coalesce/base.vhd" : query[2], parent);
        Assert.Empty(info.Warnings);
    }

    [Theory]
    [InlineData("bt-dynamic-empty.vhd", 64 << 20, 0)]
    [InlineData("bt-prealloc.vhd", 16 << 20, 64 << 20)]
    public void A_dynamic_image_of_ours_is_byte_for_byte_the_fields(string file, long sizeBytes, long maxSizeBytes)
    {
        byte[] golden = File.ReadAllBytes(images.PathOf(file));
        VhdImage.CreateDynamic(images.PathOf("ours.vhd"), sizeBytes, OptionsOf(images.PathOf(file)) with { MaxSizeBytes = maxSizeBytes });
        Assert.Equal(golden, File.ReadAllBytes(images.PathOf("ours.vhd")));
    }

    [Fact]
    public void A_fixed_image_of_ours_has_the_fields_footer()
    {
        byte[] golden = File.ReadAllBytes(images.PathOf("bt-fixed.vhd"));
        VhdImage.CreateFixed(images.PathOf("ours.vhd"), 4 << 20, OptionsOf(images.PathOf("bt-fixed.vhd")));
        byte[] ours = File.ReadAllBytes(images.PathOf("ours.vhd"));
        Assert.Equal(golden.Length, ours.Length);
        Assert.Equal(golden[^512..], ours[^512..]);
    }

    [Theory]
    [InlineData("chain/leaf.vhd", "chain/mid.vhd", false)]
    [InlineData("chain/mid.vhd", "chain/base.vhd", false)]
    [InlineData("chain/on-raw.vhd", "chain/raw-base.img", true)]
    public void A_snapshot_of_ours_has_the_fields_header_locators_and_footer(string file, string parent, bool isRaw)
    {
        const int tableStart = 1536, batmapStart = 2048, blocksStart = 0x1200;
        byte[] golden = File.ReadAllBytes(images.PathOf(file));
        File.SetLastWriteTimeUtc(images.PathOf(parent), VhdImage.ReadInfo(images.PathOf(file)).CreatedAt.UtcDateTime);
        VhdImage.CreateSnapshot(images.PathOf("chain/ours.vhd"), images.PathOf(parent), isRaw, OptionsOf(images.PathOf(file)));
        byte[] ours = File.ReadAllBytes(images.PathOf("chain/ours.vhd"));
        Assert.Equal(golden[..tableStart], ours[..tableStart]);
        Assert.Equal(golden[batmapStart..blocksStart], ours[batmapStart..blocksStart]);
        Assert.Equal(golden[^512..], ours[^512..]);
    }

    [Theory]
    [InlineData("qemu-chs.vhd")]
    [InlineData("qemu-exact.vhd")]
    [InlineData("qemu-fixed.vhd")]
    [InlineData("bt-resized.vhd")]
    [InlineData("bt-fixed.vhd")]
    [InlineData("chain/leaf.vhd")]
    public async Task A_foreign_image_can_be_written_and_reads_back(string file)
    {
        string path = images.PathOf(file);
        byte[] expected = await GoldenImages.ContentOfAsync(path);
        byte[] data = new byte[3 << 20];
        new Random(1).NextBytes(data);
        data.CopyTo(expected, 512);
        await using (VhdChain chain = VhdChain.Open(path, new VhdOpenOptions()))
            await chain.WriteAsync(512, data, Platform.WriteFlags.None, CancellationToken.None);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(path));
    }

    [Fact]
    public async Task An_untouched_image_is_not_changed_by_being_opened_for_writing()
    {
        byte[] before = File.ReadAllBytes(images.PathOf("chain/leaf.vhd"));
        await using (VhdChain chain = VhdChain.Open(images.PathOf("chain/leaf.vhd"), new VhdOpenOptions()))
            await chain.FlushAsync(CancellationToken.None);
        Assert.Equal(before, File.ReadAllBytes(images.PathOf("chain/leaf.vhd")));
    }

    private static VhdCreateOptions OptionsOf(string path)
    {
        VhdInfo info = VhdImage.ReadInfo(path);
        return new VhdCreateOptions { Uuid = info.Uuid, Time = new FixedTime(info.CreatedAt) };
    }

    private sealed class FixedTime(DateTimeOffset now) : TimeProvider
    {
        public override DateTimeOffset GetUtcNow() => now;
    }
}
