// The jobs that run here as a source: who waits for a place, what each was last seen doing, and the pool's bandwidth shared between them.
using System.Collections.Concurrent;
using System.Globalization;
using Migration;
using Xapi.Database;
using Xapi.Tasks;

namespace Xapi.Migration;

public sealed class MigrationJobs(PoolDatabase database) : IDisposable
{
    /// <summary>More at once share the same link and disks, and none would end sooner.</summary>
    private const int AtOnce = 4;

    /// <summary>In the pool's other_config: bytes per second for all jobs together; 0 is no limit.</summary>
    private const string LimitKey = "migration_bandwidth";

    private readonly SemaphoreSlim places = new(AtOnce);
    private readonly ConcurrentDictionary<string, SourceRunner> runners = new();
    private readonly ConcurrentDictionary<string, MigrationProgress> seen = new();
    private readonly ConcurrentDictionary<string, long> wishes = new();
    private readonly ConcurrentDictionary<string, CancellationTokenSource> queued = new();

    /// <summary>Waits for a place, first come, first served; the task says so.</summary>
    /// <exception cref="OperationCanceledException">Cancelled while it waited: nothing was begun.</exception>
    public async Task<IDisposable> EnterAsync(string migration, TaskRun task)
    {
        using CancellationTokenSource cancel = CancellationTokenSource.CreateLinkedTokenSource(task.CancellationToken);
        queued[migration] = cancel;
        try
        {
            Task entered = places.WaitAsync(cancel.Token);
            if (!entered.IsCompleted)
                task.SetOtherConfig("phase", "queued");
            await entered;
            return new Place(places);
        }
        finally
        {
            queued.TryRemove(migration, out _);
        }
    }

    public IDisposable Run(SourceRunner runner)
    {
        string migration = runner.State.Plan.Migration;
        runners[migration] = runner;
        wishes.TryAdd(migration, runner.State.Plan.Options.BandwidthBytesPerSecond);
        _ = BalanceAsync(CancellationToken.None);
        return new Running(this, migration);
    }

    public SourceRunner? Find(string migration) => runners.GetValueOrDefault(migration);

    public MigrationProgress? LastSeen(string migration) => seen.GetValueOrDefault(migration);

    public void Seen(string migration, MigrationProgress progress) => seen[migration] = progress;

    /// <summary>A job that waits for its place leaves the queue.</summary>
    public bool TryLeaveQueue(string migration)
    {
        if (!queued.TryGetValue(migration, out CancellationTokenSource? cancel))
            return false;
        try
        {
            cancel.Cancel();
            return true;
        }
        catch (ObjectDisposedException)
        {
            return false; // It has its place by now.
        }
    }

    /// <summary>One job's own limit; the pool's share may be less.</summary>
    public Task LimitAsync(string migration, long bytesPerSecond, CancellationToken cancellationToken)
    {
        wishes[migration] = bytesPerSecond;
        return BalanceAsync(cancellationToken);
    }

    public Task LimitPoolAsync(string pool, long bytesPerSecond, CancellationToken cancellationToken)
    {
        database.SetInMap("pool", pool, "other_config", LimitKey, bytesPerSecond.ToString(CultureInfo.InvariantCulture));
        return BalanceAsync(cancellationToken);
    }

    /// <summary>Each running job gets the same share of the pool's limit, or its own limit when that is less.</summary>
    private async Task BalanceAsync(CancellationToken cancellationToken)
    {
        SourceRunner[] copying = [.. runners.Values.Where(static r => !r.State.IsOwnedByDestination && !r.State.IsAborting && !r.State.IsClosed)];
        string? text = database.All("pool").Select(p => database.GetMap("pool", p, "other_config").GetValueOrDefault(LimitKey)).FirstOrDefault();
        long pool = long.TryParse(text, CultureInfo.InvariantCulture, out long limit) ? limit : 0;
        long share = pool == 0 || copying.Length == 0 ? 0 : Math.Max(1, pool / copying.Length);
        foreach (SourceRunner runner in copying)
        {
            long wish = wishes.GetValueOrDefault(runner.State.Plan.Migration);
            long rate = wish == 0 ? share : share == 0 ? wish : Math.Min(wish, share);
            if (rate == runner.State.RateBytesPerSecond)
                continue;
            try
            {
                await runner.SetRateAsync(rate, cancellationToken);
            }
            catch (Exception e) when (e is IOException or MigrationException)
            {
                // The journal has it: the next mirror that starts is given it.
            }
        }
    }

    public void Dispose() => places.Dispose();

    private sealed class Place(SemaphoreSlim places) : IDisposable
    {
        private int isLeft;

        public void Dispose()
        {
            if (Interlocked.Exchange(ref isLeft, 1) == 0)
                places.Release();
        }
    }

    private sealed class Running(MigrationJobs jobs, string migration) : IDisposable
    {
        public void Dispose()
        {
            jobs.runners.TryRemove(migration, out _);
            jobs.seen.TryRemove(migration, out _);
            jobs.wishes.TryRemove(migration, out _);
            _ = jobs.BalanceAsync(CancellationToken.None);
        }
    }
}
