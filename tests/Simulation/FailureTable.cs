// The failure table, row by row (research: xenopsd.md 10.6; docs/journeys/vm-migrate.md). Where a row gives a choice, the test says which one is ours:
// nearly everything before the grant is a new attempt over the same disks, not an abort. What is asserted besides: all that the oracle demands of any world.
using Migration;
using S = Migration.SourceRecord;
using D = Migration.DestinationRecord;

namespace Simulation;

public class FailureTable
{
    private static readonly TimeSpan Minute = TimeSpan.FromMinutes(1);

    private static IOException Io() => new("ordered to fail");

    [Fact]
    public void Failure_table_row_01_a_source_that_cannot_begin_has_begun_nothing()
    {
        Scenario s = new();
        s.World.FillJournal(isSource: true, TimeSpan.FromSeconds(1));
        Assert.Empty(s.Stays().SourceDaemon.Records);
        Assert.Equal(DomainState.Running, s.World.A.Domain);
    }

    [Fact]
    public void Failure_table_row_02_a_source_that_crashes_at_the_beginning_goes_on() => new Scenario().At<S.Begun>(static w => w.CrashDaemonA()).Moves();

    [Fact]
    public void Failure_table_row_03_an_error_while_preparing_takes_everything_away_again()
    {
        World w = new Scenario().Fails("make Vm", static () => Scenario.Error()).Stays();
        Assert.True(Has<D.Refused>(w) && !Has<S.Precopying>(w));
    }

    [Fact]
    public void Failure_table_row_04_a_prepared_destination_that_is_never_heard_from_is_given_up_by_both()
    {
        World w = new Scenario().At<D.Prepared>(static w => w.Partition(w.Network.Peers, 10 * Minute)).Stays();
        Assert.True(Has<S.Aborted>(w) && Has<D.Refused>(w));
    }

    [Fact]
    public void Failure_table_row_05_a_destination_that_crashes_while_preparing_finds_its_half_made_things_by_name()
    {
        World w = new Scenario().At<D.Making>(static w => w.CrashDaemonB()).Stays();
        Assert.True(Has<D.Refused>(w));
    }

    [Fact]
    public void Failure_table_row_06_a_source_that_crashes_while_preparing_asks_again() => new Scenario().At<S.Preparing>(static w => w.CrashDaemonA()).Moves();

    [Fact]
    public void Failure_table_row_07_a_cut_while_mirroring_goes_on_over_the_same_disks()
    {
        World w = new Scenario().At<S.MirrorStarted>(static w => w.CutDataPath()).Moves();
        Assert.Equal(2, w.DestinationDaemon.Records.Count(static r => r is D.Made { Resource.Kind: ResourceKind.Disk }));
        Assert.True(Has<D.Reattempt>(w));
    }

    [Fact]
    public void Failure_table_row_07_a_cut_while_a_mirror_is_being_started_goes_on_with_the_whole_disk()
    {
        World w = new Scenario().Fails("mirror xvdb", Io).Moves();
        Assert.True(Has<D.Reattempt>(w) && Has<S.Interrupted>(w));
    }

    [Fact]
    public void Failure_table_row_07_a_source_data_path_that_is_restarted_sends_the_whole_disk_again()
    {
        World w = new Scenario().At<S.MirrorsReady>(static w => w.A.RestartDataPath()).Moves();
        Assert.Equal(2, w.DestinationDaemon.Records.Count(static r => r is D.Made { Resource.Kind: ResourceKind.Disk }));
        Assert.True(Has<S.Interrupted>(w));
    }

    [Fact]
    public void Failure_table_row_08_a_destination_host_that_restarts_while_mirroring_offers_new_exports()
    {
        World w = new Scenario().At<S.MirrorStarted>(static _ => { }).At<S.MirrorStarted>(static w => w.CrashHostB()).Moves();
        Assert.Equal(2, w.DestinationDaemon.Records.Count(static r => r is D.Made { Resource.Kind: ResourceKind.Disk }));
    }

    [Fact]
    public void Failure_table_row_09_a_source_daemon_that_restarts_while_mirroring_finds_its_mirrors()
    {
        World w = new Scenario().At<S.MirrorStarted>(static w => w.CrashDaemonA()).Moves();
        Assert.False(Has<S.Interrupted>(w));
    }

    [Fact]
    public void Failure_table_row_10_a_source_host_that_dies_while_mirroring_keeps_its_vm_to_be_started()
    {
        World w = new Scenario().At<S.MirrorStarted>(static w => w.CrashHostA()).Stays();
        Assert.Equal(DomainState.Running, w.A.Domain); // Started by the operator at the end.
        Assert.False(w.B.HasLeftovers);
    }

