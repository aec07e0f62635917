// The report for programs: one JSON object, its members stable (docs/sr-check.md).
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace SrCheck.Reports;

internal static class JsonReport
{
    public static readonly JsonSerializerOptions Indented = new()
    {
        WriteIndented = true,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    public static string Write(RunResult result, IReadOnlyDictionary<string, string> records)
    {
        JsonArray checks = [];
        foreach (Outcome outcome in result.Outcomes)
            checks.Add(Check(outcome, records.GetValueOrDefault(outcome.Check.Id)));
        JsonObject report = new()
        {
            ["plugin"] = result.Options.PluginPath,
            ["type"] = result.Options.IsV1 ? "v1" : "v3",
            ["name"] = result.Info?.Name,
            ["sr_type"] = result.Info?.Type,
            ["level"] = result.Options.Level.ToString(),
            ["seed"] = result.Options.Seed,
            ["seconds"] = Math.Round(result.Took.TotalSeconds, 1),
            ["passed"] = result.Count(OutcomeKind.Passed),
            ["failed"] = result.Count(OutcomeKind.Failed),
            ["not_applicable"] = result.Count(OutcomeKind.NotApplicable),
            ["not_run"] = result.Count(OutcomeKind.NotRun),
            ["badge"] = result.IsPartial ? null : result.Badge?.ToString() ?? "none",
            ["is_good"] = result.IsGood,
            ["checks"] = checks,
        };
        return report.ToJsonString(Indented);
    }

    private static JsonObject Check(Outcome outcome, string? record)
    {
        JsonObject check = new()
        {
            ["id"] = outcome.Check.Id,
            ["level"] = outcome.Check.Level.ToString(),
            ["severity"] = outcome.Check.Severity.ToString().ToLowerInvariant(),
            ["outcome"] = outcome.Kind switch
            {
                OutcomeKind.Passed => "passed",
                OutcomeKind.Failed => "failed",
                OutcomeKind.NotApplicable => "not applicable",
                _ => "not run",
            },
            ["seconds"] = Math.Round(outcome.Took.TotalSeconds, 3),
        };
        if (outcome.Kind == OutcomeKind.Passed)
            return check;
        check["seen"] = outcome.Seen;
        check["reason"] = outcome.Check.Reason;
        check["section"] = outcome.Check.Spec;
        check["fix"] = outcome.Check.Fix;
        if (record is not null)
            check["record"] = record;
        return check;
    }
}
