namespace Vhd.Transfer;

/// <summary>Cuts data into runs that hold something and runs of zeros, at 4 KiB of the disk.</summary>
internal static class ZeroScan
{
    public const int GrainBytes = 4096;

    /// <summary>The length of the run that <paramref name="data"/> begins with.</summary>
    /// <param name="offsetBytes">Where on the disk the data begins.</param>
    public static int RunLength(long offsetBytes, ReadOnlySpan<byte> data, out bool isZero)
    {
        int at = GrainAt(offsetBytes, data);
        isZero = !data[..at].ContainsAnyExcept((byte)0);
        while (at < data.Length)
        {
            int grain = Math.Min(GrainBytes, data.Length - at);
            if (data.Slice(at, grain).ContainsAnyExcept((byte)0) == isZero)
                break;
            at += grain;
        }

        return at;
    }

    private static int GrainAt(long offsetBytes, ReadOnlySpan<byte> data) =>
        (int)Math.Min(data.Length, GrainBytes - (offsetBytes & (GrainBytes - 1)));
}
