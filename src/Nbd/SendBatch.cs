// What a connection's thread sends while it has more work at hand waits for the end of that work: the messages of a crowd share a system
// call, and wake the peer once. Nothing is held while the thread waits for anything.
namespace Nbd;

/// <summary>The messages that one thread holds back. Only threads that opened one have it.</summary>
internal sealed class SendBatch
{
    private const int MaxHeld = 8; // A crowd's first answer waits for no more than this.
    private const int MaxPayloadBytes = 16 * 1024; // A longer one is worth a system call.

    [ThreadStatic]
    private static SendBatch? ofThisThread;

    private readonly List<WireWriter> writers = [];
    private int held;

    /// <summary>From now on this thread holds back what it sends, until <see cref="Flush"/>.</summary>
    public static void Open() => ofThisThread ??= new SendBatch();

    /// <summary>Sends what is held. To be called before the thread waits.</summary>
    public static void Flush() => ofThisThread?.Send();

    /// <summary>False when the message is to be sent now.</summary>
    public static bool TryHold(WireWriter writer, int payloadBytes)
    {
        if (ofThisThread is not { } batch || payloadBytes > MaxPayloadBytes || batch.held == MaxHeld - 1)
            return false;
        if (!batch.writers.Contains(writer))
            batch.writers.Add(writer);
        batch.held++;
        return true;
    }

    private void Send()
    {
        if (held == 0)
            return;
        held = 0;
        for (int i = 0; i < writers.Count; i++)
            writers[i].SendHeld();
        writers.Clear();
    }
}
