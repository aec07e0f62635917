// A chain of images on real files beside a plain array: whatever is done to the chain is done to the array, and both are compared.
// Everything follows from one seed.
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

internal sealed class ChainModel : IDisposable
{
    private const int MaxSectors = 24 << 11; // 24 MiB.

    private readonly TemporaryDirectory directory = TemporaryDirectory.InMemory();
    private readonly Random random;
    private readonly List<(string Path, bool IsRaw)> images = [];

    // Of an odd length, so that runs and blocks are cut where no alignment helps; one for all reads, because new memory is dear.
    private readonly byte[] piece = new byte[512 * 1537];
    private byte[] content = [];
    private int nextName;

    public ChainModel(int seed)
    {
        random = new Random(seed);
        long size = OddSize();
        string path = directory.File($"{nextName++}.vhd");
        content = new byte[size];
        bool isRaw = seed % 4 == 0;
        if (isRaw)
            WriteRaw(path);
        else if (seed % 4 == 1)
            VhdImage.CreateFixed(path, size);
        else
            VhdImage.CreateDynamic(path, size, new VhdCreateOptions { MaxSizeBytes = seed % 8 < 4 ? 0 : Math.Max(size, OddSize()) });
        images.Add((path, isRaw));
        if (isRaw)
            Snapshot();
    }

    public string LeafPath => images[^1].Path;

    public int Depth => images.Count;

    public bool IsSingle => images.Count == 1;

    public ReadOnlySpan<byte> Content => content;

    public void Dispose() => directory.Dispose();

    /// <summary>One random step, and the comparison.</summary>
    /// <returns>What was done.</returns>
    public async Task<string> StepAsync(int maxDepth)
    {
        string step = random.Next(12) switch
        {
            < 5 => await WriteAsync(),
            < 7 when Depth < maxDepth => Snapshot(),
            < 7 => Coalesce(),
            7 => Coalesce(),
            8 => Grow(),
            9 => Shrink(),
            10 => Repair(),
            _ => await DieAsync(),
        };
        await CompareAsync(step);
        return step;
    }

    /// <summary>Snapshots and writes until the chain is so deep.</summary>
    public async Task DeepenAsync(int depth)
    {
        while (Depth < depth)
        {
            await WriteAsync();
            Snapshot();
        }

        await CompareAsync("deepen");
    }

    public async Task CompareAsync(string step)
    {
        await using VhdChain chain = VhdChain.Open(LeafPath, new VhdOpenOptions { IsReadOnly = true, RootDirectory = directory.Path });
        Assert.Equal(content.Length, chain.LengthBytes);
        for (int at = 0; at < content.Length; at += piece.Length)
        {
            Memory<byte> found = piece.AsMemory(0, Math.Min(piece.Length, content.Length - at));
            await chain.ReadAsync(at, found, CancellationToken.None);
            int same = content.AsSpan(at, found.Length).CommonPrefixLength(found.Span);
            Assert.True(same == found.Length, $"{step}: byte {at + same} of {content.Length} differs, depth {Depth}");
        }

        Assert.DoesNotContain(
            VhdCheck.Run(LeafPath, new VhdCheckOptions { WithParents = true }), static p => p.Severity == VhdSeverity.Error);
    }

    /// <summary>A multiple of 512 that is rarely one of anything else.</summary>
    private long OddSize() => random.Next(3) == 0 ? random.Next(1, 6) * (2L << 20) : random.Next(1, MaxSectors) * 512L;

    private void WriteRaw(string path)
    {
        random.NextBytes(content.AsSpan(0, Math.Min(content.Length, 1 << 20)));
        using FileStream file = File.Create(path);
        file.Write(content.AsSpan(0, Math.Min(content.Length, 1 << 20)));
        file.SetLength(content.Length);
    }

    private string Snapshot()
    {
        string path = directory.File($"{nextName++}.vhd");
        VhdImage.CreateSnapshot(path, LeafPath, images[^1].IsRaw, new VhdCreateOptions());
        images.Add((path, false));
        return "snapshot";
    }

