// How many payload bytes one connection may hold in memory. Whoever holds some never waits for more, so waiting always ends.
namespace Nbd;

internal sealed class ByteBudget(int limitBytes)
{
    private readonly Lock gate = new();
    private readonly Queue<(TaskCompletionSource Granted, int Bytes)> waiters = new();
    private int heldBytes;

    /// <summary>Waits in order of arrival. A request above the whole limit gets it when nothing else is held.</summary>
    public ValueTask AcquireAsync(int bytes)
    {
        lock (gate)
        {
            if (waiters.Count == 0 && Fits(bytes))
            {
                heldBytes += bytes;
                return ValueTask.CompletedTask;
            }

            TaskCompletionSource granted = new(TaskCreationOptions.RunContinuationsAsynchronously);
            waiters.Enqueue((granted, bytes));
            return new ValueTask(granted.Task);
        }
    }

    /// <summary>The same, waiting on a thread that may.</summary>
    public void Acquire(int bytes)
    {
        ValueTask granted = AcquireAsync(bytes);
        if (granted.IsCompleted)
            return;
        SendBatch.Flush(); // Replies that are held back hold memory.
        granted.AsTask().Wait();
    }

    public void Release(int bytes)
    {
        lock (gate)
        {
            heldBytes -= bytes;
            while (waiters.TryPeek(out (TaskCompletionSource Granted, int Bytes) next) && Fits(next.Bytes))
            {
                waiters.Dequeue();
                heldBytes += next.Bytes;
                next.Granted.SetResult();
            }
        }
    }

    private bool Fits(int bytes) => heldBytes == 0 || heldBytes + bytes <= limitBytes;
}