    [Fact]
    public void Failure_table_row_11_a_target_that_is_full_ends_the_job_and_the_guest_hears_nothing()
    {
        World w = new Scenario().At<S.MirrorStarted>(static w => w.TargetError = "no space left on the target").Stays();
        Assert.True(Has<S.Aborted>(w) && !Has<S.Stopping>(w));
    }

    [Fact]
    public void Failure_table_row_12_a_mirror_that_stalls_is_given_up_before_the_guest_waits_and_goes_on_later()
    {
        int before = 0, after = 0;
        new Scenario().At<S.MirrorStarted>(static _ => { }).At<S.MirrorStarted>(w =>
        {
            before = w.Guest.Writes;
            w.Partition(w.Network.Peers, TimeSpan.FromSeconds(20));
            w.Scheduler.After(TimeSpan.FromSeconds(10), () => after = w.Guest.Writes);
        }).Moves();
        Assert.True(after > before + 20, $"{before} to {after}");
    }

    [Fact]
    public void Failure_table_row_13_a_memory_stream_that_breaks_is_begun_again()
    {
        World w = new Scenario().Fails("precopy", Io).Moves();
        Assert.Equal(1, w.SourceDaemon.Records.Count(static r => r is S.Interrupted));
    }

    [Fact]
    public void Failure_table_row_14_a_destination_that_dies_in_precopy_keeps_the_disks()
    {
        World w = new Scenario().At<S.Precopying>(static w => w.CrashHostB()).Moves();
        Assert.Equal(2, w.DestinationDaemon.Records.Count(static r => r is D.Made { Resource.Kind: ResourceKind.Disk }));
    }

    [Fact]
    public void Failure_table_row_15_a_source_daemon_that_restarts_in_precopy_lets_the_guest_run_first()
    {
        World w = new Scenario().At<S.Precopying>(static w => w.CrashDaemonA()).Moves();
        Assert.True(Has<S.Resumed>(w));
    }

    [Fact]
    public void Failure_table_row_16_a_cancel_in_precopy_is_answered_in_time()
    {
        World w = new Scenario().At<S.Precopying>(static w => w.Scheduler.After(TimeSpan.FromTicks(1), w.Operator.Cancel)).Stays();
        Assert.Equal("TASK_CANCELLED", w.SourceDaemon.Records.OfType<S.Aborting>().Single().Failure.Code);
    }

    [Fact]
    public void Failure_table_row_17_a_guest_that_dies_by_itself_stays_where_it_is() =>
        Assert.False(new Scenario().At<S.Precopying>(static w => w.GuestDies()).Stays().B.HasLeftovers);

    [Fact]
    public void Failure_table_row_18_a_destination_that_is_not_ready_costs_the_guest_no_pause()
    {
        World w = new Scenario().Fails("probe", static () => Scenario.Error()).Stays();
        Assert.False(Has<S.Stopping>(w));
    }

    [Fact]
    public void Failure_table_row_19_a_mirror_that_will_not_end_lets_the_guest_run_on_and_the_job_begin_again()
    {
        World w = new Scenario().Fails("finish", Io).Moves();
        Assert.True(Has<S.Interrupted>(w) && Has<S.Resumed>(w));
    }

    [Fact]
    public void Failure_table_row_20_a_state_that_cannot_be_saved_resumes_the_guest() =>
        Assert.True(Has<S.Resumed>(new Scenario().Fails("transfer", static () => Scenario.Error()).Stays()));

    [Fact]
    public void Failure_table_row_21_a_source_daemon_that_restarts_with_a_stopped_guest_resumes_it_first()
    {
        World w = new Scenario().At<S.Stopped>(static w => w.CrashDaemonA()).Moves();
        Assert.True(Has<S.Resumed>(w));
    }

    [Fact]
    public void Failure_table_row_22_a_source_host_that_is_dead_before_the_grant_leaves_the_word_to_an_operator()
    {
        World w = new Scenario().At<S.Sent>(static w =>
        {
            w.KillHostAForever();
            w.Scheduler.After(TimeSpan.FromSeconds(30), () =>
            {
                Assert.False(w.Oracle.DestinationRan); // Never by itself.
                w.Operator.DeclareOrPromote();
            });
        }).Ends("promoted at the destination");
        Assert.True(Has<D.Promoted>(w));
    }

    [Fact]
    public void Failure_table_row_23_a_memory_that_arrives_altered_is_not_run()
    {
        Scenario s = new();
        s.World.StreamIsAltered = true;
        Assert.Contains("memory", s.Stays().SourceDaemon.Failure);
    }

