namespace Vhd.Transfer;

/// <summary>Memory that starts on a page: direct I/O demands it, and a copy between pages is the fastest there is.</summary>
internal sealed class AlignedBuffer
{
    private readonly byte[] memory;
    private readonly int start;

    public AlignedBuffer(int lengthBytes)
    {
        memory = GC.AllocateUninitializedArray<byte>(lengthBytes + Platform.Posix.DirectAlignmentBytes, pinned: true);
        long address = System.Runtime.InteropServices.Marshal.UnsafeAddrOfPinnedArrayElement(memory, 0);
        start = (int)(-address & (Platform.Posix.DirectAlignmentBytes - 1));
        LengthBytes = lengthBytes;
    }

    public int LengthBytes { get; }

    public Span<byte> Span => memory.AsSpan(start, LengthBytes);

    public Memory<byte> Memory => memory.AsMemory(start, LengthBytes);
}
