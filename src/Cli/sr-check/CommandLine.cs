// The command line. Exit 0 when the level asked is earned (or the chosen checks hold), 1 when not, 2 for a wrong command line.
using System.CommandLine;
using SrCheck.Checks;
using SrCheck.Reports;

namespace SrCheck;

internal static class CommandLine
{
    private const int Usage = 2;

    public static Task<int> RunAsync(string[] arguments)
    {
        Argument<string?> plugin = new("PLUGIN") { Description = "v1: the driver's executable; v3: its folder of volume scripts", Arity = ArgumentArity.ZeroOrOne };
        Option<string> type = new("--type") { Description = "v1 (SMAPIv1 driver) or v3 (SMAPIv3 plugin)" };
        Option<string?> datapath = new("--datapath") { Description = "v3: the datapath scripts, or a folder with one folder of them for each URI scheme" };
        Option<string[]> config = new("--device-config")
        {
            Description = $"k=v, as for sr-create; {WorldPlace.Placeholder} stands for a folder of each SR's own", AllowMultipleArgumentsPerToken = true,
        };
        Option<string> level = new("--level") { Description = "bronze, silver, gold or platinum", DefaultValueFactory = static _ => "bronze" };
        Option<string[]> only = new("--only") { Description = "run the checks whose ids start so, of any level" };
        Option<bool> list = new("--list") { Description = "list the checks and run none" };
        Option<string?> explain = new("--explain") { Description = "tell about a check (its id) or an error (its number or name)" };
        Option<int> seed = new("--seed") { Description = "of all random choices", DefaultValueFactory = static _ => 1 };
        Option<int> jobs = new("--jobs") { Description = "checks that run at once", DefaultValueFactory = static _ => 2 };
        Option<double> timeout = new("--timeout") { Description = "seconds that one call of the plugin may take", DefaultValueFactory = static _ => 30 };
        Option<string?> tools = new("--tools") { Description = "where tapdisk, tap-ctl and vhd-util are; default: beside sr-check" };
        type.AcceptOnlyFromAmong("v1", "v3");
        level.AcceptOnlyFromAmong("bronze", "silver", "gold", "platinum");
        RootCommand root = new("Proves an SR plugin, without a hypervisor and without a daemon.")
        {
            plugin, type, datapath, config, level, only, list, explain, seed, jobs, timeout, tools,
        };
        root.SetAction(async (parsed, cancellationToken) =>
        {
            bool isV1 = parsed.GetValue(type) == "v1";
            string path = Path.GetFullPath(parsed.GetValue(plugin) ?? "");
            RunOptions options = new(isV1, path, parsed.GetValue(datapath) ?? DatapathOf(path), parsed.GetValue(tools) ?? AppContext.BaseDirectory)
            {
                DeviceConfig = ReadConfig(parsed.GetValue(config) ?? []),
                Level = Enum.Parse<Level>(parsed.GetValue(level)!, ignoreCase: true),
                Only = parsed.GetValue(only) ?? [],
                Seed = parsed.GetValue(seed),
                Jobs = parsed.GetValue(jobs),
                Deadline = TimeSpan.FromSeconds(parsed.GetValue(timeout)),
            };
            using TextReport report = new(isQuiet: false);
            RunResult result = await new Runner(options, report.Tell).RunAsync(Catalog.Chosen(options), cancellationToken);
            report.Show(result, new Dictionary<string, string>());
            return result.IsGood ? 0 : 1;
        });
        _ = list;
        _ = explain;
        ParseResult result = root.Parse(arguments);
        return result.Errors.Count == 0 ? result.InvokeAsync() : Task.FromResult(Usage);
    }

    private static string DatapathOf(string volumeFolder) =>
        Path.GetFullPath(Path.Combine(volumeFolder, "..", "..", "datapath"));

    private static Dictionary<string, string> ReadConfig(string[] pairs) =>
        pairs.Select(static p => p.Split('=', 2)).ToDictionary(static p => p[0], static p => p.Length == 2 ? p[1] : "");
}
