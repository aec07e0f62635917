// The rows of the bad-input plan about chains: 48-68.
using System.Buffers.Binary;
using System.Diagnostics;
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed partial class BadImageTests
{
    [Theory]
    [InlineData(48, "/etc/shadow", VhdError.OutsideRoot)]
    [InlineData(49, "../../../etc/shadow", VhdError.OutsideRoot)]
    [InlineData(50, "//server/share/x.vhd", VhdError.ParentMissing)]
    [InlineData(54, "./\uD800x.vhd", VhdError.ParentMissing)]
    [InlineData(55, "./child.vhd", VhdError.ParentMismatch)]
    public void A_locator_is_only_a_candidate(int row, string path, VhdError error)
    {
        byte[] image = File.ReadAllBytes(Child);
        // The header's own name would find the parent still.
        image.AsSpan(Header + 64, 512).Clear();
        for (int i = 0; i < 3; i++)
            PutLocator(image, i, path);
        Seal(image.AsSpan(Header, 1024), 36);
        File.WriteAllBytes(Child, image);
        VhdException e = Assert.Throws<VhdException>(() => VhdChain.Open(Child, new VhdOpenOptions { RootDirectory = directory.Path }));
        Assert.Equal(error, e.Error);
        Assert.InRange(row, 48, 55);
    }

    [Theory]
    [InlineData(51, 8, 0x0001_0000u)]
    [InlineData(52, 16, 0x7FFF_FFFFu)]
    [InlineData(53, 0, 0x1234_5678u)]
    public async Task A_broken_locator_is_passed_over_and_the_next_one_used(int row, int offset, uint value)
    {
        byte[] image = File.ReadAllBytes(Child);
        byte[] expected = await GoldenImages.ContentOfAsync(Child);
        BinaryPrimitives.WriteUInt32BigEndian(image.AsSpan(Header + 576 + offset), value);
        image.AsSpan(Header + 64, 512).Clear();
        Seal(image.AsSpan(Header, 1024), 36);
        File.WriteAllBytes(Child, image);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(Child));
        Assert.InRange(row, 51, 53);
    }

    [Fact]
    public void Row_56_and_57_a_chain_that_comes_back_to_itself_is_refused()
    {
        // The base is replaced by a child of the leaf's parent with the base's uuid: no check but the loop's can see it.
        foreach (int length in new[] { 1, 12 })
        {
            string[] paths = [.. Enumerable.Range(0, length + 1).Select(i => directory.File($"loop{length}-{i}.vhd"))];
            VhdImage.CreateDynamic(paths[0], SizeBytes);
            for (int i = 1; i <= length; i++)
                VhdImage.CreateSnapshot(paths[i], paths[i - 1]);
            File.Copy(paths[length], paths[0], overwrite: true);
            byte[] image = File.ReadAllBytes(paths[0]);
            Guid old = VhdImage.ReadInfo(paths[1]).ParentUuid!.Value;
            old.TryWriteBytes(image.AsSpan(68, 16), bigEndian: true, out _);
            Seal(image.AsSpan(0, 512), 64);
            image.AsSpan(0, 512).CopyTo(image.AsSpan(image.Length - 512));
            File.WriteAllBytes(paths[0], image);
            VhdException e = Assert.Throws<VhdException>(() => VhdChain.Open(paths[length], new VhdOpenOptions { IsReadOnly = true }));
            Assert.Equal(VhdError.Loop, e.Error);
        }
    }

    [Fact]
    public void Row_58_a_chain_of_31_or_1000_is_refused_at_once_and_30_is_served()
    {
        string leaf = directory.File("deep-0.vhd");
        VhdImage.CreateDynamic(leaf, SizeBytes);
        for (int depth = 2; depth <= VhdChain.MaxDepth; depth++)
        {
            string child = directory.File($"deep-{depth}.vhd");
            VhdImage.CreateSnapshot(child, leaf);
            leaf = child;
        }

        VhdChain.Open(leaf, new VhdOpenOptions { IsReadOnly = true }).Abandon();
        Assert.Equal(VhdError.TooDeep, Assert.Throws<VhdException>(() => VhdImage.CreateSnapshot(directory.File("over.vhd"), leaf)).Error);
        byte[] image = File.ReadAllBytes(leaf);
        image.AsSpan(Header + 64, 512).Clear();
        for (int depth = VhdChain.MaxDepth + 1; depth <= 1000; depth++)
        {
            // Each is a copy of the one before with a new uuid, pointed at it.
            image.AsSpan(68, 16).CopyTo(image.AsSpan(Header + 40));
            Guid.NewGuid().TryWriteBytes(image.AsSpan(68, 16), bigEndian: true, out _);
            for (int i = 0; i < 3; i++)
                PutLocator(image, i, "./" + Path.GetFileName(leaf));
            Seal(image.AsSpan(Header, 1024), 36);
            Seal(image.AsSpan(0, 512), 64);
            image.AsSpan(0, 512).CopyTo(image.AsSpan(image.Length - 512));
            leaf = directory.File($"deep-{depth}.vhd");
            File.WriteAllBytes(leaf, image);
            if (depth == VhdChain.MaxDepth + 1)
                Assert.Equal(VhdError.TooDeep, Open(leaf).Error);
        }

        Stopwatch watch = Stopwatch.StartNew();
        Assert.Equal(VhdError.TooDeep, Open(leaf).Error);
        Assert.True(watch.Elapsed < TimeSpan.FromSeconds(2));
    }

    [Fact]
    public void Row_59_and_63_another_and_a_missing_parent_are_refused()
    {
        File.Delete(Good);
        Assert.Equal(VhdError.ParentMissing, Open(Child).Error);
        VhdImage.CreateDynamic(Good, SizeBytes);
        VhdException other = Open(Child);
        Assert.Equal(VhdError.ParentMismatch, other.Error);
        Assert.Contains(VhdImage.ReadInfo(Child).ParentUuid.ToString()!, other.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Row_61_a_smaller_parent_ends_in_zeros_and_a_larger_one_is_cut()
    {
        byte[] before = await GoldenImages.ContentOfAsync(Child);
        VhdResize.Apply(Child, 3 << 19, mayLoseData: true);
        Assert.Equal(before[..(3 << 19)], await GoldenImages.ContentOfAsync(Child));
        VhdResize.Apply(Child, SizeBytes * 2);
        byte[] grown = await GoldenImages.ContentOfAsync(Child);
        Assert.Equal(before[..(3 << 19)], grown[..(3 << 19)]);
        // The parent's data at 3 MiB was cut away with the rest, and what is new is zeros.
        Assert.False(grown.AsSpan(3 << 19).ContainsAnyExcept((byte)0));
    }

    [Fact]
    public async Task Row_62_a_parent_with_blocks_of_another_size_is_served()
    {
        byte[] image = File.ReadAllBytes(Child);
        byte[] expected = await GoldenImages.ContentOfAsync(Child);
        using TemporaryDirectory other = new();
        string parent = other.File("good.vhd"), child = other.File("child.vhd");
        SmallBlocks.Write(parent, SizeBytes, VhdImage.ReadInfo(Good).Uuid, await GoldenImages.ContentOfAsync(Good));
        File.WriteAllBytes(child, image);
        Assert.Equal(512 << 10, VhdImage.ReadInfo(parent).BlockBytes);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(child));
        VhdCoalesce.Run(child, new VhdCoalesceOptions(), null, CancellationToken.None);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(parent));
    }

    [Fact]
    public async Task Row_64_a_parent_that_is_swapped_under_a_reader_does_not_change_what_it_reads()
    {
        byte[] expected = await GoldenImages.ContentOfAsync(Child);
        await using (VhdChain chain = VhdChain.Open(Child, new VhdOpenOptions { IsReadOnly = true }))
        {
            File.Move(Good, directory.File("old.vhd"));
            VhdImage.CreateDynamic(Good, SizeBytes);
            Assert.Equal(expected, await GoldenImages.ContentOfAsync(chain));
        }

        // The next reader sees that it is another image.
        Assert.Equal(VhdError.ParentMismatch, Open(Child).Error);
    }

    [Fact]
    public async Task Row_65_a_reader_of_a_child_that_is_merged_reads_the_same_all_the_time()
    {
        byte[] expected = await GoldenImages.ContentOfAsync(Child);
        await using VhdChain reader = VhdChain.Open(Child, new VhdOpenOptions { IsReadOnly = true });
        Synchronously progress = new(() => Assert.Equal(expected, GoldenImages.ContentOfAsync(reader).Result));
        VhdCoalesce.Run(Child, new VhdCoalesceOptions(), progress, CancellationToken.None);
        Assert.True(progress.Count > 0);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(Child));
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(Good));
    }

    [Fact]
    public async Task Row_67_a_hidden_leaf_and_a_parent_that_is_not_hidden_are_served()
    {
        byte[] expected = await GoldenImages.ContentOfAsync(Child);
        VhdImage.SetHidden(Child, true);
        Assert.False(VhdImage.ReadInfo(Good).IsHidden);
        Assert.True(VhdImage.ReadInfo(Child).IsHidden);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(Child));
    }

    private sealed class Synchronously(Action action) : IProgress<VhdCoalesceProgress>
    {
        public int Count { get; private set; }

        public void Report(VhdCoalesceProgress value)
        {
            Count++;
            action();
        }
    }

    [Fact]
    public async Task Row_60_another_time_of_the_parents_file_is_not_a_reason_to_refuse()
    {
        byte[] expected = await GoldenImages.ContentOfAsync(Child);
        File.SetLastWriteTimeUtc(Good, DateTime.UtcNow.AddDays(1));
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(Child));
    }

    [Fact]
    public void Row_66_and_68_a_symbolic_link_that_leaves_the_root_is_refused_and_one_inside_is_followed()
    {
        using TemporaryDirectory elsewhere = new();
        File.Move(Good, elsewhere.File("good.vhd"));
        File.CreateSymbolicLink(Good, elsewhere.File("good.vhd"));
        VhdOpenOptions options = new() { RootDirectory = directory.Path };
        Assert.Equal(VhdError.OutsideRoot, Assert.Throws<VhdException>(() => VhdChain.Open(Child, options)).Error);
        File.Delete(Good);
        File.Move(elsewhere.File("good.vhd"), directory.File("real.vhd"));
        File.CreateSymbolicLink(Good, directory.File("real.vhd"));
        VhdChain.Open(Child, options).Abandon();
    }
}
