// One world's time and order: one thread, a heap of virtual timers, a list of what is ready, and a seed that says what of it runs next.
// A process that died is an incarnation that is dead: nothing that it awaited ever continues, and none of its timers fires.
namespace Simulation;

/// <summary>SplitMix64: the same numbers on every machine and in every version of the framework.</summary>
internal sealed class Rng(ulong seed)
{
    private ulong state = seed;

    public ulong Next()
    {
        ulong z = state += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }

    /// <summary>From 0 to below the limit.</summary>
    public int Below(int limit) => (int)(Next() % (ulong)limit);

    public bool OneIn(int n) => Below(n) == 0;

    public TimeSpan Ms(int from, int to) => TimeSpan.FromMicroseconds(((long)from * 1000) + Below((to - from + 1) * 1000));
}

internal sealed class Incarnation(Scheduler scheduler, string name) : SynchronizationContext
{
    public string Name { get; } = name;

    public bool IsDead { get; private set; }

    public void Kill() => IsDead = true;

    public override void Post(SendOrPostCallback d, object? state) => scheduler.Post(this, d, state);

    public override void Send(SendOrPostCallback d, object? state) => throw new NotSupportedException("nothing waits in a world");

    public override SynchronizationContext CreateCopy() => this;
}

internal sealed class Scheduler
{
    private readonly record struct Work(Incarnation? Owner, SendOrPostCallback Callback, object? State);

    private readonly PriorityQueue<(Alarm Alarm, int Version), (long At, long Order)> alarms = new();
    private readonly List<Work> ready = [];
    private readonly Rng rng;
    private readonly int thread = Environment.CurrentManagedThreadId;
    private long order;

    public Scheduler(ulong seed) => rng = new Rng(seed);

    /// <summary>Virtual time since the world began, in ticks.</summary>
    public long NowTicks { get; private set; }

    public TimeSpan Now => TimeSpan.FromTicks(NowTicks);

    public long Steps { get; private set; }

    /// <summary>Of every step: when it was and what was chosen. Two runs of one seed have the same.</summary>
    public ulong Hash { get; private set; } = 14695981039346656037;

    public void Mix(ulong value) => Hash = (Hash ^ value) * 1099511628211;

    public void Mix(string text)
    {
        foreach (char c in text)
            Mix((ulong)c);
    }

    public void Post(Incarnation? owner, SendOrPostCallback callback, object? state)
    {
        // What comes from another thread comes in no order that a seed could repeat.
        if (Environment.CurrentManagedThreadId != thread)
            Environment.FailFast($"a continuation of {owner?.Name} came from a thread of the pool: {Environment.StackTrace}");
        ready.Add(new Work(owner, callback, state));
    }

    /// <summary>Runs what the world itself does, whoever is dead.</summary>
    public void After(TimeSpan delay, Action action) => new Alarm(this, null, static a => ((Action)a!)(), action).Set(delay, Timeout.InfiniteTimeSpan);

    public ITimer Timer(Incarnation owner, TimerCallback callback, object? state, TimeSpan due, TimeSpan period)
    {
        Alarm alarm = new(this, owner, callback, state);
        alarm.Set(due, period);
        return alarm;
    }

    /// <returns>False when nothing is left to run.</returns>
    public bool Step()
    {
        while (true)
        {
            if (ready.Count == 0 && !Advance())
                return false;
            if (ready.Count == 0)
                continue;
            int pick = ready.Count == 1 ? 0 : rng.Below(ready.Count);
            Work work = ready[pick];
            ready[pick] = ready[^1];
            ready.RemoveAt(ready.Count - 1);
            if (work.Owner is { IsDead: true })
                continue;
            Steps++;
            Mix((ulong)NowTicks);
            Mix((ulong)pick);
            SynchronizationContext.SetSynchronizationContext(work.Owner);
            try
            {
                work.Callback(work.State);
            }
            finally
            {
                SynchronizationContext.SetSynchronizationContext(null);
            }

            return true;
        }
    }

    private bool Advance()
    {
        while (alarms.TryDequeue(out (Alarm Alarm, int Version) next, out (long At, long Order) key))
        {
            if (next.Alarm.Version != next.Version || next.Alarm.Owner is { IsDead: true })
                continue;
            NowTicks = Math.Max(NowTicks, key.At);
            next.Alarm.Rearm();
            ready.Add(new Work(next.Alarm.Owner, static a => ((Alarm)a!).Fire(), next.Alarm));
            return true;
        }

        return false;
    }

    private sealed class Alarm(Scheduler scheduler, Incarnation? owner, TimerCallback callback, object? state) : ITimer
    {
        private TimeSpan period;

        public Incarnation? Owner => owner;

        public int Version { get; private set; }

        public void Set(TimeSpan due, TimeSpan every)
        {
            Version++;
            period = every;
            if (due != Timeout.InfiniteTimeSpan)
                scheduler.alarms.Enqueue((this, Version), (scheduler.NowTicks + Math.Max(0, due.Ticks), scheduler.order++));
        }

        public void Rearm() => Set(period > TimeSpan.Zero ? period : Timeout.InfiniteTimeSpan, period);

        public void Fire() => callback(state);

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            Set(dueTime, period);
            return true;
        }

        public void Dispose() => Version++;

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}

/// <summary>A process's clock: virtual, and wrong by as much as its host's clock was set.</summary>
internal sealed class ProcessTime(Scheduler scheduler, Incarnation owner, Func<TimeSpan> skew) : TimeProvider
{
    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override long GetTimestamp() => scheduler.NowTicks;

    public override DateTimeOffset GetUtcNow() => new DateTimeOffset(2026, 1, 1, 0, 0, 0, TimeSpan.Zero) + scheduler.Now + skew();

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period) =>
        scheduler.Timer(owner, callback, state, dueTime, period);
}