    private async Task<string> WriteAsync()
    {
        await using VhdChain chain = VhdChain.Open(LeafPath, new VhdOpenOptions { RootDirectory = directory.Path });
        for (int i = 0; i < 12; i++)
            await RequestAsync(chain);
        return "write";
    }

    /// <summary>The process is gone without an orderly close.</summary>
    private async Task<string> DieAsync()
    {
        VhdChain chain = VhdChain.Open(LeafPath, new VhdOpenOptions());
        for (int i = 0; i < 4; i++)
            await RequestAsync(chain);
        chain.Abandon();
        return "die";
    }

    private async Task RequestAsync(VhdChain chain)
    {
        int sectors = content.Length / 512;
        // Often at an edge: of the disk, of a block.
        int sector = random.Next(4) switch
        {
            0 => Math.Min(sectors - 1, random.Next(1 + sectors / 4096) * 4096),
            1 => Math.Max(0, sectors - 1 - random.Next(20)),
            _ => random.Next(sectors),
        };
        int count = Math.Min(random.Next(4) == 0 ? random.Next(1, 6000) : random.Next(1, 40), sectors - sector);
        Memory<byte> range = content.AsMemory(sector * 512, count * 512);
        if (random.Next(4) == 0)
        {
            range.Span.Clear();
            WriteFlags flags = random.Next(4) == 0 ? WriteFlags.NoHole : WriteFlags.None;
            await chain.WriteZeroesAsync(sector * 512L, range.Length, flags, CancellationToken.None);
            return;
        }

        random.NextBytes(range.Span);
        await chain.WriteAsync(sector * 512L, range, WriteFlags.None, CancellationToken.None);
    }

    private string Grow()
    {
        long size = Math.Min((long)MaxSectors * 512, content.Length + OddSize());
        if (size < content.Length)
            return "none";
        VhdResize.Apply(LeafPath, size);
        Array.Resize(ref content, (int)size);
        return $"grow to {size}";
    }

    private string Shrink()
    {
        long size = Math.Min(content.Length, OddSize());
        if (content.AsSpan((int)size).ContainsAnyExcept((byte)0))
        {
            VhdException refused = Assert.Throws<VhdException>(() => VhdResize.Apply(LeafPath, size));
            Assert.Equal(VhdError.BadRequest, refused.Error);
        }

        VhdResize.Apply(LeafPath, size, mayLoseData: true);
        Array.Resize(ref content, (int)size);
        return $"shrink to {size}";
    }

    private string Repair()
    {
        VhdRepair.Run(LeafPath);
        Assert.DoesNotContain(
            VhdCheck.Run(LeafPath, new VhdCheckOptions()), static problem => problem.Severity == VhdSeverity.Warning);
        return "repair";
    }

    private static byte[] HashOf(string path)
    {
        using FileStream file = File.OpenRead(path);
        return System.Security.Cryptography.SHA256.HashData(file);
    }

    /// <summary>As the field's collector does: an inner image into one below, then the one above it is given the new parent.</summary>
    private string Coalesce()
    {
        if (images.Count < 2)
            return "none";
        int upper = random.Next(1, images.Count);
        int lower = random.Next(upper);
        bool isLeaf = upper == images.Count - 1;
        byte[] before = isLeaf ? [] : HashOf(images[upper].Path);
        VhdCoalesce.Run(images[upper].Path, new VhdCoalesceOptions { AncestorPath = images[lower].Path }, null, CancellationToken.None);
        if (isLeaf)
        {
            // The ancestor may be larger than the leaf: the disk ends where the leaf did.
            if (!images[lower].IsRaw)
                VhdResize.Apply(images[lower].Path, content.Length, mayLoseData: true);
        }
        else
        {
            Assert.Equal(before, HashOf(images[upper].Path));
            VhdImage.SetParent(images[upper + 1].Path, images[lower].Path, images[lower].IsRaw);
        }

        foreach ((string path, _) in images.Skip(lower + 1).Take(upper - lower))
            File.Delete(path);
        images.RemoveRange(lower + 1, upper - lower);
        if (images[^1].IsRaw)
        {
            using (FileStream raw = File.OpenWrite(images[^1].Path))
                raw.SetLength(content.Length);
            Snapshot();
        }

        return $"coalesce {upper} into {lower}";
    }
}
