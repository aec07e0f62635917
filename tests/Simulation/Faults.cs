using Migration;

namespace Simulation;

/// <summary>What was done to a world; sums over worlds.</summary>
internal sealed class Faults
{
    public long Crashes { get; set; }

    /// <summary>Crashes of a process that was recovering from one, or while another was down.</summary>
    public long Compound { get; set; }

    public long Partitions { get; set; }

    public long Cuts { get; set; }

    public long Drops { get; set; }

    public long Duplicates { get; set; }

    public long Delays { get; set; }

    public long DiskErrors { get; set; }

    public long Flips { get; set; }

    public long CallErrors { get; set; }

    public long JournalFull { get; set; }

    public long ClockJumps { get; set; }

    public long All => Crashes + Partitions + Cuts + Drops + Duplicates + Delays + DiskErrors + Flips + CallErrors + JournalFull + ClockJumps;

    public void Add(Faults other)
    {
        Crashes += other.Crashes;
        Compound += other.Compound;
        Partitions += other.Partitions;
        Cuts += other.Cuts;
        Drops += other.Drops;
        Duplicates += other.Duplicates;
        Delays += other.Delays;
        DiskErrors += other.DiskErrors;
        Flips += other.Flips;
        CallErrors += other.CallErrors;
        JournalFull += other.JournalFull;
        ClockJumps += other.ClockJumps;
    }
}

/// <summary>Draws from the seed what goes wrong in a world, and when.</summary>
internal sealed class Misfortune(World world)
{
    private Rng Rng => world.Rng;

    public void Plan()
    {
        int count = Rng.OneIn(3) ? Rng.Below(3) : 2 + Rng.Below(10);
        for (int i = 0; i < count; i++)
            world.Scheduler.After(When(), Strike);
        if (Rng.OneIn(25))
            world.FlipAt = (Rng.Below(world.Plan.Disks.Count), Rng.Below(BlockDisk.Blocks));
        if (Rng.OneIn(40))
            world.Scheduler.After(Rng.Ms(500, 8000), world.KillHostAForever);
        else if (Rng.OneIn(40))
            world.Scheduler.After(Rng.Ms(500, 8000), world.KillHostBForever);
        else if (Rng.OneIn(50))
            world.OnRecord = DiesInHandOver;
    }

    /// <summary>A host that never comes back just where an operator's word is what is left.</summary>
    private void DiesInHandOver(object record)
    {
        if (world.IsChaos && record is SourceRecord.Sent && world.Seed % 2 == 0)
            world.KillHostAForever();
        else if (world.IsChaos && record is SourceRecord.Frozen)
            world.KillHostBForever();
    }

    /// <summary>Most of them while there is something to break.</summary>
    private TimeSpan When() => Rng.Below(5) switch
    {
        0 => Rng.Ms(0, 30_000),
        1 => Rng.Ms(0, 600),
        _ => Rng.Ms(0, 7000),
    };

    private void Strike()
    {
        if (!world.IsChaos)
            return;
        if (world.IsSheltered)
        {
            world.Scheduler.After(When(), Strike);
            return;
        }

        switch (Rng.Below(50))
        {
            case < 12:
                world.CrashDaemonA();
                break;
            case < 24:
                world.CrashDaemonB();
                break;
            case < 29:
                world.CrashHostB();
                break;
            case < 30 when Rng.OneIn(2):
                world.CrashHostA();
                break;
            case < 31:
                world.Crash("the destination's domain", world.B.CrashDomain);
                break;
            case < 33:
                world.Crash("the destination's data path", world.B.CrashDataPath);
                break;
            case < 34 when Rng.OneIn(3):
                world.Crash("the guest", world.GuestDies);
                break;
            case < 36:
                world.CutDataPath();
                break;
            case < 37:
                world.Crash("the source's data path", world.A.RestartDataPath);
                break;
            case < 45:
                Partition();
                break;
            case < 47:
                world.FillJournal(Rng.OneIn(2), Rng.Ms(200, 6000));
                break;
            default:
                world.JumpClock(Rng.OneIn(2), Rng.Ms(0, 600_000) - TimeSpan.FromMinutes(5));
                break;
        }
    }

    private void Partition()
    {
        TimeSpan length = Rng.OneIn(6) ? Rng.Ms(10_000, 200_000) : Rng.Ms(200, 9000);
        switch (Rng.Below(world.Witness is null ? 3 : 8))
        {
            case < 3:
                world.Partition(world.Network.Peers, length);
                break;
            case < 5:
                world.Partition(world.Network.SourceWitness, length);
                break;
            case < 7:
                world.Partition(world.Network.DestinationWitness, length);
                break;
            default:
                world.Crash("the witness", () => world.StopWitness(length));
                break;
        }
    }
}
