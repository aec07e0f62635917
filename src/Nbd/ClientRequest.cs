// One call on its way through the client. It completes for its caller when its outcome is known AND nobody touches the caller's memory any
// more: the writer may still be sending from it, the reader may be receiving into it. A cancelled request stays on the books until its
// reply has come.
using System.Buffers.Binary;
using System.Threading.Tasks.Sources;
using Platform;

namespace Nbd;

internal sealed class ClientRequest : Outgoing, IValueTaskSource
{
    private readonly Lock gate = new();
    private ManualResetValueTaskSourceCore<bool> completion; // Continues on the thread that has the reply: one wake-up less.
    private bool isSending;
    private bool isReceiving;
    private bool isCompleted;
    private bool isSettled;
    private Exception? failure;

    public ClientRequest(Command command, CommandFlags flags, long offsetBytes, uint lengthBytes)
    {
        Command = command;
        OffsetBytes = offsetBytes;
        LengthBytes = lengthBytes;
        HeadLength = Protocol.RequestHeaderBytes;
        BinaryPrimitives.WriteUInt32BigEndian(Head, Protocol.RequestMagic);
        BinaryPrimitives.WriteUInt16BigEndian(Head[4..], (ushort)flags);
        BinaryPrimitives.WriteUInt16BigEndian(Head[6..], (ushort)command);
        BinaryPrimitives.WriteUInt64BigEndian(Head[16..], (ulong)offsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(Head[24..], lengthBytes);
    }

    public Command Command { get; }

    public long OffsetBytes { get; }

    public uint LengthBytes { get; }

    public Memory<byte> Destination { get; init; }

    public IReadOnlyList<BlockExtent> Extents { get; set; } = [];

    public ulong Cookie { get; private set; }

    public long StartedAt { get; private set; }

    /// <summary>What has arrived of a structured read; owned by the reader.</summary>
    public ByteCoverage Covered { get; } = new();

    /// <summary>The first error among a structured reply's chunks; owned by the reader.</summary>
    public Errno? ReplyError { get; set; }

    public ValueTask Completion => new(this, completion.Version);

    public void Start(ulong cookie, long startedAt)
    {
        Cookie = cookie;
        StartedAt = startedAt;
        isSending = !Payload.IsEmpty;
        BinaryPrimitives.WriteUInt64BigEndian(Head[8..], cookie);
    }

    /// <summary>The outcome; the first one counts.</summary>
    public void Settle(Exception? outcome)
    {
        lock (gate)
        {
            if (isSettled)
                return;
            isSettled = true;
            failure = outcome;
        }

        CompleteIfFree();
    }

    /// <summary>Asks for the caller's memory to receive into; false when the caller has left, and the bytes are nobody's.</summary>
    public bool TryBeginReceive()
    {
        lock (gate)
            return isReceiving = !isSettled;
    }

    public void EndReceive()
    {
        lock (gate)
            isReceiving = false;
        CompleteIfFree();
    }

    public override void Released()
    {
        lock (gate)
            isSending = false;
        CompleteIfFree();
    }

    public void GetResult(short token) => completion.GetResult(token);

    public ValueTaskSourceStatus GetStatus(short token) => completion.GetStatus(token);

    public void OnCompleted(Action<object?> continuation, object? state, short token, ValueTaskSourceOnCompletedFlags flags) =>
        completion.OnCompleted(continuation, state, token, flags);

    private void CompleteIfFree()
    {
        lock (gate)
        {
            if (!isSettled || isSending || isReceiving || isCompleted)
                return;
            isCompleted = true;
        }

        if (failure is null)
            completion.SetResult(true);
        else
            completion.SetException(failure);
    }
}

/// <summary>Which bytes of a structured read have come: each exactly once, or the server is wrong. In order it is a single run.</summary>
internal sealed class ByteCoverage
{
    private const int RunLimitCount = 4096;

    private readonly SortedList<long, long> runs = []; // Start to end; neighbours joined.

    public long TotalBytes { get; private set; }

    /// <summary>False when a byte of the range had come before, or the pieces are absurdly many.</summary>
    public bool TryAdd(long startBytes, long lengthBytes)
    {
        long end = startBytes + lengthBytes;
        int after = IndexAfter(startBytes);
        bool joinsBefore = after > 0 && runs.GetValueAtIndex(after - 1) == startBytes;
        bool joinsAfter = after < runs.Count && runs.GetKeyAtIndex(after) == end;
        if ((after > 0 && runs.GetValueAtIndex(after - 1) > startBytes)
            || (after < runs.Count && runs.GetKeyAtIndex(after) < end)
            || (!joinsBefore && !joinsAfter && runs.Count >= RunLimitCount))
            return false;
        if (joinsAfter)
        {
            end = runs.GetValueAtIndex(after);
            runs.RemoveAt(after);
        }

        if (joinsBefore)
            runs.SetValueAtIndex(after - 1, end);
        else
            runs.Add(startBytes, end);
        TotalBytes += lengthBytes;
        return true;
    }

    private int IndexAfter(long startBytes)
    {
        int low = 0;
        for (int high = runs.Count; low < high;)
        {
            int middle = (low + high) / 2;
            if (runs.GetKeyAtIndex(middle) <= startBytes)
                low = middle + 1;
            else
                high = middle;
        }

        return low;
    }
}
