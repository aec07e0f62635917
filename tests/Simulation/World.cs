// One whole migration in one thread from one seed: two hosts with daemons, domains and disks, the network between them, perhaps a witness, an operator,
// a guest, and everything that can go wrong. Runs until all is at rest; the oracle looks after each step.
using System.Text.Json.Nodes;
using Migration;

namespace Simulation;

internal sealed class World
{
    private static readonly TimeSpan Restful = TimeSpan.FromHours(3);
    private const long StepsLimit = 300_000;
    private readonly Dictionary<string, int> failedInARow = [];
    private readonly TimeSpan chaosEnd;
    private readonly List<string>? trace;
    private TimeSpan lastStartA = TimeSpan.MinValue, lastStartB = TimeSpan.MinValue;
    private TimeSpan journalAFullUntil, journalBFullUntil;
    private TimeSpan lastMessageAt;
    private readonly TimeSpan[] tapdiskFreeAt = new TimeSpan[2];
    private int versions;
    private int hostAGeneration, hostBGeneration;

    /// <param name="options">Null: drawn from the seed, with chaos. Otherwise a quiet world for a script.</param>
    public World(ulong seed, Breakage breaks = Breakage.None, List<string>? trace = null, MigrationOptions? options = null)
    {
        Seed = seed;
        Breaks = breaks;
        this.trace = trace;
        Rng = new Rng(seed * 0x2545F4914F6CDD1D + 1);
        Scheduler = new Scheduler(seed);
        IsChaos = options is null;
        Plan = MakePlan(options ?? DrawOptions());
        A = new SourceMachine(this);
        B = new DestinationMachine(this);
        Network = new Network(this);
        Witness = Plan.Options.Witness is null ? null : new Witness(this);
        Oracle = new Oracle(this);
        SourceDaemon = new SourceDaemon(this);
        DestinationDaemon = new DestinationDaemon(this);
        Guest = new Guest(this);
        Operator = new Operator(this);
        SourceDaemon.Start();
        DestinationDaemon.Start();
        chaosEnd = IsChaos ? Rng.Ms(5000, 60_000) : TimeSpan.Zero;
        if (!IsChaos)
            return;
        IsSheltered = !Rng.OneIn(4);
        Scheduler.After(TimeSpan.FromSeconds(4), () => IsSheltered = false);
        new Misfortune(this).Plan();
        Operator.Plan();
        Scheduler.After(chaosEnd, Heal);
    }

    public ulong Seed { get; }

    public Breakage Breaks { get; }

    public Rng Rng { get; }

    public Scheduler Scheduler { get; }

    public MigrationPlan Plan { get; }

    public SourceMachine A { get; }

    public DestinationMachine B { get; }

    public Network Network { get; }

    public Witness? Witness { get; }

    public Oracle Oracle { get; }

    public SourceDaemon SourceDaemon { get; }

    public DestinationDaemon DestinationDaemon { get; }

    public Guest Guest { get; }

    public Operator Operator { get; }

    public Faults Faults { get; } = new();

    public string? Broken { get; private set; }

    public string Outcome { get; private set; } = "";

    public bool IsChaos { get; private set; }

    public bool IsCancelling { get; set; }

    public bool IsPromoted { get; set; }

    public bool HasAmnesia { get; set; }

    public bool HostAIsDead { get; private set; }

    public bool HostBIsDead { get; private set; }

    /// <summary>Somebody or something ended the guest; it need not execute until it is started.</summary>
    public bool GuestWasEnded { get; private set; }

    public (int Disk, int Block)? FlipAt { get; set; }

    public bool HasFlipped { get; set; }

    public string StreamSecret { get; set; } = "";

    public TimeSpan SkewA { get; private set; }

    public TimeSpan SkewB { get; private set; }

    public DateTimeOffset ClockA => Clock + SkewA;

    public DateTimeOffset ClockB => Clock + SkewB;

    public DateTimeOffset TokenExpiresAt => new DateTimeOffset(2026, 1, 1, 1, 0, 0, TimeSpan.Zero);

    /// <summary>For scripts: called after each record.</summary>
    public Action<object>? OnRecord { get; set; }

