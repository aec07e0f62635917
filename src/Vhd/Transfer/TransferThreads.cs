// Plain threads over a list of blocks. A thread that reads and writes through a buffer in its own cache beats every pipeline of tasks and
// queues here: there is nothing to hand over. The first failure, or a cancellation, ends all of them; it is the caller's exception.
using System.Runtime.ExceptionServices;

namespace Vhd.Transfer;

internal static class TransferThreads
{
    public const int MaxCount = 64;

    /// <param name="body">Called on each thread with its number and the supply of blocks.</param>
    public static void Run(int count, IReadOnlyList<int> blocks, Action<int, BlockSupply> body, CancellationToken cancellationToken)
    {
        BlockSupply supply = new(blocks, cancellationToken);
        count = Math.Clamp(count, 1, Math.Max(1, Math.Min(blocks.Count, MaxCount)));
        Thread[] threads = new Thread[count - 1];
        for (int i = 0; i < threads.Length; i++)
        {
            int number = i + 1;
            threads[i] = new Thread(() => Guarded(number, supply, body)) { IsBackground = true, Name = $"transfer {number}" };
            threads[i].Start();
        }

        Guarded(0, supply, body);
        Array.ForEach(threads, static thread => thread.Join());
        supply.ThrowIfFailed();
    }

    private static void Guarded(int number, BlockSupply supply, Action<int, BlockSupply> body)
    {
        try
        {
            body(number, supply);
        }
        catch (Exception e)
        {
            supply.Fail(e); // A thread's end: whatever it is, Run throws it on the caller's thread.
        }
    }
}

/// <summary>Hands out blocks, each once, in order.</summary>
internal sealed class BlockSupply(IReadOnlyList<int> blocks, CancellationToken cancellationToken)
{
    private int next = -1;
    private Exception? failure;

    public bool TryTake(out int block)
    {
        ThrowIfStopped();
        int index = Interlocked.Increment(ref next);
        block = index < blocks.Count ? blocks[index] : 0;
        return index < blocks.Count;
    }

    /// <summary>To be called between the pieces of a block: another thread has failed, or the user wants out.</summary>
    public void ThrowIfStopped()
    {
        cancellationToken.ThrowIfCancellationRequested();
        if (Volatile.Read(ref failure) is not null)
            throw new OperationCanceledException("another thread of the transfer failed");
    }

    public void Fail(Exception cause) => Interlocked.CompareExchange(ref failure, cause, null);

    public void ThrowIfFailed()
    {
        if (failure is not null)
            ExceptionDispatchInfo.Throw(failure);
    }
}
