// What the simulated guest writes: content that says by itself what it is, so that a lost, torn, repeated or misplaced write is seen by
// reading. Disk block, 4096 bytes, little-endian: 0 magic "SIMBLK01", 8 VM id (16), 24 sequence u64, 32 block index u64, 40 disk u32,
// 44 CRC32C of the payload u32, 48 payload (4048) from seed and sequence. Memory page: 0 write number u64, 8 page number u64, 16
// filling from seed and number.
using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace Xenops.Simulator;

internal static class GuestBlock
{
    public const int SizeBytes = 4096;
    public const int HeaderSizeBytes = 48;
    private static ReadOnlySpan<byte> Magic => "SIMBLK01"u8;

    public static void Write(Span<byte> block, Guid vm, ulong seed, ulong sequence, ulong blockIndex, int disk)
    {
        Magic.CopyTo(block);
        vm.TryWriteBytes(block[8..]);
        BinaryPrimitives.WriteUInt64LittleEndian(block[24..], sequence);
        BinaryPrimitives.WriteUInt64LittleEndian(block[32..], blockIndex);
        BinaryPrimitives.WriteInt32LittleEndian(block[40..], disk);
        Fill(block[HeaderSizeBytes..], Mix(seed, sequence));
        BinaryPrimitives.WriteUInt32LittleEndian(block[44..], Crc32C.Of(block[HeaderSizeBytes..]));
    }

    public static void WritePage(Span<byte> page, ulong seed, ulong number, int pageNumber)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(page, number);
        BinaryPrimitives.WriteUInt64LittleEndian(page[8..], (ulong)pageNumber);
        Fill(page[16..], Mix(~seed, number));
    }

    /// <summary>SplitMix64: the n-th number of a seed's sequence, without state.</summary>
    public static ulong Mix(ulong seed, ulong n)
    {
        ulong z = seed + (n + 1) * 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }

    private static void Fill(Span<byte> bytes, ulong seed)
    {
        Span<ulong> words = MemoryMarshal.Cast<byte, ulong>(bytes);
        for (int i = 0; i < words.Length; i++)
            words[i] = Mix(seed, (ulong)i);
    }
}
