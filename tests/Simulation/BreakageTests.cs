namespace Simulation;

/// <summary>The oracle's own test: each rule that is broken on purpose is seen, in a world that is whole without the breakage.</summary>
public class BreakageTests
{
    private const ulong Limit = 2000;

    [Theory]
    [MemberData(nameof(All))]
    public void A_broken_ordering_rule_is_seen(Breakage breaks)
    {
        for (ulong seed = 1; seed <= Limit; seed++)
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
