namespace Simulation;

/// <summary>Writes numbered blocks while it runs, wherever it runs, and sometimes flushes; what it was answered is what it may rely on.</summary>
internal sealed class Guest(World world)
{
    private static readonly TimeSpan Busy = TimeSpan.FromSeconds(12);

    public int Writes { get; private set; }

    public void Start()
    {
        for (int d = 0; d < world.Plan.Disks.Count; d++)
        {
            for (int b = 0; b < BlockDisk.Blocks; b += 1 + world.Rng.Below(2))
            {
                world.A.Disks[d].Now[b] = world.NextVersion();
                world.Oracle.Acknowledge(d, b, world.A.Disks[d].Now[b]);
            }

            world.A.Disks[d].Flush();
            world.Oracle.Flushed(d);
        }

        Next();
    }

    private void Next() => world.Scheduler.After(world.Scheduler.Now < Busy ? world.Rng.Ms(5, 120) : world.Rng.Ms(2000, 9000), () =>
    {
        Tick();
        Next();
    });

    public void Tick()
    {
        int d = world.Rng.Below(world.Plan.Disks.Count), b = world.Rng.Below(BlockDisk.Blocks);
        bool isFlush = world.Rng.OneIn(5);
        if (world.A.Domain == DomainState.Running)
            AtSource(d, b, isFlush);
        else if (world.B.Domain == DomainState.Running)
            AtDestination(d, b, isFlush);
    }

    private void AtSource(int d, int b, bool isFlush)
    {
        SourceMachine source = world.A;
        if (isFlush)
        {
            // What was acknowledged before it is durable; writes under way are not its business.
            world.A.Disks[d].Flush();
            world.Oracle.Flushed(d);
            return;
        }

        Mirror? mirror = source.Mirrors[d];
        if (mirror is not null && mirror.Busy[b])
            return; // A chunk is never copied and written at once.
        int version = world.NextVersion();
        Writes++;
        source.Memory = version;
        source.Disks[d].Now[b] = version;
        if (mirror is null)
        {
            world.Oracle.Acknowledge(d, b, version);
            return;
        }

        source.Outstanding++;
        bool isOver = false;
        int boots = source.Boots;
        mirror.Write(b, version, () =>
        {
            if (isOver || boots != source.Boots)
                return;
            isOver = true;
            world.Oracle.Acknowledge(d, b, version);
            if (--source.Outstanding == 0)
                source.Drained();
        });
    }

    private void AtDestination(int d, int b, bool isFlush)
    {
        BlockDisk disk = world.B.Disks[world.Plan.Disks[d].Device];
        if (isFlush)
        {
            disk.Flush();
            world.Oracle.Flushed(d);
            return;
        }

        int version = world.NextVersion();
        Writes++;
        world.B.Memory = version;
        disk.Now[b] = version;
        world.Oracle.Acknowledge(d, b, version);
    }
}
