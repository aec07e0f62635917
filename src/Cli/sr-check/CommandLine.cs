// The command line. Exit 0 when the level asked is earned (or the chosen checks hold), 1 when not, 2 for a wrong command line.
using System.CommandLine;
using Platform;
using SrCheck.Checks;
using SrCheck.Reports;

namespace SrCheck;

internal sealed class CommandLine
{
    private const int Good = 0;
    private const int Bad = 1;
    private const int Usage = 2;
    private const int LongestSeconds = 600;
    private const int MostJobs = 64;

    private readonly Argument<string?> plugin = new("PLUGIN")
    {
        Description = "v1: the driver's executable; v3: its folder of volume scripts",
        Arity = ArgumentArity.ZeroOrOne,
    };

    private readonly Option<string?> type = new("--type") { Description = "v1 (SMAPIv1 driver) or v3 (SMAPIv3 plugin)" };

    private readonly Option<string?> datapath = new("--datapath")
    {
        Description = "v3: the datapath scripts, or a folder with one folder for each URI scheme; default: PLUGIN/../../datapath",
    };

    private readonly Option<string[]> config = new("--device-config")
    {
        Description = $"k=v, as for sr-create; {WorldPlace.Placeholder} stands for a new folder of each SR's own",
        AllowMultipleArgumentsPerToken = true,
    };

    private readonly Option<string> level = new("--level")
    {
        Description = "the badge asked for: bronze, silver, gold or platinum",
        DefaultValueFactory = static _ => "bronze",
    };

    private readonly Option<string[]> only = new("--only")
    {
        Description = "run the checks whose ids start so, of any level; may be repeated",
    };

    private readonly Option<bool> faults = new("--faults") { Description = "run the fault checks too, whatever the level" };
    private readonly Option<bool> list = new("--list") { Description = "list the checks and run none" };
    private readonly Option<string?> explain = new("--explain")
    {
        Description = "tell about a check (its id) or an error (its number or name)",
    };

    private readonly Option<int> seed = new("--seed") { Description = "of all random choices", DefaultValueFactory = static _ => 1 };
    private readonly Option<int> jobs = new("--jobs") { Description = "checks that run at once", DefaultValueFactory = static _ => 2 };

    private readonly Option<double> timeout = new("--timeout")
    {
        Description = "seconds that one call of the plugin may take",
        DefaultValueFactory = static _ => 30,
    };

    private readonly Option<string?> tools = new("--tools")
    {
        Description = "where tapdisk, tap-ctl and vhd-util are; default: beside sr-check",
    };

    private readonly Option<string?> json = new("--json")
    {
        Description = "write the report as JSON to a file, or to standard output for -",
    };

    private readonly Option<string?> junit = new("--junit") { Description = "write the report as JUnit XML to a file" };
    private readonly Option<string?> record = new("--record")
    {
        Description = "keep each failing check's calls as one file in this folder, for replay",
    };

    public static async Task<int> RunAsync(string[] arguments)
    {
        ParseResult parsed = new CommandLine().Root().Parse(arguments);
        if (parsed.Errors.Count > 0)
        {
            foreach (System.CommandLine.Parsing.ParseError error in parsed.Errors)
                await Console.Error.WriteLineAsync($"sr-check: {error.Message}");
            return Usage;
        }

        using StopSignals stop = new();
        try
        {
            // No limit on the way out: each check takes its own SR away again.
            return await parsed.InvokeAsync(
                new InvocationConfiguration { EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null }, stop.Token);
        }
        catch (OperationCanceledException)
        {
            await Console.Error.WriteLineAsync("sr-check: stopped; what the checks had made is gone again");
            return Bad;
        }
    }

