// Which things have changed (research: xenopsd.md 1.7): ids, never data, so that they coalesce by themselves; whoever reads looks the thing up.
// A barrier is a point in that order: what was changed before it is read before it.
namespace Xenops.Queues;

public sealed record Barrier<TId>(int Id, IReadOnlyList<TId> Changed);

public sealed record Changes<TId>(IReadOnlyList<Barrier<TId>> Barriers, IReadOnlyList<TId> Changed, long Next);

public sealed class Updates<TId>(TimeProvider time)
    where TId : notnull
{
    /// <summary>A client that never takes its barriers away.</summary>
    public const int BarrierLimit = 1024;

    private readonly Lock gate = new();
    private readonly Dictionary<TId, long> changed = [];
    private readonly List<(int Id, Dictionary<TId, long> Snapshot, long Event)> barriers = [];
    private TaskCompletionSource arrival = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private long next = 1;

    public long LastId
    {
        get
        {
            lock (gate)
                return next - 1;
        }
    }

    public void Add(TId id) => Change(() => changed[id] = next);

    /// <summary>It is gone, and no event tells so: whoever looks it up sees it.</summary>
    public void Remove(TId id) => Change(() => changed.Remove(id));

    /// <param name="isMeant">What belongs behind the barrier; the rest is read as if it were not there.</param>
    /// <exception cref="XenopsException">Too many are there.</exception>
    public void InjectBarrier(int id, Func<TId, bool> isMeant) => Change(() =>
    {
        if (barriers.Count == BarrierLimit)
            throw XenopsException.Internal($"{BarrierLimit} barriers are there; the oldest, {barriers[0].Id}, was never removed");
        barriers.Add((id, changed.Where(c => isMeant(c.Key)).ToDictionary(), next));
    });

    public void RemoveBarrier(int id)
    {
        lock (gate)
            barriers.RemoveAll(b => b.Id == id);
    }

    /// <summary>What came after <paramref name="from"/>; waits for it, at most so long, and then answers nothing and the same number.</summary>
    public async Task<Changes<TId>> GetAsync(long from, TimeSpan timeout, CancellationToken cancellationToken)
    {
        long started = time.GetTimestamp();
        while (true)
        {
            Task more;
            lock (gate)
            {
                Changes<TId> found = After(from);
                if (found.Barriers.Count + found.Changed.Count > 0)
                    return found;
                more = arrival.Task;
            }

            TimeSpan left = timeout - time.GetElapsedTime(started);
            if (left <= TimeSpan.Zero)
                return new Changes<TId>([], [], from);
            try
            {
                await more.WaitAsync(left, time, cancellationToken);
            }
            catch (TimeoutException)
            {
                return new Changes<TId>([], [], from);
            }
        }
    }

    private Changes<TId> After(long from)
    {
        (int Id, Dictionary<TId, long> Snapshot, long Event)[] newer = [.. barriers.Where(b => b.Event > from)];
        KeyValuePair<TId, long>[] ids = Newer(changed, from);
        long last = Math.Max(ids.Length > 0 ? ids[^1].Value : from, newer.Length > 0 ? newer[^1].Event : from);
        return new Changes<TId>(
            [.. newer.Select(b => new Barrier<TId>(b.Id, [.. Newer(b.Snapshot, from).Select(static c => c.Key)]))], [.. ids.Select(static c => c.Key)], last);
    }

    private static KeyValuePair<TId, long>[] Newer(Dictionary<TId, long> map, long from) =>
        [.. map.Where(c => c.Value > from).OrderBy(static c => c.Value)];

    private void Change(Action change)
    {
        TaskCompletionSource before;
        lock (gate)
        {
            change();
            next++;
            (before, arrival) = (arrival, new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously));
        }

        before.TrySetResult();
    }
}
