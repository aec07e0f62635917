// Looks after the folder of SMAPIv3 plugins: one that is added, changed or removed is known without a restart (research/storage.md 5.1).
using Platform;

namespace SmapiV3Bridge;

/// <summary>
/// Calls back when the folder has been quiet for half a second after a change: a plugin is copied file by file. One call at a time; a change
/// during it is followed by another. Disposing ends a call that runs.
/// </summary>
public sealed class PluginWatch : IAsyncDisposable
{
    public static readonly TimeSpan Settling = TimeSpan.FromSeconds(0.5);

    private readonly Func<CancellationToken, Task> changed;
    private readonly CancellationTokenSource stop = new();
    private readonly SemaphoreSlim one = new(1);
    private readonly FileSystemWatcher watcher;
    private readonly ITimer quiet;

    /// <param name="root">Of <c>volume/</c> and <c>datapath/</c>; it stays where it is as long as we watch.</param>
    /// <param name="changed">Looks again. It throws nothing but a cancellation.</param>
    /// <exception cref="IOException">The folder is not there, or the kernel watches no more.</exception>
    public PluginWatch(string root, Func<CancellationToken, Task> changed, TimeProvider time)
    {
        this.changed = changed;
        if (!Directory.Exists(root))
            throw new IOException($"{root} is not there and is not watched");
        quiet = time.CreateTimer(_ => _ = LookAsync(), null, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        watcher = new FileSystemWatcher(root)
        {
            IncludeSubdirectories = true,
            NotifyFilter = NotifyFilters.DirectoryName | NotifyFilters.FileName | NotifyFilters.LastWrite | NotifyFilters.Attributes,
        };
        watcher.Created += (_, _) => Settle();
        watcher.Changed += (_, _) => Settle();
        watcher.Deleted += (_, _) => Settle();
        watcher.Renamed += (_, _) => Settle();
        watcher.Error += (_, _) => Settle(); // Events were lost: whatever they were, we look.
        watcher.EnableRaisingEvents = true;
    }

    public async ValueTask DisposeAsync()
    {
        watcher.Dispose();
        await quiet.DisposeAsync();
        await stop.CancelAsync();
        await one.WaitAsync();
        one.Dispose();
        stop.Dispose();
    }

    private void Settle() => quiet.Change(Settling, Timeout.InfiniteTimeSpan);

    private async Task LookAsync()
    {
        try
        {
            await one.WaitAsync(stop.Token);
            try
            {
                await changed(stop.Token);
            }
            finally
            {
                one.Release();
            }
        }
        catch (Exception e) when (e is OperationCanceledException or ObjectDisposedException)
        {
            // The end.
        }
    }
}
