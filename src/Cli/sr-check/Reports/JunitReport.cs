// The report that CI systems show: one suite for each group. What does not apply is skipped, what could not run is an error.
using System.Globalization;
using System.Xml.Linq;

namespace SrCheck.Reports;

internal static class JunitReport
{
    public static string Write(RunResult result)
    {
        XElement suites = new("testsuites", new XAttribute("name", "sr-check"), Totals(result.Outcomes));
        foreach (IGrouping<string, Outcome> group in result.Outcomes.GroupBy(static o => o.Check.Group))
        {
            suites.Add(new XElement(
                "testsuite", new XAttribute("name", $"sr-check.{group.Key}"), Totals([.. group]), group.Select(Case)));
        }

        return new XDocument(new XDeclaration("1.0", "utf-8", null), suites).Declaration + "\n" + suites + "\n";
    }

    private static XAttribute[] Totals(IReadOnlyCollection<Outcome> outcomes) =>
    [
        new("tests", outcomes.Count),
        new("failures", outcomes.Count(static o => o.Kind == OutcomeKind.Failed)),
        new("errors", outcomes.Count(static o => o.Kind == OutcomeKind.NotRun)),
        new("skipped", outcomes.Count(static o => o.Kind == OutcomeKind.NotApplicable)),
        new("time", Seconds(outcomes.Sum(static o => o.Took.TotalSeconds))),
    ];

    private static XElement Case(Outcome outcome)
    {
        XElement element = new(
            "testcase", new XAttribute("classname", $"sr-check.{outcome.Check.Group}"), new XAttribute("name", outcome.Check.Id),
            new XAttribute("time", Seconds(outcome.Took.TotalSeconds)));
        string message = Clean(outcome.Seen);
        switch (outcome.Kind)
        {
            case OutcomeKind.Failed:
                string text = Clean($"why: {outcome.Check.Reason}\nseen: {outcome.Seen}\nfix: {outcome.Check.Fix}");
                element.Add(new XElement("failure", new XAttribute("message", message), text));
                break;
            case OutcomeKind.NotRun:
                element.Add(new XElement("error", new XAttribute("message", message)));
                break;
            case OutcomeKind.NotApplicable:
                element.Add(new XElement("skipped", new XAttribute("message", message)));
                break;
        }

        return element;
    }

    /// <summary>A plugin prints what it likes; XML has no place for control characters and halves of pairs.</summary>
    private static string Clean(string text) =>
        string.Concat(text.Select(static c => System.Xml.XmlConvert.IsXmlChar(c) ? c : '?'));

    private static string Seconds(double seconds) => seconds.ToString("0.000", CultureInfo.InvariantCulture);
}