    [Fact]
    public void Failure_table_row_24_an_answer_to_loaded_that_is_lost_is_no_grant()
    {
        World w = new Scenario().LosesAnswers("loaded", 1).Moves();
        Assert.True(Has<S.Resumed>(w));
    }

    [Fact]
    public void Failure_table_row_25_a_destination_that_dies_with_a_loaded_guest_gets_another_one() =>
        Assert.True(Has<S.Resumed>(new Scenario().At<D.Loaded>(static w => w.CrashHostB()).Moves()));

    [Fact]
    public void Failure_table_row_26_a_source_that_crashes_with_a_grant_in_its_journal_sends_it()
    {
        World w = new Scenario().At<S.Granting>(static w => w.CrashDaemonA()).Moves();
        Assert.False(Has<S.Resumed>(w));
    }

    [Fact]
    public void Failure_table_row_27_an_answer_to_the_grant_that_is_lost_is_asked_for_again() => new Scenario().LosesAnswers("grant", 3).Moves();

    [Fact]
    public void Failure_table_row_28_a_destination_that_dies_before_it_accepts_refuses_and_the_source_takes_the_vm_back()
    {
        World w = new Scenario().At<S.Frozen>(static w => w.CrashHostB()).Stays();
        Assert.True(Has<S.Refused>(w) && Has<S.Reclaimed>(w) && w.SourceDaemon.Ownership.Epoch == w.Plan.Epoch + 2);
    }

    [Fact]
    public void Failure_table_row_29_a_destination_that_dies_after_it_accepted_runs_what_it_loaded_or_boots()
    {
        new Scenario().At<D.Accepting>(static w => w.CrashDaemonB()).Moves();
        new Scenario().At<D.Accepting>(static w => w.CrashHostB()).Ends("rebooted at destination");
    }

    [Fact]
    public void Failure_table_row_30_a_destination_host_that_loses_power_after_it_ran_is_the_only_one_to_start_the_vm()
    {
        World w = new Scenario().At<D.Running>(static w =>
        {
            w.CrashHostB();
            w.Operator.Start(isAtSource: true);
            Assert.Equal(DomainState.Frozen, w.A.Domain);
        }).Ends("rebooted at destination");
        Assert.Equal(DomainState.Running, w.B.Domain);
    }

    [Fact]
    public void Failure_table_row_31_a_source_host_that_dies_after_the_grant_learns_what_became_of_it() =>
        new Scenario().At<D.Accepting>(static w => w.CrashHostA()).Moves();

    [Fact]
    public void Failure_table_row_32_both_may_die_after_the_grant() => new Scenario().At<S.Frozen>(static w =>
    {
        w.CrashDaemonB();
        w.CrashDaemonA();
    }).Moves();

    [Fact]
    public void Failure_table_row_33_the_witness_decides_once_for_both()
    {
        World w = new Scenario(hasWitness: true).At<S.Frozen>(static w => w.Partition(w.Network.Peers, Minute)).Stays();
        Assert.Contains("witness", w.SourceDaemon.Records.OfType<S.Refused>().Single().Reason);
        new Scenario(hasWitness: true).At<D.Accepting>(static w => w.Partition(w.Network.Peers, Minute)).Moves();
    }

    [Fact]
    public void Failure_table_row_34_a_witness_that_only_the_source_reaches_gives_it_the_vm() => new Scenario(hasWitness: true).At<S.Frozen>(static w =>
    {
        w.Partition(w.Network.Peers, Minute);
        w.Partition(w.Network.DestinationWitness, Minute);
    }).Stays();

    [Fact]
    public void Failure_table_row_35_a_destination_that_cannot_ask_the_witness_does_not_accept()
    {
        World w = new Scenario(hasWitness: true).At<S.Frozen>(static w => w.Partition(w.Network.DestinationWitness, 10 * Minute)).Stays();
        Assert.False(Has<D.Accepting>(w));
    }

    [Fact]
    public void Failure_table_row_36_a_guest_that_will_not_unpause_is_tried_again() => new Scenario().Fails("run", Io, 3).Moves();

    [Fact]
    public void Failure_table_row_37_a_source_that_hears_nothing_after_the_guest_ran_waits() =>
        Assert.False(Has<S.Resumed>(new Scenario().At<D.Running>(static w => w.Partition(w.Network.Peers, 10 * Minute)).Moves()));

    [Fact]
    public void Failure_table_row_38_a_source_disk_that_will_not_go_is_tried_on() => new Scenario().Fails("destroy", Io, 12).Moves();

