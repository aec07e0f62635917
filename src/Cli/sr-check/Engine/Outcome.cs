using SrCheck.Checks;
using SrCheck.Plugins;

namespace SrCheck;

internal enum OutcomeKind
{
    Passed,
    Failed,
    NotApplicable,

    /// <summary>What it needs does not work; for the badge as bad as failed.</summary>
    NotRun,
}

/// <param name="Seen">What was seen instead, or why it does not apply or could not run.</param>
/// <param name="Calls">Of a failed check: what was said to the plugin and by it.</param>
internal sealed record Outcome(Check Check, OutcomeKind Kind, string Seen, TimeSpan Took, IReadOnlyList<PluginCall> Calls)
{
    public bool CostsBadge => Check.Severity == Severity.Must && Kind is OutcomeKind.Failed or OutcomeKind.NotRun;
}

internal sealed record RunResult(RunOptions Options, PluginInfo? Info, IReadOnlyList<Outcome> Outcomes, TimeSpan Took)
{
    /// <summary>The highest level of which every check of it and below it holds; null for none.</summary>
    public Level? Badge
    {
        get
        {
            Level? badge = null;
            foreach (Level level in Enum.GetValues<Level>().Where(l => l <= Options.Level))
            {
                if (Outcomes.Any(o => o.Check.Level == level && o.CostsBadge))
                    break;
                badge = level;
            }

            return badge;
        }
    }

    /// <summary>Part of the checks earns no badge.</summary>
    public bool IsPartial => Options.Only.Count != 0;

    public bool IsGood => IsPartial ? !Outcomes.Any(static o => o.CostsBadge) : Badge == Options.Level;

    public int Count(OutcomeKind kind) => Outcomes.Count(o => o.Kind == kind);
}
