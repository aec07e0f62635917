// The destination's ear and memory: tokens, the peer protocol, and what outlives the daemon.
using System.Text.Json.Nodes;
using Microsoft.Extensions.Logging.Abstractions;
using Migration;
using Platform;
using Support;
using Xapi.Migration;

namespace Unit.XapiTests;

public sealed class MigrationTests : IDisposable
{
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly MigrationWorld world = new();
    private readonly ManualTime time = new();
    private readonly Secret secret = Secret.Create();
    private MigrationStore store;
    private PeerEndpoint endpoint;

    public MigrationTests()
    {
        store = new MigrationStore(folder.File("migrations.db"));
        endpoint = Endpoint();
        store.Issue(world.Plan.Migration, secret, "host", "sr", time.GetUtcNow().AddHours(1));
    }

    public void Dispose()
    {
        endpoint.Dispose();
        store.Dispose();
        folder.Dispose();
    }

    [Fact]
    public void A_token_reads_back_and_a_change_of_any_character_of_any_key_is_found()
    {
        MigrationToken token = new("m", new PeerAddress("https://b:1", new string('a', 64), "OpaqueRef:h"), DateTimeOffset.FromUnixTimeSeconds(5), secret);
        Dictionary<string, string> map = token.ToMap("b:1");

        MigrationToken read = MigrationToken.Parse(map);
        Assert.Equal((token.Migration, token.Destination, token.ExpiresAt), (read.Migration, read.Destination, read.ExpiresAt));
        Assert.Equal(secret, read.Secret);
        Assert.Equal(["SM", "host", "master", "session_id", "x-storage-token", "xenops"], map.Keys.Order(StringComparer.Ordinal));
        foreach (string key in map.Keys)
        {
            for (int i = 0; i < map[key].Length; i++)
            {
                Dictionary<string, string> altered = new(map);
                altered[key] = map[key][..i] + (map[key][i] == 'x' ? 'y' : 'x') + map[key][(i + 1)..];
                Assert.Throws<FormatException>(() => MigrationToken.Parse(altered));
            }
        }
    }

    [Fact]
    public void No_secret_stands_in_a_url_of_a_token_nor_in_the_destinations_store()
    {
        Dictionary<string, string> map = new MigrationToken(
            "m", new PeerAddress("https://b:1", new string('a', 64), "h"), time.GetUtcNow(), secret).ToMap("b:1");
        Assert.DoesNotContain(map, e => e.Key != "x-storage-token" && e.Value.Contains(secret.Reveal(), StringComparison.Ordinal));
        store.Dispose();
        foreach (string file in Directory.GetFiles(folder.Path))
            Assert.DoesNotContain(secret.Reveal(), File.ReadAllText(file), StringComparison.Ordinal);
        store = new MigrationStore(folder.File("migrations.db"));
    }

    [Fact]
    public async Task A_source_prepares_loads_is_granted_and_confirms_and_each_may_be_asked_again()
    {
        JsonNode? plan = Prepare(world.Plan);
        for (int time = 0; time < 2; time++)
            Assert.Equal("secret", (string?)(await AskAsync("prepare", plan))["result"]!["memory"]!["secret"]);
        JsonNode digests = (await AskAsync("loaded", null))["result"]!;
        JsonObject grant = new() { ["epoch"] = 8, ["digests"] = digests.DeepClone() };
        for (int time = 0; time < 2; time++)
            Assert.NotNull((await AskAsync("grant", grant.DeepClone()))["result"]!["running_at"]);

        Assert.True(world.DestinationRuns);
        Assert.Equal(new Ownership("vm1", 8, Owner.Here, "m1"), store.OwnershipOf("vm1"));
        Assert.Equal("OPERATION_NOT_ALLOWED", (string?)(await AskAsync("abort", JsonValue.Create("too late")))["error"]!["code"]);
    }

