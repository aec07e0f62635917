// kill -9 of any process of either pool at any moment of a migration, over and over, while the guest writes: each time there is exactly one owner,
// every acknowledged write is on its disk, and nothing is left. MIGRATION_KILLS says how often (300 for the record).
using System.Diagnostics;
using System.Globalization;
using Xunit.Abstractions;

namespace EndToEnd;

public class MigrationKillTests(ITestOutputHelper output)
{
    private const int DefaultKills = 1;

    /// <summary>Slow enough that the copy is a good part of the time in which a kill may fall.</summary>
    private const long BandwidthBytesPerSecond = 12 << 20;

    private const int LatestKillMs = 2_500;

    [Fact]
    public async Task Whatever_is_killed_in_a_migration_the_vm_has_one_owner_its_writes_are_there_and_nothing_is_left()
    {
        int kills = int.Parse(Environment.GetEnvironmentVariable("MIGRATION_KILLS") ?? $"{DefaultKills}", CultureInfo.InvariantCulture);
        int seed = int.Parse(Environment.GetEnvironmentVariable("STORAGE_SEED") ?? "5", CultureInfo.InvariantCulture);
        Random random = new(seed);
        SortedDictionary<string, int> outcomes = new(StringComparer.Ordinal);
        TimeSpan longest = TimeSpan.Zero;
        ServedPools pools = new();
        await pools.InitializeAsync();
        try
        {
            MovingVm vm = await MovingVm.FindAsync(pools);
            await vm.LearnCleanStateAsync(); // There and back once, nothing killed: what each pool looks like with the VM and without.
            for (int kill = 0; kill < kills; kill++)
            {
                (string victim, string side) = Victims[random.Next(Victims.Length)];
                ServedPool pool = side == "source" ? vm.At : vm.Other;
                string situation = $"seed {seed}, kill {kill}: {victim} of the {side}, the VM at {vm.At.Name}";
                Task migration = vm.BeginMoveAsync(BandwidthBytesPerSecond);
                await Task.Delay(random.Next(LatestKillMs));
                string killed = await Victim.KillAsync(pools, victim, pool) ? $"{victim} of the {side}" : "nothing to kill";
                long start = Stopwatch.GetTimestamp();
                await migration;
                string outcome = await vm.SettleAsync(situation);
                longest = TimeSpan.FromTicks(Math.Max(longest.Ticks, Stopwatch.GetElapsedTime(start).Ticks));
                await vm.VerifyWritesAsync(situation);
                await vm.RunAgainAsync(situation);
                string key = $"{killed}: {outcome}";
                outcomes[key] = outcomes.GetValueOrDefault(key) + 1;
                if (kill % 10 == 9)
                    output.WriteLine($"{kill + 1} kills, at most {longest.TotalSeconds:0.0} s until all was settled");
            }

            output.WriteLine(
                $"{kills} migrations with a kill, {vm.WritesLookedUp} blocks looked up; one owner each time, no acknowledged write lost, nothing left; "
                + $"settled after at most {longest.TotalSeconds:0.0} s; seed {seed}");
            foreach ((string key, int count) in outcomes)
                output.WriteLine($"{count,5}  {key}");
        }
        finally
        {
            await pools.DisposeAsync();
        }
    }

    private static readonly (string, string)[] Victims =
    [
        .. from victim in new[] { "xapi", "xenopsd", "tapdisk", "driver" } from side in new[] { "source", "destination" } select (victim, side),
    ];
}
