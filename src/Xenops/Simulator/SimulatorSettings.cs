using System.Globalization;

namespace Xenops.Simulator;

/// <summary>How busy a simulated guest is; the keys <c>simulator.*</c> of a VM's platform.</summary>
internal sealed record SimulatorSettings(ulong Seed, int DirtyPagesPerSecond, int WritesPerSecond, int WorkingSetBlocks)
{
    public const int RateLimit = 1_000_000;

    /// <exception cref="XenopsException">A key is unknown, or its value is no number or out of range.</exception>
    public static SimulatorSettings Of(Vm vm)
    {
        SimulatorSettings settings = new(Seed: 1, DirtyPagesPerSecond: 2_000, WritesPerSecond: 500, WorkingSetBlocks: 2_048);
        foreach ((string key, string value) in vm.Platform.Where(static p => p.Key.StartsWith("simulator.", StringComparison.Ordinal)))
        {
            settings = key switch
            {
                "simulator.seed" => settings with { Seed = (ulong)Number(key, value, long.MaxValue) },
                "simulator.dirty_pages_per_second" => settings with { DirtyPagesPerSecond = (int)Number(key, value, RateLimit) },
                "simulator.writes_per_second" => settings with { WritesPerSecond = (int)Number(key, value, RateLimit) },
                "simulator.working_set_blocks" => settings with { WorkingSetBlocks = (int)Number(key, value, RateLimit) },
                _ => throw XenopsException.Internal($"the simulator has no setting \"{key}\""),
            };
        }

        return settings;
    }

    private static long Number(string key, string value, long limit) =>
        long.TryParse(value, NumberStyles.None, CultureInfo.InvariantCulture, out long number) && number <= limit
            ? number
            : throw XenopsException.Internal($"the platform key {key} has the value \"{value}\", not a number from 0 to {limit}");
}
