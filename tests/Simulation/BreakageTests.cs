namespace Simulation;

/// <summary>The oracle's own test: each rule that is broken on purpose is seen, in a world that is whole without the breakage.</summary>
public class BreakageTests
{
    private const ulong Limit = 2000;

    /// <summary>Where a rule that is seldom tried was last seen broken; when the product changes it is looked for from the beginning.</summary>
    private static readonly Dictionary<Breakage, ulong> Seen = new()
    {
        [Breakage.AcceptingIsNotDurable] = 198,
        [Breakage.DigestEchoed] = 259,
        [Breakage.MakingIsNotDurable] = 137,
        [Breakage.RunStartsAgain] = 101,
        [Breakage.WitnessForgets] = 808,
    };

    [Theory]
    [MemberData(nameof(All))]
    public void A_broken_ordering_rule_is_seen(Breakage breaks)
    {
        IEnumerable<ulong> seeds = Enumerable.Range(1, (int)Limit).Select(static s => (ulong)s);
        foreach (ulong seed in Seen.TryGetValue(breaks, out ulong seen) ? seeds.Prepend(seen) : seeds)
        {
            if (new World(seed, breaks).Run().Broken is null)
                continue;
            Assert.Null(new World(seed).Run().Broken);
            return;
        }

        Assert.Fail($"nobody saw {breaks} in {Limit} worlds");
    }

    public static TheoryData<Breakage> All => [.. Enum.GetValues<Breakage>().Where(static b => b != Breakage.None)];
}
