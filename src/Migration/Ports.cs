// What the saga asks of the world. Every call is idempotent, ends with its token or a deadline of its own, and says no with MigrationException (or with
// IOException, when nobody answered).
namespace Migration;

/// <param name="Failure">Null while the mirror lives.</param>
/// <param name="IsLost">The failure is of the link or of the destination's process, not an error of its disk: a new export can go on.</param>
/// <param name="DirtyBytes">What may differ of what was copied or written before.</param>
public sealed record MirrorProgress(
    bool IsSynced, bool IsStalled, string? Failure, long TotalBytes, long CopiedBytes, long SentBytes, bool IsLost = false, long DirtyBytes = 0);

/// <summary>The source's disks.</summary>
public interface ISourceStorage
{
    /// <summary>
    /// Starts the mirror; one that is there and lives is left as it is when <paramref name="wasMirrored"/> is false (asked again after a crash).
    /// </summary>
    /// <param name="wasMirrored">An earlier attempt began it: it goes on behind the new export, sending only what may differ. When that
    /// is not known (its start was cut, or the data path was restarted) it is the whole disk, zeros too: the target may hold anything.</param>
    /// <param name="bytesPerSecond">The limit on the background copy; 0 is none.</param>
    Task StartMirrorAsync(
        DiskPlan disk, DiskTarget target, bool wasMirrored, long bytesPerSecond, MigrationOptions options, CancellationToken cancellationToken);

    /// <summary>Within two seconds; nothing to do when there is no mirror.</summary>
    Task SetRateAsync(DiskPlan disk, long bytesPerSecond, CancellationToken cancellationToken);

    Task<MirrorProgress> MirrorStatusAsync(DiskPlan disk, CancellationToken cancellationToken);

    /// <summary>With the guest stopped: nothing in flight, both sides flushed, target detached. Refuses when the two may differ.</summary>
    Task FinishMirrorAsync(DiskPlan disk, CancellationToken cancellationToken);

    Task StopMirrorAsync(DiskPlan disk, CancellationToken cancellationToken);

    Task<DiskDigest> DigestAsync(DiskPlan disk, CancellationToken cancellationToken);

    /// <summary>The digest of a part of the disk (docs/formats/digest.md, "range"), by which a difference is found.</summary>
    Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, CancellationToken cancellationToken);

    /// <summary>Keeps the disk out of everybody's hands: it is stale, of the epoch before, and kept until then.</summary>
    Task HoldAsync(DiskPlan disk, DateTimeOffset until, CancellationToken cancellationToken);

    /// <summary>Destroys the source's disk; only after the receipt.</summary>
    Task DestroyAsync(DiskPlan disk, CancellationToken cancellationToken);
}

/// <summary>The source's copy of the running VM.</summary>
public interface ISourceDomain
{
    Task PrecopyAsync(MigrationPlan plan, MemoryTarget target, CancellationToken cancellationToken);

    /// <summary>vCPUs stopped, guest I/O drained.</summary>
    Task<DateTimeOffset> StopAsync(MigrationPlan plan, CancellationToken cancellationToken);

    Task<MemoryDigest> TransferAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Makes this copy non-runnable: its disk handles are closed.</summary>
    Task FreezeAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Undoes whatever of the above was done; the guest runs. Nothing to do when it runs.</summary>
    Task ResumeAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Destroys the frozen copy and forgets the VM; only after the receipt.</summary>
    Task ReleaseAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Makes the VM's record again, halted, on the disks that were held, which are its own again.</summary>
    Task RestoreAsync(MigrationPlan plan, CancellationToken cancellationToken);
}

/// <summary>The destination, as the source speaks to it.</summary>
public interface IPeer
{
    /// <param name="attempt">A new one gets new exports and a new incoming domain, over the same disks.</param>
    Task<PreparedDestination> PrepareAsync(MigrationPlan plan, int attempt, CancellationToken cancellationToken);

    /// <summary>Renews the destination's patience. Throws when the destination gave up.</summary>
    Task HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Hashes the destination's disks as they are now; asked while the guest still runs, so that little is left for the pause.</summary>
    Task<IReadOnlyList<DiskDigest>> DigestAsync(MigrationPlan plan, CancellationToken cancellationToken);

    Task<string> RangeDigestAsync(MigrationPlan plan, string device, DigestRange range, CancellationToken cancellationToken);

