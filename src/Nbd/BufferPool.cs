// Payload memory: page-aligned, pinned for good and reused, so that devices may use it for direct I/O and the collector never sees traffic.
using System.Numerics;
using System.Runtime.InteropServices;

namespace Nbd;

/// <summary>A piece of pooled memory; exactly one owner at a time, who returns it once.</summary>
internal sealed class PooledBuffer
{
    private readonly byte[] array;
    private readonly int start;

    public PooledBuffer(int capacityBytes)
    {
        array = GC.AllocateUninitializedArray<byte>(capacityBytes + BufferPool.AlignmentBytes, pinned: true);
        nint address = Marshal.UnsafeAddrOfPinnedArrayElement(array, 0);
        start = (int)(-address & (BufferPool.AlignmentBytes - 1));
        CapacityBytes = capacityBytes;
    }

    public int CapacityBytes { get; }

    public Memory<byte> Memory(int lengthBytes) => array.AsMemory(start, lengthBytes);
}

internal static class BufferPool
{
    public const int AlignmentBytes = 4096;

    private const int SmallestShift = 12;
    private const int LargestKeptShift = 22; // Longer buffers are rare and go back to the collector.
    private const int KeptBytes = 16 * 1024 * 1024;

    private static readonly Lock Gate = new();
    private static readonly Stack<PooledBuffer>[] Free =
        [.. Enumerable.Range(SmallestShift, LargestKeptShift - SmallestShift + 1).Select(_ => new Stack<PooledBuffer>())];

    private static int keptBytes;

    public static PooledBuffer Rent(int lengthBytes)
    {
        int shift = ShiftOf(lengthBytes);
        if (shift <= LargestKeptShift)
        {
            lock (Gate)
            {
                if (Free[shift - SmallestShift].TryPop(out PooledBuffer? buffer))
                {
                    keptBytes -= buffer.CapacityBytes;
                    return buffer;
                }
            }
        }

        return new PooledBuffer(1 << shift);
    }

    public static void Return(PooledBuffer buffer)
    {
        int shift = ShiftOf(buffer.CapacityBytes);
        if (shift > LargestKeptShift)
            return;
        lock (Gate)
        {
            if (keptBytes + buffer.CapacityBytes > KeptBytes)
                return;
            keptBytes += buffer.CapacityBytes;
            Free[shift - SmallestShift].Push(buffer);
        }
    }

    private static int ShiftOf(int lengthBytes) => Math.Max(SmallestShift, 32 - BitOperations.LeadingZeroCount((uint)lengthBytes - 1));
}
