using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Tasks;

/// <summary>The running side of a task row: how a handler reports, and how it learns that it should stop. Thread-safe.</summary>
public sealed class TaskRun : IDisposable
{
    private const double ProgressStep = 0.001;

    private readonly Lock gate = new();
    private readonly PoolDatabase database;
    private readonly CancellationTokenSource cancelled = new();
    private double progress;
    private bool isCancellable = true;
    private bool isCancelRequested;

    internal TaskRun(PoolDatabase database, string reference)
    {
        this.database = database;
        Ref = reference;
        CancellationToken = cancelled.Token;
    }

    public string Ref { get; }

    /// <summary>task.cancel, or the daemon's end.</summary>
    public CancellationToken CancellationToken { get; }

    internal bool IsCancelRequested
    {
        get
        {
            lock (gate)
                return isCancelRequested;
        }
    }

    /// <summary>From 0 to 1. Steps too small to see are not written: each is an event for every watcher.</summary>
    public void SetProgress(double value)
    {
        lock (gate)
        {
            double bounded = Math.Clamp(value, 0, 1);
            if (Math.Abs(bounded - progress) < ProgressStep)
                return;
            progress = bounded;
            database.Set("task", Ref, "progress", new RpcDouble(bounded));
        }
    }

    public void SetOtherConfig(string key, string value) => database.SetInMap("task", Ref, "other_config", key, value);

    /// <summary>From here on task.cancel is refused. The point of no return: after it the token is not cancelled by a client.</summary>
    /// <exception cref="OperationCanceledException">It was cancelled before.</exception>
    public void ForbidCancel()
    {
        lock (gate)
        {
            if (isCancelRequested)
                throw new OperationCanceledException(CancellationToken);
            isCancellable = false;
            database.Set("task", Ref, "allowed_operations", RpcValue.Strings(["destroy"]));
        }
    }

    /// <summary>False when the task has passed its point of no return.</summary>
    internal bool TryCancel()
    {
        lock (gate)
        {
            if (!isCancellable)
                return false;
            isCancelRequested = true;
        }

        Stop();
        return true;
    }

    internal void Stop()
    {
        lock (gate)
            isCancelRequested = true;
        try
        {
            cancelled.Cancel(); // Not under the lock: it runs what others have registered.
        }
        catch (ObjectDisposedException)
        {
            // The work ended meanwhile.
        }
    }

    public void Dispose() => cancelled.Dispose();
}
