// Each loop beside the framework's own way, or alone where there is none.
using System.Security.Cryptography;
using BenchmarkDotNet.Attributes;
using Vhd;
using Vhd.Transfer;

namespace Inner;

/// <summary>A block of 2 MiB, all zeros: the most that a scan can have to do.</summary>
public class ZeroScans
{
    private readonly byte[] block = new byte[2 << 20];

    [Benchmark(Baseline = true)]
    public bool Framework() => block.AsSpan().ContainsAnyExcept((byte)0);

    [Benchmark]
    public int RunLength() => ZeroScan.RunLength(0, block, out _);
}

/// <summary>Sixteen leaves of 64 KiB.</summary>
public class Digests
{
    private readonly byte[] messages = RandomNumberGenerator.GetBytes(1 << 20);
    private readonly byte[] digests = new byte[Sha256Lanes.Count * Sha256Lanes.HashBytes];

    [Benchmark(Baseline = true)]
    public void OneByOne()
    {
        int length = messages.Length / Sha256Lanes.Count;
        for (int i = 0; i < Sha256Lanes.Count; i++)
            SHA256.HashData(messages.AsSpan(i * length, length), digests.AsSpan(i * Sha256Lanes.HashBytes));
    }

    [Benchmark]
    public void SixteenAbreast()
    {
        if (Sha256Lanes.IsSupported)
            Sha256Lanes.Hash(messages, digests);
        else
            OneByOne();
    }
}

/// <summary>A block's bitmap with every other page set: the worst that guests leave.</summary>
public class Bitmaps
{
    private const int Sectors = 4096;
    private readonly SectorBitmap bitmap = SectorBitmap.FromBytes(0, [.. Enumerable.Repeat((byte[])[0xFF, 0], Sectors / 16).SelectMany(static b => b)], Sectors);

    [Benchmark]
    public int Runs()
    {
        int runs = 0;
        for (int at = 0; at < Sectors; at = bitmap.RunEnd(at, Sectors, out _))
            runs++;
        return runs;
    }
}