    [Fact]
    public void Failure_table_row_39_held_disks_are_nobodys_to_start()
    {
        World w = new Scenario(keepSourceFor: 5 * Minute).At<S.Holding>(static w =>
        {
            w.CrashHostB();
            w.Operator.Start(isAtSource: true);
            Assert.Equal(DomainState.None, w.A.Domain);
        }).Ends("rebooted at destination");
        Assert.Equal(DomainState.Running, w.B.Domain);
    }

    [Fact]
    public void Failure_table_row_40_a_destination_that_has_forgotten_is_not_one_that_refused()
    {
        World w = new Scenario().At<S.Frozen>(static w =>
        {
            w.DestinationDaemon.Forget();
            w.Scheduler.After(10 * Minute, () =>
            {
                Assert.Equal(DomainState.Frozen, w.A.Domain); // In doubt for as long as it takes.
                Assert.False(Has<S.Refused>(w));
                w.KillHostBForever();
                w.Scheduler.After(Minute, w.Operator.DeclareOrPromote);
            });
        }).Ends("taken back from a dead destination");
        Assert.True(Has<S.PeerDeclaredDead>(w) && w.A.Domain == DomainState.Running);
    }

    [Fact]
    public void Failure_table_row_41_clocks_that_jump_change_nothing() => new Scenario().At<S.Frozen>(static w =>
    {
        w.JumpClock(isSource: true, TimeSpan.FromHours(30));
        w.JumpClock(isSource: false, TimeSpan.FromHours(-30));
    }).Moves();

    [Fact]
    public void Failure_table_row_42_everything_may_come_twice_and_late()
    {
        foreach (TimeSpan later in (TimeSpan[])[TimeSpan.FromMilliseconds(5), TimeSpan.FromMilliseconds(400), Minute])
        {
            Scenario s = new();
            s.World.ComesAgainAfter = later;
            s.Moves();
        }
    }

    [Fact]
    public void Failure_table_row_43_a_grant_without_the_whole_memory_is_refused_so_there_is_no_post_copy()
    {
        World w = new Scenario().At<D.Prepared>(static w => Assert.NotNull(
            DestinationSaga.WhyNotAccept(w.DestinationDaemon.State!, w.Plan.Epoch + 1, new ContentDigests(new MemoryDigest("", 0), [])))).Moves();
        Assert.True(w.SourceDaemon.Records.FindIndex(static r => r is S.Sent) < w.SourceDaemon.Records.FindIndex(static r => r is S.Granting));
    }

    [Fact]
    public void Failure_table_row_44_a_full_journal_stalls_and_nothing_runs_that_is_not_durable()
    {
        new Scenario().At<S.Stopped>(static w => w.FillJournal(isSource: true, TimeSpan.FromSeconds(3))).Moves();
        new Scenario().At<S.Frozen>(static w =>
        {
            w.FillJournal(isSource: false, TimeSpan.FromSeconds(8));
            w.Scheduler.After(TimeSpan.FromSeconds(7), () => Assert.False(w.Oracle.DestinationRan));
        }).Moves();
    }

    [Fact]
    public void Failure_table_row_45_a_second_migration_of_the_vm_is_not_begun()
    {
        World w = new Scenario().At<S.MirrorStarted>(static w => w.SourceDaemon.Begin()).Moves();
        Assert.Single(w.SourceDaemon.Records.OfType<S.Begun>());
        Assert.Throws<MigrationException>(() => w.DestinationDaemon.Claim(w.Plan));
    }

    [Fact]
    public void Failure_table_row_46_a_vm_that_the_destination_will_not_take_is_not_touched()
    {
        World w = new Scenario().Fails("make Domain", static () => Scenario.Error("there is a VM of that name")).Stays();
        Assert.Contains("there is a VM of that name", w.SourceDaemon.Failure);
        Assert.False(Has<S.MirrorStarting>(w));
    }

    [Fact]
    public void Failure_table_row_47_a_source_that_cannot_forget_the_vm_cannot_start_it_either() => new Scenario().Fails("release", Io, 9).At<S.Accepted>(static w =>
    {
        w.CrashHostA();
        w.Scheduler.After(TimeSpan.FromSeconds(1), () =>
        {
            w.Operator.Start(isAtSource: true);
            Assert.Equal(DomainState.None, w.A.Domain);
        });
    }).Moves();

    [Fact]
    public void Failure_table_row_48_a_source_that_is_gone_leaves_no_export_open()
    {
        World w = new Scenario().At<S.MirrorStarted>(static w => w.KillHostAForever()).Ends("a host was lost");
        Assert.True(Has<D.Refused>(w) && !w.B.HasLeftovers);
    }

    private static bool Has<T>(World world) => world.SourceDaemon.Records.OfType<T>().Any() || world.DestinationDaemon.Records.OfType<T>().Any();
}
