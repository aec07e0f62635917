// What must be true when everything works again and nothing is under way.
using Migration;

namespace Simulation;

internal static class Rest
{
    public static bool IsOver(World world)
    {
        bool isSourceOver = world.HostAIsDead || (world.SourceDaemon.Now is not null && (world.SourceDaemon.Records.Count == 0 || world.SourceDaemon.IsClosed));
        bool isDestinationOver = world.HostBIsDead || (world.DestinationDaemon.Now is not null
            && (world.DestinationDaemon.IsClosed || (world.HostAIsDead && world.DestinationDaemon.State is { IsOwner: true, IsRunning: true })));
        // A destination that died for ever after it had accepted cannot confirm; the source keeps its disks and asks on.
        isSourceOver |= world.HostBIsDead && world.SourceDaemon.Records.Any(static r => r is SourceRecord.Accepted);
        return isSourceOver && isDestinationOver && !(world.HostAIsDead && world.HostBIsDead && world.IsChaos);
    }

    public static string Where(World world) =>
        $"source {Last(world.SourceDaemon.Records)}{(world.SourceDaemon.Now is null ? " (down)" : "")} [{world.SourceDaemon.Runner?.Waiting}], "
        + $"destination {Last(world.DestinationDaemon.Records)}{(world.DestinationDaemon.Now is null ? " (down)" : "")}";

    public static string Outcome(World world) =>
        world.HostAIsDead || world.HostBIsDead ? (world.IsPromoted && world.B.Domain == DomainState.Running ? "promoted at the destination"
            : world.SourceDaemon.Records.Any(static r => r is SourceRecord.PeerDeclaredDead) ? "taken back from a dead destination"
            : "a host was lost")
        : world.Operator.HasRecalled ? "recalled"
        : world.Oracle.DestinationRan ? (world.Oracle.WasBooted ? "rebooted at destination" : "moved")
        : "stayed";

    public static void Check(World world)
    {
        bool isSource = !world.HostAIsDead && world.SourceDaemon.Ownership.Owner == Owner.Here;
        bool isDestination = !world.HostBIsDead && world.DestinationDaemon.Ownership?.Owner == Owner.Here;
        if (isSource && isDestination)
            world.Violation("both pools own the VM");
        if (!isSource && !isDestination && !world.HostAIsDead && !world.HostBIsDead)
            world.Violation("nobody owns the VM");
        bool isRunning = world.A.Domain == DomainState.Running || world.B.Domain == DomainState.Running;
        if (!isRunning && !world.GuestWasEnded)
            world.Violation($"the guest does not run, and nobody ended it: {world.A.Domain} at the source, {world.B.Domain} at the destination");
        world.Operator.Start(isAtSource: !isSource);
        world.Operator.Start(isAtSource: isSource);
        if (isSource && world.A.Domain != DomainState.Running)
            world.Violation($"the source owns the VM and cannot run it ({world.A.Domain})");
        if (isDestination && world.B.Domain != DomainState.Running)
            world.Violation($"the destination owns the VM and cannot run it ({world.B.Domain})");
        if (isSource && !world.HostBIsDead)
            SourceHasIt(world);
        if (isDestination && !world.HostAIsDead)
            DestinationHasIt(world);
        if (!world.HasFlipped && world.SourceDaemon.Failure?.Contains("contents differ, nothing was handed over: disk", StringComparison.Ordinal) == true)
            world.Violation($"two disks differ and nobody damaged one: {world.SourceDaemon.Failure}");
        for (int i = 0; i < 20; i++)
            world.Guest.Tick();
        world.Oracle.Check();
    }

    private static void SourceHasIt(World world)
    {
        if (world.A.Mirrors.Any(static m => m is not null))
            world.Violation("a mirror is left at the source");
        if (world.A.Disks.Any(static d => d.IsHeld || d.IsDestroyed))
            world.Violation("a disk of the source is held or gone");
        if (world.B.HasTransferLeftovers || (world.B.HasLeftovers && !world.Operator.HasRecalled))
            world.Violation($"something is left at the destination: {world.B.Leftovers}");
    }

    private static void DestinationHasIt(World world)
    {
        if (world.B.HasTransferLeftovers)
            world.Violation($"something of the transfer is left at the destination: {world.B.Leftovers}");
        if (world.A.HasVm || world.A.Domain != DomainState.None || world.A.Disks.Any(static d => !d.IsDestroyed) || world.A.Mirrors.Any(static m => m is not null))
            world.Violation("something of the VM is left at the source");
    }

    private static string Last<T>(List<T> records) => records.Count == 0 ? "nothing" : records[^1]!.GetType().Name;
}
