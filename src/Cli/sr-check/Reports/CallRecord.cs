// One failing check as one file: what is needed to run it again, what was seen, and every call as it was made, for a person to read and to
// paste into a shell. Secrets of device_config are not in it.
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using SrCheck.Plugins;

namespace SrCheck.Reports;

/// <summary>What a record says of the run that it comes from.</summary>
internal sealed record RecordedFailure(RunOptions Options, string CheckId, string Seen);

internal static partial class CallRecord
{
    private const int Version = 1;
    private const int TextLimit = 64 * 1024;

    /// <summary>Writes the failing checks' records; check id to path.</summary>
    public static IReadOnlyDictionary<string, string> WriteAll(RunResult result, string folder)
    {
        Directory.CreateDirectory(folder);
        Dictionary<string, string> paths = [];
        foreach (Outcome outcome in result.Outcomes.Where(static o => o.Kind == OutcomeKind.Failed))
        {
            string path = Path.Combine(folder, outcome.Check.Id + ".json");
            File.WriteAllText(path, Mask(Write(result.Options, outcome), result.Options.DeviceConfig));
            paths[outcome.Check.Id] = path;
        }

        return paths;
    }

    /// <exception cref="FormatException">Not a record of this version.</exception>
    public static RecordedFailure Read(string path)
    {
        try
        {
            JsonObject record = JsonNode.Parse(File.ReadAllText(path)) as JsonObject ?? throw new FormatException("not a record");
            if ((int?)record["sr_check_record"] != Version)
                throw new FormatException($"not a record of version {Version}");
            RunOptions options = new(
                Text(record, "type") == "v1", Text(record, "plugin"), Text(record, "datapath"), Text(record, "tools"))
            {
                DeviceConfig = record["device_config"]!.AsObject().ToDictionary(static p => p.Key, static p => p.Value!.ToString()),
                Seed = (int)record["seed"]!,
                Deadline = TimeSpan.FromSeconds((double)record["timeout"]!),
                Only = [Text(record, "check")],
                Jobs = 1,
            };
            return new RecordedFailure(options, Text(record, "check"), Text(record, "seen"));
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or NullReferenceException or IOException)
        {
            throw new FormatException($"{path} is no record of sr-check's: {e.Message}");
        }
    }

    /// <summary>Two failures are the same when they differ in nothing but uuids, folders, process ids and times.</summary>
    public static bool IsSame(string one, string other) => Plain(one) == Plain(other);

    private static string Plain(string text) => Numbers().Replace(Folders().Replace(Uuids().Replace(text, "U"), "/D"), "N");

    private static string Write(RunOptions options, Outcome outcome)
    {
        JsonObject config = [];
        foreach ((string key, string value) in options.DeviceConfig)
            config[key] = value;
        JsonArray calls = [];
        foreach (PluginCall call in outcome.Calls)
            calls.Add(Call(call));
        return new JsonObject
        {
            ["sr_check_record"] = Version,
            ["check"] = outcome.Check.Id,
            ["reason"] = outcome.Check.Reason,
            ["seen"] = outcome.Seen,
            ["fix"] = outcome.Check.Fix,
            ["type"] = options.IsV1 ? "v1" : "v3",
            ["plugin"] = options.PluginPath,
            ["datapath"] = options.DatapathPath,
            ["tools"] = options.ToolsFolder,
            ["device_config"] = config,
            ["seed"] = options.Seed,
            ["timeout"] = options.Deadline.TotalSeconds,
            ["calls"] = calls,
        }.ToJsonString(JsonReport.Indented);
    }

    private static JsonObject Call(PluginCall call)
    {
        JsonObject environment = [];
        foreach ((string name, string value) in call.Environment)
            environment[name] = value;
        return new JsonObject
        {
            ["name"] = call.Name,
            ["program"] = call.Program,
            ["arguments"] = new JsonArray([.. call.Arguments.Select(static a => JsonValue.Create(Cut(a)))]),
            ["stdin"] = Cut(call.StandardInput),
            ["environment"] = environment,
            ["exit"] = call.ExitCode,
            ["stdout"] = Cut(call.StandardOutput),
            ["stderr"] = Cut(call.StandardError),
            ["no_answer"] = call.NoAnswer,
            ["milliseconds"] = Math.Round(call.Took.TotalMilliseconds),
            ["shell"] = Cut(Shell(call)),
        };
    }

    private static string Shell(PluginCall call)
    {
        string variables = string.Join(' ', call.Environment.Select(static e => $"{e.Key}={Quote(e.Value)}"));
        string command = $"{Quote(call.Program)} {string.Join(' ', call.Arguments.Select(Quote))}";
        string input = call.StandardInput.Length == 0 ? "" : $"printf '%s' {Quote(call.StandardInput)} | ";
        return $"{input}env {variables} {command}";
    }

    private static string Quote(string text) => $"'{text.Replace("'", "'\\''", StringComparison.Ordinal)}'";

    private static string Cut(string text) => text.Length <= TextLimit ? text : text[..TextLimit] + "…";

    private static string Mask(string record, IReadOnlyDictionary<string, string> config)
    {
        foreach ((string key, string value) in config)
        {
            bool isSecret = key.Contains("password", StringComparison.OrdinalIgnoreCase) || key.Contains("secret",
                StringComparison.OrdinalIgnoreCase);
            if (isSecret && value.Length != 0)
                record = record.Replace(value, "***", StringComparison.Ordinal);
        }

        return record;
    }

    private static string Text(JsonObject record, string name) => record[name]!.GetValue<string>().ToString(CultureInfo.InvariantCulture);

    [GeneratedRegex("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")]
    private static partial Regex Uuids();

    [GeneratedRegex("/[^ \"']*sk-[^/]*/[0-9]+")]
    private static partial Regex Folders();

    [GeneratedRegex("[0-9]+")]
    private static partial Regex Numbers();
}
