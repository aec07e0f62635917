// The sending end of a memory stream: the VM's record, rounds of pages, device state, end. The receiver answers every round, so that
// what counts as sent has arrived, and the speed measured is the connection's and not that of the kernel's buffers.
using System.Buffers.Binary;
using System.Text.Json;
using Platform;

namespace Xenops.Streaming;

internal readonly record struct RoundSent(int Round, int Pages, long Bytes, TimeSpan Took);

internal sealed record ImageSent(string Digest, long Pages, long Bytes);

internal sealed class MemorySender(FrameStream frames, GuestMemory memory, TimeProvider time) : IAsyncDisposable
{
    private const int PagesPerFrame = 64;
    private const int RunsPerFrame = 4096;
    private static readonly TimeSpan ReasonDeadline = TimeSpan.FromSeconds(1);

    private readonly PageDigests digests = new(memory.PageCount);
    private readonly byte[] batch = new byte[8 + PagesPerFrame * (4 + GuestMemory.PageSizeBytes)];
    private readonly List<(int First, int Length)> zeroRuns = [];
    private int batchCount;
    private int round;
    private long pagesSent;

    /// <summary>Waits for the receiver's welcome to our hello, then tells it whom it gets.</summary>
    public Task StartAsync(Vm vm, CancellationToken cancellationToken) => WithReasonAsync(async () =>
    {
        Expect((await frames.ReadAsync(cancellationToken)).Type, FrameType.Welcome);
        await frames.WriteAsync(FrameType.VmRecord, JsonSerializer.SerializeToUtf8Bytes(vm, Json.Options), cancellationToken);
    }, cancellationToken);

    /// <summary>Sends these pages as they are now and waits until they were received.</summary>
    public async Task<RoundSent> SendRoundAsync(IReadOnlyList<int> pages, CancellationToken cancellationToken)
    {
        long started = time.GetTimestamp();
        long bytesBefore = frames.BytesWritten;
        await WithReasonAsync(async () =>
        {
            foreach (int page in pages)
                await AddAsync(page, cancellationToken);
            await FlushBatchAsync(cancellationToken);
            await FlushZeroRunsAsync(cancellationToken);
            await frames.WriteAsync(FrameType.RoundEnd, Numbers(round, pages.Count), cancellationToken);
            Frame answer = await frames.ReadAsync(cancellationToken);
            Expect(answer.Type, FrameType.RoundReceived);
            if (!answer.Payload.Span.SequenceEqual(Numbers(round, pages.Count)))
                throw new MemoryStreamException($"the receiver acknowledged something else than round {round}");
        }, cancellationToken);
        pagesSent += pages.Count;
        return new RoundSent(round++, pages.Count, frames.BytesWritten - bytesBefore, time.GetElapsedTime(started));
    }

    /// <summary>Ends the stream; the guest must be paused and every dirty page sent.</summary>
    public async Task<ImageSent> FinishAsync(ReadOnlyMemory<byte> deviceState, CancellationToken cancellationToken)
    {
        Invariant.Holds(memory.DirtyCount == 0, "the end record covers an image that no longer changes");
        byte[] digest = digests.Root();
        await WithReasonAsync(async () =>
        {
            await frames.WriteAsync(FrameType.DeviceState, deviceState, cancellationToken);
            byte[] end = new byte[48];
            digest.CopyTo(end, 0);
            BinaryPrimitives.WriteInt64BigEndian(end.AsSpan(32), pagesSent);
            BinaryPrimitives.WriteInt64BigEndian(end.AsSpan(40), frames.BytesWritten);
            await frames.WriteAsync(FrameType.End, end, cancellationToken);
        }, cancellationToken);
        return new ImageSent(Convert.ToHexStringLower(digest), pagesSent, frames.BytesWritten);
    }

    public ValueTask DisposeAsync() => frames.DisposeAsync();

    private static byte[] Numbers(int first, int second)
    {
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteInt32BigEndian(bytes, first);
        BinaryPrimitives.WriteInt32BigEndian(bytes.AsSpan(4), second);
        return bytes;
    }

    private static void Expect(FrameType found, FrameType expected)
    {
        if (found != expected)
            throw new MemoryStreamException($"the receiver answered {found} where {expected} was due");
    }

    private async Task AddAsync(int page, CancellationToken cancellationToken)
    {
        if (!TryBatch(page))
        {
            digests.SetZero(page);
            if (zeroRuns.Count > 0 && zeroRuns[^1].First + zeroRuns[^1].Length == page)
                zeroRuns[^1] = (zeroRuns[^1].First, zeroRuns[^1].Length + 1);
            else
                zeroRuns.Add((page, 1));
            if (zeroRuns.Count == RunsPerFrame)
                await FlushZeroRunsAsync(cancellationToken);
        }

        if (batchCount == PagesPerFrame)
            await FlushBatchAsync(cancellationToken);
    }

    /// <summary>Copies first and looks at the copy: the guest may be writing the page.</summary>
    private bool TryBatch(int page)
    {
        Span<byte> copy = batch.AsSpan(8 + PagesPerFrame * 4 + batchCount * GuestMemory.PageSizeBytes, GuestMemory.PageSizeBytes);
        memory.Page(page).CopyTo(copy);
        if (copy.IndexOfAnyExcept((byte)0) < 0)
            return false;
        digests.Set(page, copy);
        BinaryPrimitives.WriteInt32BigEndian(batch.AsSpan(8 + batchCount * 4), page);
        batchCount++;
        return true;
    }

    private async Task FlushBatchAsync(CancellationToken cancellationToken)
    {
        if (batchCount == 0)
            return;
        Numbers(round, batchCount).CopyTo(batch, 0);
        int contentLength = batchCount * GuestMemory.PageSizeBytes;
        int numbersEnd = 8 + batchCount * 4;
        batch.AsSpan(8 + PagesPerFrame * 4, contentLength).CopyTo(batch.AsSpan(numbersEnd));
        batchCount = 0;
        await frames.WriteAsync(FrameType.Pages, batch.AsMemory(0, numbersEnd + contentLength), cancellationToken);
    }

    private async Task FlushZeroRunsAsync(CancellationToken cancellationToken)
    {
        if (zeroRuns.Count == 0)
            return;
        byte[] payload = new byte[8 + zeroRuns.Count * 8];
        Numbers(round, zeroRuns.Count).CopyTo(payload, 0);
        for (int i = 0; i < zeroRuns.Count; i++)
            Numbers(zeroRuns[i].First, zeroRuns[i].Length).CopyTo(payload, 8 + i * 8);
        zeroRuns.Clear();
        await frames.WriteAsync(FrameType.ZeroPages, payload, cancellationToken);
    }

    /// <summary>
    /// A receiver that refuses says why before it closes; that is a better error than the broken pipe which we see first.
    /// </summary>
    private async Task WithReasonAsync(Func<Task> exchange, CancellationToken cancellationToken)
    {
        try
        {
            await exchange();
        }
        catch (MemoryStreamException e)
        {
            string? reason = await TryReadReasonAsync(cancellationToken);
            throw reason is null ? e : new MemoryStreamException($"the destination refused the stream: {reason}", e);
        }
    }

    private async Task<string?> TryReadReasonAsync(CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(ReasonDeadline);
        try
        {
            for (int i = 0; i < 2; i++)
            {
                Frame frame = await frames.ReadAsync(limit.Token);
                if (frame.Type == FrameType.Refused)
                    return System.Text.Encoding.UTF8.GetString(frame.Payload.Span);
            }
        }
        catch (Exception e) when (e is MemoryStreamException or OperationCanceledException)
        {
            // It said nothing more.
        }

        return null;
    }
}
