// The receiving end of a memory stream. Nothing is believed because it was sent: order, bounds, counts, that every page came at least
// once, and at the end the digest of what is in memory here against the digest of what the sender says it had. Any violation refuses
// the whole load.
using System.Buffers.Binary;
using System.Text;
using System.Text.Json;

namespace Xenops.Streaming;

internal sealed record ImageReceived(string Digest, long Pages, long Bytes, byte[] DeviceState);

internal sealed class MemoryReceiver(FrameStream frames, Vm vm, GuestMemory memory)
{
    private const int DeviceStateLimitBytes = 64 * 1024;
    private static readonly byte[] ZeroPage = new byte[GuestMemory.PageSizeBytes];

    private readonly PageDigests digests = new(memory.PageCount);
    private readonly bool[] received = new bool[memory.PageCount];
    private int round;
    private int pagesOfRound;
    private long pagesReceived;

    /// <summary>Rounds completed, for whoever waits.</summary>
    public int Rounds => round;

    public long Bytes => frames.BytesRead;

    /// <exception cref="MemoryStreamException">The load is refused; the sender has been told why.</exception>
    public async Task<ImageReceived> ReceiveAsync(CancellationToken cancellationToken)
    {
        try
        {
            await frames.WriteAsync(FrameType.Welcome, ReadOnlyMemory<byte>.Empty, cancellationToken);
            ReadRecord(await frames.ReadAsync(cancellationToken));
            byte[] deviceState = await ReadRoundsAsync(cancellationToken);
            long bytesBeforeEnd = frames.BytesRead;
            ImageReceived image = ReadEnd(await frames.ReadAsync(cancellationToken), bytesBeforeEnd, deviceState);
            await frames.ReadEndAsync(cancellationToken);
            return image;
        }
        catch (MemoryStreamException e)
        {
            await TryTellAsync(e.Message, cancellationToken);
            throw;
        }
    }

    private void ReadRecord(Frame frame)
    {
        Require(frame.Type == FrameType.VmRecord, $"the stream starts with {frame.Type}, not with a VM's record");
        Vm? sent;
        try
        {
            sent = JsonSerializer.Deserialize<Vm>(frame.Payload.Span, Json.Options);
        }
        catch (JsonException e)
        {
            throw new MemoryStreamException($"the VM's record is malformed: {e.Message}");
        }

        Require(sent?.Id == vm.Id, $"the stream is of VM {sent?.Id}, not of {vm.Id}");
        Require(sent!.Domain == vm.Domain, $"the VM runs on {sent.Domain}, here on {vm.Domain}");
        Require(sent.MemoryBytes == vm.MemoryBytes, $"the VM has {sent.MemoryBytes} bytes of memory, here {vm.MemoryBytes}");
        Require(
            sent.Vbds?.Select(static v => (v?.Device, v?.Mode)).SequenceEqual(vm.Vbds.Select(static v => ((string?)v.Device, (string?)v.Mode))) == true,
            "the VM has other disks, or in another order, or with other modes, than here");
    }

    private async Task<byte[]> ReadRoundsAsync(CancellationToken cancellationToken)
    {
        while (true)
        {
            Frame frame = await frames.ReadAsync(cancellationToken);
            switch (frame.Type)
            {
                case FrameType.Pages:
                    ReadPages(frame.Payload.Span);
                    break;
                case FrameType.ZeroPages:
                    ReadZeroPages(frame.Payload.Span);
                    break;
                case FrameType.RoundEnd:
                    (int number, int count) = Numbers(frame.Payload.Span);
                    Require(
                        frame.Payload.Length == 8 && number == round && count == pagesOfRound,
                        $"round {round} does not end as it was sent");
                    pagesReceived += pagesOfRound;
                    pagesOfRound = 0;
                    round++;
                    await frames.WriteAsync(FrameType.RoundReceived, frame.Payload, cancellationToken);
                    break;
                case FrameType.DeviceState:
                    Require(pagesOfRound == 0, "the device state comes inside a round");
                    Require(
                        frame.Payload.Length <= DeviceStateLimitBytes, $"the device state is larger than {DeviceStateLimitBytes} bytes");
                    return frame.Payload.ToArray();
                default:
                    throw new MemoryStreamException($"a frame of type {frame.Type} does not belong into a round");
            }
        }
    }

