using Platform;

namespace Nbd;

/// <summary>
/// A device under a name. The name may be a capability (a mirror target's secret): it is only listed when <see cref="IsListed"/> says so.
/// The device stays its owner's: disposing the export leaves it open.
/// </summary>
public sealed class NbdExport(string name, IBlockDevice device, bool readOnly = false) : IAsyncDisposable
{
    private readonly Lock gate = new();
    private readonly CancellationTokenSource closing = new();
    private readonly TaskCompletionSource idle = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private int sessions;

    public string Name { get; } = name;

    public IBlockDevice Device { get; } = device;

    public bool IsReadOnly => readOnly || Device.IsReadOnly;

    /// <summary>Whether the LIST option names it.</summary>
    public bool IsListed { get; init; }

    /// <summary>Whether a flush on one connection covers the writes of all others: true for every device that is one object.</summary>
    public bool IsCoherent { get; init; } = true;

    /// <summary>Cancelled when the export is being closed.</summary>
    internal CancellationToken Closing => closing.Token;

    /// <summary>
    /// Takes the export away: new clients are refused, connected ones get the answers of their running requests and are dropped. When this
    /// returns, no request of any client is in flight. The wait is bounded by the sessions' drain timeout and by the device's own answers.
    /// </summary>
    public async ValueTask DisposeAsync()
    {
        lock (gate)
        {
            if (sessions == 0)
                idle.TrySetResult();
        }

        await closing.CancelAsync();
        await idle.Task;
    }

    internal bool TryEnter()
    {
        lock (gate)
        {
            if (closing.IsCancellationRequested || idle.Task.IsCompleted)
                return false;
            sessions++;
            return true;
        }
    }

    internal void Leave()
    {
        lock (gate)
        {
            if (--sessions == 0 && closing.IsCancellationRequested)
                idle.TrySetResult();
        }
    }
}