    /// <summary>For scripts: how a call of a daemon to its host fails, or null.</summary>
    public Func<string, Exception?>? OnCall { get; set; }

    /// <summary>For scripts: whether the answer to this request is lost.</summary>
    public Func<string, bool>? OnAnswer { get; set; }

    /// <summary>For scripts: what the destination's disks answer to a write, or null.</summary>
    public string? TargetError { get; set; }

    /// <summary>For scripts: every memory stream is altered on its way.</summary>
    public bool StreamIsAltered { get; set; }

    /// <summary>For scripts: every request comes again, this much later.</summary>
    public TimeSpan? ComesAgainAfter { get; set; }

    private DateTimeOffset Clock => new DateTimeOffset(2026, 1, 1, 0, 0, 0, TimeSpan.Zero) + Scheduler.Now;

    public World Run()
    {
        Guest.Start();
        Scheduler.After(IsChaos ? Rng.Ms(0, 400) : TimeSpan.FromMilliseconds(100), SourceDaemon.Begin);
        RunUntil(IsAtRest);
        if (Broken is null)
            Rest.Check(this);
        Outcome = Rest.Outcome(this);
        return this;
    }

    public void RunUntil(Func<bool> isOver)
    {
        TimeSpan nextLook = Scheduler.Now + TimeSpan.FromSeconds(1);
        while (Broken is null)
        {
            Scheduler.Step();
            Oracle.Check();
            if (Scheduler.Now < nextLook && Scheduler.Steps < StepsLimit)
                continue;
            nextLook = Scheduler.Now + TimeSpan.FromSeconds(1);
            if (isOver())
                return;
            if (Scheduler.Now > Restful || Scheduler.Steps > StepsLimit)
                Violation($"no rest after {Scheduler.Now} and {Scheduler.Steps} steps: {Rest.Where(this)}");
        }
    }

    /// <summary>Nothing is broken any more, nothing is under way, and both jobs are over.</summary>
    public bool IsAtRest() => !IsChaos && Scheduler.Now > lastMessageAt && Rest.IsOver(this);

    /// <summary>In most worlds nothing happens before the destination is prepared: what breaks earlier ends soon, and teaches little.</summary>
    public bool IsSheltered { get; private set; }

    public bool Chance(int oneIn) => IsChaos && !IsSheltered && Rng.OneIn(oneIn);

    public int NextVersion() => ++versions;

    public int IndexOf(DiskPlan disk) => disk.Device == "xvda" ? 0 : 1;

    public bool IsUp(Link link) => Scheduler.Now >= link.DownUntil;

    public void MessageUntil(TimeSpan at) => lastMessageAt = at > lastMessageAt ? at : lastMessageAt;

    /// <summary>
    /// A daemon asks its own host for something. The host does it although the daemon dies meanwhile; a call that was given up before it began is not done.
    /// </summary>
    /// <param name="disk">A verb of this disk's tapdisk: these run one after another, also when who asked is gone; -1: no such verb.</param>
    public Task<T> Local<T>(Incarnation daemon, string what, Func<T> work, TimeSpan longest, CancellationToken cancellationToken, int disk = -1)
    {
        TaskCompletionSource<T> answer = new();
        if (daemon.IsDead)
            return answer.Task;
        if (cancellationToken.CanBeCanceled)
            cancellationToken.UnsafeRegister(_ => answer.TrySetCanceled(cancellationToken), null);
        bool isSource = daemon == SourceDaemon.Now;
        int generation = isSource ? hostAGeneration : hostBGeneration;
        bool fails = !IsCancelling && failedInARow.GetValueOrDefault(what) < 2 && Chance(90);
        bool failsAfter = fails && Rng.OneIn(2);
        failedInARow[what] = fails ? failedInARow.GetValueOrDefault(what) + 1 : 0;
        if (fails)
            Faults.CallErrors++;
        TimeSpan delay = TimeSpan.FromTicks(Rng.Below((int)longest.Ticks) + 100);
        if (disk >= 0)
        {
            TimeSpan free = tapdiskFreeAt[disk] > Scheduler.Now ? tapdiskFreeAt[disk] : Scheduler.Now;
            tapdiskFreeAt[disk] = free + delay;
            delay = tapdiskFreeAt[disk] - Scheduler.Now;
        }

        Scheduler.After(delay, () =>
        {
            if ((disk < 0 && answer.Task.IsCompleted) || generation != (isSource ? hostAGeneration : hostBGeneration))
                return;
            if (fails && !failsAfter)
            {
                answer.TrySetException(new IOException($"{what} failed before it was done"));
                return;
            }

            try
            {
                if (OnCall?.Invoke(what) is { } ordered)
                    throw ordered;
                T result = work();
                if (what != "status")
                    Trace($"{(isSource ? "source" : "destination")}: {what}");
                if (fails)
                    answer.TrySetException(new IOException($"{what} failed after it was done"));
                else
                    answer.TrySetResult(result);
            }
            catch (Exception e) when (e is IOException or MigrationException)
            {
                Trace($"{(isSource ? "source" : "destination")}: {what}: {e.Message}");
                answer.TrySetException(e);
            }
        });
        return answer.Task;
    }