    private void ReadPages(ReadOnlySpan<byte> payload)
    {
        int count = ReadBatchHead(payload, 4 + GuestMemory.PageSizeBytes);
        ReadOnlySpan<byte> content = payload[(8 + count * 4)..];
        for (int i = 0; i < count; i++)
        {
            int page = BinaryPrimitives.ReadInt32BigEndian(payload[(8 + i * 4)..]);
            Require(page >= 0 && page < memory.PageCount, $"page {page} is outside a memory of {memory.PageCount} pages");
            memory.Write(page, content.Slice(i * GuestMemory.PageSizeBytes, GuestMemory.PageSizeBytes));
            digests.Set(page, memory.Page(page));
            Came(page);
        }
    }

    private void ReadZeroPages(ReadOnlySpan<byte> payload)
    {
        int count = ReadBatchHead(payload, 8);
        for (int i = 0; i < count; i++)
        {
            (int first, int length) = Numbers(payload[(8 + i * 8)..]);
            Require(
                first >= 0 && length > 0 && length <= memory.PageCount - first,
                $"the pages {first}+{length} are outside a memory of {memory.PageCount}");
            for (int page = first; page < first + length; page++)
            {
                if (received[page])
                    memory.Write(page, ZeroPage);
                digests.SetZero(page);
                Came(page);
            }
        }
    }

    private ImageReceived ReadEnd(Frame frame, long bytesBefore, byte[] deviceState)
    {
        Require(frame.Type == FrameType.End && frame.Payload.Length == 48, "the device state is not followed by the end record");
        int missing = received.Count(static r => !r);
        Require(missing == 0, $"{missing} pages never came");
        ReadOnlySpan<byte> end = frame.Payload.Span;
        Require(BinaryPrimitives.ReadInt64BigEndian(end[32..]) == pagesReceived, "the end record counts other pages than came");
        Require(BinaryPrimitives.ReadInt64BigEndian(end[40..]) == bytesBefore, "the end record counts other bytes than came");
        byte[] digest = digests.Root();
        Require(end[..32].SequenceEqual(digest), "the digest of the memory here is not the digest of the memory sent");
        return new ImageReceived(Convert.ToHexStringLower(digest), pagesReceived, frames.BytesRead, deviceState);
    }

    private int ReadBatchHead(ReadOnlySpan<byte> payload, int itemSizeBytes)
    {
        Require(payload.Length >= 8, "a batch of pages is cut short");
        (int number, int count) = Numbers(payload);
        Require(number == round, $"pages of round {number} come in round {round}");
        Require(count > 0 && payload.Length == 8 + (long)count * itemSizeBytes, "a batch of pages has another length than its count says");
        return count;
    }

    private void Came(int page)
    {
        Require(pagesOfRound < memory.PageCount, $"round {round} has more pages than the memory");
        received[page] = true;
        pagesOfRound++;
    }

    private static (int First, int Second) Numbers(ReadOnlySpan<byte> bytes) => bytes.Length < 8
        ? throw new MemoryStreamException("a record is cut short")
        : (BinaryPrimitives.ReadInt32BigEndian(bytes), BinaryPrimitives.ReadInt32BigEndian(bytes[4..]));

    private static void Require(bool holds, string otherwise)
    {
        if (!holds)
            throw new MemoryStreamException(otherwise);
    }

    /// <summary>How long a sender has to read why it was refused.</summary>
    private static readonly TimeSpan TellLimit = TimeSpan.FromSeconds(2);

    private async Task TryTellAsync(string reason, CancellationToken cancellationToken)
    {
        byte[] text = Encoding.UTF8.GetBytes(reason);
        try
        {
            await frames.WriteAsync(FrameType.Refused, text.AsMemory(0, Math.Min(text.Length, 1024)), cancellationToken);
            await frames.DrainAsync(TellLimit, cancellationToken);
        }
        catch (Exception e) when (e is MemoryStreamException or OperationCanceledException)
        {
            // It is gone already; the reason is kept here.
        }
    }
}
