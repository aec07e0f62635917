// ./dev sim COUNT [--from SEED]   that many worlds, on all cores
// ./dev sim --seed N              one world, told in full
using System.Diagnostics;
using System.Globalization;

namespace Simulation;

internal static class Program
{
    private static int Main(string[] arguments)
    {
        ulong from = 1, count = 1000;
        ulong? seed = null;
        Breakage breaks = Breakage.None;
        for (int i = 0; i < arguments.Length; i++)
        {
            string value = i + 1 < arguments.Length ? arguments[i + 1] : "";
            bool isNumber = ulong.TryParse(value, CultureInfo.InvariantCulture, out ulong number);
            switch (arguments[i])
            {
                case "--seed" when isNumber:
                    seed = number;
                    i++;
                    break;
                case "--from" when isNumber:
                    from = number;
                    i++;
                    break;
                case "--break" when Enum.TryParse(value, out breaks):
                    i++;
                    break;
                case { } text when ulong.TryParse(text, CultureInfo.InvariantCulture, out number) && number > 0:
                    count = number;
                    break;
                default:
                    Console.Error.WriteLine($"sim: '{arguments[i]}' is not understood; ./dev sim COUNT [--from SEED] or ./dev sim --seed N");
                    return 2;
            }
        }

        return seed is { } one ? Tell(one, breaks) : RunAll(from, count, breaks);
    }

    private static int Tell(ulong seed, Breakage breaks)
    {
        List<string> trace = [];
        World world = new World(seed, breaks, trace).Run();
        foreach (string line in trace)
            Console.WriteLine(line);
        Console.WriteLine($"sim: seed {seed}, {world.Scheduler.Steps} steps, {world.Faults.All} faults, outcome: {world.Outcome}, hash {world.Scheduler.Hash:x16}");
        if (world.Broken is null)
            return 0;
        Console.WriteLine($"VIOLATION {world.Broken}");
        return 1;
    }

    private static int RunAll(ulong from, ulong count, Breakage breaks)
    {
        Stopwatch watch = Stopwatch.StartNew();
        Summary summary = Summary.Of(from, count, breaks);
        Console.WriteLine(summary);
        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"sim: {watch.Elapsed.TotalSeconds:0.0} s on {Environment.ProcessorCount} cores, {watch.Elapsed.TotalMilliseconds / count:0.00} ms per world"));
        return summary.Violations.Count == 0 ? 0 : 1;
    }
}
