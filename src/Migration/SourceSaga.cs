// The source's half of a migration as a pure function: records -> state, state -> next effect. Whoever runs the effects writes the record that
// Intent gives before it starts one, and the record that came of it after (research: xenopsd.md 10.3; docs/journeys/vm-migrate.md).
//
//   BEGIN     Begun
//   PREPARE   Preparing -> Prepared
//   MIRROR    MirrorStarting(d) -> MirrorStarted(d) ... -> MirrorsReady
//   PRECOPY   Precopying -> Precopied
//   SWITCH    PreSwitch -> Stopping -> Stopped -> MirrorsFinished -> Sent        the last place from which the source may run on
//   FINISH    Granting -> Frozen -> Accepted | Refused | PeerDeclaredDead -> Reclaimed     owner in doubt between Granting and the answer
//   CONFIRM   ReceiptStored -> Released(domain) -> Confirmed [-> Holding] -> Released(d)... -> Closed
//   recall    RecallAsked -> RecallRefused | Recalled -> Restored -> Closed      the VM is brought back from the disks that are still here
//   again     Interrupted [-> Resumed] -> Preparing ...                          from anywhere before Granting
//   abort     Aborting -> Undone(what)... -> Aborted
using Platform;

namespace Migration;

/// <summary>What to do next. Each is idempotent: after a crash it may run again.</summary>
public abstract record SourceEffect
{
    public sealed record PrepareDestination : SourceEffect;

    /// <summary>Starts a mirror; one that failed in an earlier attempt goes on with what differs.</summary>
    public sealed record StartMirror(string Device) : SourceEffect;

    public sealed record AwaitMirrors : SourceEffect;

    public sealed record Precopy : SourceEffect;

    public sealed record ProbeDestination : SourceEffect;

    public sealed record StopDomain : SourceEffect;

    public sealed record FinishMirrors : SourceEffect;

    public sealed record SendMemory : SourceEffect;

    public sealed record FreezeDomain : SourceEffect;

    public sealed record SendGrant : SourceEffect;

    public sealed record StoreReceipt : SourceEffect;

    public sealed record ReleaseDomain : SourceEffect;

    public sealed record ConfirmDestination : SourceEffect;

    public sealed record HoldDisks : SourceEffect;

    public sealed record AwaitHoldEnd(DateTimeOffset Until) : SourceEffect;

    /// <summary>Asks the destination to give the VM up.</summary>
    public sealed record AskBack : SourceEffect;

    public sealed record ReleaseDisk(string Device) : SourceEffect;

    public sealed record RestoreVm : SourceEffect;

    public sealed record Close : SourceEffect;

    /// <summary>The guest runs here with no stream attached: after an interruption, or while undoing.</summary>
    public sealed record ResumeDomain : SourceEffect;

    public sealed record StopMirror(string Device) : SourceEffect;

    public sealed record AbortDestination : SourceEffect;

    public sealed record TellAborted : SourceEffect;
}

public static class SourceSaga
{
    /// <summary>As many attempts in a row may end without a byte more in place; the next one ends the job.</summary>
    public const int FruitlessAttemptsLimit = 8;

    /// <summary>The name under which an undo is recorded.</summary>
    public static string MirrorName(string device) => $"mirror {device}";

    public const string DomainName = "domain";

    public const string DestinationName = "destination";

    /// <summary>The one thing to do now, or null when the migration is over.</summary>
    public static SourceEffect? Next(SourceState state)
    {
        if (state.IsClosed)
            return null;
        if (state.Has<SourceRecord.Recalled>())
            return state.Has<SourceRecord.Restored>() ? new SourceEffect.Close() : new SourceEffect.RestoreVm();
        if (state.IsOwnedByDestination)
            return NextAfterHandOver(state);
        if (state.IsAborting || state.IsGivenBack)
            return NextUndo(state);
        return NextForward(state);
    }

    /// <summary>The record that must be durable before the effect starts; null when the effect makes and destroys nothing.</summary>
    public static SourceRecord? Intent(SourceState state, SourceEffect effect) => effect switch
    {
        SourceEffect.PrepareDestination => new SourceRecord.Preparing(),
        SourceEffect.StartMirror e => new SourceRecord.MirrorStarting(e.Device),
        SourceEffect.Precopy => new SourceRecord.Precopying(),
        SourceEffect.StopDomain => new SourceRecord.Stopping(),
        // Written before the copy is made non-runnable, so that no crash leaves a frozen domain that nobody knows why.
        SourceEffect.FreezeDomain => new SourceRecord.Granting(state.Plan.Epoch + 1),
        SourceEffect.ResumeDomain when state.IsGivenBack && !state.Has<SourceRecord.Reclaimed>() => new SourceRecord.Reclaimed(state.Plan.Epoch + 2),
        _ => null,
    };

