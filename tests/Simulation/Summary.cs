using System.Globalization;
using System.Text;

namespace Simulation;

/// <summary>Many worlds, each on one thread, and what became of them. The same seeds give the same text.</summary>
internal sealed class Summary
{
    private const int ShownLimit = 20;
    private readonly SortedDictionary<string, int> outcomes = new(StringComparer.Ordinal);
    private readonly Faults faults = new();
    private readonly Lock gate = new();
    private long steps;
    private ulong hash;

    public int Worlds { get; private set; }

    public SortedDictionary<ulong, string> Violations { get; } = [];

    public long AllFaults => faults.All;

    public Faults Faults => faults;

    public IReadOnlyDictionary<string, int> Outcomes => outcomes;

    public ulong Hash => hash;

    public static Summary Of(ulong from, ulong count, Breakage breaks = Breakage.None)
    {
        Summary summary = new();
        Parallel.For((long)from, (long)(from + count), new ParallelOptions { MaxDegreeOfParallelism = Environment.ProcessorCount }, seed =>
            summary.Add(new World((ulong)seed, breaks).Run()));
        return summary;
    }

    public override string ToString()
    {
        StringBuilder text = new();
        Faults f = faults;
        text.Append(CultureInfo.InvariantCulture, $"sim: {Worlds} worlds, {steps} steps, {f.Crashes} crashes ({f.Compound} compound), ");
        text.Append(CultureInfo.InvariantCulture, $"{f.Partitions + f.Cuts} partitions and cuts, {f.Drops} drops, {f.Duplicates} duplicates, {f.Delays} delays, ");
        text.Append(CultureInfo.InvariantCulture, $"{f.DiskErrors} disk errors, {f.Flips} flipped bits, {f.CallErrors} failed calls, {f.JournalFull} full journals, ");
        text.Append(CultureInfo.InvariantCulture, $"{f.ClockJumps} clock jumps, {f.All} faults in all; outcomes: ");
        text.Append(string.Join(", ", outcomes.Select(static o => $"{o.Key} {o.Value}")));
        text.Append(CultureInfo.InvariantCulture, $"; hash {hash:x16}; {Violations.Count} violations");
        foreach ((ulong seed, string what) in Violations.Take(ShownLimit))
            text.Append(CultureInfo.InvariantCulture, $"\n  seed {seed}: {what}\n    replay: ./dev sim --seed {seed}");
        return text.ToString();
    }

    private void Add(World world)
    {
        lock (gate)
        {
            Worlds++;
            steps += world.Scheduler.Steps;
            hash ^= world.Scheduler.Hash * (2 * world.Seed + 1);
            faults.Add(world.Faults);
            outcomes[world.Outcome] = outcomes.GetValueOrDefault(world.Outcome) + 1;
            if (world.Broken is { } what)
                Violations[world.Seed] = what;
        }
    }
}
