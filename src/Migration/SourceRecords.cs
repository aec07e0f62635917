// What a source's journal says, and the state that it folds to (research: xenopsd.md 10.3). Nothing else is remembered.
using System.Text.Json.Serialization;

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
[JsonDerivedType(typeof(Interrupted), "interrupted")]
[JsonDerivedType(typeof(Resumed), "resumed")]
[JsonDerivedType(typeof(RateSet), "rate_set")]
[JsonDerivedType(typeof(Granting), "granting")]
[JsonDerivedType(typeof(Frozen), "frozen")]
[JsonDerivedType(typeof(Accepted), "accepted")]
[JsonDerivedType(typeof(Refused), "refused")]
[JsonDerivedType(typeof(PeerDeclaredDead), "peer_declared_dead")]
[JsonDerivedType(typeof(Reclaimed), "reclaimed")]
[JsonDerivedType(typeof(ReceiptStored), "receipt_stored")]
[JsonDerivedType(typeof(Confirmed), "confirmed")]
[JsonDerivedType(typeof(Holding), "holding")]
[JsonDerivedType(typeof(RecallAsked), "recall_asked")]
[JsonDerivedType(typeof(RecallRefused), "recall_refused")]
[JsonDerivedType(typeof(Recalled), "recalled")]
[JsonDerivedType(typeof(Restored), "restored")]
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

    /// <summary>The link or a daemon was lost: a new attempt begins. The disks at the destination and what is known to be on them stay.</summary>
    /// <param name="DoneBytes">How much of the disks was equal then; attempts that do not bring it forward end the job.</param>
    public sealed record Interrupted(string Reason, long DoneBytes, DateTimeOffset At) : SourceRecord;

    /// <summary>The guest runs, with no stream attached to it; what an earlier attempt had begun with it is over.</summary>
    public sealed record Resumed : SourceRecord;

    /// <summary>An operator's limit on the background copy, in bytes per second; 0 is none.</summary>
    public sealed record RateSet(long BytesPerSecond) : SourceRecord;

    public sealed record Granting(long Epoch) : SourceRecord;

    public sealed record Frozen : SourceRecord;

    public sealed record Accepted(DateTimeOffset RunningAt) : SourceRecord;

    public sealed record Refused(string Reason) : SourceRecord;

    /// <summary>An operator's word, in place of the answer that will not come: the destination is fenced and will never run this VM.</summary>
    public sealed record PeerDeclaredDead(string Operator, string Evidence) : SourceRecord;

    public sealed record Reclaimed(long Epoch) : SourceRecord;

    public sealed record ReceiptStored(Receipt Receipt) : SourceRecord;

    /// <summary>The destination has the receipt and has let go of what only the transfer needed.</summary>
    public sealed record Confirmed : SourceRecord;

    /// <summary>The disks here are stale and kept, not to be used, until then.</summary>
    public sealed record Holding(DateTimeOffset Until) : SourceRecord;

    /// <summary>
    /// An operator wants the VM back from the disks that are here. The wish comes first: the destination may give the VM up and its answer be lost, and
    /// then these disks are the only ones that will ever run.
    /// </summary>
    public sealed record RecallAsked(string Operator, string Evidence) : SourceRecord;

    public sealed record RecallRefused(string Reason) : SourceRecord;

    /// <summary>The VM is brought back from the disks that were held, as it was at the switch-over. The destination gave it up, or is dead (evidence).</summary>
    public sealed record Recalled(long Epoch, string Operator, string Evidence) : SourceRecord;

    public sealed record Restored : SourceRecord;

    public sealed record Released(string What) : SourceRecord;

    public sealed record Closed : SourceRecord;

    public sealed record Aborting(MigrationFailure Failure, DateTimeOffset At) : SourceRecord;

    public sealed record Undone(string What, string? Failure) : SourceRecord;

    public sealed record Aborted : SourceRecord;
}

/// <summary>The fold of a source's records.</summary>
public sealed record SourceState(IReadOnlyList<SourceRecord> Records)
{
    private readonly int attemptStart = StartOfAttempt(Records);

    public MigrationPlan Plan => ((SourceRecord.Begun)Records[0]).Plan;

    public bool IsClosed => Records[^1] is SourceRecord.Closed or SourceRecord.Aborted;

    public bool IsAborting => Has<SourceRecord.Aborting>();

    /// <summary>The source's own word does not decide any more: the destination may run the VM.</summary>
    public bool IsInDoubt => Has<SourceRecord.Granting>() && !Has<SourceRecord.Accepted>() && !IsGivenBack;