    Task ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken);

    Task<ContentDigests> LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <returns>The destination's durable answer.</returns>
    Task<GrantAnswer> GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken);

    Task AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken);

    Task ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken);

    /// <summary>The destination gives the VM up for good: it does not run there and never will again.</summary>
    /// <exception cref="MigrationException">It runs, or has changed hands again.</exception>
    Task RelinquishAsync(MigrationPlan plan, long epoch, CancellationToken cancellationToken);
}

public enum Verdict
{
    Destination,
    Source,
}

/// <summary>
/// Who owns a VM when the two sides cannot ask each other: a register for each migration that is written once, linearizable, reachable by both. A plan
/// that names one is never decided without it (research: xenopsd.md 10.5).
/// </summary>
public interface IWitness
{
    /// <summary>Any number of times, by both: the first proposal ever is the answer for ever.</summary>
    /// <exception cref="IOException">Nobody answered; nothing is known.</exception>
    Task<Verdict> DecideAsync(string migration, Verdict proposal, CancellationToken cancellationToken);
}

/// <param name="RunningAt">On the destination's clock; null when refused.</param>
public sealed record GrantAnswer(DateTimeOffset? RunningAt, string? Refusal);

/// <summary>What the destination can make, find and destroy.</summary>
public interface IDestinationResources
{
    /// <returns>The id under which it can be found and destroyed.</returns>
    Task<string> MakeAsync(Resource resource, DestinationState state, CancellationToken cancellationToken);

    /// <param name="id">Null when a crash came between the intent and the making: look for it by the migration's name.</param>
    Task DestroyAsync(Resource resource, string? id, DestinationState state, CancellationToken cancellationToken);

    /// <summary>Whether what was made is still there and works; a datapath ends with its process or its host.</summary>
    Task<bool> IsThereAsync(Resource resource, string id, DestinationState state, CancellationToken cancellationToken);

    PreparedDestination Describe(DestinationState state);

    Task ProbeAsync(DestinationState state, CancellationToken cancellationToken);

    Task<DiskDigest> DigestAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken);

    Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, DestinationState state, CancellationToken cancellationToken);

    /// <summary>The loaded guest's digest; fails when the guest is not there any more.</summary>
    Task<MemoryDigest> LoadedAsync(DestinationState state, CancellationToken cancellationToken);

    /// <summary>After this the source cannot write to the destination's disks.</summary>
    Task CloseExportsAsync(DestinationState state, CancellationToken cancellationToken);

    /// <summary>The loaded guest runs. Nothing to do when it does.</summary>
    /// <exception cref="MigrationException">With <see cref="MigrationException.DomainVanished"/>: the loaded guest is gone and never ran.</exception>
    Task<DateTimeOffset> RunAsync(DestinationState state, CancellationToken cancellationToken);

    /// <summary>The VM starts anew from its disks: its memory was lost after this side had become its owner.</summary>
    Task<DateTimeOffset> BootAsync(DestinationState state, CancellationToken cancellationToken);

    /// <exception cref="MigrationException">The VM runs here, or is not this migration's any more.</exception>
    Task CheckStoppedAsync(DestinationState state, CancellationToken cancellationToken);

    /// <summary>Gives up what only the transfer needed.</summary>
    Task ReleaseAsync(DestinationState state, CancellationToken cancellationToken);
}

/// <summary>One migration's records, durable when the call returns. The ownership of the VM changes in the same step (see <see cref="Ownership"/>).</summary>
public interface IJournal<TRecord>
{
    void Append(string migration, TRecord record);
}

public sealed record DiskProgress(
    string Device, long TotalBytes, long CopiedBytes, long DirtyBytes, long SentBytes, bool IsSynced, bool IsStalled);

/// <param name="Fraction">0 to 1 over the whole migration.</param>
/// <param name="BytesPerSecond">What arrives now, averaged over some seconds; 0 when nothing is copied.</param>
/// <param name="EtaSeconds">Shortest and longest time to the switch-over at the rates seen lately; null when it cannot be told.</param>
/// <param name="Waiting">Why nothing moves now; null when it does.</param>
public sealed record MigrationProgress(
    string Phase, double Fraction, bool IsCancellable, IReadOnlyList<DiskProgress> Disks, double BytesPerSecond = 0,
    IReadOnlyList<double>? EtaSeconds = null, string? Waiting = null);
