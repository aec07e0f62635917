// The bad-input plan (research/users-and-trust.md 5.4), rows 1-68; the number of each row is its id. Rows of chains: BadImageTests.Chains.cs.
using System.Buffers.Binary;
using System.Diagnostics;
using System.Text;
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed partial class BadImageTests : IDisposable
{
    private const int SizeBytes = 8 << 20;
    private const int Header = 512;
    private const int Table = 1536;

    private readonly TemporaryDirectory directory = new();

    public BadImageTests()
    {
        VhdImage.CreateDynamic(Good, SizeBytes);
        VhdImage.CreateFixed(directory.File("fixed.vhd"), 1 << 20);
        Write(Good, 0, 1);
        Write(Good, 3 << 20, 2);
        VhdImage.CreateSnapshot(Child, Good);
        Write(Child, 0, 3);
    }

    private string Good => directory.File("good.vhd");

    private string Child => directory.File("child.vhd");

    public void Dispose() => directory.Dispose();

    public static TheoryData<int, VhdError, string> FooterRows => new()
    {
        { 4, VhdError.NotAnImage, "cookie" },
        { 8, VhdError.NotAnImage, "checksum" },
        { 9, VhdError.NotAnImage, "checksum" },
        { 10, VhdError.Unsupported, "disk type" },
        { 11, VhdError.Damaged, "names no parent" },
        { 13, VhdError.Damaged, "puts the header at" },
        { 14, VhdError.Damaged, "puts the header at" },
        { 15, VhdError.Damaged, "current size" },
        { 16, VhdError.Damaged, "multiple of 512" },
        { 17, VhdError.Damaged, "current size" },
        { 18, VhdError.Unsupported, "limit" },
        { 22, VhdError.Unsupported, "version 2.0" },
    };

    [Theory]
    [MemberData(nameof(FooterRows))]
    public void A_bad_footer_is_refused(int row, VhdError error, string says)
    {
        byte[] image = File.ReadAllBytes(Good);
        byte[] footer = image[..512];
        Action<byte[]> change = row switch
        {
            4 => f => f[0] = (byte)'x',
            8 => f => f[67]++,
            9 => f => f.AsSpan(64, 4).Clear(),
            10 => f => f[63] = 6,
            11 => f => f[63] = 4,
            13 => f => f[20] = 1,
            14 => f => f.AsSpan(16, 8).Fill(0xFF),
            15 => f => f.AsSpan(48, 8).Clear(),
            16 => f => f[55] = 1,
            17 => f => f[48] = 0x80,
            18 => f => f[49] = 1,
            _ => f => f[13] = 2,
        };
        change(footer);
        if (row is not (8 or 9))
            Seal(footer, 64);
        footer.CopyTo(image, 0);
        footer.CopyTo(image, image.Length - 512);
        Refused(image, error, says);
    }

    public static TheoryData<int, int, uint, VhdError, string> HeaderRows => new()
    {
        { 25, 20, 256, VhdError.Damaged, "over the footer copy" },
        { 26, 20, 0x7FFF_FFFF, VhdError.Damaged, "passes the end" },
        { 27, 28, 0, VhdError.Damaged, "has 0 entries" },
        { 28, 28, uint.MaxValue, VhdError.Damaged, "passes the end" },
        { 29, 28, 3, VhdError.Damaged, "needs 4" },
        { 30, 32, 0, VhdError.Unsupported, "block size 0" },
        { 31, 32, 1, VhdError.Unsupported, "block size 1" },
        { 32, 32, 3_000_000, VhdError.Unsupported, "block size 3000000" },
        { 33, 32, 0x8000_0000, VhdError.Unsupported, "block size 2147483648" },
    };

    [Theory]
    [MemberData(nameof(HeaderRows))]
    public void A_bad_header_is_refused(int row, int offset, uint value, VhdError error, string says)
    {
        byte[] image = File.ReadAllBytes(Good);
        BinaryPrimitives.WriteUInt32BigEndian(image.AsSpan(Header + offset), value);
        Seal(image.AsSpan(Header, 1024), 36);
        Refused(image, error, says);
        Assert.InRange(row, 25, 33);
    }

    [Fact]
    public void Row_23_and_24_a_header_without_cookie_or_with_a_wrong_checksum_is_refused()
    {
        byte[] image = File.ReadAllBytes(Good);
        image[Header + 100] ^= 1;
        Refused(image, VhdError.Damaged, "header checksum at byte 548");
        image[Header] = 0;
        Refused(image, VhdError.Damaged, "cxsparse");
    }

    public static TheoryData<int, uint, string> TableRows => new()
    {
        { 34, 3, "lies over the block table" },
        { 35, 0x00FF_FFFF, "passes the end of the file" },
        { 36, 0, "overlaps block" },
        { 37, 1, "overlaps block" },
        { 39, 0xFFFF_FFFE, "passes the end of the file" },
    };

    [Theory]
    [MemberData(nameof(TableRows))]
    public void A_bad_table_entry_is_refused_and_named(int row, uint value, string says)
    {
        byte[] image = File.ReadAllBytes(Good);
        uint first = BinaryPrimitives.ReadUInt32BigEndian(image.AsSpan(Table));
        // Rows 36 and 37 are about two entries: the same sector, and one sector short of room.
        uint entry = row switch { 36 => first, 37 => first + 4096, _ => value };
        BinaryPrimitives.WriteUInt32BigEndian(image.AsSpan(Table + 4), entry);
        Refused(image, VhdError.Damaged, says);
    }

    [Theory]
    [InlineData(1, 0)]
    [InlineData(2, 511)]
    [InlineData(3, 1000)]
    public void A_file_too_short_to_be_an_image_is_refused(int row, int length)
    {
        if (row == 3)
            Refused(File.ReadAllBytes(directory.File("fixed.vhd"))[^length..], VhdError.Damaged, "has only");
        else
            Refused(File.ReadAllBytes(Good)[..length], VhdError.NotAnImage, "too short");
    }

    [Theory]
    [InlineData(41, 1535)]
    [InlineData(41, 1600)]
    [InlineData(41, 4096)]
    [InlineData(41, 3 << 20)]
    public void A_truncated_image_is_refused_whether_in_header_table_or_block(int row, int length) =>
        Refused(File.ReadAllBytes(Good)[..length], length == 1535 ? VhdError.NotAnImage : VhdError.Damaged, row == 41 ? "" : "?");

    [Theory]
    [InlineData(5)]
    [InlineData(6)]
    [InlineData(7)]
    [InlineData(43)]
    [InlineData(44)]
    public async Task An_image_with_one_good_account_of_itself_is_served_with_a_warning(int row)
    {
        byte[] expected = await GoldenImages.ContentOfAsync(Good);
        byte[] image = File.ReadAllBytes(Good);
        switch (row)
        {
            case 5:
                image[^500] ^= 1;
                break;
            case 6:
                image[20] ^= 1;
                break;
            case 7:
                image[85] = 1;
                Seal(image.AsSpan(0, 512), 64);
                break;
            case 43:
                image = [.. image, .. new byte[700]];
                break;
            default:
                image[2048 + 25] ^= 1;
                break;
        }

        File.WriteAllBytes(directory.File("bad.vhd"), image);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(directory.File("bad.vhd")));
        Assert.Single(VhdImage.ReadInfo(directory.File("bad.vhd")).Warnings);
        await using (VhdChain chain = VhdChain.Open(directory.File("bad.vhd"), new VhdOpenOptions()))
            await chain.WriteAsync(SizeBytes - 512, new byte[512], WriteFlags.None, CancellationToken.None);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(directory.File("bad.vhd")));
    }

    [Theory]
    [InlineData(19)]
    [InlineData(20)]
    [InlineData(21)]
    [InlineData(40)]
    public async Task What_is_odd_but_legal_is_served(int row)
    {
        byte[] image = File.ReadAllBytes(Good);
        (int offset, byte value) = row switch { 19 => (40, (byte)0), 20 => (57, (byte)9), 21 => (24, (byte)0xFF), _ => (-1, (byte)0) };
        if (row == 40)
            image.AsSpan((int)BinaryPrimitives.ReadUInt32BigEndian(image.AsSpan(Table)) * 512, 512).Clear();
        else
            image[offset] = image[image.Length - 512 + offset] = row == 19 ? (byte)1 : value;
        Seal(image.AsSpan(0, 512), 64);
        Seal(image.AsSpan(image.Length - 512), 64);
        File.WriteAllBytes(directory.File("odd.vhd"), image);
        byte[] content = await GoldenImages.ContentOfAsync(directory.File("odd.vhd"));
        // Row 40: a block whose bitmap claims nothing holds nothing.
        Assert.Equal(row == 40 ? 0 : 1, content[0]);
    }

    [Fact]
    public void Row_46_a_folder_a_fifo_and_a_device_are_refused_without_waiting()
    {
        Process.Start("mkfifo", directory.File("fifo")).WaitForExit();
        foreach (string path in new[] { directory.Path, directory.File("fifo"), "/dev/zero", directory.File("nothing"), "a\0b" })
            Assert.Equal(VhdError.CannotOpen, Open(path).Error);
    }

    [Fact]
    public async Task Row_45_a_file_that_shrinks_under_a_reader_is_an_error_of_the_request()
    {
        await using VhdChain chain = VhdChain.Open(Good, new VhdOpenOptions { IsReadOnly = true });
        using (FileStream file = new(Good, FileMode.Open))
            file.SetLength(4096);
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(
            () => chain.ReadAsync(0, new byte[8192], CancellationToken.None).AsTask());
        Assert.Equal(Errno.EIO, e.Errno);
    }

    [Fact]
    public async Task Row_47_a_guest_that_writes_a_vhd_into_its_raw_or_fixed_disk_changes_nothing()
    {
        byte[] image = File.ReadAllBytes(Child);
        byte[] disk = new byte[1 << 20];
        image.AsSpan(0, 8192).CopyTo(disk);
        File.WriteAllBytes(directory.File("disk.raw"), disk);
        VhdImage.CreateSnapshot(directory.File("onraw.vhd"), directory.File("disk.raw"), isParentRaw: true, new VhdCreateOptions());
        Assert.Equal(disk, await GoldenImages.ContentOfAsync(directory.File("onraw.vhd")));
        await using (VhdChain chain = VhdChain.Open(directory.File("fixed.vhd"), new VhdOpenOptions()))
            await chain.WriteAsync(0, disk, WriteFlags.None, CancellationToken.None);
        Assert.Equal(disk, await GoldenImages.ContentOfAsync(directory.File("fixed.vhd")));
    }

    [Fact]
    public async Task Row_12_a_fixed_image_that_names_a_header_is_served_as_fixed()
    {
        byte[] image = File.ReadAllBytes(directory.File("fixed.vhd"));
        BinaryPrimitives.WriteInt64BigEndian(image.AsSpan(image.Length - 512 + 16), 512);
        Seal(image.AsSpan(image.Length - 512), 64);
        image[0] = 9;
        File.WriteAllBytes(directory.File("fixed.vhd"), image);
        byte[] content = await GoldenImages.ContentOfAsync(directory.File("fixed.vhd"));
        Assert.Equal(image[..^512], content);
    }

    [Fact]
    public async Task Row_38_a_block_whose_data_is_not_on_4_KiB_is_served_and_written()
    {
        // A writer that knows no alignment puts it right behind the block before.
        byte[] image = File.ReadAllBytes(Good);
        int last = image.Length - 512 - (2 << 20) - 512;
        byte[] moved = [.. image[..last], .. new byte[512], .. image[last..]];
        int entry = BinaryPrimitives.ReadUInt32BigEndian(image.AsSpan(Table)) * 512 == last ? Table : Table + 4;
        BinaryPrimitives.WriteUInt32BigEndian(moved.AsSpan(entry), (uint)(last / 512 + 1));
        byte[] expected = await GoldenImages.ContentOfAsync(Good);
        File.WriteAllBytes(Good, moved);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(Good));
        Write(Good, 3 << 20, 9);
        Assert.Equal(9, (await GoldenImages.ContentOfAsync(Good))[3 << 20]);
    }

    [Fact]
    public void Row_42_a_last_block_that_reaches_into_the_footer_is_refused()
    {
        byte[] image = File.ReadAllBytes(Good);
        byte[] cut = [.. image[..^1024], .. image[^512..]];
        // Claimed to its end: what lies under the footer is data.
        int last = image.Length - 512 - (2 << 20) - 512;
        cut.AsSpan(last, 512).Fill(0xFF);
        Refused(cut, VhdError.Damaged, "cut short");
    }

    [Fact]
    public void Every_row_from_1_to_68_has_a_test()
    {
        const System.Reflection.BindingFlags all = System.Reflection.BindingFlags.Public | System.Reflection.BindingFlags.Instance;
        HashSet<int> rows = [];
        foreach (System.Reflection.MethodInfo test in typeof(BadImageTests).GetMethods(all))
        {
            if (test.Name.StartsWith("Row_", StringComparison.Ordinal))
                rows.UnionWith(test.Name.Split('_').Where(static word => int.TryParse(word, out _)).Select(int.Parse));
            if (test.GetParameters().FirstOrDefault()?.Name != "row")
                continue;
            foreach (Xunit.Sdk.DataAttribute data in test.GetCustomAttributes(false).OfType<Xunit.Sdk.DataAttribute>())
                rows.UnionWith(data.GetData(test).Select(static values => (int)values[0]));
        }

        Assert.Empty(Enumerable.Range(1, 68).Except(rows));
    }

    [Fact]
    public void A_create_over_a_file_that_is_there_leaves_it_alone_and_nothing_beside_it()
    {
        byte[] before = File.ReadAllBytes(Good);
        Assert.Equal(VhdError.AlreadyExists, Assert.Throws<VhdException>(() => VhdImage.CreateDynamic(Good, SizeBytes)).Error);
        Assert.Equal(VhdError.BadRequest, Assert.Throws<VhdException>(() => VhdImage.CreateDynamic(directory.File("x"), 1000)).Error);
        Assert.Equal(VhdError.CannotWrite, Assert.Throws<VhdException>(() => VhdImage.CreateDynamic(directory.File("no/x"), 1024)).Error);
        Assert.Equal(before, File.ReadAllBytes(Good));
        Assert.Equal(3, Directory.GetFileSystemEntries(directory.Path).Length);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task Twenty_thousand_mutations_are_refused_or_served_and_nothing_else(int seed)
    {
        Random random = new(seed);
        byte[] image = File.ReadAllBytes(seed == 1 ? Good : Child)[..(8 << 10)];
        byte[] tail = File.ReadAllBytes(seed == 1 ? Good : Child)[image.Length..];
        byte[] buffer = new byte[64 << 10];
        string path = directory.File("mutant.vhd");
        await File.WriteAllBytesAsync(path, [.. image, .. tail]);
        using FileStream file = new(path, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 0);
        Stopwatch watch = Stopwatch.StartNew();
        for (int i = 0; i < 10_000; i++)
        {
            byte[] mutant = Mutate(random, image);
            file.Position = 0;
            file.Write(mutant);
            TimeSpan before = watch.Elapsed;
            try
            {
                VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true, RootDirectory = directory.Path });
                await chain.ReadAsync(0, buffer.AsMemory(0, (int)Math.Min(buffer.Length, chain.LengthBytes)), CancellationToken.None);
                await chain.ExtentsAsync(0, chain.LengthBytes, CancellationToken.None);
                chain.Abandon();
            }
            catch (VhdException)
            {
            }

            Assert.True(watch.Elapsed - before < TimeSpan.FromSeconds(2), $"mutation {i} of seed {seed}");
        }
    }

    private static byte[] Mutate(Random random, byte[] image)
    {
        byte[] mutant = (byte[])image.Clone();
        // Most in what is interpreted, and mostly with the checksums made right again, or nothing behind them would be reached.
        for (int n = random.Next(1, 4); n > 0; n--)
            mutant[random.Next(4) switch
            {
                0 => random.Next(mutant.Length),
                1 => random.Next(90),
                2 => Header + random.Next(800),
                _ => Table + random.Next(1600),
            }] = random.Next(3) == 0 ? (byte)0xFF : (byte)random.Next(256);
        if (random.Next(4) != 0)
        {
            Seal(mutant.AsSpan(0, 512), 64);
            Seal(mutant.AsSpan(Header, 1024), 36);
        }

        return mutant;
    }

    private static VhdException Open(string path) =>
        Assert.Throws<VhdException>(() => VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true }));

    private void Refused(byte[] image, VhdError error, string says)
    {
        string path = directory.File("refused.vhd");
        File.WriteAllBytes(path, image);
        VhdException e = Assert.Throws<VhdException>(() => VhdChain.Open(path, new VhdOpenOptions()));
        Assert.Equal(error, e.Error);
        Assert.StartsWith(path + ": ", e.Message, StringComparison.Ordinal);
        Assert.Contains(says, e.Message, StringComparison.Ordinal);
        Assert.Throws<VhdException>(() => VhdImage.ReadInfo(path));
        Assert.Equal(image, File.ReadAllBytes(path));
    }

    private static void Seal(Span<byte> structure, int checksumOffset) =>
        BinaryPrimitives.WriteUInt32BigEndian(structure[checksumOffset..], VhdFooter.Checksum(structure, checksumOffset));

    private static void PutLocator(byte[] image, int index, string path)
    {
        Span<byte> entry = image.AsSpan(Header + 576 + index * 24, 24);
        uint code = BinaryPrimitives.ReadUInt32BigEndian(entry);
        int at = (int)BinaryPrimitives.ReadInt64BigEndian(entry[16..]);
        byte[] stored = ParentLocator.Encode(code, path);
        // An encoder would replace the lone surrogate: put it in as it is.
        if (code != ParentLocator.Macx && path.Contains('\uD800', StringComparison.Ordinal))
            stored = System.Runtime.InteropServices.MemoryMarshal.AsBytes(path.AsSpan()).ToArray();
        else if (path.Contains('\uD800', StringComparison.Ordinal))
            stored = [.. Encoding.ASCII.GetBytes("file://./"), 0xED, 0xA0, 0x80];
        image.AsSpan(at, 512).Clear();
        stored.CopyTo(image, at);
        BinaryPrimitives.WriteUInt32BigEndian(entry[8..], (uint)stored.Length);
    }

    private static void Write(string path, long offset, byte value)
    {
        byte[] data = new byte[8192];
        data.AsSpan().Fill(value);
        VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        chain.WriteAsync(offset, data, WriteFlags.None, CancellationToken.None).AsTask().Wait();
        chain.DisposeAsync().AsTask().Wait();
    }
}