    public void Recorded(Incarnation daemon, object record)
    {
        Scheduler.Mix(daemon.Name);
        Scheduler.Mix(record.GetType().Name);
        if (record is SourceRecord.Prepared)
            IsSheltered = false;
        Trace($"{daemon.Name} records {Describe(record)}");
        OnRecord?.Invoke(record);
    }

    public bool CrashesAtRecord(Incarnation daemon)
    {
        if (!Chance(90))
            return false;
        if (daemon == SourceDaemon.Now)
            CrashDaemonA();
        else
            CrashDaemonB();
        return true;
    }

    public TimeSpan JournalFullUntil(Incarnation daemon) => daemon == SourceDaemon.Now ? journalAFullUntil : journalBFullUntil;

    public bool IsJournalFull(Incarnation daemon) => Scheduler.Now < JournalFullUntil(daemon);

    public void FillJournal(bool isSource, TimeSpan length)
    {
        Faults.JournalFull++;
        Trace($"the journal of the {(isSource ? "source" : "destination")} is full for {length}");
        if (isSource)
            journalAFullUntil = Scheduler.Now + length;
        else
            journalBFullUntil = Scheduler.Now + length;
    }

    public void Crash(string what, Action crash)
    {
        Faults.Crashes++;
        if (SourceDaemon.Now is null || DestinationDaemon.Now is null || IsRecovering(lastStartA) || IsRecovering(lastStartB))
            Faults.Compound++;
        Trace($"CRASH of {what}");
        crash();
    }

    public void CrashDaemonA()
    {
        if (SourceDaemon.Now is null)
            return;
        Crash("the source's daemon", SourceDaemon.Kill);
        RestartA();
    }

    public void CrashDaemonB()
    {
        if (DestinationDaemon.Now is null)
            return;
        Crash("the destination's daemon", DestinationDaemon.Kill);
        RestartB();
    }

    public void CrashHostA()
    {
        if (HostAIsDead)
            return;
        bool wasUp = SourceDaemon.Now is not null;
        Crash("the source's host", () =>
        {
            hostAGeneration++;
            SourceDaemon.Kill();
            GuestWasEnded |= A.Domain is DomainState.Running or DomainState.Paused or DomainState.Frozen;
            A.Crash();
        });
        if (wasUp)
            RestartA();
    }

    public void CrashHostB()
    {
        if (HostBIsDead)
            return;
        bool wasUp = DestinationDaemon.Now is not null;
        Crash("the destination's host", () =>
        {
            hostBGeneration++;
            DestinationDaemon.Kill();
            GuestWasEnded |= B.Domain == DomainState.Running;
            B.CrashHost();
        });
        if (wasUp)
            RestartB();
    }

    public void KillHostAForever()
    {
        CrashHostA();
        HostAIsDead = true;
    }

    public void KillHostBForever()
    {
        CrashHostB();
        HostBIsDead = true;
    }

