// The saga against a world in memory: every call that can fail does, before and after its work, and both processes die after every record.
// Time is virtual: what waits between two attempts costs nothing. Whole worlds with everything that can go wrong are tests/Simulation's.
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
                "Released", "Confirmed", "Released", "Released", "Closed",
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
    [InlineData(false, true)]
    [InlineData(true, true)]
    [InlineData(false, false)]
    [InlineData(true, false)]
    public async Task Whatever_call_fails_the_vm_has_one_owner_and_nothing_is_left(bool failAfter, bool isPassing)
    {
        MigrationWorld clean = new();
        await RunAsync(clean);
        int moved = 0, stayed = 0;
        for (int call = 1; call <= clean.Calls; call++)
        {
            MigrationWorld world = new() { FailCall = call, FailAfter = failAfter, FailForGood = !isPassing };
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

        Assert.True(isPassing ? moved > 3 * stayed : stayed > 20 && moved > 3, $"{stayed} stayed, {moved} moved");
    }

    [Fact]
    public async Task Whatever_record_is_the_last_before_both_sides_die_the_job_goes_on_after_a_restart()
    {
        MigrationWorld clean = new();
        await RunAsync(clean);
        int moved = 0;
        for (int record = 1; record <= clean.Records; record++)
        {
            MigrationWorld world = new() { CrashAtRecord = record };
            await Assert.ThrowsAsync<InvariantException>(() => RunAsync(world));
            if (world.SourceRecords.Count == 0 || world.SourceRecords[^1] is SourceRecord.Closed)
                continue;
            await RestartAsync(world);
            AssertMoved(world);
            moved++;
            Assert.False(world.EverRanTwice, $"record {record}");
        }

        Assert.True(moved > 40, $"{moved} moved");
    }

    [Fact]
    public async Task A_guest_that_was_stopped_runs_on_before_a_new_attempt_begins()
    {
        MigrationWorld clean = new();
        await RunAsync(clean);
        int stopped = clean.RecordsBefore<SourceRecord.Stopped>() + 1;
        MigrationWorld world = new() { CrashAtRecord = stopped };
        await Assert.ThrowsAsync<InvariantException>(() => RunAsync(world));
        Assert.False(world.SourceRuns);
        await RestartAsync(world);

        string[] after = [.. world.SourceRecords.Select(static r => r.GetType().Name).SkipWhile(static n => n != "Interrupted").Take(4)];
        Assert.Equal(["Interrupted", "Resumed", "Preparing", "Prepared"], after);
        AssertMoved(world);
    }

    [Fact]
    public async Task A_destination_that_is_never_reached_again_costs_the_window_and_nothing_else()
    {
        MigrationWorld world = new(new MigrationOptions { ResumeWindow = TimeSpan.FromMinutes(1) }) { UnreachableFromCall = 12 };

        MigrationException e = await Assert.ThrowsAsync<MigrationException>(() => RunAsync(world));
        Assert.Contains("unreachable", e.Message);
        Assert.True(world.SourceRuns);
        Assert.Equal(2, world.SourceDisks.Count);
        SourceRecord.Interrupted first = world.SourceRecords.OfType<SourceRecord.Interrupted>().First();
        SourceRecord.Aborting end = world.SourceRecords.OfType<SourceRecord.Aborting>().Single();
        Assert.InRange(end.At - first.At, world.Plan.Options.ResumeWindow, world.Plan.Options.ResumeWindow + TimeSpan.FromSeconds(10));
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
    public void A_source_disk_that_will_not_go_does_not_make_a_migration_that_happened_a_failure() => SeededContext.Run(1, async context =>
    {
        MigrationWorld world = new() { SourceDisksStay = true };
        SourceRunner source = Begin(world, context.Time);
        using CancellationTokenSource shutdown = new();
        Task<Receipt> run = source.RunAsync(CancellationToken.None, shutdown.Token);

        Assert.Contains("ReleaseDisk", await source.Settled);
        Assert.True(world.DestinationRuns);
        Assert.NotNull(source.State.Last<SourceRecord.ReceiptStored>());
        world.SourceDisksStay = false;
        await run; // It was tried on and on.
        AssertMoved(world);
        world.Destination!.Dispose();
    });

    [Fact]
    public void Kept_disks_wait_for_their_time_and_can_bring_the_vm_back_until_then() => SeededContext.Run(1, async context =>
    {
        foreach (bool isRecalled in new[] { false, true })
        {
            MigrationWorld world = new(new MigrationOptions { KeepSourceFor = TimeSpan.FromMinutes(2) });
            SourceRunner source = Begin(world, context.Time);
            DateTimeOffset start = context.Time.GetUtcNow();
            Task<Receipt> run = source.RunAsync(CancellationToken.None, CancellationToken.None);

            Assert.Null(await source.Settled);
            Assert.Equal(["d1", "d2"], world.HeldDisks.Order());
            Assert.False(world.SourceExists);
            if (isRecalled)
            {
                world.StopDestination();
                await source.RecallAsync("ann", "", CancellationToken.None);
            }

            await run;
            Assert.Equal(isRecalled, world.SourceExists);
            Assert.Equal(isRecalled ? 2 : 0, world.SourceDisks.Count);
            Assert.Equal(isRecalled, context.Time.GetUtcNow() - start < TimeSpan.FromMinutes(1));
            Assert.Equal(isRecalled, world.DestinationRecords[^1] is DestinationRecord.Relinquished { Epoch: 9 });
            await Assert.ThrowsAsync<MigrationException>(() => source.RecallAsync("ann", "", CancellationToken.None));
            world.Destination!.Dispose();
        }
    });

    [Fact]
    public void A_destination_that_runs_the_vm_does_not_give_it_back() => SeededContext.Run(1, async context =>
    {
        MigrationWorld world = new(new MigrationOptions { KeepSourceFor = TimeSpan.FromMinutes(2) });
        SourceRunner source = Begin(world, context.Time);
        Task<Receipt> run = source.RunAsync(CancellationToken.None, CancellationToken.None);
        await source.Settled;

        await Assert.ThrowsAsync<MigrationException>(() => source.RecallAsync("ann", "it is dead, believe me", CancellationToken.None));
        await run;
        AssertMoved(world);
        world.Destination!.Dispose();
    });

    [Fact]
    public async Task What_the_destination_cannot_take_away_is_told()
    {
        MigrationWorld world = new() { DestinationKeeps = "Disk xvda", FailCall = 12, FailForGood = true };

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

    private static SourceRunner Begin(MigrationWorld world, TimeProvider time)
    {
        if (world.SourceRecords.Count == 0)
            ((IJournal<SourceRecord>)world).Append("m1", new SourceRecord.Begun(world.Plan, DateTimeOffset.UnixEpoch));
        if (world.DestinationRecords.Count == 0)
            ((IJournal<DestinationRecord>)world).Append("m1", new DestinationRecord.Claimed(world.Plan, DateTimeOffset.UnixEpoch));
        world.Destination = new(new DestinationState(world.DestinationRecords.ToList()), world, world, null, time);
        return new SourceRunner(new SourceState(world.SourceRecords.ToList()), world, world, world, world, null, time, static _ => { });
    }

    private static Task<Receipt> RunAsync(MigrationWorld world, CancellationToken cancel = default) => InVirtualTimeAsync(async time =>
    {
        using SourceRunner source = Begin(world, time);
        try
        {
            return await source.RunAsync(cancel, CancellationToken.None);
        }
        finally
        {
            world.Destination!.Dispose();
        }
    });

    /// <summary>What the daemons do with their unfinished journals.</summary>
    private static Task<Receipt> RestartAsync(MigrationWorld world) => InVirtualTimeAsync(async time =>
    {
        world.CrashAtRecord = 0;
        if (SourceSaga.AfterRestart(new SourceState(world.SourceRecords.ToList()), time.GetUtcNow()) is { } record)
            ((IJournal<SourceRecord>)world).Append("m1", record);
        using SourceRunner source = Begin(world, time);
        await world.Destination!.RecoverAsync(CancellationToken.None);
        Receipt receipt = await source.RunAsync(CancellationToken.None, CancellationToken.None);
        world.Destination!.Dispose();
        return receipt;
    });

    private static Task<Receipt> InVirtualTimeAsync(Func<TimeProvider, Task<Receipt>> body)
    {
        TaskCompletionSource<Receipt> result = new();
        SeededContext.Run(1, async context =>
        {
            try
            {
                result.SetResult(await body(context.Time));
            }
            catch (Exception e)
            {
                result.SetException(e);
            }
        });
        return result.Task;
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
