using Microsoft.Win32.SafeHandles;

namespace Platform;

/// <summary>
/// A one-way street to a device, for one thread: requests go out without waiting for their answers, a bounded number of them; an answer
/// that is an error comes out of a later call. For bulk copies, where the tasks of <see cref="IBlockDevice"/> cost more than the bytes. A call
/// blocks while the peer makes it; the peer's silence is bounded.
/// </summary>
public interface IBlockPusher
{
    long LengthBytes { get; }

    /// <exception cref="BlockIoException">The peer refused this or an earlier request, or is gone.</exception>
    void Write(long offsetBytes, ReadOnlySpan<byte> data);

    /// <summary>The same from a file, without a copy through this process where the connection allows it.</summary>
    void WriteFrom(SafeFileHandle file, long fileOffsetBytes, long offsetBytes, int lengthBytes);

    /// <summary>The range reads as zeros afterwards.</summary>
    void WriteZeroes(long offsetBytes, long lengthBytes);

    /// <summary>Waits for all answers.</summary>
    void Finish();

    /// <summary>After all pushers have finished: everything is durable, if the device can do that.</summary>
    void Flush();
}
