// The witness's registers, the options that name one, and the disks that a migration keeps.
using System.Text.Json.Nodes;
using Migration;
using Platform;
using Support;
using Xapi;
using Xapi.Migration;

namespace Unit.XapiTests;

public sealed class WitnessTests : IDisposable
{
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly Secret key = Secret.Create();

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task The_first_proposal_is_the_answer_for_ever_also_after_a_restart()
    {
        using (EmbeddedWitness registers = new(folder.File("witness.db"), key))
        {
            CompareAndSetWitness witness = new(registers);
            Verdict[] answers = await Task.WhenAll(Enumerable.Range(0, 8).Select(i => Task.Run(() =>
                witness.DecideAsync("m1", i % 2 == 0 ? Verdict.Source : Verdict.Destination, None))));
            Assert.Single(answers.Distinct());
            Assert.Equal(Verdict.Source, await witness.DecideAsync("m2", Verdict.Source, None));
        }

        using EmbeddedWitness again = new(folder.File("witness.db"), key);
        Assert.Equal(Verdict.Source, await new CompareAndSetWitness(again).DecideAsync("m2", Verdict.Destination, None));
    }

    [Fact]
    public async Task Who_has_no_key_or_asks_nonsense_writes_nothing()
    {
        using EmbeddedWitness registers = new(folder.File("witness.db"), key);
        const string good = """{"register":"migration/m","value":"Source"}""";
        Assert.Equal(401, (await registers.HandleAsync(null, good, None)).Status);
        Assert.Equal(401, (await registers.HandleAsync(Secret.Create().Reveal(), good, None)).Status);
        foreach (string bad in (string[])["", "null", "[]", "{}", """{"register":5,"value":"x"}""", $$"""{"register":"{{new string('r', 200)}}","value":"x"}"""])
            Assert.Equal(400, (await registers.HandleAsync(key.Reveal(), bad, None)).Status);
        (int status, string body) = await registers.HandleAsync(key.Reveal(), good.Replace("Source", "Destination", StringComparison.Ordinal), None);
        Assert.Equal((200, "Destination"), (status, (string?)JsonNode.Parse(body)!["value"]));
    }

    [Fact]
    public void Options_are_read_in_the_fields_words_and_each_mistake_names_its_key()
    {
        string name = $"https://127.0.0.1:7#{new string('a', 64)}";
        File.WriteAllText(folder.File("list"), $"# known\n{name} the-key\n");
        Witnesses witnesses = new(folder.File("list"), null, "");
        MigrationOptions read = MigrationOptionsReader.Read(
            new() { ["bandwidth_limit"] = "5", ["keep_source_for"] = "P2D", ["resume_window"] = "60", ["witness"] = name, ["downtime_limit_ms"] = "9" }, witnesses);
        Assert.Equal(
            (5, TimeSpan.FromDays(2), TimeSpan.FromMinutes(1), "the-key", 9),
            (read.BandwidthBytesPerSecond, read.KeepSourceFor, read.ResumeWindow, read.Witness!.Key, read.DowntimeLimit.TotalMilliseconds));
        foreach ((string option, string value) in ((string, string)[])
            [("bandwidth_limit", "-1"), ("keep_source_for", "soon"), ("keep_source_for", "P9999D"), ("stall_limit_ms", "0"), ("witness", "https://127.0.0.1:7"),
                ("witness", name.Replace(":7", ":8", StringComparison.Ordinal))])
        {
            XapiException refused = Assert.Throws<XapiException>(() => MigrationOptionsReader.Read(new() { [option] = value }, witnesses));
            Assert.Equal(("INVALID_VALUE", $"options:{option}"), (refused.Code, refused.Parameters[0]));
        }
    }

    [Fact]
    public async Task A_kept_disk_is_in_nobodys_hands_until_it_is_released_and_the_refusal_says_what_to_do()
    {
        await using ApiWorld world = new();
        world.Messages.Add("VDI.destroy", static (_, _) => "");
        world.Messages.Add("VM.start", static (_, _) => "");
        HeldDisks.Guard(world.Messages, world.Database);
        string sr = world.Database.Create("SR", ("name_label", "sr"));
        string vdi = world.Database.Create("VDI", ("SR", sr), ("location", "d1"));
        string vm = world.Database.Create("VM", ("name_label", "vm"));
        world.Database.Create("VBD", ("VM", vm), ("VDI", vdi), ("userdevice", "0"), ("type", "Disk"), ("mode", "RW"));
        MigrationPlan plan = new MigrationWorld().Plan;
        HeldDisks.Hold(world.Database, vdi, plan, DateTimeOffset.UnixEpoch.AddDays(1));

        foreach (string refusal in (string[])
            [world.Refusal("VDI.destroy", vdi), world.Refusal("VM.start", vm, false, false), world.Refusal("VDI.remove_from_other_config", vdi, HeldDisks.Key)])
        {
            foreach (string said in (string[])["OPERATION_NOT_ALLOWED", "m1", "1970-01-02", "migration.undo"])
                Assert.Contains(said, refusal, StringComparison.Ordinal);
        }

        HeldDisks.Release(world.Database, vdi);
        world.Call("VDI.destroy", vdi);
        world.Call("VM.start", vm, false, false);
    }

    [Theory]
    [InlineData("bandwith_limit", "5", "INVALID_VALUE options:bandwith_limit 5")]
    [InlineData("copy", "true", "NOT_IMPLEMENTED options:copy=true")]
    [InlineData("copy", "yes", "INVALID_VALUE options:copy yes")]
    public void An_option_that_is_not_known_or_not_kept_is_refused(string key, string value, string refusal)
    {
        Witnesses witnesses = new(null, null, "aa");
        XapiException e = Assert.Throws<XapiException>(() => MigrationOptionsReader.Read(new() { [key] = value }, witnesses));
        Assert.Equal(refusal, string.Join(' ', e.Description));
        MigrationOptionsReader.Read(new() { ["copy"] = "false", ["force"] = "true", ["compress"] = "true" }, witnesses);
    }
}
