namespace Platform;

/// <summary>A thread for work that waits in system calls for most of its life: it must not take one of the pool's.</summary>
public static class DedicatedThread
{
    private const int StackBytes = 512 * 1024;

    /// <summary>Completes with the work's outcome; what waits for it goes on elsewhere.</summary>
    public static Task<T> Run<T>(string name, Func<T> work)
    {
        TaskCompletionSource<T> done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Thread thread = new(
            () =>
            {
                try
                {
                    done.SetResult(work());
                }
                catch (Exception e)
                {
                    done.SetException(e); // The task's boundary: whoever awaits it hears of it.
                }
            },
            StackBytes)
        {
            IsBackground = true,
            Name = name,
        };
        thread.Start();
        return done.Task;
    }
}
