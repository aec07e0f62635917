// The seam behind which hypervisors differ. A backend makes guests that do not run yet; everything else (datapaths, streams, locks, states)
// is the same for all of them. A guest opens its disks itself and outlives xenopsd where its backend gives it a process of its own.
namespace Xenops;

/// <summary>A disk of a guest and where it is served.</summary>
public sealed record GuestDisk(Vbd Vbd, string Uri);

/// <summary>What a guest tells of itself; kept in its memory, so it moves with it.</summary>
public sealed record GuestStatistics(
    long WritesIssued,
    long WritesAcknowledged,
    long IoErrors,
    double LongestWriteMs,
    long ReadsVerified,
    long PagesDirtied,
    long Boots,
    long Panics,
    string? PanicReason);

public enum GuestPhase
{
    /// <summary>Memory is there and may be being filled; there is nothing that could run.</summary>
    Created,

    /// <summary>The memory of another host's guest, complete and checked; it has not run here.</summary>
    Loaded,
    Running,
    Paused,

    /// <summary>Its disks are closed; it cannot run until it is given them back.</summary>
    Frozen,
}

/// <summary>What must be known again after xenopsd's death and must not outlive the guest is kept with the guest.</summary>
/// <param name="Migration">The one it came by, or is stopped for.</param>
/// <param name="Image">What was loaded.</param>
/// <param name="RunningAt">When its first step here was done, UTC.</param>
public sealed record GuestStatus(GuestPhase Phase, string? Migration = null, ImageSummary? Image = null, string? RunningAt = null);

public interface IDomainBackend
{
    /// <summary>A guest with empty memory and open disks.</summary>
    /// <param name="disks">In the order of the VM's record.</param>
    /// <exception cref="XenopsException">The record or a disk cannot be served.</exception>
    Task<IGuest> CreateAsync(Vm vm, IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken);

    /// <summary>The guests that an earlier xenopsd left alive, with their disks.</summary>
    Task<IReadOnlyList<GuestFound>> FindAsync(CancellationToken cancellationToken);
}

public sealed record GuestFound(Vm Vm, IReadOnlyList<GuestDisk> Disks, IGuest Guest);

/// <summary>
/// A guest of one backend. Calls do not overlap, except the properties. Disposing powers it off at once and closes its disks.
/// </summary>
public interface IGuest : IAsyncDisposable
{
    GuestMemory Memory { get; }

    GuestStatus Status { get; }

    /// <summary>Null while it is well.</summary>
    string? PanicReason { get; }

    GuestStatistics Statistics { get; }

    /// <summary>Lays a fresh guest out in its memory, paused.</summary>
    Task BootAsync(CancellationToken cancellationToken);

    /// <summary>Takes what is in its memory for the guest.</summary>
    /// <exception cref="XenopsException">The memory, the device state, the record and the disks do not belong together.</exception>
    Task LoadAsync(ReadOnlyMemory<byte> deviceState, string migration, ImageSummary image, CancellationToken cancellationToken);

    /// <summary>Lets the vCPUs run; completes when the first step was done.</summary>
    Task RunAsync(CancellationToken cancellationToken);

    /// <summary>Stops the vCPUs and waits for the guest's I/O. False when it did not drain in time: then the guest runs on.</summary>
    /// <param name="migration">The one that it is stopped for, if any.</param>
    Task<bool> TryPauseAsync(TimeSpan drainDeadline, string? migration, CancellationToken cancellationToken);

    /// <summary>The guest shuts itself down in good order and is paused afterwards. When it cannot, it runs on: nothing is half off.</summary>
    Task ShutDownAsync(CancellationToken cancellationToken);

    /// <summary>What is not in memory. Only of a paused guest.</summary>
    Task<ReadOnlyMemory<byte>> SaveDeviceStateAsync(CancellationToken cancellationToken);

    /// <summary>Makes a paused guest unable to run and to write.</summary>
    Task FreezeAsync(CancellationToken cancellationToken);

    /// <summary>Gives a frozen guest its disks, which may be served elsewhere now; it is paused.</summary>
    Task ThawAsync(IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken);
}
