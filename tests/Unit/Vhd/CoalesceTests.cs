// Merging: what is written, what is told, and what a stop leaves.
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed class CoalesceTests : IDisposable
{
    private const int SizeBytes = 16 << 20;

    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [Fact]
    public async Task A_merge_writes_what_the_child_holds_and_little_more_and_counts_it()
    {
        (string parent, string child) = await ScatteredAsync(400);
        byte[] expected = await GoldenImages.ContentOfAsync(child);
        VhdCoalesceResult result = VhdCoalesce.Run(child, new VhdCoalesceOptions(), null, CancellationToken.None);
        Assert.Equal(400 * 8, result.Sectors);
        Assert.Equal(400 * 4096, result.WrittenBytes);
        Assert.Equal(parent, result.AncestorPath);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(parent));
        Assert.Empty(VhdCheck.Run(parent, new VhdCheckOptions()));
    }

    [Fact]
    public async Task A_stopped_merge_leaves_whole_images_and_is_finished_by_another()
    {
        (string parent, string child) = await ScatteredAsync(100);
        byte[] expected = await GoldenImages.ContentOfAsync(child);
        using CancellationTokenSource stop = new();
        StopAfter progress = new(stop, 3);
        Assert.Throws<OperationCanceledException>(() => VhdCoalesce.Run(child, new VhdCoalesceOptions(), progress, stop.Token));
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(child));
        Assert.Empty(VhdCheck.Run(parent, new VhdCheckOptions()));
        VhdCoalesce.Run(child, new VhdCoalesceOptions(), null, CancellationToken.None);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(parent));
    }

    [Fact]
    public async Task A_grandchild_that_grew_past_its_merged_parent_still_sees_zeros_there()
    {
        (string parent, string child) = await ScatteredAsync(50);
        VhdResize.Apply(child, SizeBytes / 2, mayLoseData: true);
        string leaf = directory.File("leaf.vhd");
        VhdImage.CreateSnapshot(leaf, child);
        VhdResize.Apply(leaf, SizeBytes);
        byte[] expected = await GoldenImages.ContentOfAsync(leaf);
        VhdCoalesce.Run(child, new VhdCoalesceOptions(), null, CancellationToken.None);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(leaf));
        VhdImage.SetParent(leaf, parent);
        Assert.Equal(expected, await GoldenImages.ContentOfAsync(leaf));
    }

    [Fact]
    public async Task An_image_without_a_parent_or_with_another_ancestor_is_refused()
    {
        (string parent, string child) = await ScatteredAsync(1);
        string other = directory.File("other.vhd");
        VhdImage.CreateDynamic(other, SizeBytes);
        Assert.Equal(VhdError.BadRequest, Refused(parent, null));
        Assert.Equal(VhdError.BadRequest, Refused(child, other));
        Assert.Equal(VhdError.CannotOpen, Refused(child, directory.File("none")));
    }

    private static VhdError Refused(string child, string? ancestor) => Assert.Throws<VhdException>(
        () => VhdCoalesce.Run(child, new VhdCoalesceOptions { AncestorPath = ancestor }, null, CancellationToken.None)).Error;

    /// <summary>A full parent, and a child with writes of 4 KiB here and there.</summary>
    private async Task<(string Parent, string Child)> ScatteredAsync(int writes)
    {
        string parent = directory.File("parent.vhd"), child = directory.File("child.vhd");
        byte[] data = new byte[SizeBytes];
        Random random = new(writes);
        random.NextBytes(data);
        VhdImage.CreateDynamic(parent, SizeBytes);
        await using (VhdChain chain = VhdChain.Open(parent, new VhdOpenOptions()))
            await chain.WriteAsync(0, data, WriteFlags.None, CancellationToken.None);
        VhdImage.CreateSnapshot(child, parent);
        await using (VhdChain chain = VhdChain.Open(child, new VhdOpenOptions()))
        {
            foreach (int page in Enumerable.Range(0, SizeBytes / 4096).OrderBy(_ => random.Next()).Take(writes).ToArray())
            {
                Memory<byte> written = data.AsMemory(random.Next(SizeBytes - 4096), 4096);
                await chain.WriteAsync(page * 4096L, written, WriteFlags.None, CancellationToken.None);
            }
        }

        return (parent, child);
    }

    private sealed class StopAfter(CancellationTokenSource source, int blocks) : IProgress<VhdCoalesceProgress>
    {
        public void Report(VhdCoalesceProgress value)
        {
            if (value.DoneBlocks == blocks)
                source.Cancel();
        }
    }
}