    /// <summary>
    /// What an effect that failed means. Before GRANT: what may pass begins a new attempt, the rest unwinds. After it only the destination's answer
    /// counts.
    /// </summary>
    /// <param name="doneBytes">How much of the disks is in place.</param>
    /// <returns>The record to write, or null: try again later.</returns>
    public static SourceRecord? Failed(SourceState state, SourceEffect effect, MigrationFailure failure, long doneBytes, DateTimeOffset now) => effect switch
    {
        SourceEffect.ResumeDomain or SourceEffect.TellAborted => null,
        SourceEffect.StopMirror or SourceEffect.AbortDestination => null,
        SourceEffect.FreezeDomain => new SourceRecord.Refused($"the source could not be frozen: {failure.Message}"),
        SourceEffect.SendGrant => null,
        // Nobody answers, and the operator answers for it; or the destination says no; or it is asked again.
        SourceEffect.AskBack when failure.IsTransient && state.OpenRecall is { Evidence.Length: > 0 } => Recall(state),
        SourceEffect.AskBack when !failure.IsTransient && failure.Code != MigrationException.Amnesia => new SourceRecord.RecallRefused(failure.Message),
        _ when state.IsOwnedByDestination || state.Has<SourceRecord.Recalled>() => null,
        SourceEffect.PrepareDestination when failure.IsTransient && state.Attempt > 0 && !IsTooLate(state, now) => null,
        _ when failure.IsTransient && state.HasNow<SourceRecord.Prepared>() && !IsFruitless(state, doneBytes) =>
            new SourceRecord.Interrupted(failure.Message, doneBytes, now),
        _ => new SourceRecord.Aborting(failure, now),
    };

    /// <summary>
    /// The record for an undo that was tried often enough: what it would have taken away is the destination's patience's, or a person's. A destination
    /// that cannot be reached is told as long as it could be waiting for this source.
    /// </summary>
    public static SourceRecord? GiveUp(SourceState state, SourceEffect effect, MigrationFailure failure, DateTimeOffset now) => effect switch
    {
        SourceEffect.StopMirror e => new SourceRecord.Undone(MirrorName(e.Device), failure.Message),
        SourceEffect.AbortDestination when !failure.IsTransient || now - AbortedAt(state) > state.Plan.Options.ResumeWindow =>
            new SourceRecord.Undone(DestinationName, failure.Message),
        _ => null,
    };

    /// <summary>
    /// The record a restarted daemon adds to an unfinished journal: a guest that may have been stopped, or has half a stream, runs on first and a new
    /// attempt follows. While only disks are mirrored nothing is lost by going on. After the grant the destination's answer decides.
    /// </summary>
    public static SourceRecord? AfterRestart(SourceState state, DateTimeOffset now) =>
        !state.IsClosed && !state.IsAborting && !state.Has<SourceRecord.Granting>() && state.MayHaveTouchedGuest && state.HasNow<SourceRecord.Prepared>()
            ? new SourceRecord.Interrupted("the source's daemon was restarted in the middle", 0, now)
            : null;

    /// <summary>Why an operator may not declare the destination dead now; null when he may.</summary>
    public static string? WhyNotDeclareDead(SourceState state) =>
        state.IsInDoubt && state.Has<SourceRecord.Frozen>() ? null
        : state.IsInDoubt ? "the source's copy is not frozen yet; try again"
        : state.Has<SourceRecord.Accepted>() ? "the destination has accepted the VM; see recall"
        : "the source owns the VM; cancel ends the migration";

    /// <summary>
    /// Why the VM cannot be brought back from the disks here; null when it can: while they are kept, or while the destination, which accepted, was never
    /// heard again and so none was destroyed.
    /// </summary>
    public static string? WhyNotRecall(SourceState state) =>
        state.Has<SourceRecord.Recalled>() ? "it is being brought back already"
        : (state.IsHolding || (state.IsOwnedByDestination && !state.Has<SourceRecord.Confirmed>()))
            && state.Has<SourceRecord.Released>(static r => r.What == DomainName)
            && !state.Has<SourceRecord.Released>(static r => r.What != DomainName) ? null
        : state.IsOwnedByDestination ? "the source's disks were not kept, or the time they were kept for is over"
        : "the VM is here";

    /// <summary>The destination gave the VM up, or an operator answers for its never running it again.</summary>
    public static SourceRecord.Recalled Recall(SourceState state) =>
        new(state.Plan.Epoch + 2, state.OpenRecall!.Operator, state.OpenRecall.Evidence);

