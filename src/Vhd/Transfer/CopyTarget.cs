namespace Vhd.Transfer;

/// <summary>Where a disk is written to. Blocks come from several threads, each from one, in about the disk's order.</summary>
internal abstract class CopyTarget : IDisposable
{
    /// <summary>The part of the disk that one thread has to itself; the whole disk is cut into these.</summary>
    public abstract int BlockBytes { get; }

    public abstract CopyLane OpenLane();

    /// <summary>Everything is written, in its final shape, and durable if that was asked for.</summary>
    /// <param name="planned">The blocks that lanes were given, in order; all others are holes in the source.</param>
    public abstract void Finish(IReadOnlyList<int> planned, bool isSynced);

    public abstract void Dispose();
}

/// <summary>One thread's way into a target, a block at a time. What is not written of a block reads as zeros in the end.</summary>
internal abstract class CopyLane
{
    /// <summary>Bytes of content that were put into the target.</summary>
    public long WrittenBytes { get; protected set; }

    public abstract void BeginBlock(int block);

    public abstract void Write(long offsetBytes, ReadOnlySpan<byte> data);

    /// <summary>The source holds these bytes and they are zeros.</summary>
    public abstract void WriteZeros(long offsetBytes, long lengthBytes);

    public abstract void EndBlock();
}