    [Fact]
    public async Task A_grant_whose_digests_differ_is_refused_for_good_and_everything_made_is_gone()
    {
        await AskAsync("prepare", Prepare(world.Plan));
        JsonNode digests = (await AskAsync("loaded", null))["result"]!;
        digests["disks"]![0]!["root"] = "another";

        JsonNode answer = await AskAsync("grant", new JsonObject { ["epoch"] = 8, ["digests"] = digests.DeepClone() });
        Assert.Contains("xvda", (string?)answer["result"]!["refusal"], StringComparison.Ordinal);
        Assert.False(world.DestinationRuns);
        Assert.Empty(world.AtDestination);
        Assert.NotNull((await AskAsync("heartbeat", null))["error"]);
    }

    [Theory]
    [InlineData("not JSON")]
    [InlineData("null")]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("{\"verb\":5,\"migration\":{}}")]
    public async Task What_is_no_request_gets_an_error_and_makes_nothing(string body)
    {
        Assert.NotNull(JsonNode.Parse(await endpoint.HandleAsync(secret.Reveal(), body, None))!["error"]);
        Assert.Empty(world.AtDestination);
    }

    [Theory]
    [InlineData("no secret")]
    [InlineData("another secret")]
    [InlineData("another migration")]
    [InlineData("unknown verb")]
    [InlineData("a plan of another migration")]
    [InlineData("expired")]
    public async Task Who_may_not_is_refused_and_nothing_is_made(string how)
    {
        string? bearer = how switch { "no secret" => null, "another secret" => Secret.Create().Reveal(), _ => secret.Reveal() };
        string migration = how == "another migration" ? "m2" : "m1";
        MigrationPlan plan = how == "a plan of another migration" ? world.Plan with { Migration = "m3" } : world.Plan;
        if (how == "expired")
            time.Advance(TimeSpan.FromHours(2));

        string answer = await endpoint.HandleAsync(
            bearer, PeerProtocol.Request(how == "unknown verb" ? "fly" : "prepare", migration, Prepare(plan)), None);
        Assert.Equal(how == "another migration" ? MigrationException.Amnesia : "VM_MIGRATE_FAILED", (string?)JsonNode.Parse(answer)!["error"]!["code"]);
        if (how == "expired")
            Assert.Contains("expired", (string?)JsonNode.Parse(answer)!["error"]!["message"], StringComparison.Ordinal);
        Assert.Empty(world.AtDestination);
    }

    [Fact]
    public async Task A_token_is_for_one_source_and_for_one_time()
    {
        await AskAsync("prepare", Prepare(world.Plan));
        JsonNode other = await AskAsync("prepare", Prepare(world.Plan with { Source = new PeerAddress("https://x", "xx", "x") }));
        Assert.Contains("used already", (string?)other["error"]!["message"], StringComparison.Ordinal);
        await AskAsync("abort", JsonValue.Create("enough"));
        JsonNode again = await AskAsync("prepare", Prepare(world.Plan));
        Assert.Contains("used already", (string?)again["error"]!["message"], StringComparison.Ordinal);
        Assert.Empty(world.AtDestination);
    }

    [Fact]
    public async Task An_abort_that_comes_before_its_prepare_makes_the_late_prepare_make_nothing()
    {
        Assert.Null((await AskAsync("abort", JsonValue.Create("cancelled")))["error"]);
        JsonNode late = await AskAsync("prepare", Prepare(world.Plan));
        Assert.Contains("spent", (string?)late["error"]!["message"], StringComparison.Ordinal);
        Assert.Empty(world.AtDestination);
    }

    [Theory]
    [InlineData("grant")]
    [InlineData("heartbeat")]
    public async Task A_destination_that_holds_nothing_of_a_migration_says_so_and_its_word_is_no_refusal(string verb) =>
        Assert.Equal(MigrationException.Amnesia, (string?)(await AskAsync(verb, null))["error"]!["code"]);

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_source_that_falls_silent_is_given_up_after_its_window_and_everything_made_for_it_is_gone(bool isHeard)
    {
        await AskAsync("prepare", Prepare(world.Plan));
        Assert.NotEmpty(world.AtDestination);
        time.Advance(DestinationRunner.FirstPatience - TimeSpan.FromSeconds(1));
        Assert.NotEmpty(world.AtDestination);
        if (isHeard)
        {
            Assert.Null((await AskAsync("heartbeat", null))["error"]);
            time.Advance(world.Plan.Options.ResumeWindow + DestinationRunner.FirstPatience - TimeSpan.FromSeconds(1));
            Assert.NotEmpty(world.AtDestination);
        }

        time.Advance(TimeSpan.FromSeconds(2));
        for (int tries = 0; tries < 500 && world.AtDestination.Count > 0; tries++)
            await Task.Delay(10); // It is undone in its own time.

        JsonNode late = await AskAsync("heartbeat", null);
        Assert.Contains("silent", (string?)late["error"]!["message"], StringComparison.Ordinal);
        Assert.Empty(world.AtDestination);
    }

    [Fact]
    public async Task A_restarted_destination_waits_for_its_source_which_prepares_again_over_the_same_disks()
    {
        await AskAsync("prepare", Prepare(world.Plan));
        string[] before = [.. world.AtDestination.Order()];
        endpoint.Dispose();
        store.Dispose();
        store = new MigrationStore(folder.File("migrations.db"));
        endpoint = Endpoint();
        await endpoint.RecoverAsync(None);

        Assert.Null((await AskAsync("heartbeat", null))["error"]);
        Assert.Null((await AskAsync("prepare", Prepare(world.Plan, attempt: 1)))["error"]);
        Assert.Equal(before, world.AtDestination.Order());
        DestinationState state = store.Destination("m1")!;
        Assert.Equal(
            ["Domain", "Export xvda", "Export xvdb"], state.Records.OfType<DestinationRecord.Undone>().Select(static u => u.Resource.ToString()).Order());
        JsonNode stale = await AskAsync("prepare", Prepare(world.Plan));
        Assert.Contains("attempt 0 is over", (string?)stale["error"]!["message"], StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_decision_is_answered_again_after_any_number_of_restarts(bool isAccepted)
    {
        await AskAsync("prepare", Prepare(world.Plan));
        JsonNode digests = (await AskAsync("loaded", null))["result"]!;
        JsonObject grant = new() { ["epoch"] = isAccepted ? 8 : 9, ["digests"] = digests.DeepClone() };
        string first = (await AskAsync("grant", grant.DeepClone()))["result"]!.ToJsonString();
        for (int restart = 0; restart < 3; restart++)
        {
            endpoint.Dispose();
            endpoint = Endpoint();
            await endpoint.RecoverAsync(None);
            Assert.Equal(first, (await AskAsync("grant", grant.DeepClone()))["result"]!.ToJsonString());
        }
    }

    [Fact]
    public void A_journal_and_the_ownership_it_brings_outlive_the_daemon()
    {
        Assert.Equal(new Ownership("vm1", 1, Owner.Here, ""), store.OwnershipOf("vm1"));
        store.Append("m1", new SourceRecord.Begun(world.Plan, DateTimeOffset.UnixEpoch));
        store.Append("m1", new SourceRecord.Granting(8));
        store.Dispose();
        store = new MigrationStore(folder.File("migrations.db"));

        Assert.Equal(new Ownership("vm1", 8, Owner.InDoubt, "m1"), store.OwnershipOf("vm1"));
        SourceState state = Assert.Single(store.OpenSources());
        Assert.True(state.IsInDoubt);
        Assert.Equal(world.Plan.Disks, state.Plan.Disks);
    }

    private PeerEndpoint Endpoint() => new(store, world, new YesToAll(), static _ => null, time, NullLogger.Instance);

    private static JsonNode? Prepare(MigrationPlan plan, int attempt = 0) => PeerProtocol.Node(new PrepareRequest(plan, attempt));

    private async Task<JsonNode> AskAsync(string verb, JsonNode? body) =>
        JsonNode.Parse(await endpoint.HandleAsync(secret.Reveal(), PeerProtocol.Request(verb, "m1", body?.DeepClone()), None))!;

    private sealed class YesToAll : IPlanCheck
    {
        public Task<PlanAnswer> CheckAsync(IssuedToken token, PlanQuestion question, CancellationToken cancellationToken) =>
            Task.FromResult(new PlanAnswer(new Dictionary<string, string>(), token.Host));
    }
}
