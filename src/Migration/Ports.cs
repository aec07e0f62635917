// What the saga asks of the world. Every call is idempotent, ends with its token or a deadline of its own, and says no with MigrationException (or with
// IOException, when nobody answered).
namespace Migration;

public sealed record MirrorProgress(bool IsSynced, bool IsStalled, string? Failure, long TotalBytes, long CopiedBytes, long SentBytes);

/// <summary>The source's disks.</summary>
public interface ISourceStorage
{
    Task StartMirrorAsync(DiskPlan disk, DiskTarget target, MigrationOptions options, CancellationToken cancellationToken);

    Task<MirrorProgress> MirrorStatusAsync(DiskPlan disk, CancellationToken cancellationToken);

    /// <summary>With the guest stopped: nothing in flight, both sides flushed, target detached. Refuses when the two may differ.</summary>
    Task FinishMirrorAsync(DiskPlan disk, CancellationToken cancellationToken);

    Task StopMirrorAsync(DiskPlan disk, CancellationToken cancellationToken);

    Task<DiskDigest> DigestAsync(DiskPlan disk, CancellationToken cancellationToken);

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
}

/// <summary>The destination, as the source speaks to it.</summary>
public interface IPeer
{
    Task<PreparedDestination> PrepareAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Renews the destination's patience. Throws when the destination gave up.</summary>
    Task HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <summary>Hashes the destination's disks as they are now; asked while the guest still runs, so that little is left for the pause.</summary>
    Task<IReadOnlyList<DiskDigest>> DigestAsync(MigrationPlan plan, CancellationToken cancellationToken);

    Task ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken);

    Task<ContentDigests> LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken);

    /// <returns>The destination's durable answer.</returns>
    Task<GrantAnswer> GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken);

    Task AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken);

    Task ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken);
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

    PreparedDestination Describe(DestinationState state);

    Task ProbeAsync(DestinationState state, CancellationToken cancellationToken);

    Task<DiskDigest> DigestAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken);

    Task<MemoryDigest> LoadedAsync(DestinationState state, CancellationToken cancellationToken);

    /// <summary>After this the source cannot write to the destination's disks.</summary>
    Task CloseExportsAsync(DestinationState state, CancellationToken cancellationToken);

    Task<DateTimeOffset> RunAsync(DestinationState state, CancellationToken cancellationToken);

    /// <summary>Gives up what only the transfer needed.</summary>
    Task ReleaseAsync(DestinationState state, CancellationToken cancellationToken);
}

/// <summary>One migration's records, durable when the call returns. The ownership of the VM changes in the same step (see <see cref="Ownership"/>).</summary>
public interface IJournal<TRecord>
{
    void Append(string migration, TRecord record);
}

public sealed record DiskProgress(string Device, long TotalBytes, long CopiedBytes, long SentBytes, bool IsSynced, bool IsStalled);

/// <param name="Fraction">0 to 1 over the whole migration.</param>
public sealed record MigrationProgress(string Phase, double Fraction, bool IsCancellable, IReadOnlyList<DiskProgress> Disks);
