namespace Simulation;

public class SimulationTests
{
    /// <summary>A part of what `./dev sim 100000` runs.</summary>
    private const ulong Seeds = 2000;

    [Fact]
    public void Whatever_breaks_in_a_world_the_vm_has_one_owner_nothing_promised_is_lost_and_nothing_is_left()
    {
        Summary summary = Summary.Of(1, Seeds);

        Assert.True(summary.Violations.Count == 0, summary.ToString());
        Assert.Equal((int)Seeds, summary.Worlds);
        Assert.True(summary.AllFaults >= 11 * (long)Seeds, summary.ToString());
        Assert.True(summary.Faults is { Crashes: > 2000, Compound: > 500, Partitions: > 500, Duplicates: > 1000, Flips: > 5 }, summary.ToString());
        foreach (string outcome in (string[])["moved", "stayed", "recalled", "rebooted at destination", "promoted at the destination", "taken back from a dead destination"])
            Assert.True(summary.Outcomes.ContainsKey(outcome), summary.ToString());
    }

    [Fact]
    public void A_seed_run_twice_is_the_same_world()
    {
        for (ulong seed = 1; seed <= 50; seed++)
            Assert.Equal(new World(seed).Run().Scheduler.Hash, new World(seed).Run().Scheduler.Hash);
        Assert.NotEqual(new World(1).Run().Scheduler.Hash, new World(2).Run().Scheduler.Hash);
    }
}
