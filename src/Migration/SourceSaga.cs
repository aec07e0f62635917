// The source's half of a migration as a pure function: records -> state, state -> next effect. Whoever runs the effects writes the record that
// Intent gives before it starts one, and the record that Succeeded or Failed gives after it (research: xenopsd.md 10.3; docs/journeys/vm-migrate.md).
//
//   BEGIN     Begun
//   PREPARE   Preparing -> Prepared
//   MIRROR    MirrorStarting(d) -> MirrorStarted(d) ... -> MirrorsReady
//   PRECOPY   Precopying -> Precopied
//   SWITCH    PreSwitch -> Stopping -> Stopped -> MirrorsFinished -> Sent        the last place from which the source may run on
//   FINISH    Granting -> Frozen -> Accepted | Refused -> Reclaimed              owner in doubt between Granting and the answer
//   CONFIRM   ReceiptStored -> Released(domain) -> Released(d)... -> Closed
//   abort     Aborting -> Undone(what)... -> Aborted
using System.Text.Json.Serialization;
using Platform;

namespace Migration;

[JsonPolymorphic(TypeDiscriminatorPropertyName = "type")]
[JsonDerivedType(typeof(Begun), "begun")]
[JsonDerivedType(typeof(Preparing), "preparing")]
[JsonDerivedType(typeof(Prepared), "prepared")]
[JsonDerivedType(typeof(MirrorStarting), "mirror_starting")]
[JsonDerivedType(typeof(MirrorStarted), "mirror_started")]
[JsonDerivedType(typeof(MirrorsReady), "mirrors_ready")]
[JsonDerivedType(typeof(Precopying), "precopying")]
[JsonDerivedType(typeof(Precopied), "precopied")]
[JsonDerivedType(typeof(PreSwitch), "pre_switch")]
[JsonDerivedType(typeof(Stopping), "stopping")]
[JsonDerivedType(typeof(Stopped), "stopped")]
[JsonDerivedType(typeof(MirrorsFinished), "mirrors_finished")]
[JsonDerivedType(typeof(Sent), "sent")]
[JsonDerivedType(typeof(Granting), "granting")]
[JsonDerivedType(typeof(Frozen), "frozen")]
[JsonDerivedType(typeof(Accepted), "accepted")]
[JsonDerivedType(typeof(Refused), "refused")]
[JsonDerivedType(typeof(Reclaimed), "reclaimed")]
[JsonDerivedType(typeof(ReceiptStored), "receipt_stored")]
[JsonDerivedType(typeof(Released), "released")]
[JsonDerivedType(typeof(Closed), "closed")]
[JsonDerivedType(typeof(Aborting), "aborting")]
[JsonDerivedType(typeof(Undone), "undone")]
[JsonDerivedType(typeof(Aborted), "aborted")]
public abstract record SourceRecord
{
    public sealed record Begun(MigrationPlan Plan, DateTimeOffset At) : SourceRecord;

    public sealed record Preparing : SourceRecord;

    public sealed record Prepared(PreparedDestination Destination) : SourceRecord;

    public sealed record MirrorStarting(string Device) : SourceRecord;

    public sealed record MirrorStarted(string Device) : SourceRecord;

    public sealed record MirrorsReady(long SentBytes) : SourceRecord;

    public sealed record Precopying : SourceRecord;

    public sealed record Precopied : SourceRecord;

    public sealed record PreSwitch : SourceRecord;

    public sealed record Stopping : SourceRecord;

    public sealed record Stopped(DateTimeOffset At) : SourceRecord;

    public sealed record MirrorsFinished(IReadOnlyList<DiskDigest> Digests, long SentBytes) : SourceRecord;

    public sealed record Sent(ContentDigests Digests) : SourceRecord;

    public sealed record Granting(long Epoch) : SourceRecord;

    public sealed record Frozen : SourceRecord;

    public sealed record Accepted(DateTimeOffset RunningAt) : SourceRecord;

    public sealed record Refused(string Reason) : SourceRecord;

    public sealed record Reclaimed(long Epoch) : SourceRecord;

    public sealed record ReceiptStored(Receipt Receipt) : SourceRecord;

    public sealed record Released(string What) : SourceRecord;

    public sealed record Closed : SourceRecord;

    public sealed record Aborting(MigrationFailure Failure) : SourceRecord;

    public sealed record Undone(string What, string? Failure) : SourceRecord;

    public sealed record Aborted : SourceRecord;
}

/// <summary>What to do next. Each is idempotent: after a crash it may run again.</summary>
public abstract record SourceEffect
{
    public sealed record PrepareDestination : SourceEffect;

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

    public sealed record ReleaseDisk(string Device) : SourceEffect;

    public sealed record CloseDestination : SourceEffect;

    public sealed record ResumeDomain : SourceEffect;

    public sealed record StopMirror(string Device) : SourceEffect;

    public sealed record AbortDestination : SourceEffect;

    public sealed record TellAborted : SourceEffect;
}

/// <summary>The fold of a source's records. Nothing here is remembered that the records do not say.</summary>
public sealed record SourceState(IReadOnlyList<SourceRecord> Records)
{
    public MigrationPlan Plan => Last<SourceRecord.Begun>()!.Plan;

    public bool IsClosed => Has<SourceRecord.Closed>() || Has<SourceRecord.Aborted>();

    public bool IsAborting => Has<SourceRecord.Aborting>();

