using System.Buffers.Binary;
using System.Text;

namespace Fuzz.Targets;

/// <summary>A parser with a bug that was put there, behind three checks and a checksum: a fuzzer that does not find it finds nothing.</summary>
internal static class CanaryTarget
{
    private const int LengthBytes = 32;

    public static FuzzTarget Create() => new("canary", [Good()], RunAsync)
    {
        Expected = [typeof(FormatException)],
        Repair = static bytes =>
        {
            if (bytes.Length >= LengthBytes)
                BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(4), Sum(bytes));
        },
    };

    private static ValueTask<string> RunAsync(byte[] bytes)
    {
        if (bytes.Length < LengthBytes)
            throw new FormatException("too short");
        if (!bytes.AsSpan(0, 4).SequenceEqual("CNRY"u8))
            throw new FormatException("no canary");
        if (BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(4)) != Sum(bytes))
            throw new FormatException("wrong checksum");
        int count = BinaryPrimitives.ReadUInt16BigEndian(bytes.AsSpan(8));
        if (count > 4096)
            throw new FormatException("too many");
        int size = BinaryPrimitives.ReadUInt16BigEndian(bytes.AsSpan(10));
        if (size is not (1 or 2 or 4 or 8))
            throw new FormatException("no size of an entry");
        int start = BinaryPrimitives.ReadUInt16BigEndian(bytes.AsSpan(12));
        if (start < 16)
            throw new FormatException("the table begins in the header");
        if (start + count > bytes.Length) // The bug: count is of entries, not of bytes.
            throw new FormatException("the table is cut off");
        int sum = 0;
        for (int i = 0; i < count; i++)
            sum += bytes[start + (i * size)];
        return ValueTask.FromResult(sum > 0 ? "sum" : "zero");
    }

    private static byte[] Good()
    {
        byte[] bytes = new byte[LengthBytes];
        Encoding.ASCII.GetBytes("CNRY").CopyTo(bytes, 0);
        bytes[9] = 2;
        bytes[11] = 1;
        bytes[13] = 16;
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(4), Sum(bytes));
        return bytes;
    }

    private static uint Sum(byte[] bytes)
    {
        uint sum = 17;
        foreach (byte value in bytes.AsSpan(8))
            sum = (sum * 31) + value;
        return sum;
    }
}
