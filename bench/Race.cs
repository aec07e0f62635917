// Whole commands run in turn, A B C A B C: what disturbs the machine disturbs all of them. The first round is dropped; what counts are
// ratios.
using System.Globalization;
using System.Text.Json.Nodes;

namespace Bench;

/// <param name="Prepare">Run before each round of this one, not measured.</param>
internal sealed record Contender(string Name, string Command, string? Prepare = null);

/// <summary>Ours over another's, not more than a limit.</summary>
internal sealed record Goal(string Ours, string Peer, double Limit, bool IsByMinima = false, bool IsCpu = false);

/// <summary>What ours may write: a factor of the bytes that had to be written.</summary>
internal sealed record Payload(string Ours, double NeededMiB, double Limit);

internal sealed class Race(string title, IReadOnlyList<Contender> contenders, IReadOnlyList<Goal> goals, Payload? payload = null)
{
    private readonly Dictionary<string, List<Cost>> costs = contenders.ToDictionary(static c => c.Name, static _ => new List<Cost>());

    /// <param name="isJudged">False for a small workload: there the start of a process is all there is to see.</param>
    public void Run(int rounds, bool isJudged, TextWriter log)
    {
        for (int round = 0; round <= rounds; round++)
        {
            foreach (Contender contender in contenders)
            {
                if (contender.Prepare is not null)
                    Child.Run(contender.Prepare);
                Cost cost = Child.Run(contender.Command);
                if (round > 0)
                    costs[contender.Name].Add(cost);
            }
        }

        log.WriteLine($"\n{title}");
        log.WriteLine($"  {"",-30}{"median s",10}{"min",10}{"max",10}{"CPU s",8}{"MiB",6}{"written",9}");
        foreach ((string name, List<Cost> list) in costs)
            log.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"  {name,-30}{Median(list, Wall),10:f3}{list.Min(Wall),10:f3}{list.Max(Wall),10:f3}"
                + $"{Median(list, Cpu),8:f2}{Memory(list),6:f0}{Median(list, Written),9:f1}"));
        foreach (Goal goal in isJudged ? Judged : [])
            log.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"  {Verdict(goal)} {Ratio(goal):f2} of {goal.Peer}{How(goal)}, goal {goal.Limit:f2}: {goal.Ours}"));
        if (payload is not null)
            log.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"  {(WrittenRatio(payload) <= payload.Limit ? "pass" : "MISS")} {WrittenRatio(payload):f3} of the {payload.NeededMiB:f1} MiB that must be "
                + $"written, goal {payload.Limit:f2}: {payload.Ours}"));
    }

    public JsonObject ToJson()
    {
        JsonObject measured = [];
        foreach ((string name, List<Cost> list) in costs)
            measured[name] = new JsonObject
            {
                ["wall"] = new JsonArray([.. list.Select(static c => (JsonNode)c.WallSeconds)]),
                ["cpu"] = new JsonArray([.. list.Select(static c => (JsonNode)c.CpuSeconds)]),
                ["memory_mib"] = Memory(list),
                ["written_mib"] = Median(list, Written),
            };
        JsonArray judged = [];
        foreach (Goal goal in Judged)
            judged.Add((JsonNode)new JsonObject
            {
                ["ours"] = goal.Ours,
                ["peer"] = goal.Peer,
                ["ratio"] = Ratio(goal),
                ["limit"] = goal.Limit,
                ["by"] = How(goal).Trim(),
                ["pass"] = Ratio(goal) <= goal.Limit,
            });
        return new JsonObject { ["title"] = title, ["measured"] = measured, ["goals"] = judged };
    }

    /// <summary>Goals whose peer is installed.</summary>
    private IEnumerable<Goal> Judged => goals.Where(goal => costs.ContainsKey(goal.Ours) && costs.ContainsKey(goal.Peer));

    private double Ratio(Goal goal)
    {
        (List<Cost> ours, List<Cost> peer) = (costs[goal.Ours], costs[goal.Peer]);
        if (goal.IsByMinima)
            return ours.Min(Wall) / peer.Min(Wall);
        Func<Cost, double> of = goal.IsCpu ? Cpu : Wall;
        return Median(ours, of) / Median(peer, of);
    }

    private string Verdict(Goal goal) => Ratio(goal) <= goal.Limit ? "pass" : "MISS";

    private static double Memory(List<Cost> list) => list.Max(static c => c.MemoryMiB);

    private static string How(Goal goal) => goal.IsByMinima ? " by minima" : goal.IsCpu ? " by CPU" : "";

    private static double Wall(Cost cost) => cost.WallSeconds;

    private static double Written(Cost cost) => cost.WrittenMiB;

    private double WrittenRatio(Payload what) => Median(costs[what.Ours], Written) / what.NeededMiB;

    private static double Cpu(Cost cost) => cost.CpuSeconds;

    private static double Median(List<Cost> list, Func<Cost, double> of)
    {
        double[] sorted = [.. list.Select(of).Order()];
        return (sorted[(sorted.Length - 1) / 2] + sorted[sorted.Length / 2]) / 2;
    }
}