    private static SourceEffect NextForward(SourceState state)
    {
        if (!state.Has<SourceRecord.Granting>())
        {
            if (!state.HasNow<SourceRecord.Precopying>() && !state.HasNow<SourceRecord.Stopping>() && state.MayHaveTouchedGuest)
                return new SourceEffect.ResumeDomain();
            if (!state.HasNow<SourceRecord.Prepared>())
                return new SourceEffect.PrepareDestination();
        }

        foreach (DiskPlan disk in state.Plan.Disks)
        {
            if (!state.HasNow<SourceRecord.MirrorStarted>(r => r.Device == disk.Device))
                return new SourceEffect.StartMirror(disk.Device);
        }

        if (!state.HasNow<SourceRecord.MirrorsReady>())
            return new SourceEffect.AwaitMirrors();
        if (!state.HasNow<SourceRecord.Precopied>())
            return new SourceEffect.Precopy();
        if (!state.HasNow<SourceRecord.PreSwitch>())
            return new SourceEffect.ProbeDestination();
        if (!state.HasNow<SourceRecord.Stopped>())
            return new SourceEffect.StopDomain();
        if (!state.HasNow<SourceRecord.MirrorsFinished>())
            return new SourceEffect.FinishMirrors();
        if (!state.HasNow<SourceRecord.Sent>())
            return new SourceEffect.SendMemory();
        if (!state.Has<SourceRecord.Frozen>())
            return new SourceEffect.FreezeDomain();
        return new SourceEffect.SendGrant();
    }

    private static SourceEffect NextAfterHandOver(SourceState state)
    {
        Invariant.Holds(state.Has<SourceRecord.Frozen>(), "the destination owns a VM only after the source froze its copy");
        if (!state.Has<SourceRecord.ReceiptStored>())
            return new SourceEffect.StoreReceipt();
        if (!state.Has<SourceRecord.Released>(static r => r.What == DomainName))
            return new SourceEffect.ReleaseDomain();
        if (state.OpenRecall is not null)
            return new SourceEffect.AskBack();
        if (!state.Has<SourceRecord.Confirmed>())
            return new SourceEffect.ConfirmDestination();
        if (state.Plan.Options.KeepSourceFor > TimeSpan.Zero)
        {
            if (state.Last<SourceRecord.Holding>() is not { } holding)
                return new SourceEffect.HoldDisks();
            if (!state.Has<SourceRecord.Released>(static r => r.What == HoldName))
                return new SourceEffect.AwaitHoldEnd(holding.Until);
        }

        foreach (DiskPlan disk in state.Plan.Disks)
        {
            if (!state.Has<SourceRecord.Released>(r => r.What == disk.Device))
                return new SourceEffect.ReleaseDisk(disk.Device);
        }

        return new SourceEffect.Close();
    }

    /// <summary>What <see cref="SourceEffect.AwaitHoldEnd"/> leaves in the journal.</summary>
    public const string HoldName = "hold";

    private static SourceEffect NextUndo(SourceState state)
    {
        // The guest first: it runs again before anything is tidied up.
        if (state.MayHaveTouchedGuest)
        {
            Invariant.Holds(!state.IsInDoubt, "a source in doubt never runs its copy");
            return new SourceEffect.ResumeDomain();
        }

        foreach (DiskPlan disk in state.Plan.Disks.Reverse())
        {
            if (state.Has<SourceRecord.MirrorStarting>(r => r.Device == disk.Device) && !IsUndone(state, MirrorName(disk.Device)))
                return new SourceEffect.StopMirror(disk.Device);
        }

        if (state.Has<SourceRecord.Preparing>() && !IsUndone(state, DestinationName))
            return new SourceEffect.AbortDestination();
        return new SourceEffect.TellAborted();
    }

    private static bool IsUndone(SourceState state, string what) => state.Has<SourceRecord.Undone>(r => r.What == what);

    /// <summary>The destination could not be reached for as long as the plan allows; its own patience is over too.</summary>
    private static bool IsTooLate(SourceState state, DateTimeOffset now) =>
        state.Last<SourceRecord.Interrupted>() is { } last && now - last.At > state.Plan.Options.ResumeWindow;

    private static DateTimeOffset AbortedAt(SourceState state) =>
        state.Last<SourceRecord.Aborting>()?.At ?? state.Last<SourceRecord.Stopped>()?.At ?? DateTimeOffset.MinValue;

    /// <summary>How many of the latest attempts ended without more in place than there is now; at most the limit.</summary>
    public static int FruitlessAttempts(SourceState state, long doneBytes) =>
        state.Records.OfType<SourceRecord.Interrupted>().TakeLast(FruitlessAttemptsLimit).Reverse().TakeWhile(i => i.DoneBytes >= doneBytes).Count();

    private static bool IsFruitless(SourceState state, long doneBytes) => FruitlessAttempts(state, doneBytes) == FruitlessAttemptsLimit;
}
