// Comparing what arrived with what left, byte for byte, and with what the guest was promised.
using System.Security.Cryptography;
using Platform;
using Vhd;

namespace Demo;

/// <param name="Differences">Blocks that differ and that no write of the guest explains; empty when the two are the same disk.</param>
internal sealed record ComparedDisks(long Bytes, int ExplainedBlocks, List<string> Differences);

internal static class Verification
{
    private const int ChunkBytes = 2 << 20;
    private const int ReportLimit = 10;

    /// <summary>
    /// Compares two images in full. A block may differ only when <paramref name="laterWrites"/> (the guest's writes after the switch-over) says
    /// that it was written with just that content.
    /// </summary>
    public static async Task<ComparedDisks> CompareAsync(string sourcePath, string destinationPath, Oracle? laterWrites, CancellationToken cancellationToken)
    {
        await using VhdChain source = VhdChain.Open(sourcePath, new VhdOpenOptions { IsReadOnly = true });
        await using VhdChain destination = VhdChain.Open(destinationPath, new VhdOpenOptions { IsReadOnly = true });
        List<string> differences = [];
        int explained = 0;
        if (source.LengthBytes != destination.LengthBytes)
            return new ComparedDisks(0, 0, [$"{source.LengthBytes} bytes left, {destination.LengthBytes} arrived"]);
        byte[] left = new byte[ChunkBytes];
        byte[] right = new byte[ChunkBytes];
        for (long at = 0; at < source.LengthBytes; at += ChunkBytes)
        {
            int length = (int)Math.Min(ChunkBytes, source.LengthBytes - at);
            await source.ReadAsync(at, left.AsMemory(0, length), cancellationToken);
            await destination.ReadAsync(at, right.AsMemory(0, length), cancellationToken);
            if (left.AsSpan(0, length).SequenceEqual(right.AsSpan(0, length)))
                continue;
            for (int block = 0; block < length && differences.Count < ReportLimit; block += Oracle.BlockBytes)
            {
                ReadOnlySpan<byte> arrived = right.AsSpan(block, Math.Min(Oracle.BlockBytes, length - block));
                if (left.AsSpan(block, arrived.Length).SequenceEqual(arrived))
                    continue;
                if (laterWrites is not null && laterWrites.IssuedAt(at + block).Contains(Convert.ToHexStringLower(SHA256.HashData(arrived))))
                    explained++;
                else
                    differences.Add($"offset {at + block}");
            }
        }

        return new ComparedDisks(source.LengthBytes, explained, differences);
    }

    public static async Task<(int Checked, List<string> Lost)> LostWritesAsync(string path, Oracle oracle, CancellationToken cancellationToken)
    {
        await using VhdChain disk = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        return await oracle.LostWritesAsync(disk, cancellationToken);
    }

    /// <summary>What qemu-img says of two images; null when it is not on this machine.</summary>
    public static async Task<string?> QemuCompareAsync(string left, string right, CancellationToken cancellationToken)
    {
        if (!(Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(static f => File.Exists(Path.Combine(f, "qemu-img"))))
            return null;
        ChildResult result = await ChildProcess.RunAsync(
            "qemu-img", ["compare", "-f", "vpc", "-F", "vpc", left, right], "", new Dictionary<string, string?>(), TimeSpan.FromMinutes(5), 1 << 16,
            cancellationToken);
        return $"{result.StandardOutput}{result.StandardError}".Trim();
    }
}
