// What must be true, seen from outside: which domains execute, what is on the disks, what the guest was promised. It knows no record and no state of the
// product (research: xenopsd.md 10.4; users-and-trust.md 4.2).
namespace Simulation;

internal sealed class Oracle(World world)
{
    private readonly int[][] acknowledged = Blank(world);
    private readonly int[][] flushed = Blank(world);
    private int[][] atHandOver = Blank(world);
    private DateTimeOffset? heldUntil;
    private bool sourceReturned;

    /// <summary>The destination's copy has executed, and what the guest was told since then is known to it alone.</summary>
    public bool DestinationRan { get; private set; }

    /// <summary>An operator called the VM back, or declared a destination dead that is dead.</summary>
    public bool SourceMayReturn { get; set; }

    public bool WasBooted { get; private set; }

    public void Check()
    {
        if (world.A.Domain == DomainState.Running && world.B.Domain == DomainState.Running)
            world.Violation("two copies of the VM execute");
    }

    public void Acknowledge(int disk, int block, int version) => acknowledged[disk][block] = version;

    public void Flushed(int disk) => flushed[disk] = [.. acknowledged[disk]];

    public void HoldIsUntil(DateTimeOffset until) => heldUntil ??= until;

    public void SourceRuns(bool isBoot)
    {
        if (DestinationRan && !SourceMayReturn)
            world.Violation("the source's copy runs again although the destination's has run");
        if (DestinationRan)
        {
            for (int d = 0; d < acknowledged.Length; d++)
            {
                atHandOver[d].CopyTo(acknowledged[d], 0);
                flushed[d] = [.. atHandOver[d]];
            }

            sourceReturned = true;
            DestinationRan = false;
        }

        for (int d = 0; d < acknowledged.Length; d++)
            Compare("source", d, world.A.Disks[d].Now, isBoot ? flushed[d] : acknowledged[d], isAtLeast: true); // More is there of a write under way.
        Check();
    }

    public void DestinationRuns(bool isBoot)
    {
        if (sourceReturned)
            world.Violation("the destination's copy runs after the VM was brought back");
        if (world.A.Domain is DomainState.Running or DomainState.Paused)
            world.Violation($"the destination's copy runs while the source's is {world.A.Domain} and could run on");
        if (world.B.HasOpenExports)
            world.Violation("the destination's copy runs while the source could write to its disks");
        if (DestinationRan && !isBoot)
            world.Violation("the memory of the hand-over runs a second time");
        bool isFirst = !DestinationRan;
        WasBooted |= isBoot;
        if (isFirst && !isBoot && !world.IsPromoted && world.B.Memory != world.A.Memory)
            world.Violation("the destination runs from another memory than the source stopped with");
        for (int d = 0; d < acknowledged.Length; d++)
        {
            BlockDisk disk = world.B.Disks[world.Plan.Disks[d].Device];
            if (world.IsPromoted && isFirst)
                disk.Now.CopyTo(acknowledged[d], 0); // The source is dead: what is here is the best there is.
            Compare("destination", d, disk.Now, isFirst ? acknowledged[d] : flushed[d], isAtLeast: isBoot && !isFirst);
            if (isFirst && !world.IsPromoted)
                Compare("destination's platters", d, disk.Durable, acknowledged[d], isAtLeast: false);
            if (isFirst)
                flushed[d] = [.. acknowledged[d]];
        }

        if (isFirst)
            atHandOver = [.. acknowledged.Select(static d => (int[])d.Clone())];
        DestinationRan = true;
        Check();
    }

    public void SourceDestroys(string what)
    {
        if (!DestinationRan)
            world.Violation($"the source destroys {what} before the destination ran");
        if (world.B.Disks.Count != world.Plan.Disks.Count && !world.HostBIsDead)
            world.Violation($"the source destroys {what} and the destination has no disks");
        if (what != "the domain" && world.Plan.Options.KeepSourceFor > TimeSpan.Zero && (heldUntil is null || world.ClockA < heldUntil))
            world.Violation($"the source destroys {what} although it was to be kept until {heldUntil:T}");
    }

    public void DestinationDestroys(string device)
    {
        if (DestinationRan && !SourceMayReturn)
            world.Violation($"the destination destroys disk {device} of the VM that it has run");
        if (world.A.Disks.Any(static d => d.IsDestroyed))
            world.Violation($"the destination destroys disk {device} and the source's are gone");
    }

    private void Compare(string where, int disk, int[] content, int[] promised, bool isAtLeast)
    {
        for (int b = 0; b < BlockDisk.Blocks; b++)
        {
            if (isAtLeast ? content[b] < promised[b] : content[b] != promised[b])
                world.Violation($"{where}, disk {disk}, block {b}: write {promised[b]} was promised, {content[b]} is there");
            acknowledged[disk][b] = content[b];
        }
    }

    private static int[][] Blank(World world) => [.. world.Plan.Disks.Select(static _ => new int[BlockDisk.Blocks])];
}
