// What `vhd-util read` prints of images that the field's tools wrote: the labels are the field's, the values are in the images, and what
// the table and the bitmaps say leads to the disk's bytes.
using System.Buffers.Binary;
using System.Numerics;
using System.Text.Json;
using Vhd;

namespace Unit.VhdTests;

public sealed class DumpTests : IDisposable
{
    private const string LeafText = """
        VHD Footer Summary:
        -------------------
        Cookie              : conectix
        Features            : (0x00000002) <RESV>
        File format version : Major: 1, Minor: 0
        Data offset         : 512
        Timestamp           : Sat Nov 21 04:30:57 2026
        Creator Application : 'tap'
        Creator version     : Major: 1, Minor: 3
        Creator OS          : Unknown!
        Original disk size  : 16 MB (16777216 Bytes)
        Current disk size   : 16 MB (16777216 Bytes)
        Geometry            : Cyl: 481, Hds: 4, Sctrs: 17
                            : = 15 MB (16746496 Bytes)
        Disk type           : Differencing hard disk
        Checksum            : 0xfffff08d|0xfffff08d (Good!)
        UUID                : 29f5b6fb-6638-48a2-b836-1b697ff1ae42
        Saved state         : No
        Hidden              : 0

        VHD Header Summary:
        -------------------
        Cookie              : cxsparse
        Data offset (unusd) : 18446744073709551615
        Table offset        : 1536
        Header version      : 0x00010000
        Max BAT size        : 8
        Block size          : 2097152 (2 MB)
        Parent name         : mid.vhd
        Parent UUID         : 1b573042-9cda-40ac-a457-a4bd246ed05d
        Parent timestamp    : Sat Nov 21 04:30:57 2026
        Checksum            : 0xffffe41d|0xffffe41d (Good!)

        VHD Parent Locators:
        --------------------
        locator:            : 0
               code         : PLAT_CODE_MACX
               data_space   : 512
               data_length  : 16
               data_offset  : 3072
               decoded name : ./mid.vhd

        locator:            : 1
               code         : PLAT_CODE_W2KU
               data_space   : 512
               data_length  : 18
               data_offset  : 3584
               decoded name : ./mid.vhd

        locator:            : 2
               code         : PLAT_CODE_W2RU
               data_space   : 512
               data_length  : 18
               data_offset  : 4096
               decoded name : ./mid.vhd

        VHD Batmap Summary:
        -------------------
        Batmap offset       : 2560
        Batmap size (secs)  : 1
        Batmap version      : 0x00010002
        Checksum            : 0xffffffff|0xffffffff (Good!)

        """;

    private readonly GoldenImages images = new();

    public static TheoryData<string> Files => GoldenImageTests.Files;

    public void Dispose() => images.Dispose();

    [Fact]
    public void Headers_are_printed_under_the_fields_labels() =>
        Assert.Equal(LeafText.Split('\n'), VhdDump.HeaderLines(images.PathOf("chain/leaf.vhd"), isHex: false));

