namespace Vhd.Transfer;

/// <summary>Two disks, or an image and its parents, held against each other.</summary>
public static class DiskCompare
{
    /// <summary>
    /// The first byte in which two disks differ; null when they are equal. Different sizes differ where the shorter one ends.
    /// </summary>
    /// <exception cref="VhdException">An image is refused.</exception>
    public static long? FirstDifference(
        DiskSide a, DiskSide b, int threads, TransferProgress? progress, CancellationToken cancellationToken)
    {
        using DiskSource first = a.Open();
        using DiskSource second = b.Open();
        long? found = ComparePass.First(first, second, threads, progress, cancellationToken)?.OffsetBytes;
        long shorter = Math.Min(first.LengthBytes, second.LengthBytes);
        return first.LengthBytes == second.LengthBytes ? found : Math.Min(found ?? shorter, shorter);
    }

    /// <summary>All ranges in which two disks differ, at 4 KiB; the shorter one is taken to end in zeros.</summary>
    public static IReadOnlyList<DiskDifference> Differences(
        DiskSide a, DiskSide b, int threads, TransferProgress? progress, CancellationToken cancellationToken)
    {
        using DiskSource first = a.Open();
        using DiskSource second = b.Open();
        return ComparePass.All(first, second, threads, progress, cancellationToken);
    }

    /// <summary>
    /// All ranges that an image itself holds: what was written since it became a child. Sector-exact; content is not read.
    /// </summary>
    public static IReadOnlyList<DiskDifference> HeldBy(string path)
    {
        using DiskSource source = DiskSource.Open(path, isRaw: false, isLayerOnly: true, isDirect: false);
        List<DiskDifference> held = [];
        List<SourceRun> runs = [];
        foreach (int block in CopyPass.Plan(source, VhdHeader.DefaultBlockBytes))
        {
            long start = (long)block * VhdHeader.DefaultBlockBytes;
            source.RunsOf(start, Math.Min(start + VhdHeader.DefaultBlockBytes, source.LengthBytes), runs);
            foreach (SourceRun run in runs)
                ComparePass.Join(held, run.OffsetBytes, run.LengthBytes);
        }

        return held;
    }
}

/// <summary>One side of a comparison: a VHD with its parents, or a raw disk; never guessed.</summary>
public readonly record struct DiskSide(string Path, bool IsRaw)
{
    internal DiskSource Open() => DiskSource.Open(Path, IsRaw, isLayerOnly: false, isDirect: false);
}