    private RootCommand Root()
    {
        type.AcceptOnlyFromAmong("v1", "v3");
        level.AcceptOnlyFromAmong("bronze", "silver", "gold", "platinum");
        RootCommand root = new(
            """
            Proves an SR plugin: drives its command line directly, without a hypervisor and without a daemon.

            Examples:
              sr-check new mystore --type v3                       a plugin to start from, in ./mystore
              sr-check --type v3 mystore/volume/org.xen.xapi.storage.mystore
              sr-check --type v1 /opt/xensource/sm/NFSSR --device-config server=nas serverpath=/export/@DIR@ --level silver
              sr-check --type v1 sm/FileVhdSR --only crash --record failures
              sr-check replay failures/crash.snapshot.at-45.json   that check alone, again
              sr-check --explain 46                                what an error number means, and what to do
            """)
        {
            plugin, type, datapath, config, level, only, faults, list, explain, seed, jobs, timeout, tools, json, junit, record,
        };
        root.SetAction(async (parsed, cancellationToken) =>
        {
            try
            {
                return await ActAsync(parsed, cancellationToken);
            }
            catch (Exception e) when (e is FormatException or IOException or UnauthorizedAccessException)
            {
                await Console.Error.WriteLineAsync($"sr-check: {e.Message}");
                return Usage;
            }
        });
        root.Subcommands.Add(Replay());
        root.Subcommands.Add(New());
        return root;
    }

    private async Task<int> ActAsync(ParseResult parsed, CancellationToken cancellationToken)
    {
        RunOptions options = Options(parsed);
        if (parsed.GetValue(explain) is { } what)
        {
            string text = Explanation.Of(what,
                options) ?? throw new FormatException($"\"{what}\" is no check's id and no error's number or name");
            Console.WriteLine(text);
            return Good;
        }

        if (parsed.GetValue(list))
        {
            foreach (Check check in Catalog.All(options).Where(c => options.Only.Count == 0 || options.Only.Any(o => c.Id.StartsWith(o,
                StringComparison.Ordinal))))
                Console.WriteLine(Explanation.Line(check));
            return Good;
        }

        CheckPlugin(parsed, options);
        IReadOnlyList<Check> checks = Catalog.Chosen(options);
        if (checks.Count == 0)
            throw new FormatException($"no check's id starts with {string.Join(" or ", options.Only)}");
        bool isJsonOnly = parsed.GetValue(json) == "-";
        using TextReport report = new(isJsonOnly);
        RunResult result = await new Runner(options, report.Tell).RunAsync(checks, cancellationToken);
        IReadOnlyDictionary<string, string> records =
            parsed.GetValue(record) is { } folder ? CallRecord.WriteAll(result, folder) : new Dictionary<string, string>();
        report.Show(result, records);
        if (isJsonOnly)
            Console.WriteLine(JsonReport.Write(result, records));
        else if (parsed.GetValue(json) is { } jsonPath)
            await File.WriteAllTextAsync(jsonPath, JsonReport.Write(result, records), cancellationToken);
        if (parsed.GetValue(junit) is { } junitPath)
            await File.WriteAllTextAsync(junitPath, JunitReport.Write(result), cancellationToken);
        return result.IsGood ? Good : Bad;
    }

    private RunOptions Options(ParseResult parsed)
    {
        double seconds = parsed.GetValue(timeout);
        int atOnce = parsed.GetValue(jobs);
        if (seconds is not (> 0 and <= LongestSeconds))
            throw new FormatException($"--timeout is more than 0 and at most {LongestSeconds} seconds, not {seconds}");
        if (atOnce is < 1 or > MostJobs)
            throw new FormatException($"--jobs is 1 to {MostJobs}, not {atOnce}");
        string path = parsed.GetValue(plugin) is { } given ? Path.GetFullPath(given).TrimEnd('/') : "";
        return new RunOptions(
            parsed.GetValue(type) != "v3", path,
            Path.GetFullPath(parsed.GetValue(datapath) ?? Path.Combine(path, "..", "..", "datapath")),
            Path.GetFullPath(parsed.GetValue(tools) ?? AppContext.BaseDirectory))
        {
            DeviceConfig = ReadConfig(parsed.GetValue(config) ?? []),
            Level = Enum.Parse<Level>(parsed.GetValue(level)!, ignoreCase: true),
            Only = parsed.GetValue(only) ?? [],
            Seed = parsed.GetValue(seed),
            Jobs = atOnce,
            Deadline = TimeSpan.FromSeconds(seconds),
            WithFaults = parsed.GetValue(faults),
        };
    }