    [Theory]
    [MemberData(nameof(Files))]
    public void Every_checksum_of_the_fields_images_is_good_and_their_sizes_are_printed(string file)
    {
        IReadOnlyList<string> lines = VhdDump.HeaderLines(images.PathOf(file), isHex: true);
        Assert.All(
            lines.Where(static line => line.StartsWith("Checksum", StringComparison.Ordinal)),
            static line => Assert.EndsWith("(Good!)", line, StringComparison.Ordinal));
        JsonElement entry = GoldenImages.Manifest.Single(e => e.GetProperty("file").GetString() == file);
        long mebibytes = long.Parse(entry.GetProperty("query_vsfpd").GetString()!.Split('\n')[0]);
        Assert.Contains(lines, line => line.StartsWith($"Current disk size   : 0x{mebibytes:x} MB", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("chain/leaf.vhd")]
    [InlineData("chain/mid.vhd")]
    [InlineData("bt-dynamic.vhd")]
    public async Task A_sector_that_an_image_holds_is_where_the_table_says(string file)
    {
        string path = images.PathOf(file);
        byte[] stored = File.ReadAllBytes(path);
        byte[] disk = await GoldenImages.ContentOfAsync(path);
        using VhdDump dump = VhdDump.Open(path);
        int held = 0;
        for (int sector = 0; sector < disk.Length / 512; sector++)
        {
            if (!dump.Holds(sector))
                continue;
            held++;
            int at = (int)dump.SectorOffsetBytes(sector)!;
            Assert.True(stored.AsSpan(at, 512).SequenceEqual(disk.AsSpan(sector * 512, 512)), $"sector {sector}");
        }

        Assert.True(held > 0);
        Assert.Equal(VhdImage.ReadInfo(path).AllocatedBlocks, dump.AllocationMap().Sum(static each => BitOperations.PopCount(each)));
    }

    [Fact]
    public void A_block_is_read_as_it_is_stored_with_its_bitmap_and_table_entry()
    {
        string path = images.PathOf("chain/leaf.vhd");
        byte[] stored = File.ReadAllBytes(path);
        using VhdDump dump = VhdDump.Open(path);
        for (int block = 0; block < 8; block++)
        {
            uint entry = BinaryPrimitives.ReadUInt32BigEndian(stored.AsSpan(1536 + block * 4));
            Assert.Equal(entry == uint.MaxValue ? null : entry * 512L, dump.BlockOffsetBytes(block));
            if (entry == uint.MaxValue)
            {
                Assert.Throws<VhdException>(() => dump.BitmapOf(block));
                continue;
            }

            byte[] data = new byte[dump.BlockBytes];
            dump.ReadBlock(block, data);
            int bitmapAt = (int)entry * 512;
            Assert.Equal(stored[bitmapAt..(bitmapAt + 512)], dump.BitmapOf(block).ToArray());
            Assert.Equal(stored[(bitmapAt + 512)..(bitmapAt + 512 + data.Length)], data);
        }

        Assert.Equal(512, dump.Batmap().Length);
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(8)]
    [InlineData(long.MaxValue)]
    [InlineData(long.MinValue)]
    public void What_the_disk_does_not_have_is_refused(long block)
    {
        using VhdDump dump = VhdDump.Open(images.PathOf("chain/leaf.vhd"));
        Assert.Equal(VhdError.BadRequest, Assert.Throws<VhdException>(() => dump.BlockOffsetBytes(block)).Error);
        Assert.Throws<VhdException>(() => dump.SectorOffsetBytes(block < 0 ? block : Math.Max(block, 8 * 4096)));
        using VhdDump flat = VhdDump.Open(images.PathOf("bt-fixed.vhd"));
        Assert.Contains("fixed", Assert.Throws<VhdException>(() => flat.BlockOffsetBytes(block)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_headers_of_an_image_with_any_byte_wrong_can_be_looked_at()
    {
        string path = images.PathOf("chain/leaf.vhd");
        byte[] good = File.ReadAllBytes(path);
        Random random = new(4);
        for (int round = 0; round < 300; round++)
        {
            byte[] bad = (byte[])good.Clone();
            for (int i = 0; i < 4; i++)
            {
                int at = random.Next(2) == 0 ? random.Next(4608) : bad.Length - 512 + random.Next(512);
                byte value = random.Next(3) switch { 0 => 0, 1 => 0xff, _ => 0x7f };
                bad.AsSpan(at, Math.Min(random.Next(1, 9), bad.Length - at)).Fill(value);
            }

            File.WriteAllBytes(images.PathOf("bad.vhd"), bad[..(random.Next(3) == 0 ? random.Next(bad.Length) : bad.Length)]);
            IReadOnlyList<string> lines = VhdDump.HeaderLines(images.PathOf("bad.vhd"), isHex: false);
            Assert.Equal("VHD Footer Summary:", lines[0]);
            Assert.DoesNotContain(lines, static line => line.Any(char.IsControl));
        }

        File.WriteAllBytes(images.PathOf("bad.vhd"), good[..^1]);
        Assert.Contains("UUID                : 29f5b6fb-6638-48a2-b836-1b697ff1ae42", VhdDump.HeaderLines(images.PathOf("bad.vhd"), false));
    }
}
