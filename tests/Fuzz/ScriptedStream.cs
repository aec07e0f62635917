namespace Fuzz;

/// <summary>A peer that says what it was told to say, and then closes; what is sent to it is forgotten.</summary>
internal sealed class ScriptedStream(byte[] script, int atOnceBytes) : Stream
{
    private readonly TaskCompletionSource released = new();
    private int at;

    /// <summary>The rest may be said now.</summary>
    public void Release() => released.TrySetResult();

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    public override int Read(Span<byte> buffer)
    {
        int end = at < atOnceBytes ? Math.Min(atOnceBytes, script.Length) : script.Length;
        int count = Math.Min(buffer.Length, end - at);
        script.AsSpan(at, count).CopyTo(buffer);
        at += count;
        return count;
    }

    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) =>
        at < atOnceBytes || released.Task.IsCompleted || atOnceBytes == script.Length
            ? ValueTask.FromResult(Read(buffer.Span))
            : ReadLaterAsync(buffer, cancellationToken);

    public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

    public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) =>
        ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) => default;

    public override Task WriteAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) => Task.CompletedTask;

    public override void Write(byte[] buffer, int offset, int count)
    {
    }

    public override void Flush()
    {
    }

    public override Task FlushAsync(CancellationToken cancellationToken) => Task.CompletedTask;

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    private async ValueTask<int> ReadLaterAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        await released.Task.WaitAsync(cancellationToken);
        return Read(buffer.Span);
    }
}