    public bool IsOwnedByDestination => Has<SourceRecord.Accepted>() && !Has<SourceRecord.Recalled>();

    /// <summary>A grant was out and is known to be without effect.</summary>
    public bool IsGivenBack => Has<SourceRecord.Refused>() || Has<SourceRecord.PeerDeclaredDead>();

    /// <summary>From here on cancelling is refused: the answer decides.</summary>
    public bool IsPastCancel => !IsAborting && (HasNow<SourceRecord.PreSwitch>() || Has<SourceRecord.Granting>());

    /// <summary>The VM moved and all that is left here is the disks that were asked to be kept.</summary>
    public bool IsHolding => Has<SourceRecord.Holding>() && !Has<SourceRecord.Recalled>() && !IsClosed;

    /// <summary>The recall that is asked for and not answered; null when there is none.</summary>
    public SourceRecord.RecallAsked? OpenRecall =>
        Records.LastOrDefault(static r => r is SourceRecord.RecallAsked or SourceRecord.RecallRefused or SourceRecord.Recalled) as SourceRecord.RecallAsked;

    /// <summary>The attempt that runs; the first is 0.</summary>
    public int Attempt => Records.Count(static r => r is SourceRecord.Interrupted);

    /// <summary>The phase, in the word that a person is shown.</summary>
    public string Phase => Records.LastOrDefault(static r => r is not SourceRecord.RateSet) switch
    {
        SourceRecord.Begun or SourceRecord.Preparing => Attempt == 0 ? "prepare" : "reconnect",
        SourceRecord.Interrupted or SourceRecord.Resumed => "reconnect",
        SourceRecord.Prepared or SourceRecord.MirrorStarting or SourceRecord.MirrorStarted => "mirror",
        SourceRecord.MirrorsReady or SourceRecord.Precopying => "memory",
        SourceRecord.Precopied or SourceRecord.PreSwitch or SourceRecord.Stopping or SourceRecord.Stopped or SourceRecord.MirrorsFinished =>
            "switch-over",
        SourceRecord.Sent or SourceRecord.Granting or SourceRecord.Frozen => "hand-over",
        SourceRecord.Accepted or SourceRecord.ReceiptStored or SourceRecord.Confirmed or SourceRecord.Released => "confirm",
        SourceRecord.Holding or SourceRecord.RecallRefused => "hold",
        SourceRecord.Closed => "done",
        SourceRecord.Aborted => "aborted",
        _ => "undo",
    };

    /// <summary>The limit that holds now, in bytes per second; 0 is none.</summary>
    public long RateBytesPerSecond => Last<SourceRecord.RateSet>()?.BytesPerSecond ?? Plan.Options.BandwidthBytesPerSecond;

    public bool Has<T>()
        where T : SourceRecord => Has<T>(static _ => true);

    public bool Has<T>(Func<T, bool> match)
        where T : SourceRecord => Find(0, match);

    /// <summary>In this attempt.</summary>
    public bool HasNow<T>()
        where T : SourceRecord => Find<T>(attemptStart, static _ => true);

    /// <summary>In this attempt.</summary>
    public bool HasNow<T>(Func<T, bool> match)
        where T : SourceRecord => Find(attemptStart, match);

    public T? Last<T>()
        where T : SourceRecord => Records.OfType<T>().LastOrDefault();

    /// <summary>An earlier attempt, or this one, may have left the guest stopped or with a stream attached.</summary>
    public bool MayHaveTouchedGuest
    {
        get
        {
            for (int i = Records.Count - 1; i >= 0; i--)
            {
                if (Records[i] is SourceRecord.Resumed)
                    return false;
                if (Records[i] is SourceRecord.Precopying or SourceRecord.Stopping)
                    return true;
            }

            return false;
        }
    }

    /// <summary>Whether a mirror of this disk was begun in an earlier attempt: then the target is not empty, and what differs is known to it alone.</summary>
    public bool WasMirrored(string device) => Records.Take(attemptStart).Any(r => r is SourceRecord.MirrorStarting m && m.Device == device);

    public SourceState With(SourceRecord record) => new([.. Records, record]);

    private static int StartOfAttempt(IReadOnlyList<SourceRecord> records)
    {
        int i = records.Count - 1;
        while (i > 0 && records[i] is not SourceRecord.Interrupted)
            i--;
        return Math.Max(i, 0);
    }

    private bool Find<T>(int from, Func<T, bool> match)
        where T : SourceRecord
    {
        for (int i = from; i < Records.Count; i++)
        {
            if (Records[i] is T record && match(record))
                return true;
        }

        return false;
    }
}
