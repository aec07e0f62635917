// The saga against a world in memory: every call that can fail does, before and after its work, and both processes die after every record.
using Migration;
using Platform;
using Support;

namespace Unit.MigrationTests;

public class SagaTests
{
    [Fact]
    public async Task A_migration_without_trouble_ends_with_a_receipt_one_owner_and_nothing_left()
    {
        MigrationWorld world = new();
        Receipt receipt = await RunAsync(world);

        Assert.Equal("vm1", receipt.Vm);
        Assert.Equal(8, receipt.Epoch);
        AssertMoved(world);
        Assert.IsType<SourceRecord.Closed>(world.SourceRecords[^1]);
    }

    [Fact]
    public async Task Each_thing_is_named_in_the_journal_before_it_is_made()
    {
        MigrationWorld world = new();
        await RunAsync(world);

        string[] story = [.. world.SourceRecords.Select(static r => r.GetType().Name)];
        Assert.Equal(
            [
                "Begun", "Preparing", "Prepared", "MirrorStarting", "MirrorStarted", "MirrorStarting", "MirrorStarted", "MirrorsReady", "Precopying",
                "Precopied", "PreSwitch", "Stopping", "Stopped", "MirrorsFinished", "Sent", "Granting", "Frozen", "Accepted", "ReceiptStored",
                "Released", "Released", "Released", "Closed",
            ],
            story);
        int making = 0;
        foreach (DestinationRecord record in world.DestinationRecords)
        {
            if (record is DestinationRecord.Making)
                making++;
            if (record is DestinationRecord.Made)
                Assert.Equal(0, --making);
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Whatever_call_fails_the_vm_has_one_owner_and_nothing_is_left(bool failAfter)
    {
        MigrationWorld clean = new();
        await RunAsync(clean);
        int moved = 0, stayed = 0;
        for (int call = 1; call <= clean.Calls; call++)
        {
            MigrationWorld world = new() { FailCall = call, FailAfter = failAfter };
            try
            {
                await RunAsync(world);
                AssertMoved(world);
                moved++;
            }
            catch (MigrationException)
            {
                AssertStayed(world);
                stayed++;
            }

            Assert.False(world.EverRanTwice, $"call {call}");
        }

        Assert.True(stayed > 20 && moved > 3, $"{stayed} stayed, {moved} moved");
    }

    [Fact]
    public async Task Whatever_record_is_the_last_before_both_sides_die_the_job_ends_after_a_restart()
    {
        MigrationWorld clean = new();
        await RunAsync(clean);
        int moved = 0, stayed = 0;
        for (int record = 1; record <= clean.Records; record++)
        {
            MigrationWorld world = new() { CrashAtRecord = record };
            await Assert.ThrowsAsync<InvariantException>(() => RunAsync(world));
            if (world.SourceRecords.Count == 0 || world.SourceRecords[^1] is SourceRecord.Closed)
                continue;
            try
            {
                await RestartAsync(world);
                AssertMoved(world);
                moved++;
            }
            catch (MigrationException)
            {
                AssertStayed(world);
                stayed++;
            }

            Assert.False(world.EverRanTwice, $"record {record}");
        }

        Assert.True(stayed > 20 && moved > 8, $"{stayed} stayed, {moved} moved");
    }

    [Fact]
    public async Task A_cancel_before_the_switch_over_unwinds_and_the_guest_runs_on()
    {
        MigrationWorld world = new();
        using CancellationTokenSource cancel = new();
        await cancel.CancelAsync();

        MigrationException e = await Assert.ThrowsAsync<MigrationException>(() => RunAsync(world, cancel.Token));
        Assert.Equal("TASK_CANCELLED", e.Code);
        AssertStayed(world);
    }

    [Fact]
    public async Task A_source_disk_that_will_not_go_does_not_make_a_migration_that_happened_a_failure()
    {
        MigrationWorld world = new() { SourceDisksStay = true };
        SourceRunner source = Begin(world);
        using CancellationTokenSource shutdown = new();
        Task<Receipt> run = source.RunAsync(CancellationToken.None, shutdown.Token);

        Assert.Contains("ReleaseDisk", await source.Stuck.WaitAsync(TimeSpan.FromSeconds(30)));
        Assert.True(world.DestinationRuns);
        Assert.NotNull(source.State.Last<SourceRecord.ReceiptStored>());
        world.SourceDisksStay = false;
        await run.WaitAsync(TimeSpan.FromSeconds(30)); // It was tried on and on.
        AssertMoved(world);
        world.Destination!.Dispose();
    }

    [Fact]
    public async Task What_the_destination_cannot_take_away_is_told()
    {
        MigrationWorld world = new() { DestinationKeeps = "Disk xvda", FailCall = 12 };

        MigrationException e = await Assert.ThrowsAsync<MigrationException>(() => RunAsync(world));
        Assert.Contains("Disk xvda", e.Message);
        Assert.True(world.SourceRuns);
        Assert.Equal(["Disk xvda"], world.AtDestination);
    }

    [Fact]
    public void A_grant_is_refused_when_a_digest_differs_or_the_epoch_is_another()
    {
        MigrationPlan plan = new MigrationWorld().Plan;
        ContentDigests digests = new(new MemoryDigest("m", 1), [new DiskDigest("xvda", "r", 5)]);
        DestinationState loaded = new([new DestinationRecord.Claimed(plan, default), new DestinationRecord.Loaded(digests)]);

        Assert.Null(DestinationSaga.WhyNotAccept(loaded, 8, digests));
        Assert.Contains("epoch", DestinationSaga.WhyNotAccept(loaded, 9, digests));
        ContentDigests other = digests with { Disks = [new DiskDigest("xvda", "q", 5)] };
        Assert.Contains("disk xvda", DestinationSaga.WhyNotAccept(loaded, 8, other));
        Assert.Contains("not loaded", DestinationSaga.WhyNotAccept(new DestinationState([new DestinationRecord.Claimed(plan, default)]), 8, digests));
    }

    private static SourceRunner Begin(MigrationWorld world)
    {
        ((IJournal<SourceRecord>)world).Append("m1", new SourceRecord.Begun(world.Plan, DateTimeOffset.UnixEpoch));
        ((IJournal<DestinationRecord>)world).Append("m1", new DestinationRecord.Claimed(world.Plan, DateTimeOffset.UnixEpoch));
        world.Destination = new(new DestinationState(world.DestinationRecords.ToList()), world, world, TimeProvider.System);
        return new SourceRunner(new SourceState(world.SourceRecords.ToList()), world, world, world, world, TimeProvider.System, static _ => { });
    }

    private static Task<Receipt> RunAsync(MigrationWorld world, CancellationToken cancel = default)
    {
        SourceRecord begun = new SourceRecord.Begun(world.Plan, DateTimeOffset.UnixEpoch);
        DestinationRecord claimed = new DestinationRecord.Claimed(world.Plan, DateTimeOffset.UnixEpoch);
        ((IJournal<SourceRecord>)world).Append("m1", begun);
        ((IJournal<DestinationRecord>)world).Append("m1", claimed);
        return DriveAsync(world, cancel);
    }

    /// <summary>What the daemon does with an unfinished journal: before the grant it unwinds, after it the answer decides.</summary>
    private static Task<Receipt> RestartAsync(MigrationWorld world)
    {
        world.CrashAtRecord = 0;
        if (world.DestinationRecords.Count == 0)
            ((IJournal<DestinationRecord>)world).Append("m1", new DestinationRecord.Claimed(world.Plan, DateTimeOffset.UnixEpoch));
        SourceState state = new(world.SourceRecords.ToList());
        if (SourceSaga.AfterRestart(state) is { } record)
            ((IJournal<SourceRecord>)world).Append("m1", record);
        return DriveAsync(world, CancellationToken.None);
    }

    private static async Task<Receipt> DriveAsync(MigrationWorld world, CancellationToken cancel)
    {
        using DestinationRunner destination = new(new DestinationState(world.DestinationRecords.ToList()), world, world, TimeProvider.System);
        world.Destination = destination;
        SourceRunner source = new(new SourceState(world.SourceRecords.ToList()), world, world, world, world, TimeProvider.System, static _ => { });
        return await source.RunAsync(cancel, CancellationToken.None);
    }

    private static void AssertMoved(MigrationWorld world)
    {
        Assert.True(world.DestinationRuns);
        Assert.False(world.SourceRuns);
        Assert.False(world.SourceExists);
        Assert.Empty(world.SourceDisks);
        Assert.Empty(world.Mirrors);
        Assert.Equal(["Disk xvda", "Disk xvdb", "Domain", "Vm"], world.AtDestination.Order());
    }

    private static void AssertStayed(MigrationWorld world)
    {
        Assert.True(world.SourceRuns);
        Assert.True(world.SourceExists);
        Assert.False(world.DestinationRuns);
        Assert.Equal(2, world.SourceDisks.Count);
        Assert.Empty(world.Mirrors);
        Assert.Empty(world.AtDestination);
    }
}