    private void CheckPlugin(ParseResult parsed, RunOptions options)
    {
        if (parsed.GetValue(type) is null)
            throw new FormatException("--type v1 or v3 is needed");
        if (options.IsV1 ? !File.Exists(options.PluginPath) : !Directory.Exists(options.PluginPath))
        {
            string wanted = options.IsV1 ? "program" : "folder of scripts";
            throw new FormatException($"PLUGIN must be a {wanted}; \"{options.PluginPath}\" is none");
        }

        if (!options.IsV1 && !Directory.Exists(options.DatapathPath))
            throw new FormatException($"there is no {options.DatapathPath}; say with --datapath where the datapath scripts are");
    }

    private static Dictionary<string, string> ReadConfig(string[] pairs)
    {
        Dictionary<string, string> config = [];
        foreach (string pair in pairs)
        {
            int equals = pair.IndexOf('=', StringComparison.Ordinal);
            if (equals <= 0 || !config.TryAdd(pair[..equals], pair[(equals + 1)..]))
                throw new FormatException($"--device-config takes key=value, each key once, not \"{pair}\"");
        }

        return config;
    }

    private static Command Replay()
    {
        Argument<string> file = new("FILE") { Description = "what --record wrote" };
        Command replay = new("replay", "Runs one recorded check alone, and says whether it fails the same way.") { file };
        replay.SetAction(async (parsed, cancellationToken) =>
        {
            try
            {
                RecordedFailure recorded = CallRecord.Read(parsed.GetValue(file)!);
                using TextReport report = new(isQuiet: false);
                IReadOnlyList<Check> check = [.. Catalog.All(recorded.Options).Where(c => c.Id == recorded.CheckId)];
                if (check.Count == 0)
                    throw new FormatException($"there is no check {recorded.CheckId} any more");
                RunResult result = await new Runner(recorded.Options, report.Tell).RunAsync(check, cancellationToken);
                report.Show(result, new Dictionary<string, string>());
                Outcome outcome = result.Outcomes[0];
                Console.WriteLine(outcome.Kind != OutcomeKind.Failed
                    ? $"replay: it does not fail any more; recorded was: {recorded.Seen}"
                    : CallRecord.IsSame(outcome.Seen, recorded.Seen)
                        ? "replay: it fails the same way"
                        : $"replay: it fails in another way; recorded was: {recorded.Seen}");
                return outcome.Kind == OutcomeKind.Failed ? Bad : Good;
            }
            catch (FormatException e)
            {
                await Console.Error.WriteLineAsync($"sr-check: {e.Message}");
                return Usage;
            }
        });
        return replay;
    }

    private Command New()
    {
        Argument<string> name = new("NAME") { Description = "the SR type: lower-case letters and digits" };
        Command create = new("new", "Writes a plugin to start from: one Python file under 150 lines that earns Bronze.") { name, type };
        create.SetAction(parsed =>
        {
            string given = parsed.GetValue(name)!;
            string folder = Path.GetFullPath(given);
            try
            {
                if (!NewPlugin.IsName(given))
                    throw new FormatException($"\"{given}\" is no SR type: lower-case letters and digits, a letter first, at most 32");
                if (parsed.GetValue(type) is not { } api)
                    throw new FormatException("--type v1 or v3 is needed");
                if (Path.Exists(folder))
                    throw new FormatException($"{folder} is there already; it was left as it is");
                string written = NewPlugin.Write(folder, given, api == "v1");
                string shown = Path.GetRelativePath(Environment.CurrentDirectory, written);
                Console.WriteLine($"{written} is written. Prove it: sr-check --type {api} {shown}");
                return Good;
            }
            catch (Exception e) when (e is FormatException or IOException or UnauthorizedAccessException)
            {
                Console.Error.WriteLine($"sr-check: {e.Message}");
                return Usage;
            }
        });
        return create;
    }
}