    public void GuestDies()
    {
        GuestWasEnded |= A.Domain is DomainState.Running or DomainState.Paused;
        A.GuestDies();
    }

    public void ShutDownAtDestination()
    {
        GuestWasEnded = true;
        B.ShutDown();
    }

    public void CutDataPath()
    {
        Faults.Cuts++;
        Trace("the data connections are cut");
        foreach (Mirror? mirror in A.Mirrors)
            mirror?.Break("the connection was reset", isLost: true);
    }

    public void Partition(Link link, TimeSpan length)
    {
        Faults.Partitions++;
        Trace($"PARTITION {link.Name} for {length}");
        link.DownUntil = Scheduler.Now + length;
    }

    public void StopWitness(TimeSpan length)
    {
        Witness!.IsUp = false;
        Scheduler.After(length, () => Witness.IsUp = true);
    }

    public void JumpClock(bool isSource, TimeSpan by)
    {
        Faults.ClockJumps++;
        if (isSource)
            SkewA += by;
        else
            SkewB += by;
    }

    public void Violation(string what)
    {
        Broken ??= $"{what} (at {Scheduler.Now})";
        Trace($"VIOLATION {what}");
    }

    public void Trace(string what) => trace?.Add($"{Scheduler.Now:mm\\:ss\\.ffffff}  {what}");

    private static string Describe(object record)
    {
        string text = record.ToString() ?? "";
        return text.Length > 240 ? record.GetType().Name : text;
    }

    private bool IsRecovering(TimeSpan start) => start > TimeSpan.MinValue && Scheduler.Now - start < TimeSpan.FromSeconds(1);

    private void RestartA() => Scheduler.After(Downtime(), () =>
    {
        if (HostAIsDead || SourceDaemon.Now is not null)
            return;
        Trace("the source's daemon starts");
        lastStartA = Scheduler.Now;
        SourceDaemon.Start();
        if (Chance(5))
            Scheduler.After(Rng.Ms(0, 60), CrashDaemonA);
    });

    private void RestartB() => Scheduler.After(Downtime(), () =>
    {
        if (HostBIsDead || DestinationDaemon.Now is not null)
            return;
        Trace("the destination's daemon starts");
        lastStartB = Scheduler.Now;
        DestinationDaemon.Start();
        if (Chance(5))
            Scheduler.After(Rng.Ms(0, 60), CrashDaemonB);
    });

    private TimeSpan Downtime() => !IsChaos ? TimeSpan.FromMilliseconds(200) : Rng.OneIn(8) ? Rng.Ms(2000, 40_000) : Rng.Ms(100, 1500);

    private void Heal()
    {
        IsChaos = false;
        Trace("from here on nothing breaks");
        TimeSpan now = Scheduler.Now;
        foreach (Link link in (Link[])[Network.Peers, Network.SourceWitness, Network.DestinationWitness])
            link.DownUntil = link.DownUntil > now ? now : link.DownUntil;
        journalAFullUntil = journalBFullUntil = now;
        FlipAt = null;
        if (Witness is not null)
            Witness.IsUp = true;
    }

    private MigrationOptions DrawOptions() => new()
    {
        StallLimit = Rng.Ms(500, 3000),
        ResumeWindow = Rng.Ms(20_000, 180_000),
        KeepSourceFor = Rng.OneIn(4) ? Rng.Ms(20_000, 120_000) : TimeSpan.Zero,
        Witness = Rng.OneIn(2) ? new WitnessAddress("https://w", "cc", "key") : null,
    };

    private MigrationPlan MakePlan(MigrationOptions options)
    {
        int count = IsChaos ? 1 + Rng.Below(2) : 2;
        return new MigrationPlan(
            "m", "vm", "guest", 7,
            [.. Enumerable.Range(0, count).Select(static d => new DiskPlan(
                d == 0 ? "xvda" : "xvdb", "srA", $"disk{d}", "srB", "disk", "", BlockDisk.Blocks * DigestRange.LeafBytes, DigestRange.LeafBytes, false))],
            new PeerAddress("https://a", "aa", "hostA"), new PeerAddress("https://b", "bb", "hostB"), new JsonObject(), options);
    }
}
