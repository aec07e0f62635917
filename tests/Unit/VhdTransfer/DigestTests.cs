// One definition of a disk's digest: this fast way, the replication service's, and the plain reading of docs/formats/digest.md agree.
using System.Security.Cryptography;
using Replication;
using Support;
using Vhd;
using Vhd.Transfer;

namespace Unit.VhdTransferTests;

public sealed class DigestTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [Theory]
    [InlineData(64)]
    [InlineData(128)]
    [InlineData(65536)]
    public void Sixteen_lanes_hash_as_one_does(int lengthBytes)
    {
        if (!Sha256Lanes.IsSupported)
            return; // The other way is the library's own.
        byte[] messages = new byte[lengthBytes * Sha256Lanes.Count];
        new Random(lengthBytes).NextBytes(messages);
        byte[] digests = new byte[Sha256Lanes.Count * Sha256Lanes.HashBytes];
        Sha256Lanes.Hash(messages, digests);
        for (int lane = 0; lane < Sha256Lanes.Count; lane++)
            Assert.Equal(
                SHA256.HashData(messages.AsSpan(lane * lengthBytes, lengthBytes)),
                digests.AsSpan(lane * Sha256Lanes.HashBytes, Sha256Lanes.HashBytes).ToArray());
    }

    [Theory]
    [InlineData(51, 1)]
    [InlineData(52, 2)]
    [InlineData(53, 3)]
    public async Task A_disk_has_one_digest_whoever_computes_it(int seed, int depth)
    {
        (string leaf, byte[] content) = await RandomDisks.ChainAsync(directory, "a", seed, depth);
        DiskDigest digest = ContentDigest.Of(leaf, isRaw: false, depth, null, CancellationToken.None);
        Assert.Equal(Plain(content), digest.Root);
        await using VhdChain chain = VhdChain.Open(leaf, new VhdOpenOptions { IsReadOnly = true });
        Assert.Equal(await DigestMap.DigestOfAsync(chain, CancellationToken.None), digest.Root);
        string raw = directory.File("raw");
        await File.WriteAllBytesAsync(raw, content);
        Assert.Equal(digest.Root, ContentDigest.Of(raw, isRaw: true, 1, null, CancellationToken.None).Root);
    }

    private static string Plain(byte[] content)
    {
        List<byte> blocks = [];
        foreach (byte[] block in content.Chunk(2 << 20))
            blocks.AddRange(SHA256.HashData([.. block.Chunk(64 << 10).SelectMany(SHA256.HashData)]));
        return Convert.ToHexStringLower(SHA256.HashData([.. blocks]));
    }
}
