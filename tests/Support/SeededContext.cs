namespace Support;

/// <summary>
/// One thread, one seed: continuations run one at a time in an order drawn from the seed, and when none is left, time moves. A test body run in it sees
/// every interleaving that awaits allow, and sees the same one again for the same seed.
/// </summary>
public sealed class SeededContext(int seed) : SynchronizationContext
{
    private const int IdleLimit = 20_000;
    private readonly Random random = new(seed);
    private readonly List<(SendOrPostCallback Callback, object? State)> ready = [];

    public ManualTime Time { get; } = new();

    public Random Random => random;

    public static void Run(int seed, Func<SeededContext, Task> body)
    {
        SeededContext context = new(seed);
        SynchronizationContext? before = Current;
        SetSynchronizationContext(context);
        try
        {
            Task running = body(context);
            context.PumpUntil(running);
            running.GetAwaiter().GetResult();
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"seed {seed}: {e.Message}", e);
        }
        finally
        {
            SetSynchronizationContext(before);
        }
    }

    public override void Post(SendOrPostCallback d, object? state)
    {
        lock (ready)
            ready.Add((d, state));
    }

    public override void Send(SendOrPostCallback d, object? state) => d(state);

    private void PumpUntil(Task task)
    {
        for (int idle = 0; !task.IsCompleted;)
        {
            (SendOrPostCallback Callback, object? State) next = default;
            lock (ready)
            {
                if (ready.Count > 0)
                {
                    int pick = random.Next(ready.Count);
                    next = ready[pick];
                    ready[pick] = ready[^1];
                    ready.RemoveAt(ready.Count - 1);
                }
            }

            if (next.Callback is not null)
            {
                next.Callback(next.State);
                idle = 0;
                continue;
            }

            if (++idle > IdleLimit)
                throw new TimeoutException("nothing is left to run, and it has not ended");
            Time.Advance(TimeSpan.FromMilliseconds(10));
        }
    }
}
