// The two daemons as src/Xapi/Migration composes them: a durable journal with the ownership that changes in the same step, the runner, what a restart does.
using Migration;
using Platform;

namespace Simulation;

/// <summary>Durable when Append returns; the process may die right before it and right after it.</summary>
internal sealed class Journal<T>(World world, Incarnation daemon, List<T> records, Action<T> ownership, Func<T, bool> isKeptBack, List<T> keptBack) : IJournal<T>
    where T : class
{
    public void Append(string migration, T record)
    {
        if (daemon.IsDead || world.CrashesAtRecord(daemon))
            throw new InvariantException("the process is dead");
        if (world.IsJournalFull(daemon))
            throw new IOException("no space left for the journal");
        if (isKeptBack(record))
        {
            keptBack.Add(record);
        }
        else
        {
            records.AddRange(keptBack);
            keptBack.Clear();
            records.Add(record);
        }

        ownership(record);
        world.Recorded(daemon, record);
        if (daemon.IsDead || world.CrashesAtRecord(daemon))
            throw new InvariantException("the process is dead");
    }
}

internal sealed class SourceDaemon(World world)
{
    public List<SourceRecord> Records { get; } = [];

    public Ownership Ownership { get; private set; } = new(world.Plan.Vm, world.Plan.Epoch, Owner.Here, "");

    public Incarnation? Now { get; private set; }

    public SourceRunner? Runner { get; private set; }

    public string? Failure { get; private set; }

    public bool IsClosed => Records.Count > 0 && Records[^1] is SourceRecord.Closed or SourceRecord.Aborted;

    public void Kill()
    {
        Now?.Kill();
        Now = null;
        Runner = null;
    }

    public void Start()
    {
        Now = new Incarnation(world.Scheduler, "source daemon");
        if (world.Breaks == Breakage.JournalTailIgnored && Records.FindIndex(static r => r is SourceRecord.Granting) is > 0 and int tail)
            Records.RemoveRange(tail, Records.Count - tail);
        if (Records.Count > 0 && !IsClosed)
            world.Scheduler.Post(Now, _ => Recover(), null);
    }

    /// <summary>VM.migrate; its caller asks again when the daemon is down.</summary>
    public void Begin()
    {
        if (Now is not { } daemon)
        {
            world.Scheduler.After(TimeSpan.FromSeconds(1), Begin);
            return;
        }

        world.Scheduler.Post(daemon, _ => Guarded(daemon, () =>
        {
            if (Records.Count > 0 || Ownership.Owner != Owner.Here)
                return;
            Journal(daemon).Append(world.Plan.Migration, new SourceRecord.Begun(world.Plan, world.ClockA));
            Run(daemon);
        }), null);
    }

    private void Recover()
    {
        Incarnation daemon = Now!;
        Guarded(daemon, () =>
        {
            if (SourceSaga.AfterRestart(new SourceState([.. Records]), world.ClockA) is { } record)
                Journal(daemon).Append(world.Plan.Migration, record);
            Run(daemon);
        });
    }

    private async void Run(Incarnation daemon)
    {
        SourcePorts ports = new(world, daemon);
        IWitness? witness = world.Witness?.For(world.Network.SourceWitness, daemon);
        SourceRunner runner = Runner = new SourceRunner(
            new SourceState([.. Records]), Journal(daemon), ports, ports, new PeerPort(world, daemon), witness,
            new ProcessTime(world.Scheduler, daemon, () => world.SkewA), static _ => { });
        try
        {
            await runner.RunAsync(CancellationToken.None, CancellationToken.None);
        }
        catch (MigrationException e)
        {
            Failure = e.Message;
            world.Trace($"source: {e.Message}");
        }
        catch (InvariantException e)
        {
            if (!daemon.IsDead)
                world.Violation($"the source's daemon stopped itself: {e.Message}");
        }
        catch (IOException e)
        {
            world.Violation($"the source's job ended where it stood: {e.Message}");
        }
    }

    private void Guarded(Incarnation daemon, Action work)
    {
        try
        {
            work();
        }
        catch (InvariantException) when (daemon.IsDead)
        {
            // It died while it wrote.
        }
        catch (IOException)
        {
            world.CrashDaemonA();
        }
    }

    private Journal<SourceRecord> Journal(Incarnation daemon) =>
        new(world, daemon, Records, record => Ownership = Ownership.After(record, world.Plan) ?? Ownership, static _ => false, []);
}

internal sealed class DestinationDaemon(World world)
{
    private readonly List<DestinationRecord> keptBack = [];
    private DestinationRunner? runner;

    public List<DestinationRecord> Records { get; } = [];

    /// <summary>Null while no migration spoke of the VM here: there is none to start.</summary>
    public Ownership? Ownership { get; private set; }

    public Incarnation? Now { get; private set; }

    public DestinationRunner? Runner => Now is null ? null : Find();

    public DestinationState? State => Records.Count == 0 ? null : new DestinationState([.. Records]);

    public bool IsClosed => Records.Count == 0 || State!.IsClosed;

    public void Kill()
    {
        Now?.Kill();
        Now = null;
        runner = null;
    }

    public void Start()
    {
        Now = new Incarnation(world.Scheduler, "destination daemon");
        if (!IsClosed)
            world.Scheduler.Post(Now, _ => Recover(Now!), null);
    }

    /// <summary>Its journals are gone: from now on it says that it knows nothing, never that it refused.</summary>
    public void Forget()
    {
        Records.Clear();
        Ownership = null;
        runner = null;
        world.HasAmnesia = true;
    }

