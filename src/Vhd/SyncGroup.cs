// One fdatasync for all who ask for one at the same time. After a sync failed nothing can be promised any more (the kernel forgets which
// pages it lost), so every later request fails too.
using Platform;

namespace Vhd;

internal sealed class SyncGroup(IVhdFile file)
{
    private readonly Lock gate = new();
    private Task? running;
    private Task? waiting;
    private volatile Exception? failure;

    /// <summary>Throws when a sync has failed: the image takes no more writes.</summary>
    public void CheckHealthy()
    {
        if (failure is { } cause)
            throw new BlockIoException(Errno.EIO, $"an earlier sync of the image failed, it takes no more writes: {cause.Message}", cause);
    }

    /// <summary>Completes when everything done before the call is durable.</summary>
    public Task RunAsync()
    {
        lock (gate)
        {
            // The one that runs may have begun before our write; the next one has not.
            if (running is null)
                return running = Task.Run(SyncOnce);
            return waiting ??= RunAfterAsync(running);
        }
    }

    /// <summary>The same, on this thread.</summary>
    public void RunNow()
    {
        try
        {
            CheckHealthy();
            file.Sync();
        }
        catch (IOException e)
        {
            failure ??= e;
            throw;
        }
    }

    private async Task RunAfterAsync(Task earlier)
    {
        await earlier.ContinueWith(static _ => { }, TaskScheduler.Default);
        lock (gate)
        {
            running = waiting;
            waiting = null;
        }

        SyncOnce();
    }

    private void SyncOnce()
    {
        try
        {
            RunNow();
        }
        finally
        {
            lock (gate)
            {
                if (waiting is null)
                    running = null;
            }
        }
    }
}
