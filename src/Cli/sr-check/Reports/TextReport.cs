// What a person sees: progress on standard error while it runs; on standard output a line for each group, one paragraph for each failure,
// and the badge last.
using System.Globalization;
using SrCheck.Checks;
using Spectre.Console;

namespace SrCheck.Reports;

internal sealed class TextReport : IDisposable
{
    private const int PlainWidth = 250; // In a file or a pipe a line is a line.
    private readonly IAnsiConsole output = Open(Console.Out, Console.IsOutputRedirected);
    private readonly bool isQuiet;
    private readonly bool hasTerminal = !Console.IsErrorRedirected;
    private readonly Lock gate = new();
    private int done;
    private int failed;

    public TextReport(bool isQuiet) => this.isQuiet = isQuiet;

    public void Tell(Outcome outcome, int total)
    {
        lock (gate)
        {
            done++;
            failed += outcome.Kind == OutcomeKind.Failed ? 1 : 0;
            if (isQuiet || !hasTerminal)
                return;
            string bar = new string('█', 30 * done / total).PadRight(30, '░');
            Console.Error.Write($"\r\e[K{bar} {done}/{total}  {(failed == 0 ? "" : $"{failed} failed  ")}{outcome.Check.Id}");
        }
    }

    public void Dispose()
    {
        if (!isQuiet && hasTerminal && done != 0)
            Console.Error.Write("\r\e[K");
    }

    public void Show(RunResult result, IReadOnlyDictionary<string, string> records)
    {
        Dispose();
        if (isQuiet)
            return;
        Header(result);
        Groups(result);
        foreach (Outcome outcome in result.Outcomes.Where(static o => o.Kind == OutcomeKind.Failed))
            Failure(outcome, records.GetValueOrDefault(outcome.Check.Id));
        foreach (IGrouping<string,
            Outcome> notRun in result.Outcomes.Where(static o => o.Kind == OutcomeKind.NotRun).GroupBy(static o => o.Seen))
            output.MarkupLineInterpolated($"[yellow]not run[/]  {notRun.Count()} checks: {notRun.Key}");
        Summary(result);
    }

    /// <summary>The last line: the badge, and what the next one lacks.</summary>
    public static string BadgeLine(RunResult result)
    {
        if (result.IsPartial)
            return result.IsGood ? "badge: none (a part of the checks earns none; all of these hold)"
                : "badge: none (a part of the checks earns none)";
        Level next = result.Badge is { } badge ? badge + 1 : Level.Bronze;
        if (next > result.Options.Level)
            return $"badge: {result.Badge}";
        string[] lacking = [.. result.Outcomes.Where(o => o.Check.Level == next && o.CostsBadge).Select(static o => o.Check.Id)];
        string which = string.Join(", ", lacking.Take(5)) + (lacking.Length > 5 ? $" and {lacking.Length - 5} more" : "");
        return $"badge: {(result.Badge is { } earned ? $"{earned}" : "none")} ({next} needs {which})";
    }

    private void Header(RunResult result)
    {
        RunOptions o = result.Options;
        string api = o.IsV1 ? "SMAPIv1" : "SMAPIv3";
        string name = result.Info?.Name ?? Path.GetFileName(o.PluginPath);
        output.MarkupLineInterpolated($"[bold]{name}[/] ({api} {result.Info?.Type}), seed {o.Seed}");
    }

    private void Groups(RunResult result)
    {
        foreach (IGrouping<string, Outcome> group in result.Outcomes.GroupBy(static o => o.Check.Group))
        {
            int Count(OutcomeKind kind) => group.Count(o => o.Kind == kind);
            string bad = Count(OutcomeKind.Failed) + Count(OutcomeKind.NotRun) == 0 ? ""
                : $", {Count(OutcomeKind.Failed)} failed, {Count(OutcomeKind.NotRun)} not run";
            string applies = Count(OutcomeKind.NotApplicable) == 0 ? "" : $", {Count(OutcomeKind.NotApplicable)} not applicable";
            output.MarkupLineInterpolated($"  {group.Key,-12} {Count(OutcomeKind.Passed),3} passed{bad}{applies}");
        }
    }

    private void Failure(Outcome outcome, string? record)
    {
        string severity = outcome.Check.Severity == Severity.Must ? "FAILED" : "advice";
        Check check = outcome.Check;
        output.MarkupLineInterpolated($"[red]{severity}[/]  [bold]{check.Id}[/] ({check.Level}, section {check.Spec})");
        output.MarkupLineInterpolated($"    why:  {outcome.Check.Reason}");
        output.MarkupLineInterpolated($"    seen: {outcome.Seen}");
        output.MarkupLineInterpolated($"    fix:  {outcome.Check.Fix}");
        if (record is not null)
            output.MarkupLineInterpolated($"    again: sr-check replay {record}");
    }

    private void Summary(RunResult result)
    {
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{result.Outcomes.Count} checks: {result.Count(OutcomeKind.Passed)} passed, {result.Count(OutcomeKind.Failed)} failed, "
            + $"{result.Count(OutcomeKind.NotApplicable)} not applicable, {result.Count(OutcomeKind.NotRun)} not run, "
            + $"{result.Took.TotalSeconds:0.0} s"));
        output.WriteLine(BadgeLine(result));
    }

    private static IAnsiConsole Open(TextWriter writer, bool isRedirected)
    {
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Ansi = isRedirected ? AnsiSupport.No : AnsiSupport.Detect,
            Out = new AnsiConsoleOutput(writer),
        });
        if (isRedirected)
            console.Profile.Width = PlainWidth;
        return console;
    }
}
