// ./dev bench VERB: workloads, races, a table; see docs/performance.md. A bench is a method that makes its workload and says what is raced.
using System.Globalization;
using System.Text.Json.Nodes;

namespace Bench;

internal static class Program
{
    private const string Usage = """
        usage: bench copy|many|direct|nbd|tls|coalesce|verify|export|meta|mirror|all [--json] [--rounds N] [--small] [--dir FOLDER] [--bin FOLDER]
          --rounds N   rounds that count (default 5); one more comes first and is dropped
          --small      a sixty-fourth of the workload: does it run at all
          --dir        a folder to work in, instead of a private tmpfs (root) or the temporary folder
          --bin        where vhd-util is (default out)
        """;

    private static async Task<int> Main(string[] arguments)
    {
        Dictionary<string, Func<Benches, IAsyncEnumerable<Race>>> verbs = new()
        {
            ["copy"] = static benches => benches.CopyAsync(),
            ["many"] = static benches => benches.ManyAsync(),
            ["direct"] = static benches => benches.DirectAsync(),
            ["nbd"] = static benches => benches.NbdAsync(),
            ["tls"] = static benches => benches.TlsAsync(),
            ["coalesce"] = static benches => benches.CoalesceAsync(),
            ["verify"] = static benches => benches.VerifyAsync(),
            ["export"] = static benches => benches.ExportAsync(),
            ["meta"] = static benches => benches.MetaAsync(),
        };
        string verb = arguments.FirstOrDefault() ?? "";
        if (verb == "send" && arguments.Length == 4)
        {
            // The bare client of the TLS race, which this program starts.
            TlsPush.Send(int.Parse(arguments[1], CultureInfo.InvariantCulture), long.Parse(arguments[2], CultureInfo.InvariantCulture), arguments[3]);
            return 0;
        }

        string program = Path.GetFullPath(Path.Combine(After("--bin") ?? "out", "vhd-util"));
        bool isNumber = int.TryParse(After("--rounds") ?? "5", CultureInfo.InvariantCulture, out int rounds);
        if ((verb is not ("all" or "mirror") && !verbs.ContainsKey(verb)) || !isNumber || rounds < 1)
        {
            await Console.Error.WriteLineAsync(Usage);
            return 2;
        }

        bool isSmall = arguments.Contains("--small");
        bool isJson = arguments.Contains("--json");
        TextWriter log = isJson ? Console.Error : Console.Out;
        try
        {
            using Ground ground = new(After("--dir"));
            Workloads workloads = new(ground.Path, isSmall);
            using Benches benches = new(workloads, ground.Path, program, log);
            await log.WriteLineAsync($"{DateTime.UtcNow:yyyy-MM-dd HH:mm} UTC, {Machine()}, {ground.Kind}, {rounds} rounds");
            JsonArray results = [];
            foreach (string each in verb switch { "all" => verbs.Keys.ToArray(), "mirror" => [], _ => [verb] })
            {
                await foreach (Race race in verbs[each](benches))
                {
                    race.Run(rounds, isJudged: !isSmall, log);
                    results.Add((JsonNode)race.ToJson());
                    benches.Clear();
                }
            }

            bool hasTapdisk = File.Exists(Path.Combine(Path.GetDirectoryName(program)!, "tap-ctl"));
            if ((verb is "all" or "mirror") && !hasTapdisk)
                await log.WriteLineAsync($"tap-ctl is not beside {program}: tapdisk and its mirror are not raced");
            if ((verb is "all" or "mirror") && hasTapdisk)
            {
                workloads.Clear();
                using TapdiskBench tapdisk = new(workloads, ground.Path, Path.GetDirectoryName(program)!, rounds, isSmall, log);
                foreach (JsonNode measured in await tapdisk.RunAsync())
                    results.Add(measured);
            }

            if (isJson)
                await Console.Out.WriteLineAsync(new JsonObject { ["machine"] = Machine(), ["races"] = results }.ToJsonString());
            return 0;
        }
        catch (Exception e) when (e is InvalidOperationException or IOException)
        {
            await Console.Error.WriteLineAsync("bench: " + e.Message);
            return 1;
        }

        string? After(string option)
        {
            int at = Array.IndexOf(arguments, option);
            return at >= 0 && at + 1 < arguments.Length ? arguments[at + 1] : null;
        }
    }

    private static string Machine()
    {
        string model = File.ReadLines("/proc/cpuinfo").First(static line => line.StartsWith("model name", StringComparison.Ordinal));
        string load = File.ReadAllText("/proc/loadavg").Split(' ')[0];
        return $"{Environment.ProcessorCount} x{model.Split(':')[1]}, Linux {Environment.OSVersion.Version}, load {load}";
    }
}