    /// <summary>As PeerEndpoint: a decision that is durable is answered for ever, also one that an earlier daemon wrote.</summary>
    public DestinationRunner? Find() => runner ??= State is { } state ? Make(state) : null;

    public DestinationRunner Claim(MigrationPlan plan)
    {
        if (runner is not null && !runner.State.IsClosed)
            return runner;
        if (State is { } used)
            throw Refuse($"the token was used already: {used.Name}");
        if (world.ClockB > world.TokenExpiresAt)
            throw Refuse("the token expired");
        Journal(Now!).Append(plan.Migration, new DestinationRecord.Claimed(plan, world.ClockB));
        return runner = Make(State!);
    }

    public static MigrationException Refuse(string message) => new("VM_MIGRATE_FAILED", [], MigrationSide.Destination, message);

    private DestinationRunner Make(DestinationState state)
    {
        Incarnation daemon = Now!;
        ProcessTime time = new(world.Scheduler, daemon, () => world.SkewB);
        return new DestinationRunner(
            state, Journal(daemon), new DestinationPorts(world, daemon, time), world.Witness?.For(world.Network.DestinationWitness, daemon), time);
    }

    private async void Recover(Incarnation daemon)
    {
        try
        {
            await Find()!.RecoverAsync(CancellationToken.None);
        }
        catch (InvariantException e)
        {
            if (!daemon.IsDead)
                world.Violation($"the destination's daemon stopped itself: {e.Message}");
        }
        catch (Exception e) when (e is IOException or MigrationException)
        {
            world.Trace($"destination daemon ends: {e.Message}");
            world.CrashDaemonB();
        }
    }

    private Journal<DestinationRecord> Journal(Incarnation daemon)
    {
        keptBack.Clear();
        return new Journal<DestinationRecord>(
            world, daemon, Records, record =>
            {
                Ownership = Ownership.After(record, world.Plan) ?? Ownership;
                if (world.Breaks == Breakage.PatienceAfterAccepting && record is DestinationRecord.Accepting)
                    world.Scheduler.After(TimeSpan.FromSeconds(5), () => ThrowAway());
            },
            record => world.Breaks switch
            {
                Breakage.AcceptingIsNotDurable => record is DestinationRecord.Accepting or DestinationRecord.Running,
                Breakage.MakingIsNotDurable => record is DestinationRecord.Making,
                _ => false,
            },
            keptBack);
    }

    private void ThrowAway()
    {
        if (!State!.Has<DestinationRecord.Confirmed>())
            world.B.ThrowAway();
    }
}

/// <summary>The destination as PeerClient and PeerEndpoint make it reachable.</summary>
internal sealed class PeerPort(World world, Incarnation daemon) : IPeer
{
    private DestinationDaemon There => world.DestinationDaemon;

    public Task<PreparedDestination> PrepareAsync(MigrationPlan plan, int attempt, CancellationToken cancellationToken) =>
        Call("prepare", () => There.Claim(plan).PrepareAsync(attempt, CancellationToken.None), cancellationToken);

    public Task HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken) => Call("heartbeat", () =>
    {
        Found().Heartbeat();
        return Task.FromResult(true);
    }, cancellationToken);

    public Task<IReadOnlyList<DiskDigest>> DigestAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        Call<IReadOnlyList<DiskDigest>>("digest", async () => await Found().DigestAsync(CancellationToken.None), cancellationToken);

    public Task<string> RangeDigestAsync(MigrationPlan plan, string device, DigestRange range, CancellationToken cancellationToken) =>
        Call("range digest", () => Found().RangeDigestAsync(device, range, CancellationToken.None), cancellationToken);

    public Task ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        Call("probe", () => Found().ProbeAsync(CancellationToken.None), cancellationToken);

    public Task<ContentDigests> LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        Call("loaded", () => Found().LoadedAsync(CancellationToken.None), cancellationToken);

    public async Task<GrantAnswer> GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken)
    {
        try
        {
            return await Call("grant", () => Found().GrantAsync(epoch, digests), cancellationToken);
        }
        catch (Exception e) when (e is IOException or OperationCanceledException && world.Breaks == Breakage.SilenceIsRefusal)
        {
            return new GrantAnswer(null, "no answer");
        }
    }

    public Task AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken) => Call("abort", async () =>
    {
        if (There.Find() is { } runner && await runner.AbortAsync(reason, CancellationToken.None) is { } left)
            throw DestinationDaemon.Refuse($"the destination refused, and could not take everything away: {left}");
        return true;
    }, cancellationToken);

    public Task ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken) => Call("confirm", async () =>
    {
        await Found().ConfirmAsync(receipt, CancellationToken.None);
        return true;
    }, cancellationToken);

    public Task RelinquishAsync(MigrationPlan plan, long epoch, CancellationToken cancellationToken) => Call("relinquish", async () =>
    {
        if (world.Breaks != Breakage.RecalledWithoutAsking)
            await Found().RelinquishAsync(epoch, CancellationToken.None);
        return true;
    }, cancellationToken);

    private DestinationRunner Found() => There.Find() ?? throw (world.HasAmnesia
        ? new MigrationException(MigrationException.Amnesia, [], MigrationSide.Destination, "the destination's memory is lost")
        : DestinationDaemon.Refuse("the destination holds nothing of this migration"));

    private Task<T> Call<T>(string what, Func<Task<T>> handle, CancellationToken cancellationToken) =>
        world.Network.Call(world.Network.Peers, daemon, () => There.Now, what, handle, cancellationToken);
}