    /// <summary>The source's own word does not decide any more: the destination may run the VM.</summary>
    public bool IsInDoubt => Has<SourceRecord.Granting>() && !Has<SourceRecord.Accepted>() && !Has<SourceRecord.Refused>();

    public bool IsOwnedByDestination => Has<SourceRecord.Accepted>();

    /// <summary>From here on cancelling is refused: the answer decides.</summary>
    public bool IsPastCancel => Has<SourceRecord.PreSwitch>() && !IsAborting;

    /// <summary>The phase, in the word that a person is shown.</summary>
    public string Phase => Records[^1] switch
    {
        SourceRecord.Begun or SourceRecord.Preparing => "prepare",
        SourceRecord.Prepared or SourceRecord.MirrorStarting or SourceRecord.MirrorStarted => "mirror",
        SourceRecord.MirrorsReady or SourceRecord.Precopying => "memory",
        SourceRecord.Precopied or SourceRecord.PreSwitch or SourceRecord.Stopping or SourceRecord.Stopped or SourceRecord.MirrorsFinished =>
            "switch-over",
        SourceRecord.Sent or SourceRecord.Granting or SourceRecord.Frozen => "hand-over",
        SourceRecord.Accepted or SourceRecord.ReceiptStored or SourceRecord.Released => "confirm",
        SourceRecord.Closed => "done",
        SourceRecord.Aborted => "aborted",
        _ => "undo",
    };

    public bool Has<T>()
        where T : SourceRecord => Records.Any(static r => r is T);

    public bool Has<T>(Func<T, bool> match)
        where T : SourceRecord => Records.OfType<T>().Any(match);

    public T? Last<T>()
        where T : SourceRecord => Records.OfType<T>().LastOrDefault();

    public SourceState With(SourceRecord record) => new([.. Records, record]);
}

public static class SourceSaga
{
    /// <summary>The one thing to do now, or null when the migration is over.</summary>
    public static SourceEffect? Next(SourceState state)
    {
        if (state.IsClosed)
            return null;
        if (state.IsOwnedByDestination)
            return NextAfterHandOver(state);
        if (state.IsAborting || state.Has<SourceRecord.Refused>())
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
        _ => null,
    };

    /// <summary>What an effect that failed means: before GRANT the job unwinds, after it only the destination's answer counts.</summary>
    /// <returns>The record to write, or null: try again later.</returns>
    public static SourceRecord? Failed(SourceState state, SourceEffect effect, MigrationFailure failure) => effect switch
    {
        SourceEffect.ResumeDomain or SourceEffect.TellAborted => null,
        SourceEffect.StopMirror e => new SourceRecord.Undone(MirrorName(e.Device), failure.Message),
        SourceEffect.AbortDestination => new SourceRecord.Undone(DestinationName, failure.Message),
        SourceEffect.FreezeDomain => new SourceRecord.Refused($"the source could not be frozen: {failure.Message}"),
        SourceEffect.SendGrant or SourceEffect.StoreReceipt or SourceEffect.ReleaseDomain or SourceEffect.ReleaseDisk
            or SourceEffect.CloseDestination => null,
        _ => new SourceRecord.Aborting(failure),
    };

    /// <summary>
    /// The record a restarted daemon adds to an unfinished journal: before the grant it unwinds (the guest ran or was stopped, either way it runs
    /// on here); after it, nothing: the destination's answer decides.
    /// </summary>
    public static SourceRecord? AfterRestart(SourceState state) =>
        state.IsClosed || state.IsAborting || state.Has<SourceRecord.Granting>()
            ? null
            : new SourceRecord.Aborting(
                new MigrationFailure("VM_MIGRATE_FAILED", [], MigrationSide.Source, state.Phase, "the daemon was restarted in the middle"));

    /// <summary>The name under which an undo is recorded.</summary>
    public static string MirrorName(string device) => $"mirror {device}";

    public const string DomainName = "domain";

    public const string DestinationName = "destination";

    private static SourceEffect NextForward(SourceState state)
    {
        if (!state.Has<SourceRecord.Prepared>())
            return new SourceEffect.PrepareDestination();
        foreach (DiskPlan disk in state.Plan.Disks)
        {
            if (!state.Has<SourceRecord.MirrorStarted>(r => r.Device == disk.Device))
                return new SourceEffect.StartMirror(disk.Device);
        }

        if (!state.Has<SourceRecord.MirrorsReady>())
            return new SourceEffect.AwaitMirrors();
        if (!state.Has<SourceRecord.Precopied>())
            return new SourceEffect.Precopy();
        if (!state.Has<SourceRecord.PreSwitch>())
            return new SourceEffect.ProbeDestination();
        if (!state.Has<SourceRecord.Stopped>())
            return new SourceEffect.StopDomain();
        if (!state.Has<SourceRecord.MirrorsFinished>())
            return new SourceEffect.FinishMirrors();
        if (!state.Has<SourceRecord.Sent>())
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
        foreach (DiskPlan disk in state.Plan.Disks)
        {
            if (!state.Has<SourceRecord.Released>(r => r.What == disk.Device))
                return new SourceEffect.ReleaseDisk(disk.Device);
        }

        return new SourceEffect.CloseDestination();
    }

    private static SourceEffect NextUndo(SourceState state)
    {
        // The guest first: it runs again before anything is tidied up.
        bool mayHaveStopped = state.Has<SourceRecord.Stopping>() || state.Has<SourceRecord.Precopying>();
        if (mayHaveStopped && !IsUndone(state, DomainName))
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
}
