// Runs the source's saga: asks it for the next effect, writes the intent, does it, writes what came of it, until it is over. No decision is made here.
using Platform;

namespace Migration;

public sealed partial class SourceRunner : IDisposable
{
    /// <summary>So often an undo or a release is tried before the caller is told; it is tried on after that.</summary>
    private const int TriesBeforeTold = 5;

    /// <summary>So often the destination is asked for its answer to a grant before the witness is.</summary>
    private const int TriesBeforeWitness = 3;

    private static readonly TimeSpan LongestWait = TimeSpan.FromSeconds(5);

    /// <summary>Until a record that could not be written is tried again; the guest may be stopped meanwhile.</summary>
    private static readonly TimeSpan JournalWait = TimeSpan.FromMilliseconds(500);

    /// <summary>A caller is answered when the guest is safe, also one who cancels a job that is being undone; the destination may hear of it later.</summary>
    private static readonly TimeSpan UndoLimit = TimeSpan.FromSeconds(3);

    /// <summary>An answer that is lost is asked for again.</summary>
    private static readonly TimeSpan GrantLimit = TimeSpan.FromSeconds(10);

    private readonly IJournal<SourceRecord> journal;
    private readonly ISourceStorage storage;
    private readonly ISourceDomain domain;
    private readonly IPeer peer;
    private readonly IWitness? witness;
    private readonly TimeProvider time;
    private readonly Action<MigrationProgress> report;
    private readonly MoveMeter meter;
    private readonly Lock gate = new();
    private readonly TaskCompletionSource<string?> settled = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private CancellationTokenSource operatorCame = new();
    private TaskCompletionSource? recallAnswered;
    private bool isCancelled;

    /// <param name="witness">The plan's; null exactly when it names none.</param>
    public SourceRunner(
        SourceState state, IJournal<SourceRecord> journal, ISourceStorage storage, ISourceDomain domain, IPeer peer, IWitness? witness, TimeProvider time,
        Action<MigrationProgress> report)
    {
        Invariant.Holds(witness is null == state.Plan.Options.Witness is null, "a plan that names a witness is never decided without it");
        State = state;
        this.journal = journal;
        this.storage = storage;
        this.domain = domain;
        this.peer = peer;
        this.witness = witness;
        this.time = time;
        this.report = report;
        meter = new MoveMeter(time);
    }

    public SourceState State { get; private set; }

    /// <summary>
    /// Completes when the caller need not wait any longer: the VM has moved and is confirmed, or it is safe here and only the tidying up goes on. With the
    /// reason when something will not go; it is tried on and on.
    /// </summary>
    public Task<string?> Settled => settled.Task;

    /// <summary>Why nothing moves now (the destination cannot be reached, its answer is awaited); null when all goes on.</summary>
    public string? Waiting { get; private set; }

    /// <summary>Unwinds the job; without effect once the switch-over began.</summary>
    /// <returns>Null when it will be unwound, otherwise why not.</returns>
    public string? Cancel()
    {
        lock (gate)
        {
            if (State.IsOwnedByDestination || State.Has<SourceRecord.Recalled>())
                return "the VM has moved; the destination owns it";
            if (State.IsPastCancel)
                return "the switch-over has begun: who owns the VM is being decided now";
            isCancelled = true;
        }

        Poke();
        return null;
    }

    /// <summary>Limits the background copy from now on, also after a restart; 0 is no limit.</summary>
    /// <exception cref="MigrationException">The migration is over.</exception>
    public async Task SetRateAsync(long bytesPerSecond, CancellationToken cancellationToken)
    {
        lock (gate)
        {
            if (State.IsClosed)
                throw NotAllowed("the migration is over");
            Record(new SourceRecord.RateSet(bytesPerSecond));
        }

        foreach (DiskPlan disk in State.Plan.Disks.Where(d => State.HasNow<SourceRecord.MirrorStarting>(r => r.Device == d.Device)))
            await storage.SetRateAsync(disk, bytesPerSecond, cancellationToken);
    }

    /// <summary>An operator's word in place of the destination's answer. The guest runs here again.</summary>
    /// <exception cref="MigrationException">Why not.</exception>
    public void DeclarePeerDead(string operatorName, string evidence) =>
        Decide(SourceSaga.WhyNotDeclareDead, new SourceRecord.PeerDeclaredDead(operatorName, evidence));

