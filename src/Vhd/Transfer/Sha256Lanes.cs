// SHA-256 of sixteen messages of equal length at once, one in each lane of a 512-bit register. A core's SHA instructions work on one
// message and wait for themselves; a disk's digest is made of independent leaves, so sixteen can go abreast, at about three times the rate.
// FIPS 180-4; equal to System.Security.Cryptography's for every length that is a multiple of 64 (tests/Unit/VhdTransfer/DigestTests.cs).
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Vhd.Transfer;

internal static class Sha256Lanes
{
    public const int Count = 16;
    public const int HashBytes = 32;
    private const int BlockBytes = 64;
    private const int ScratchVectors = 8 + 2 * Count; // State, message words, and a transposition's.

    [ThreadStatic]
    private static AlignedBuffer? scratch;

    private static readonly uint[] K =
    [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    private static readonly uint[] Initial =
        [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

    public static bool IsSupported => Avx512F.IsSupported && Avx512BW.IsSupported && Vector512.IsHardwareAccelerated;

    /// <summary>Hashes sixteen messages that follow one another in memory.</summary>
    /// <param name="messages">Sixteen times the length of one, a multiple of 64 each.</param>
    /// <param name="digests">Sixteen digests of 32 bytes, in order.</param>
    public static void Hash(ReadOnlySpan<byte> messages, Span<byte> digests)
    {
        int length = messages.Length / Count;
        // On a cache line: a register that crosses two costs twice.
        scratch ??= new AlignedBuffer(ScratchVectors * Vector512<byte>.Count);
        Span<Vector512<uint>> vectors = MemoryMarshal.Cast<byte, Vector512<uint>>(scratch.Span);
        Span<Vector512<uint>> state = vectors[..8], work = vectors[8..];
        for (int i = 0; i < state.Length; i++)
            state[i] = Vector512.Create(Initial[i]);
        for (int at = 0; at < length; at += BlockBytes)
            Compress(state, work, messages[at..], length);
        // Every lane ends alike: one bit, zeros, the length in bits.
        Span<byte> padding = stackalloc byte[BlockBytes * Count];
        padding.Clear();
        for (int lane = 0; lane < Count; lane++)
        {
            padding[lane * BlockBytes] = 0x80;
            System.Buffers.Binary.BinaryPrimitives.WriteInt64BigEndian(padding[(lane * BlockBytes + 56)..], length * 8L);
        }

        Compress(state, work, padding, BlockBytes);
        for (int lane = 0; lane < Count; lane++)
        {
            for (int word = 0; word < state.Length; word++)
                System.Buffers.Binary.BinaryPrimitives.WriteUInt32BigEndian(
                    digests[(lane * HashBytes + word * 4)..], state[word].GetElement(lane));
        }
    }

    // Not left to tiering: the first call is as hot as the last, and precompiled code may not use these registers.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Compress(Span<Vector512<uint>> state, Span<Vector512<uint>> work, ReadOnlySpan<byte> first, int strideBytes)
    {
        Load(first, strideBytes, work[..Count], work[Count..]);
        Vector512<uint> a = state[0], b = state[1], c = state[2], d = state[3];
        Vector512<uint> e = state[4], f = state[5], g = state[6], h = state[7];
        ref uint k = ref MemoryMarshal.GetArrayDataReference(K);
        ref Vector512<uint> word = ref MemoryMarshal.GetReference(work);
        for (int round = 0; round < 64; round += 16)
        {
            if (round > 0)
                Expand(ref word);
            Step(a, b, c, ref d, e, f, g, ref h, Unsafe.Add(ref word, 0), Unsafe.Add(ref k, round + 0));
            Step(h, a, b, ref c, d, e, f, ref g, Unsafe.Add(ref word, 1), Unsafe.Add(ref k, round + 1));
            Step(g, h, a, ref b, c, d, e, ref f, Unsafe.Add(ref word, 2), Unsafe.Add(ref k, round + 2));
            Step(f, g, h, ref a, b, c, d, ref e, Unsafe.Add(ref word, 3), Unsafe.Add(ref k, round + 3));
            Step(e, f, g, ref h, a, b, c, ref d, Unsafe.Add(ref word, 4), Unsafe.Add(ref k, round + 4));
            Step(d, e, f, ref g, h, a, b, ref c, Unsafe.Add(ref word, 5), Unsafe.Add(ref k, round + 5));
            Step(c, d, e, ref f, g, h, a, ref b, Unsafe.Add(ref word, 6), Unsafe.Add(ref k, round + 6));
            Step(b, c, d, ref e, f, g, h, ref a, Unsafe.Add(ref word, 7), Unsafe.Add(ref k, round + 7));
            Step(a, b, c, ref d, e, f, g, ref h, Unsafe.Add(ref word, 8), Unsafe.Add(ref k, round + 8));
            Step(h, a, b, ref c, d, e, f, ref g, Unsafe.Add(ref word, 9), Unsafe.Add(ref k, round + 9));
            Step(g, h, a, ref b, c, d, e, ref f, Unsafe.Add(ref word, 10), Unsafe.Add(ref k, round + 10));
            Step(f, g, h, ref a, b, c, d, ref e, Unsafe.Add(ref word, 11), Unsafe.Add(ref k, round + 11));
            Step(e, f, g, ref h, a, b, c, ref d, Unsafe.Add(ref word, 12), Unsafe.Add(ref k, round + 12));
            Step(d, e, f, ref g, h, a, b, ref c, Unsafe.Add(ref word, 13), Unsafe.Add(ref k, round + 13));
            Step(c, d, e, ref f, g, h, a, ref b, Unsafe.Add(ref word, 14), Unsafe.Add(ref k, round + 14));
            Step(b, c, d, ref e, f, g, h, ref a, Unsafe.Add(ref word, 15), Unsafe.Add(ref k, round + 15));
        }

        state[0] += a;
        state[1] += b;
        state[2] += c;
        state[3] += d;
        state[4] += e;
        state[5] += f;
        state[6] += g;
        state[7] += h;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step(
        Vector512<uint> a, Vector512<uint> b, Vector512<uint> c, ref Vector512<uint> d,
        Vector512<uint> e, Vector512<uint> f, Vector512<uint> g, ref Vector512<uint> h,
        Vector512<uint> word, uint k)
    {
        Vector512<uint> choice = Avx512F.TernaryLogic(e, f, g, 0xCA);
        Vector512<uint> majority = Avx512F.TernaryLogic(a, b, c, 0xE8);
        Vector512<uint> t = h + (word + Vector512.Create(k)) + choice + Sum(e, 6, 11, 25);
        d += t;
        h = t + majority + Sum(a, 2, 13, 22);
    }

    /// <summary>The words of the next sixteen rounds, in the place of the last ones.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Expand(ref Vector512<uint> word)
    {
        for (int i = 0; i < Count; i++)
            Unsafe.Add(ref word, i) += Unsafe.Add(ref word, (i + 9) & 15)
                + Small(Unsafe.Add(ref word, (i + 1) & 15), 7, 18, 3)
                + Small(Unsafe.Add(ref word, (i + 14) & 15), 17, 19, 10);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> Sum(
        Vector512<uint> x, [ConstantExpected] byte i, [ConstantExpected] byte j, [ConstantExpected] byte k) =>
        Avx512F.TernaryLogic(Avx512F.RotateRight(x, i), Avx512F.RotateRight(x, j), Avx512F.RotateRight(x, k), 0x96);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> Small(
        Vector512<uint> x, [ConstantExpected] byte i, [ConstantExpected] byte j, [ConstantExpected] byte shift) =>
        Avx512F.TernaryLogic(Avx512F.RotateRight(x, i), Avx512F.RotateRight(x, j), Avx512F.ShiftRightLogical(x, shift), 0x96);

    /// <summary>One block of each message, transposed: word i of all sixteen lanes in one register, byte order turned.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Load(ReadOnlySpan<byte> first, int strideBytes, Span<Vector512<uint>> w, Span<Vector512<uint>> t)
    {
        Vector512<byte> turn = Vector512.Create(
            Vector256.Create(Turn, Turn), Vector256.Create(Turn, Turn));
        ref byte start = ref MemoryMarshal.GetReference(first);
        for (int i = 0; i < Count; i++)
        {
            Vector512<byte> row = Vector512.LoadUnsafe(ref Unsafe.Add(ref start, (nint)i * strideBytes));
            w[i] = Avx512BW.Shuffle(row, turn).AsUInt32();
        }

        // 16 x 16 words: pairs of words, then of double words inside of 128 bits, then the 128-bit lanes.
        for (int i = 0; i < Count; i += 4)
        {
            Vector512<ulong> low0 = Avx512F.UnpackLow(w[i], w[i + 1]).AsUInt64(), high0 = Avx512F.UnpackHigh(w[i], w[i + 1]).AsUInt64();
            Vector512<ulong> low1 = Avx512F.UnpackLow(w[i + 2], w[i + 3]).AsUInt64();
            Vector512<ulong> high1 = Avx512F.UnpackHigh(w[i + 2], w[i + 3]).AsUInt64();
            t[i] = Avx512F.UnpackLow(low0, low1).AsUInt32();
            t[i + 1] = Avx512F.UnpackHigh(low0, low1).AsUInt32();
            t[i + 2] = Avx512F.UnpackLow(high0, high1).AsUInt32();
            t[i + 3] = Avx512F.UnpackHigh(high0, high1).AsUInt32();
        }

        for (int i = 0; i < 4; i++)
        {
            Vector512<uint> a = Avx512F.Shuffle4x128(t[i], t[i + 4], 0x88), b = Avx512F.Shuffle4x128(t[i], t[i + 4], 0xDD);
            Vector512<uint> c = Avx512F.Shuffle4x128(t[i + 8], t[i + 12], 0x88), d = Avx512F.Shuffle4x128(t[i + 8], t[i + 12], 0xDD);
            w[i] = Avx512F.Shuffle4x128(a, c, 0x88);
            w[i + 8] = Avx512F.Shuffle4x128(a, c, 0xDD);
            w[i + 4] = Avx512F.Shuffle4x128(b, d, 0x88);
            w[i + 12] = Avx512F.Shuffle4x128(b, d, 0xDD);
        }
    }

    private static Vector128<byte> Turn => Vector128.Create((byte)3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12);
}
