using Platform;
using Support;
using Vhd;

namespace Unit.VhdTransferTests;

/// <summary>Chains with odd sizes, holes, zeros that are allocated and writes at odd sectors.</summary>
internal static class RandomDisks
{
    public static async Task<(string Leaf, byte[] Content)> ChainAsync(
        TemporaryDirectory directory, string name, int seed, int depth, int sizeBytes = 0)
    {
        Random random = new(seed);
        int size = sizeBytes == 0 ? random.Next(9000, 24000) * 512 : sizeBytes;
        byte[] content = new byte[size];
        string leaf = directory.File($"{name}0.vhd");
        VhdImage.CreateDynamic(leaf, size);
        for (int level = 1; level <= depth; level++)
        {
            await using (VhdChain chain = VhdChain.Open(leaf, new VhdOpenOptions()))
            {
                for (int i = 0; i < 25; i++)
                    await WriteAsync(random, chain, content);
            }

            if (level == depth)
                break;
            string child = directory.File($"{name}{level}.vhd");
            VhdImage.CreateSnapshot(child, leaf);
            leaf = child;
        }

        return (leaf, content);
    }

    private static async Task WriteAsync(Random random, VhdChain chain, byte[] content)
    {
        int from = random.Next(content.Length / 512) * 512;
        int length = Math.Min(content.Length - from, random.Next(1, random.Next(2) == 0 ? 40 : 3000) * 512);
        if (random.Next(4) > 0)
            random.NextBytes(content.AsSpan(from, length));
        else
            content.AsSpan(from, length).Clear();
        await chain.WriteAsync(from, content.AsMemory(from, length), WriteFlags.None, CancellationToken.None);
    }
}
