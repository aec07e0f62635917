using Platform;

namespace Fuzz;

/// <summary>A peer that says what it was told to say, and then closes; what is sent to it is forgotten.</summary>
internal sealed class ScriptedStream(byte[] script, int atOnceBytes) : PeerStream
{
    private readonly ManualResetEventSlim released = new(atOnceBytes == script.Length);
    private int at;

    /// <summary>The rest may be said now.</summary>
    public void Release() => released.Set();

    public override void StopReceiving() => Cut();

    public override void Cut()
    {
        Volatile.Write(ref at, script.Length);
        released.Set();
    }

    public override int Read(Span<byte> buffer)
    {
        if (at >= atOnceBytes)
            released.Wait();
        int from = Volatile.Read(ref at);
        int end = from < atOnceBytes ? atOnceBytes : script.Length;
        int count = Math.Min(buffer.Length, end - from);
        script.AsSpan(from, count).CopyTo(buffer);
        Interlocked.CompareExchange(ref at, from + count, from);
        return count;
    }

    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) => default;

    public override void Write(ReadOnlySpan<byte> buffer)
    {
    }
}
