// CRC-32C (Castagnoli), initial value and final xor all ones, as in iSCSI: "123456789" gives e3069283.
using System.Numerics;
using System.Runtime.InteropServices;

namespace Xenops;

internal static class Crc32C
{
    public static uint Of(ReadOnlySpan<byte> bytes) => ~Continue(uint.MaxValue, bytes);

    /// <summary>Over two spans, as if they were one.</summary>
    public static uint Of(ReadOnlySpan<byte> first, ReadOnlySpan<byte> second) => ~Continue(Continue(uint.MaxValue, first), second);

    private static uint Continue(uint crc, ReadOnlySpan<byte> bytes)
    {
        foreach (ulong word in MemoryMarshal.Cast<byte, ulong>(bytes))
            crc = BitOperations.Crc32C(crc, word);
        foreach (byte b in bytes[(bytes.Length & ~7)..])
            crc = BitOperations.Crc32C(crc, b);
        return crc;
    }
}
