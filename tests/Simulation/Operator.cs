// Who is at the consoles of both pools: cancels, changes the rate, starts VMs at odd moments, recalls; and says that a side is dead only when it is.
using Migration;

namespace Simulation;

internal sealed class Operator(World world)
{
    private static readonly TimeSpan CancelLimit = TimeSpan.FromSeconds(5);

    private SourceRunner? Source => world.SourceDaemon.Runner;

    public bool HasRecalled => world.SourceDaemon.Records.Any(static r => r is SourceRecord.Recalled);

    public void Plan()
    {
        Rng rng = world.Rng;
        if (rng.OneIn(6))
            world.Scheduler.After(rng.Ms(0, 6000), Cancel);
        for (int i = rng.Below(3); i > 0; i--)
            world.Scheduler.After(rng.Ms(0, 6000), SetRate);
        for (int i = 2 + rng.Below(4); i > 0; i--)
        {
            bool isAtSource = rng.OneIn(2);
            world.Scheduler.After(rng.Ms(0, 30_000), () => Start(isAtSource));
        }

        if (world.Plan.Options.KeepSourceFor > TimeSpan.Zero && rng.OneIn(2))
            Every(TimeSpan.FromSeconds(7), Recall);
        Every(TimeSpan.FromSeconds(11), DeclareOrPromote);
    }

    /// <summary>VM.start: asks who owns the VM, as every path does that makes a domain run.</summary>
    public void Start(bool isAtSource)
    {
        bool isForced = world.Breaks == Breakage.OwnershipNotAsked;
        if (isAtSource && world.SourceDaemon.Now is not null && (isForced || world.SourceDaemon.Ownership.Owner == Owner.Here))
            world.A.Boot();
        if (isAtSource || world.DestinationDaemon.Now is null || !world.B.HasVm)
            return;
        if (isForced || world.DestinationDaemon.Ownership?.Owner == Owner.Here)
        {
            if (world.B.Domain == DomainState.None)
                world.B.Boot();
        }
    }

    /// <summary>Is answered within five seconds, or told at once that it is too late.</summary>
    public void Cancel()
    {
        if (Source is not { } runner || world.SourceDaemon.Now is not { } daemon)
            return;
        InDaemon(daemon, async () =>
        {
            if (runner.State.IsClosed || runner.Cancel() is not null)
                return;
            world.IsCancelling = true;
            world.Trace("operator: cancel");
            bool isAnswered = false;
            After(CancelLimit);
            await runner.Settled;
            isAnswered = true;

            // What cannot be written is not decided: while the journal is full the five seconds do not begin.
            void After(TimeSpan limit) => world.Scheduler.After(limit, () =>
            {
                world.IsCancelling = false;
                if (isAnswered || daemon.IsDead)
                    return;
                TimeSpan left = world.JournalFullUntil(daemon) + CancelLimit - world.Scheduler.Now;
                if (left > TimeSpan.Zero)
                    After(left);
                else
                    world.Violation("a cancel was not answered within 5 s");
            });
        });
    }

    private void SetRate()
    {
        if (Source is { } runner && world.SourceDaemon.Now is { } daemon && !runner.State.IsClosed)
            InDaemon(daemon, () => runner.SetRateAsync(world.Rng.Below(100) << 20, CancellationToken.None));
    }

    public void Recall()
    {
        if (HasRecalled || Source is not { } runner || world.SourceDaemon.Now is not { } daemon || SourceSaga.WhyNotRecall(runner.State) is not null)
            return;
        if (world.Breaks != Breakage.RecalledWithoutAsking)
            world.ShutDownAtDestination();
        InDaemon(daemon, async () =>
        {
            world.Oracle.SourceMayReturn = true;
            await runner.RecallAsync("operator", "", CancellationToken.None);
            world.Trace("operator: recalled");
        });
    }

    /// <summary>Only ever says of a host that it is dead when it has no power and never will have.</summary>
    public void DeclareOrPromote()
    {
        if (world.HostBIsDead && Source is { } runner && world.SourceDaemon.Now is { } source && SourceSaga.WhyNotDeclareDead(runner.State) is null)
        {
            InDaemon(source, () =>
            {
                world.Oracle.SourceMayReturn = true;
                runner.DeclarePeerDead("operator", "no power");
                world.Trace("operator: the destination is dead");
                return Task.CompletedTask;
            });
        }

        if (world.HostAIsDead && world.DestinationDaemon.Now is { } daemon && world.DestinationDaemon.Runner is { } there
            && DestinationSaga.WhyNotPromote(there.State) is null)
        {
            InDaemon(daemon, async () =>
            {
                world.IsPromoted = true;
                GrantAnswer answer = await there.PromoteAsync("operator", "no power");
                world.Trace($"operator: promoted, {answer}");
            });
        }
    }

    private void Every(TimeSpan interval, Action action) => world.Scheduler.After(interval, () =>
    {
        action();
        Every(interval, action);
    });

    private void InDaemon(Incarnation daemon, Func<Task> work)
    {
        world.Scheduler.Post(daemon, _ => Run(), null);

        async void Run()
        {
            try
            {
                await work();
            }
            catch (Exception e) when (e is MigrationException or IOException)
            {
                world.Trace($"operator: {e.Message}");
            }
            catch (Platform.InvariantException) when (daemon.IsDead)
            {
                // It died of what it was asked.
            }
        }
    }
}
