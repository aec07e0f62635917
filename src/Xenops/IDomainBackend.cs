// The seam behind which hypervisors differ. A backend makes guests that do not run yet; everything else (disks, streams, locks, states)
// is the same for all of them.
using Platform;

namespace Xenops;

/// <summary>An open disk of a guest. Whoever opened it closes it.</summary>
public sealed record GuestDisk(Vbd Vbd, IBlockDevice Device);

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

public interface IDomainBackend
{
    /// <summary>A freshly booted guest, paused.</summary>
    /// <exception cref="XenopsException">The record or a disk cannot be served.</exception>
    IGuest Boot(Vm vm, IReadOnlyList<GuestDisk> disks);

    /// <summary>The guest that a memory image holds, paused.</summary>
    /// <exception cref="XenopsException">The image, the device state, the record and the disks do not belong together.</exception>
    IGuest Restore(Vm vm, GuestMemory memory, ReadOnlyMemory<byte> deviceState, IReadOnlyList<GuestDisk> disks);
}

/// <summary>
/// A guest of one backend. Calls do not overlap, except <see cref="Statistics"/>. Disposing powers it off at once; its disks stay open.
/// </summary>
public interface IGuest : IAsyncDisposable
{
    GuestMemory Memory { get; }

    /// <summary>Null while it is well.</summary>
    string? PanicReason { get; }

    GuestStatistics Statistics { get; }

    /// <summary>Lets the vCPUs run.</summary>
    /// <returns>Completes when the first step was done.</returns>
    Task Run();

    /// <summary>Stops the vCPUs and waits for the guest's I/O. False when it did not drain in time: then the guest runs on.</summary>
    Task<bool> TryPauseAsync(TimeSpan drainDeadline);

    /// <summary>The guest shuts itself down in good order. It is paused afterwards, also when this fails.</summary>
    Task ShutDownAsync(CancellationToken cancellationToken);

    /// <summary>What is not in memory. Only of a paused guest.</summary>
    ReadOnlyMemory<byte> SaveDeviceState();

    /// <summary>Gives a paused guest other handles of the same disks.</summary>
    void ReplaceDisks(IReadOnlyList<GuestDisk> disks);
}