    /// <summary>
    /// Brings the VM back from the disks that are still here, halted, as it was at the switch-over; the destination gives it up first. The wish is
    /// durable: until it is answered nothing here is destroyed.
    /// </summary>
    /// <param name="evidence">Why a destination that cannot be asked will never run it again; empty when it must be asked.</param>
    /// <exception cref="MigrationException">Why not.</exception>
    /// <exception cref="OperationCanceledException">The destination has not answered yet; it is asked on.</exception>
    public async Task RecallAsync(string operatorName, string evidence, CancellationToken cancellationToken)
    {
        TaskCompletionSource answered = new(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (gate)
        {
            Decide(SourceSaga.WhyNotRecall, new SourceRecord.RecallAsked(operatorName, evidence));
            recallAnswered = answered;
        }

        await answered.Task.WaitAsync(cancellationToken);
        if (!State.Has<SourceRecord.Recalled>())
            throw NotAllowed(State.Last<SourceRecord.RecallRefused>()!.Reason);
    }

    /// <summary>
    /// Drives the migration to its end and returns the receipt. After a failure everything is undone first; then the cause is thrown.
    /// </summary>
    /// <param name="cancel">As <see cref="Cancel"/>.</param>
    /// <param name="shutdown">Leaves the job where it stands in the journal; a restart goes on with it.</param>
    /// <exception cref="MigrationException">The VM did not move; it runs at the source.</exception>
    public async Task<Receipt> RunAsync(CancellationToken cancel, CancellationToken shutdown)
    {
        using CancellationTokenRegistration asked = cancel.Register(() => Cancel());
        int tries = 0;
        SourceEffect? before = null;
        while (SourceSaga.Next(State) is { } effect)
        {
            shutdown.ThrowIfCancellationRequested();
            if (effect != before)
                tries = 0; // Tries are of one effect: an undo is not given up because what came before it failed often.
            before = effect;
            try
            {
                tries = await StepAsync(effect, tries, shutdown);
            }
            catch (JournalException e)
            {
                // What is not durable did not happen: the same effect again, when there is room.
                Waiting = e.Message;
                Report();
                await PauseAsync(JournalWait, shutdown);
            }
        }

        Report();
        settled.TrySetResult(null);
        return State.Last<SourceRecord.ReceiptStored>()?.Receipt ?? throw Cause();
    }

    /// <returns>How often this effect has failed.</returns>
    private async Task<int> StepAsync(SourceEffect effect, int tries, CancellationToken shutdown)
    {
        if (TryAbort())
            return 0;
        if (SourceSaga.Intent(State, effect) is { } intent && State.Records[^1] != intent)
            Record(intent);
        if (effect is SourceEffect.AwaitHoldEnd)
            settled.TrySetResult(null);
        Report();
        using CancellationTokenSource limit = new(LimitOf(effect), time);
        bool isInterruptible = IsInterruptible(effect);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(
            shutdown, limit.Token, isInterruptible ? Volatile.Read(ref operatorCame).Token : CancellationToken.None);
        try
        {
            if (await RunAsync(effect, either.Token) is { } record)
                Record(record, of: effect);
            Waiting = null;
            return 0;
        }
        catch (Exception e) when (e is not InvariantException and not JournalException && !shutdown.IsCancellationRequested)
        {
            await HandleAsync(effect, isInterruptible, e, tries + 1, shutdown);
            return tries + 1;
        }
    }

    public void Dispose() => operatorCame.Dispose();

    private async Task HandleAsync(SourceEffect effect, bool isInterruptible, Exception e, int tries, CancellationToken shutdown)
    {
        if (isInterruptible && Volatile.Read(ref operatorCame).IsCancellationRequested && e is OperationCanceledException)
        {
            // Somebody came with a word; the next look at the state hears it.
            Volatile.Write(ref operatorCame, new CancellationTokenSource());
            return;
        }

        MigrationFailure failure = FailureOf(e);
        if (e is OperationCanceledException && LimitOf(effect) is { Ticks: > 0 } limit)
            failure = failure with { Message = $"there was no answer within {limit.TotalSeconds:0} s" };
        Waiting = $"{effect.GetType().Name}: {failure.Message}";
        if (effect is SourceEffect.SendGrant && witness is not null && tries >= TriesBeforeWitness && await AskWitnessAsync(shutdown) is { } verdict)
            Record(verdict, of: effect);
        else if (SourceSaga.Failed(State, effect, failure, meter.DoneBytes, time.GetUtcNow()) is { } record)
        {
            Record(record, of: effect);
            if (record is SourceRecord.Interrupted)
                await PauseAsync(WaitAfter(SourceSaga.FruitlessAttempts(State, meter.DoneBytes)), shutdown);
        }
        else if (tries >= TriesBeforeTold && SourceSaga.GiveUp(State, effect, failure, time.GetUtcNow()) is { } giveUp)
            Record(giveUp, of: effect);
        else
        {
            bool isSafe = State.Has<SourceRecord.ReceiptStored>() || (State.IsAborting && !State.MayHaveTouchedGuest);
            if (isSafe && (tries >= TriesBeforeTold || effect is SourceEffect.AbortDestination))
                settled.TrySetResult(Waiting);
            Report();
            await PauseAsync(WaitAfter(tries), shutdown);
        }
    }

    private static TimeSpan WaitAfter(int tries) =>
        TimeSpan.FromMilliseconds(Math.Min(LongestWait.TotalMilliseconds, 100 << Math.Min(tries, 6)));

    /// <summary>The first cause of an unwound migration, with what could not be undone.</summary>
    public MigrationException Cause()
    {
        MigrationFailure failure = State.Last<SourceRecord.Aborting>()?.Failure
            ?? new MigrationFailure(
                "VM_MIGRATE_FAILED", [], MigrationSide.Destination, "hand-over",
                State.Last<SourceRecord.Refused>()?.Reason
                    ?? (State.Last<SourceRecord.PeerDeclaredDead>() is { } dead ? $"{dead.Operator} declared the destination dead: {dead.Evidence}" : "refused"));
        string left = string.Join("; ", State.Records.OfType<SourceRecord.Undone>()
            .Where(static u => u.Failure is not null)
            .Select(static u => $"{u.What}: {u.Failure}"));
        return (left.Length == 0 ? failure : failure with { Message = $"{failure.Message}; could not be undone: {left}" }).ToException();
    }

    private async Task PauseAsync(TimeSpan pause, CancellationToken shutdown)
    {
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(shutdown, Volatile.Read(ref operatorCame).Token);
        try
        {
            await Task.Delay(pause, time, either.Token);
        }
        catch (OperationCanceledException) when (!shutdown.IsCancellationRequested)
        {
            Volatile.Write(ref operatorCame, new CancellationTokenSource());
        }
    }

    /// <summary>What an operator may end: the waits that belong to him, and all that a cancel undoes.</summary>
    private bool IsInterruptible(SourceEffect effect) =>
        effect is SourceEffect.SendGrant or SourceEffect.AwaitHoldEnd or SourceEffect.ConfirmDestination
        || (!State.IsPastCancel && !State.IsAborting && !State.IsGivenBack && !State.IsOwnedByDestination && effect is not SourceEffect.ResumeDomain);

    private bool TryAbort()
    {
        lock (gate)
        {
            if (!isCancelled || State.IsPastCancel || State.IsAborting || State.IsGivenBack || State.IsOwnedByDestination || State.IsClosed)
                return false;
            Record(new SourceRecord.Aborting(Cancelled(), time.GetUtcNow()));
            return true;
        }
    }

    private static TimeSpan LimitOf(SourceEffect effect) => effect switch
    {
        SourceEffect.AbortDestination => UndoLimit,
        SourceEffect.SendGrant => GrantLimit,
        _ => Timeout.InfiniteTimeSpan,
    };

    private void Poke() => Volatile.Read(ref operatorCame).Cancel();

    private void Decide(Func<SourceState, string?> whyNot, SourceRecord record)
    {
        lock (gate)
        {
            if (whyNot(State) is { } why)
                throw NotAllowed(why);
            Record(record);
        }

        Poke();
    }

    /// <summary>What came of an effect counts only while that effect is still what is to be done: an operator may have decided meanwhile.</summary>
    private void Record(SourceRecord record, SourceEffect of)
    {
        lock (gate)
        {
            if (SourceSaga.Next(State) == of)
                Record(record);
        }
    }

    private void Record(SourceRecord record)
    {
        lock (gate)
        {
            try
            {
                journal.Append(State.Plan.Migration, record);
            }
            catch (IOException e)
            {
                throw new JournalException(e);
            }

            State = State.With(record);
            if (record is SourceRecord.Recalled or SourceRecord.RecallRefused)
                recallAnswered?.TrySetResult();
        }
    }

    private void Report(MirrorProgress[]? mirrors = null) => report(meter.Progress(State, mirrors, Waiting));

    private MigrationFailure Cancelled() => new("TASK_CANCELLED", [], MigrationSide.Source, State.Phase, "cancelled by its caller");

    private MigrationFailure FailureOf(Exception e) => e is MigrationException m
        ? m.ToFailure(State.Phase)
        : new MigrationFailure("VM_MIGRATE_FAILED", [], MigrationSide.Source, State.Phase, e.Message, IsTransient: e is IOException or OperationCanceledException);

    private static MigrationException NotAllowed(string why) => new("OPERATION_NOT_ALLOWED", [why], MigrationSide.Source, why);
}
