// The sending half of a connection, for both ends. There is no writer task: whoever sends while nobody else does becomes the writer and
// takes along what others queue meanwhile. So a lone request costs no thread switch, and a crowd of small ones shares one system call.
using System.Runtime.CompilerServices;
using Platform;

namespace Nbd;

/// <summary>One message: a head of at most 32 bytes, and a payload in somebody's memory.</summary>
internal abstract class Outgoing
{
    private const int Queued = 0;
    private const int Begun = 1;
    private const int Withdrawn = 2;

    private HeadBytes head;
    private int state = Queued;

    public Span<byte> Head => head;

    public int HeadLength { get; set; }

    public ReadOnlyMemory<byte> Payload { get; set; }

    /// <summary>
    /// The payload's memory is free again: sent, withdrawn, or the connection is gone. Called exactly once, on any thread.
    /// </summary>
    public abstract void Released();

    /// <summary>Takes the message back; false when its bytes are already on their way, and it must go out whole.</summary>
    public bool TryWithdraw() => Interlocked.CompareExchange(ref state, Withdrawn, Queued) == Queued;

    internal bool TryBegin() => Interlocked.CompareExchange(ref state, Begun, Queued) == Queued;

    [InlineArray(32)]
    private struct HeadBytes
    {
        private byte first;
    }
}

internal sealed class WireWriter(Stream stream, Action<Exception> onBroken)
{
    private const int CopyLimitBytes = 16 * 1024; // Up to here a copy is cheaper than a system call of its own.
    private const int BatchBytes = 64 * 1024;

    private readonly byte[] batch = new byte[BatchBytes];
    private readonly Lock gate = new();
    private readonly Queue<Outgoing> queue = new();
    private int batchedBytes;
    private bool isWriting;
    private bool isBroken;

    /// <summary>
    /// Sends, or leaves it to the current writer. Never throws: a failure is told once to the owner, and releases every message.
    /// </summary>
    public Task SendAsync(Outgoing message)
    {
        lock (gate)
        {
            if (!isBroken)
            {
                queue.Enqueue(message);
                if (isWriting || SendBatch.TryHold(this, message.Payload.Length))
                    return Task.CompletedTask;
                isWriting = true;
                message = null!;
            }
        }

        if (message is null)
            return DrainAsync();
        message.Released();
        return Task.CompletedTask;
    }

    /// <summary>Sends what a batch held back, unless somebody else does already.</summary>
    public void SendHeld()
    {
        lock (gate)
        {
            if (isBroken || isWriting || queue.Count == 0)
                return;
            isWriting = true;
        }

        _ = DrainAsync(); // It never throws: a failure is told to the owner.
    }

    private async Task DrainAsync()
    {
        Outgoing? current = null;
        try
        {
            while (TryNext(out current))
            {
                if (current is null)
                {
                    await FlushAsync();
                }
                else if (current.TryBegin())
                {
                    await WriteAsync(current);
                    current.Released();
                    current = null;
                }
                else
                {
                    current = null; // Withdrawn: its owner has released it.
                }
            }
        }
        catch (Exception e)
        {
            Break(current); // Whatever it was, this connection is at its end, and nobody may wait for it.
            onBroken(e);
        }
    }

    // True with null means: the queue is empty, but what was copied has still to be flushed.
    private bool TryNext(out Outgoing? next)
    {
        lock (gate)
        {
            if (queue.TryDequeue(out next) || batchedBytes > 0)
                return true;
            isWriting = false;
            return false;
        }
    }

    private ValueTask WriteAsync(Outgoing message)
    {
        ReadOnlyMemory<byte> payload = message.Payload;
        int copied = payload.Length <= CopyLimitBytes ? payload.Length : 0;
        if (batchedBytes + message.HeadLength + copied > BatchBytes)
            return FlushFirstAsync(message);
        Copy(message.Head[..message.HeadLength]);
        Copy(payload.Span[..copied]);
        return copied == payload.Length ? ValueTask.CompletedTask : FlushAsync(payload);
    }

    private async ValueTask FlushFirstAsync(Outgoing message)
    {
        await FlushAsync();
        await WriteAsync(message);
    }

    private void Copy(ReadOnlySpan<byte> bytes)
    {
        bytes.CopyTo(batch.AsSpan(batchedBytes));
        batchedBytes += bytes.Length;
    }

    private ValueTask FlushAsync(ReadOnlyMemory<byte> payload = default)
    {
        ReadOnlyMemory<byte> copied = batch.AsMemory(0, batchedBytes);
        batchedBytes = 0;
        return stream is SocketStream socket ? socket.WriteAsync(copied, payload) : FlushInTwoAsync(copied, payload);
    }

    private async ValueTask FlushInTwoAsync(ReadOnlyMemory<byte> copied, ReadOnlyMemory<byte> payload)
    {
        await stream.WriteAsync(copied);
        if (!payload.IsEmpty)
            await stream.WriteAsync(payload);
    }

    private void Break(Outgoing? current)
    {
        Outgoing[] rest;
        lock (gate)
        {
            isBroken = true;
            rest = [.. queue];
            queue.Clear();
        }

        current?.Released();
        foreach (Outgoing message in rest.Where(static message => message.TryBegin()))
            message.Released();
    }
}
