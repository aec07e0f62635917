// The disks that the benches work on: the layouts of research/dataplane.md section 2, made by the product's own writer from seeds, so that
// two runs make the same content. A block's place in the file is where it was first written: the order is shuffled as guests shuffle it.
using Platform;
using Vhd;

namespace Bench;

internal sealed class Workloads(string folder, bool isSmall)
{
    private const int BlockBytes = 2 << 20;
    private const int PageBytes = 4096;
    private const int PagesPerBlock = BlockBytes / PageBytes;

    public long Scale(long bytes) => isSmall ? bytes / 64 : bytes;

    /// <summary>Room for what comes next; each is made again when it is asked for.</summary>
    public void Clear()
    {
        foreach (string image in Directory.GetFiles(folder, "*.vhd"))
            File.Delete(image);
    }

    /// <summary>8 GiB, a quarter allocated, random, shuffled.</summary>
    public Task<string> W1Async() => DynamicAsync("w1.vhd", Scale(8L << 30), 0.25, seed: 1, isSparse: false);

    /// <summary>The same, half of the blocks with data in a twentieth of their pages, half of those with exact bitmaps.</summary>
    public Task<string> W2Async() => DynamicAsync("w2.vhd", Scale(8L << 30), 0.25, seed: 2, isSparse: true);

    /// <summary>The pages of W2 that are not zero.</summary>
    public double W2PayloadMiB => Math.Round(Scale(8L << 30) / BlockBytes * 0.25) / 2 * (PagesPerBlock + PagesPerBlock / 20 + 1) * PageBytes / (1 << 20);

    /// <summary>The pages that W3's child holds.</summary>
    public double W3PayloadMiB => (int)(Scale(8L << 30) / PageBytes * 0.02) * (double)PageBytes / (1 << 20);

    /// <summary>The pages that the first child of the chain holds.</summary>
    public double ChainPayloadMiB => (int)(Scale(2L << 30) / PageBytes * 0.05) * (double)PageBytes / (1 << 20);

    /// <summary>2 GiB, fully allocated in order.</summary>
    public Task<string> W4Async() => DynamicAsync("w4.vhd", Scale(2L << 30), 1, seed: 4, isSparse: false);

    /// <summary>A child of W1 with 2 % of the disk written in 4 KiB pieces over a quarter of the blocks.</summary>
    public async Task<string> W3Async() => await ChildAsync("w3.vhd", await W1Async(), writes: 0.02, hot: 0.25, seed: 31);

    /// <summary>2040 GiB with 16 blocks.</summary>
    public Task<string> W5Async() => DynamicAsync("w5.vhd", 2040L << 30, 16.0 * BlockBytes / (2040L << 30), seed: 5, isSparse: false);

    /// <summary>2 GiB, a quarter allocated, and children: the first with 5 % of the disk written, the others with 0.5 %.</summary>
    /// <returns>Base first.</returns>
    public async Task<IReadOnlyList<string>> ChainAsync(int depth)
    {
        List<string> chain = [await DynamicAsync("c0.vhd", Scale(2L << 30), 0.25, seed: 100, isSparse: false)];
        while (chain.Count < depth)
            chain.Add(await ChildAsync($"c{chain.Count}.vhd", chain[^1], chain.Count == 1 ? 0.05 : 0.005, hot: 0.25, 100 + chain.Count));
        return chain;
    }

    /// <summary>The pages that the first child of the chain holds.</summary>
    public IEnumerable<int> PagesOfFirstChild() => Pages(Scale(2L << 30), 0.05, 0.25, new Random(101));

    private async Task<string> DynamicAsync(string name, long sizeBytes, double allocated, int seed, bool isSparse)
    {
        string path = Path.Combine(folder, name);
        if (File.Exists(path))
            return path;
        VhdImage.CreateDynamic(path, sizeBytes);
        Random random = new(seed);
        int count = (int)(sizeBytes / BlockBytes);
        int[] blocks = [.. Enumerable.Range(0, count)];
        if (allocated < 1)
            random.Shuffle(blocks);
        byte[] data = new byte[BlockBytes];
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        int taken = (int)Math.Round(count * allocated);
        for (int i = 0; i < taken; i++)
        {
            long at = (long)blocks[i] * BlockBytes;
            if (isSparse && i % 2 == 1)
                await WriteSparseAsync(chain, at, random, data, isExact: i % 4 == 1);
            else
                await WriteAsync(chain, at, random, data);
        }

        return path;
    }

    /// <summary>A child with so much of the disk written in pages, over the hot blocks.</summary>
    public async Task<string> ChildAsync(string name, string parent, double writes, double hot, int seed)
    {
        string path = Path.Combine(folder, name);
        if (File.Exists(path))
            return path;
        VhdImage.CreateSnapshot(path, parent);
        Random random = new(seed);
        byte[] page = new byte[PageBytes];
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        foreach (int number in Pages(chain.LengthBytes, writes, hot, random))
        {
            random.NextBytes(page);
            await chain.WriteAsync((long)number * PageBytes, page, WriteFlags.None, CancellationToken.None);
        }

        return path;
    }

    /// <summary>What a child holds: so much of the disk, spread over the hot blocks.</summary>
    private static IEnumerable<int> Pages(long sizeBytes, double writes, double hot, Random random)
    {
        int[] blocks = [.. Enumerable.Range(0, (int)(sizeBytes / BlockBytes))];
        random.Shuffle(blocks);
        IEnumerable<int> touched = blocks.Take(Math.Max(1, (int)(blocks.Length * hot)));
        int[] pages = [.. touched.SelectMany(static block => Enumerable.Range(block * PagesPerBlock, PagesPerBlock))];
        random.Shuffle(pages);
        return pages.Take((int)(sizeBytes / PageBytes * writes));
    }

    private static ValueTask WriteAsync(VhdChain chain, long offsetBytes, Random random, byte[] data)
    {
        random.NextBytes(data);
        return chain.WriteAsync(offsetBytes, data, WriteFlags.None, CancellationToken.None);
    }

    private static async Task WriteSparseAsync(VhdChain chain, long offsetBytes, Random random, byte[] data, bool isExact)
    {
        if (!isExact)
            await chain.WriteAsync(offsetBytes, new byte[BlockBytes], WriteFlags.None, CancellationToken.None);
        int[] pages = [.. Enumerable.Range(0, PagesPerBlock)];
        random.Shuffle(pages);
        foreach (int page in pages.Take(PagesPerBlock / 20 + 1))
        {
            random.NextBytes(data.AsSpan(0, PageBytes));
            await chain.WriteAsync(offsetBytes + page * PageBytes, data.AsMemory(0, PageBytes), WriteFlags.None, CancellationToken.None);
        }
    }
}
