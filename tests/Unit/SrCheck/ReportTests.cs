using System.Text.Json.Nodes;
using System.Xml.Linq;
using SrCheck;
using SrCheck.Checks;
using SrCheck.Plugins;
using SrCheck.Reports;
using Support;

namespace Unit.SrCheckTests;

public class ReportTests
{
    private static readonly RunOptions Options = new(true, "/x/TestSR", "", "/tools")
    {
        Level = Level.Silver,
        DeviceConfig = new Dictionary<string, string> { ["location"] = "/srv", ["cifspassword"] = "hunter2" },
    };

    [Fact]
    public void The_badge_is_the_highest_level_of_which_all_holds()
    {
        Assert.Equal(Level.Silver, Result(Passed("a.a", Level.Bronze), Passed("b.b", Level.Silver)).Badge);
        Assert.Equal(Level.Bronze, Result(Passed("a.a", Level.Bronze), Failed("b.b", Level.Silver)).Badge);
        Assert.Null(Result(Failed("a.a", Level.Bronze), Passed("b.b", Level.Silver)).Badge);
        Assert.Null(Result(Of("a.a", Level.Bronze, OutcomeKind.NotRun)).Badge);
        Assert.Equal(Level.Silver, Result(Of("a.a", Level.Bronze, OutcomeKind.NotApplicable), Of("b.b", Level.Silver,
            OutcomeKind.NotApplicable)).Badge);
    }

    [Fact]
    public void Advice_costs_no_badge()
    {
        Outcome advice = Failed("a.a", Level.Bronze);
        Assert.Equal(Level.Silver, Result(advice with { Check = advice.Check with { Severity = Severity.Should } }).Badge);
    }

    [Fact]
    public void The_badge_line_names_what_the_next_badge_needs()
    {
        Assert.Equal("badge: Bronze (Silver needs b.b)", TextReport.BadgeLine(Result(Passed("a.a", Level.Bronze), Failed("b.b",
            Level.Silver))));
        Assert.Equal("badge: Silver", TextReport.BadgeLine(Result(Passed("a.a", Level.Bronze), Passed("b.b", Level.Silver))));
        Assert.StartsWith("badge: none", TextReport.BadgeLine(Result(Failed("a.a", Level.Bronze))));
    }

    [Fact]
    public void JUnit_is_valid_XML_whatever_a_plugin_printed()
    {
        Outcome outcome = Failed("a.a", Level.Bronze) with { Seen = "half a pair \ud83d, a NUL \0, <markup> & \"quotes\"" };
        XElement suites = XDocument.Parse(JunitReport.Write(Result(outcome, Of("a.b", Level.Bronze, OutcomeKind.NotApplicable)))).Root!;
        Assert.Equal("1", suites.Attribute("failures")!.Value);
        Assert.Equal("1", suites.Attribute("skipped")!.Value);
        Assert.Contains("<markup>", suites.Descendants("failure").Single().Value);
    }

    [Fact]
    public void JSON_tells_every_check_once()
    {
        JsonNode report = JsonNode.Parse(JsonReport.Write(Result(Passed("a.a", Level.Bronze), Failed("b.b", Level.Silver)),
            new Dictionary<string, string>()))!;
        Assert.Equal(["a.a", "b.b"], report["checks"]!.AsArray().Select(static c => (string)c!["id"]!));
        Assert.Equal("Bronze", (string)report["badge"]!);
    }

    [Fact]
    public void A_record_is_read_back_and_holds_no_secret()
    {
        using TemporaryDirectory folder = new();
        PluginCall call = new("sr_scan", "/x/TestSR", ["<hunter2/>"], "", new Dictionary<string, string>(), 0, "hunter2", "", null,
            TimeSpan.Zero);
        string path = CallRecord.WriteAll(Result(Failed("a.a", Level.Bronze) with { Calls = [call] }), folder.Path)["a.a"];
        Assert.DoesNotContain("hunter2", File.ReadAllText(path));
        RecordedFailure read = CallRecord.Read(path);
        Assert.Equal(("a.a", "seen", "/x/TestSR", true), (read.CheckId, read.Seen, read.Options.PluginPath, read.Options.IsV1));
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("{\"sr_check_record\":1}")]
    [InlineData("{\"sr_check_record\":2}")]
    public void What_is_no_record_is_refused(string text)
    {
        using TemporaryDirectory folder = new();
        File.WriteAllText(folder.File("r"), text);
        Assert.Throws<FormatException>(() => CallRecord.Read(folder.File("r")));
    }

    [Fact]
    public void Failures_that_differ_in_uuids_and_folders_only_are_the_same()
    {
        const string one = "/tmp/sk-abc/5/s/b25c3fd5-1d01-4fd3-9fb7-ce6c7c935c8e.vhd is at minor 3";
        const string two = "/tmp/sk-xyz/77/s/11111111-1d01-4fd3-9fb7-ce6c7c935c8e.vhd is at minor 12";
        Assert.True(CallRecord.IsSame(one, two));
        Assert.False(CallRecord.IsSame(one, one + ", closed"));
    }

    private static RunResult Result(params Outcome[] outcomes) => new(Options, null, outcomes, TimeSpan.FromSeconds(1));

    private static Outcome Passed(string id, Level level) => Of(id, level, OutcomeKind.Passed);

    private static Outcome Failed(string id, Level level) => Of(id, level, OutcomeKind.Failed);

    private static Outcome Of(string id, Level level, OutcomeKind kind)
    {
        Check check = new(id, level, Severity.Must, "reason", "1", "fix", Stage.Shared, [], static _ => Task.CompletedTask);
        return new Outcome(check, kind, kind == OutcomeKind.Passed ? "" : "seen", TimeSpan.Zero, []);
    }
}
