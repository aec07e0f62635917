namespace Migration;

/// <summary>
/// One at a time, in the order of asking. Who waits goes on where he waited: SemaphoreSlim and CancelAsync continue on a thread of the pool, in an order that
/// no simulator can repeat.
/// </summary>
internal sealed class Turn
{
    private readonly Lock gate = new();
    private readonly Queue<TaskCompletionSource> waiting = new();
    private bool isTaken;

    /// <summary>The end of each wait must be followed by a <see cref="Release"/>, a cancelled wait by none.</summary>
    public async Task WaitAsync(CancellationToken cancellationToken = default)
    {
        cancellationToken.ThrowIfCancellationRequested();
        TaskCompletionSource mine = new(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (gate)
        {
            if (!isTaken)
            {
                isTaken = true;
                return;
            }

            waiting.Enqueue(mine);
        }

        await using (cancellationToken.UnsafeRegister(_ => mine.TrySetCanceled(cancellationToken), null))
            await mine.Task;
    }

    public void Release()
    {
        lock (gate)
        {
            while (waiting.TryDequeue(out TaskCompletionSource? next))
            {
                if (next.TrySetResult())
                    return;
            }

            isTaken = false;
        }
    }
}
