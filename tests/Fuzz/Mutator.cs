// Makes bad inputs from good ones: bits, numbers in both byte orders and of every width, the formats' own words, pieces moved, doubled,
// cut, and crossed with other inputs. Deterministic: the same seed makes the same inputs.
using System.Buffers.Binary;

namespace Fuzz;

internal sealed class Mutator(FuzzTarget target, Random random)
{
    private static readonly long[] Numbers =
    [
        0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 64, 127, 128, 255, 256, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 32767, 32768, 65535, 65536,
        1 << 20, (1 << 20) + 1, 32 << 20, (32 << 20) + 1, int.MaxValue, 1L << 31, uint.MaxValue, uint.MaxValue - 1, 1L << 32, 2040L << 30,
        long.MaxValue, long.MinValue, -1, -2, -512,
    ];

    public byte[] From(IReadOnlyList<byte[]> corpus)
    {
        // Most of the time one of the newest: they went furthest.
        int at = random.Next(3) == 0 ? random.Next(corpus.Count) : Math.Max(0, corpus.Count - 1 - random.Next(8));
        byte[] bytes = [.. corpus[at]];
        for (int count = 1 << random.Next(4); count > 0; count--)
            bytes = Step(bytes, corpus);
        if (bytes.Length > target.MaximumInputBytes)
            Array.Resize(ref bytes, target.MaximumInputBytes);
        if (target.Repair is not null && random.Next(8) != 0)
            target.Repair(bytes);
        return bytes;
    }

    private byte[] Step(byte[] bytes, IReadOnlyList<byte[]> corpus)
    {
        if (bytes.Length == 0)
            return [.. target.Seeds[random.Next(target.Seeds.Count)]];
        int at = random.Next(bytes.Length);
        int length = Math.Min(bytes.Length - at, 1 << random.Next(8));
        switch (random.Next(11))
        {
            case 0:
                bytes[at] ^= (byte)(1 << random.Next(8));
                return bytes;
            case 1:
                bytes[at] = (byte)random.Next(256);
                return bytes;
            case 2:
            case 3:
                WriteNumber(bytes.AsSpan(at));
                return bytes;
            case 4:
                return [.. bytes.AsSpan(0, at), .. bytes.AsSpan(at + length)];
            case 5:
                return [.. bytes.AsSpan(0, at + length), .. bytes.AsSpan(at, length), .. bytes.AsSpan(at + length)];
            case 6:
                int to = random.Next(bytes.Length - length + 1);
                bytes.AsSpan(at, length).CopyTo(bytes.AsSpan(to));
                return bytes;
            case 7 when target.Tokens.Count > 0:
                return [.. bytes.AsSpan(0, at), .. target.Tokens[random.Next(target.Tokens.Count)], .. bytes.AsSpan(at)];
            case 8 when target.Tokens.Count > 0:
                byte[] token = target.Tokens[random.Next(target.Tokens.Count)];
                return [.. bytes.AsSpan(0, at), .. token, .. bytes.AsSpan(Math.Min(bytes.Length, at + token.Length))];
            case 9:
                byte[] other = corpus[random.Next(corpus.Count)];
                return [.. bytes.AsSpan(0, at), .. other.AsSpan(random.Next(other.Length + 1))];
            default:
                return random.Next(4) == 0 ? bytes[..at] : Twisted(bytes, at);
        }
    }

    // A number that is nearly right finds other errors than one that is absurd.
    private byte[] Twisted(byte[] bytes, int at)
    {
        Span<byte> field = bytes.AsSpan(at);
        int by = random.Next(-3, 4);
        if (field.Length >= 4 && random.Next(2) == 0)
            BinaryPrimitives.WriteInt32BigEndian(field, BinaryPrimitives.ReadInt32BigEndian(field) + by);
        else if (field.Length >= 4)
            BinaryPrimitives.WriteInt32LittleEndian(field, BinaryPrimitives.ReadInt32LittleEndian(field) + by);
        else
            field[0] = (byte)(field[0] + by);
        return bytes;
    }

    private void WriteNumber(Span<byte> field)
    {
        long number = Numbers[random.Next(Numbers.Length)];
        Span<byte> wide = stackalloc byte[8];
        int width = 1 << random.Next(4);
        if (random.Next(3) > 0)
            BinaryPrimitives.WriteInt64BigEndian(wide, number);
        else
            BinaryPrimitives.WriteInt64LittleEndian(wide, number);
        Span<byte> used = BitConverter.IsLittleEndian && BinaryPrimitives.ReadInt64LittleEndian(wide) == number ? wide[..width] : wide[(8 - width)..];
        used[..Math.Min(width, field.Length)].CopyTo(field);
    }
}
