// What the guest's oracle logs say of its disk (written by xenopsd beside the guest: src/Xenops/Simulator/OracleLog.cs): lines
//   I sequence offset sha256 device   a write of 4 KiB was issued
//   A sequence                        it was acknowledged
// A crash can only leave out an A. The check below shares no code with the product's data path.
using System.Globalization;
using System.Security.Cryptography;
using Platform;

namespace Demo;

internal sealed class Oracle
{
    public const int BlockBytes = 4096;

    private readonly Dictionary<long, (long Offset, string Sha256)> issued = [];
    private readonly HashSet<long> acknowledged = [];

    public int IssuedCount => issued.Count;

    public int AcknowledgedCount => acknowledged.Count;

    public static Oracle Read(params string[] logs)
    {
        Oracle oracle = new();
        foreach (string log in logs.Where(File.Exists))
        {
            using FileStream stream = new(log, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
            using StreamReader reader = new(stream);
            while (reader.ReadLine() is { } line)
                oracle.Add(line.Split(' '));
        }

        return oracle;
    }

    /// <summary>The hash of every version that was ever issued for a block.</summary>
    public HashSet<string> IssuedAt(long offset) =>
        [.. issued.Values.Where(w => w.Offset == offset).Select(static w => w.Sha256)];

    /// <summary>
    /// Every block that was ever acknowledged must hold its last acknowledged version or one issued after it.
    /// </summary>
    /// <returns>How many blocks were looked at, and those that do not.</returns>
    public async Task<(int Checked, List<string> Lost)> LostWritesAsync(IBlockDevice disk, CancellationToken cancellationToken)
    {
        int looked = 0;
        List<string> lost = [];
        byte[] block = new byte[BlockBytes];
        foreach (IGrouping<long, KeyValuePair<long, (long Offset, string Sha256)>> writes in issued.GroupBy(static w => w.Value.Offset))
        {
            long last = writes.Select(static w => w.Key).Where(acknowledged.Contains).DefaultIfEmpty(-1).Max();
            if (last < 0)
                continue;
            looked++;
            await disk.ReadAsync(writes.Key, block, cancellationToken);
            string found = Convert.ToHexStringLower(SHA256.HashData(block));
            if (!writes.Any(w => w.Key >= last && w.Value.Sha256 == found))
                lost.Add($"offset {writes.Key}: write {last} was acknowledged and is not there");
        }

        return (looked, lost);
    }

    private void Add(string[] words)
    {
        // A torn last line is normal: its writer was killed.
        if (words.Length < 2 || !long.TryParse(words[1], CultureInfo.InvariantCulture, out long sequence))
            return;
        if (words is ["I", _, var offset, { Length: 64 } sha256, ..] && long.TryParse(offset, CultureInfo.InvariantCulture, out long at))
            issued[sequence] = (at, sha256);
        else if (words[0] == "A")
            acknowledged.Add(sequence);
    }
}
