// What is between the processes: links that delay, drop, duplicate and are cut, and requests over them. A request that was begun goes on when its
// connection is gone; a late duplicate may arrive when the job is long over.
using Migration;
using Platform;

namespace Simulation;

internal sealed class Link(string name)
{
    public string Name { get; } = name;

    public TimeSpan DownUntil { get; set; }
}

internal sealed class Network(World world)
{
    private static readonly TimeSpan AnswerLimit = TimeSpan.FromSeconds(20);

    public Link Peers { get; } = new("source-destination");

    public Link SourceWitness { get; } = new("source-witness");

    public Link DestinationWitness { get; } = new("destination-witness");

    /// <summary>One message. Within a connection of the data path nothing is dropped or doubled; what meets a link that is down is lost or late.</summary>
    /// <param name="stalled">For the data path: called when it did not arrive within the stall limit.</param>
    public void Send(Link link, bool isControl, Action<bool> arrive, Action? stalled = null)
    {
        TimeSpan delay = world.Rng.Ms(1, 8);
        if (world.Chance(isControl ? 5 : 10))
        {
            world.Faults.Delays++;
            delay += isControl && world.Rng.OneIn(12) ? world.Rng.Ms(1000, 90_000) : world.Rng.Ms(20, 900);
            if (!isControl && delay > world.Plan.Options.StallLimit)
                delay = world.Plan.Options.StallLimit;
        }

        if (isControl && world.Chance(25))
        {
            world.Faults.Drops++;
            arrive(false);
            return;
        }

        if (isControl && world.Chance(9))
        {
            world.Faults.Duplicates++;
            TimeSpan again = delay + (world.Rng.OneIn(2) ? world.Rng.Ms(1, 300) : world.Rng.Ms(1000, 150_000));
            world.MessageUntil(world.Scheduler.Now + again);
            world.Scheduler.After(again, () => Arrive(link, arrive));
        }

        if (isControl && world.ComesAgainAfter is { } later)
        {
            world.MessageUntil(world.Scheduler.Now + later);
            world.Scheduler.After(later, () => Arrive(link, arrive));
        }

        if (isControl)
            world.MessageUntil(world.Scheduler.Now + delay);

        world.Scheduler.After(delay, () =>
        {
            if (world.Scheduler.Now >= link.DownUntil)
            {
                arrive(true);
            }
            else if (isControl)
            {
                arrive(false);
            }
            else
            {
                if (world.Rng.OneIn(2))
                    world.Scheduler.After(link.DownUntil - world.Scheduler.Now + world.Rng.Ms(1, 400), () => arrive(true));
                if (stalled is not null)
                    world.Scheduler.After(world.Plan.Options.StallLimit, stalled);
            }
        });
    }

    /// <summary>A request and its answer, as the source's client and the witness's do it.</summary>
    /// <param name="callee">Who answers now; null when nobody listens.</param>
    public Task<T> Call<T>(Link link, Incarnation caller, Func<Incarnation?> callee, string what, Func<Task<T>> handle, CancellationToken cancellationToken)
    {
        TaskCompletionSource<T> answer = new();
        if (caller.IsDead)
            return answer.Task;
        if (cancellationToken.CanBeCanceled)
            cancellationToken.UnsafeRegister(_ => answer.TrySetCanceled(cancellationToken), null);
        void Lost(string why) => world.Scheduler.After(world.Rng.Ms(50, 4000), () => answer.TrySetException(new IOException($"{what}: {why}")));
        world.Scheduler.After(AnswerLimit, () => answer.TrySetException(new IOException($"{what}: no answer")));
        Send(link, isControl: true, isThere =>
        {
            if (!isThere)
            {
                Lost("the connection was lost");
                return;
            }

            if (callee() is not { } process)
            {
                Lost("nobody listens");
                return;
            }

            world.Trace($"{process.Name} is asked: {what}");
            world.Scheduler.Post(process, _ => Handle(), null);

            async void Handle()
            {
                Action reply;
                try
                {
                    T result = await handle();
                    reply = () => answer.TrySetResult(result);
                }
                catch (InvariantException e)
                {
                    if (!process.IsDead)
                        world.Violation($"{process.Name} stopped itself at {what}: {e.Message}");
                    return;
                }
                catch (MigrationException e)
                {
                    reply = () => answer.TrySetException(e.ToFailure("request").ToException());
                }
                catch (Exception e)
                {
                    reply = () => answer.TrySetException(new MigrationException("INTERNAL_ERROR", [e.Message], MigrationSide.Destination, e.Message));
                }

                Send(link, isControl: true, isBack =>
                {
                    if (isBack && world.OnAnswer?.Invoke(what) != true)
                        reply();
                    else
                        Lost("the answer was lost");
                });
            }
        });
        return answer.Task;
    }

    private void Arrive(Link link, Action<bool> arrive)
    {
        if (world.Scheduler.Now >= link.DownUntil)
            arrive(true);
    }
}

/// <summary>A register for each migration that is written once; it never forgets, but it may be down.</summary>
internal sealed class Witness(World world)
{
    private readonly World world = world;
    private readonly Dictionary<string, Verdict> verdicts = [];
    private readonly Incarnation process = new(world.Scheduler, "witness");

    public bool IsUp { get; set; } = true;

    public Port For(Link link, Incarnation caller) => new(this, link, caller);

    private Incarnation? Listening() => IsUp ? process : null;

    public sealed class Port(Witness witness, Link link, Incarnation caller) : IWitness
    {
        public Task<Verdict> DecideAsync(string migration, Verdict proposal, CancellationToken cancellationToken) => witness.world.Network.Call(
            link, caller, witness.Listening, $"verdict {proposal}", () =>
            {
                if (witness.world.Breaks == Breakage.WitnessForgets || !witness.verdicts.TryGetValue(migration, out Verdict verdict))
                    witness.verdicts[migration] = verdict = proposal;
                return Task.FromResult(verdict);
            }, cancellationToken);
    }
}
