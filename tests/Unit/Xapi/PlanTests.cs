// What VM.migrate_plan finds before anything is begun: every obstacle of either side, the link, the estimate.
using System.Text.Json.Nodes;
using Microsoft.Extensions.Logging.Abstractions;
using Migration;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Support;
using Xapi;
using Xapi.Migration;

namespace Unit.XapiTests;

public sealed class PlanTests : IAsyncDisposable
{
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly ApiWorld world = new();
    private readonly MigrationStore store;
    private readonly string pool;
    private readonly string metrics;
    private readonly string sr;
    private readonly string pbd;
    private readonly string network;
    private readonly string vm;
    private readonly string vdi;
    private readonly string vif;
    private readonly Dictionary<string, string> smConfig = [];
    private long freeBytes = 1000;
    private DateTimeOffset certificateExpiresAt;

    public PlanTests()
    {
        store = new MigrationStore(folder.File("migrations.db"));
        certificateExpiresAt = world.Time.GetUtcNow().AddDays(100);
        pool = world.Database.Create("pool", ("master", world.Host));
        metrics = world.Database.Create("host_metrics", ("memory_free", new RpcInt(1000)));
        world.Database.Set("host", world.Host, "metrics", metrics);
        world.Database.Set("host", world.Host, "enabled", true);
        sr = world.Database.Create("SR", ("name_label", "store"));
        pbd = world.Database.Create("PBD", ("SR", sr), ("host", world.Host), ("currently_attached", true));
        network = world.Database.Create("network", ("name_label", "office"));
        vm = world.Database.Create("VM", ("name_label", "web"), ("power_state", "Running"), ("memory_static_max", new RpcInt(600)));
        vdi = world.Database.Create("VDI", ("SR", sr), ("location", "leaf"));
        world.Database.Create("VBD", ("VM", vm), ("VDI", vdi), ("userdevice", "0"), ("type", "Disk"), ("mode", "RW"), ("empty", false));
        vif = world.Database.Create("VIF", ("VM", vm), ("network", network), ("device", "0"));
    }

    private DateTimeOffset Now => world.Time.GetUtcNow();

    private IssuedToken Token => new("m1", "", world.Host, sr, Now.AddHours(1));

    private PlanCheck Check => new(
        world.Database, (_, _, _) => Task.FromResult(new SrInfo("", "store", "", 5000, freeBytes, false, "")), store, pool, "bb", certificateExpiresAt,
        world.Time);

    private SourceCheck Source => new(
        world.Database, store,
        (_, _, id, _) => Task.FromResult(new VdiInfo { Vdi = id, VirtualSizeBytes = 4000, PhysicalUtilisationBytes = 700, SmConfig = smConfig }),
        () => new PoolIdentity("https://a", "aa", world.Host, "a"), certificateExpiresAt, world.Time);

    private static PlanQuestion Question => new(
        "0-1", "web", [new DiskPlan("xvda", "s", "d", "", "root", "", 4000, 700, false)], 600, "aa",
        [new NetworkWish("OpaqueRef:vif", "0", "office", "")], PeerProtocol.Version);

    public async ValueTask DisposeAsync()
    {
        store.Dispose();
        await world.DisposeAsync();
        folder.Dispose();
    }

    [Fact]
    public async Task A_destination_that_can_take_the_VM_finds_nothing_and_names_the_storage()
    {
        PlanAnswer answer = await Check.CheckAsync(Token, Question, None);
        Assert.Empty(answer.Obstacles);
        Assert.Equal(world.Database.GetString("SR", sr, "uuid"), answer.Storages["xvda"]);
    }

    [Theory]
    [InlineData("HOST_DISABLED")]
    [InlineData("HOST_NOT_ENOUGH_FREE_MEMORY")]
    [InlineData("SR_FULL")]
    [InlineData("SR_HAS_NO_PBDS")]
    [InlineData("VDI_NOT_IN_MAP")]
    [InlineData("HANDLE_INVALID SR")]
    [InlineData("HANDLE_INVALID host")]
    [InlineData("HANDLE_INVALID network")]
    [InlineData("VIF_NOT_IN_MAP")]
    [InlineData("DUPLICATE_VM")]
    [InlineData("OPERATION_NOT_ALLOWED same")]
    [InlineData("OPERATION_NOT_ALLOWED doubt")]
    [InlineData("VM_HOST_INCOMPATIBLE_VERSION_MIGRATE")]
    [InlineData("SERVER_CERTIFICATE_EXPIRED")]
    [InlineData("SERVER_CERTIFICATE_EXPIRES")]
    public async Task Each_thing_in_the_way_at_the_destination_is_one_obstacle_with_its_code(string code)
    {
        PlanQuestion question = Question;
        IssuedToken token = Token;
        switch (code)
        {
            case "HOST_DISABLED": world.Database.Set("host", world.Host, "enabled", false); break;
            case "HOST_NOT_ENOUGH_FREE_MEMORY": world.Database.Set("host_metrics", metrics, "memory_free", new RpcInt(599)); break;
            case "SR_FULL": freeBytes = 699; break;
            case "SR_HAS_NO_PBDS": world.Database.Set("PBD", pbd, "currently_attached", false); break;
            case "VDI_NOT_IN_MAP": token = token with { Sr = "" }; break;
            case "HANDLE_INVALID SR": token = token with { Sr = "OpaqueRef:gone" }; break;
            case "HANDLE_INVALID host": token = token with { Host = "OpaqueRef:gone" }; break;
            case "HANDLE_INVALID network": question = question with { Networks = [new NetworkWish("v", "0", "office", "OpaqueRef:gone")] }; break;
            case "VIF_NOT_IN_MAP": question = question with { Networks = [new NetworkWish("v", "0", "lab", "")] }; break;
            case "DUPLICATE_VM": question = question with { Vm = world.Database.GetString("VM", vm, "uuid") }; break;
            case "OPERATION_NOT_ALLOWED same": question = question with { SourceFingerprint = "bb" }; break;
            case "OPERATION_NOT_ALLOWED doubt": question = question with { Vm = Doubtful() }; break;
            case "VM_HOST_INCOMPATIBLE_VERSION_MIGRATE": question = question with { Version = 99 }; break;
            case "SERVER_CERTIFICATE_EXPIRED": certificateExpiresAt = Now; break;
            default: certificateExpiresAt = Now.AddDays(7); break;
        }

        Obstacle found = Assert.Single((await Check.CheckAsync(token, question, None)).Obstacles);
        Assert.Equal(code.Split(' ')[0], found.Code);
        Assert.Equal(MigrationSide.Destination, found.Side);
        Assert.Equal(code.EndsWith("EXPIRES", StringComparison.Ordinal) ? ObstacleSeverity.Warning : ObstacleSeverity.Error, found.Severity);
    }

    [Fact]
    public async Task All_obstacles_are_told_at_once_and_a_storage_that_two_disks_want_is_one()
    {
        world.Database.Set("host", world.Host, "enabled", false);
        world.Database.Set("PBD", pbd, "currently_attached", false);
        DiskPlan disk = Question.Disks[0];
        PlanAnswer answer = await Check.CheckAsync(Token, Question with { Disks = [disk, disk with { Device = "xvdb" }], MemoryBytes = 5000 }, None);
        Assert.Equal(["HOST_DISABLED", "HOST_NOT_ENOUGH_FREE_MEMORY", "SR_HAS_NO_PBDS"], answer.Obstacles.Select(static o => o.Code));
    }

    [Fact]
    public async Task The_source_finds_what_is_in_the_way_here()
    {
        store.Append("m0", new SourceRecord.Begun(Moved(world.Database.GetString("VM", vm, "uuid"), "m0"), Now));
        store.Append("m0", new SourceRecord.Granting(8));
        certificateExpiresAt = Now.AddDays(-1);
        world.Database.Set("VM", vm, "power_state", "Suspended");
        world.Database.SetInMap("VM", vm, "current_operations", "t", "snapshot");

        SourceLook look = await Source.LookAsync(vm, "m0", [], new() { [vif] = "OpaqueRef:n" }, None);
        Assert.Equal(["OPERATION_NOT_ALLOWED", "VM_MIGRATE_FAILED", "SERVER_CERTIFICATE_EXPIRED"], look.Obstacles.Select(static o => o.Code));
        Assert.Equal(["VM_BAD_POWER_STATE", "OTHER_OPERATION_IN_PROGRESS"], Source.InTheMoment(vm).Select(static o => o.Code));
        Assert.Equal([new NetworkWish(vif, "0", "office", "OpaqueRef:n")], look.Question.Networks!);
    }

    [Theory]
    [InlineData(25, null)]
    [InlineData(26, "VDI_CHAIN_DEEP")]
    [InlineData(29, "VDI_CHAIN_DEEP")]
    [InlineData(30, "SR_BACKEND_FAILURE_109")]
    public async Task A_deep_chain_is_a_warning_and_one_at_the_limit_an_error(int depth, string? code)
    {
        smConfig["vhd-parent"] = "p2";
        for (int i = 2; i <= depth; i++)
        {
            string parent = world.Database.Create("VDI", ("SR", sr), ("location", $"p{i}"));
            if (i < depth)
                world.Database.SetInMap("VDI", parent, "sm_config", "vhd-parent", $"p{i + 1}");
        }

        SourceLook look = await Source.LookAsync(vm, "m1", [], [], None);
        Assert.Equal(depth, look.ChainDepths["xvda"]);
        Assert.Equal(code, look.Obstacles.SingleOrDefault()?.Code);
    }

    [Fact]
    public async Task A_plan_holds_both_sides_the_clocks_the_link_and_the_estimate()
    {
        world.Database.Set("host", world.Host, "enabled", false);
        FarSide far = new(this) { ClockAhead = TimeSpan.FromMinutes(6) };
        MigratePlan plan = await PlanAsync(far, new MigrationOptions { BandwidthBytesPerSecond = 100 });
        JsonObject json = plan.ToJson();

        Assert.Equal(["HOST_DISABLED", "CLOCKS_DIFFER"], plan.Obstacles.Select(static o => o.Code));
        Assert.Equal("HOST_DISABLED", plan.FirstError!.Code);
        Assert.False((bool)json["can_migrate"]!);
        Assert.Equal("warning", (string?)json["obstacles"]![1]!["severity"]);
        Assert.Equal(10, (double)json["link"]!["round_trip_ms"]!);
        Assert.InRange((double)json["link"]!["bytes_per_second"]!, 1e6 - 1, 1e6 + 1);
        Assert.Equal(700, (long)json["estimate"]!["copy_bytes"]!);
        Assert.Equal(7, (double)json["estimate"]!["seconds_least"]!); // The limit, not the link.
        Assert.Equal((40.0, 340.0), ((double)json["estimate"]!["blackout_ms_least"]!, (double)json["estimate"]!["blackout_ms_most"]!));
    }

    [Fact]
    public async Task A_destination_that_cannot_be_reached_is_an_obstacle_and_the_rest_is_still_told()
    {
        world.Database.Set("VM", vm, "power_state", "Halted");
        MigratePlan plan = await PlanAsync(new FarSide(this) { IsGone = true }, new MigrationOptions());
        Assert.Equal(["VM_BAD_POWER_STATE", "CANNOT_CONTACT_HOST"], plan.Obstacles.Select(static o => o.Code));
    }

    [Fact]
    public async Task A_token_that_is_stale_is_told_beside_the_other_obstacles_and_a_renewed_one_lasts()
    {
        Secret secret = Secret.Create();
        store.Issue("m1", secret, world.Host, sr, Now.AddMinutes(1));
        using PeerEndpoint endpoint = new(store, new MigrationWorld(), Check, static _ => null, world.Time, NullLogger.Instance);
        Assert.Null((await AskAsync("ping", null))["error"]);
        Assert.Equal(3, (int)(await AskAsync("probe_link", JsonValue.Create("abc")))["result"]!);
        Assert.Null((await AskAsync("renew", null))["error"]);
        world.Time.Advance(TimeSpan.FromMinutes(59));
        Assert.Empty((await AskAsync("plan", PeerProtocol.Node(Question)))["result"]!["obstacles"]!.AsArray());

        world.Time.Advance(TimeSpan.FromMinutes(2));
        world.Database.Set("host", world.Host, "enabled", false);
        JsonArray told = (await AskAsync("plan", PeerProtocol.Node(Question)))["result"]!["obstacles"]!.AsArray();
        Assert.Equal(["VM_MIGRATE_FAILED", "HOST_DISABLED"], told.Select(static o => (string)o!["code"]!));
        Assert.Contains("expired", (string?)(await AskAsync("renew", null))["error"]!["message"], StringComparison.Ordinal);

        async Task<JsonNode> AskAsync(string verb, JsonNode? body) =>
            JsonNode.Parse(await endpoint.HandleAsync(secret.Reveal(), PeerProtocol.Request(verb, "m1", body), None))!;
    }

    [Fact]
    public async Task A_token_is_renewed_at_once_and_again_before_it_runs_out_until_the_turn_comes()
    {
        FarSide far = new(this);
        using CancellationTokenSource turn = new();
        Task renewing = TokenRenewal.KeepAsync(far, TimeSpan.FromDays(7), world.Time, turn.Token);
        Assert.Equal(1, far.Renewals);
        world.Time.Advance(TimeSpan.FromMinutes(21));
        await ApiWorld.UntilAsync(() => far.Renewals == 2, "the second renewal");
        await turn.CancelAsync();
        await renewing;
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

    private async Task<MigratePlan> PlanAsync(FarSide far, MigrationOptions options)
    {
        SourceLook look = await Source.LookAsync(vm, "m1", [], [], None);
        MigrationToken token = new("m1", new PeerAddress("https://b", "bb", world.Host), Now.AddHours(1), Secret.Create());
        MigratePlan plan = new(look with { Question = look.Question with { Vm = "0-1", SourceFingerprint = "aa" } }, Source.InTheMoment(vm), token, options, world.Time);
        await plan.AskAsync(far, measuresLink: true, None);
        return plan;
    }

    private string Doubtful()
    {
        store.Append("m0", new SourceRecord.Begun(Moved("0-2", "m0"), Now));
        store.Append("m0", new SourceRecord.Granting(8));
        return "0-2";
    }

    private static MigrationPlan Moved(string vm, string migration) => new MigrationWorld().Plan with { Vm = vm, Migration = migration };

    /// <summary>10 ms away and 1 MB/s wide, with a clock of its own; its check is the real one.</summary>
    private sealed class FarSide(PlanTests tests) : IPlanPeer
    {
        private static readonly TimeSpan RoundTrip = TimeSpan.FromMilliseconds(10);

        public TimeSpan ClockAhead { get; init; }

        public bool IsGone { get; init; }

        public int Renewals { get; private set; }

        public async Task<PlanAnswer> PlanAsync(PlanQuestion question, CancellationToken cancellationToken)
        {
            if (IsGone)
                throw new IOException("no route");
            PlanAnswer answer = await tests.Check.CheckAsync(tests.Token, question, cancellationToken);
            return answer with { At = answer.At + ClockAhead };
        }

        public Task PingAsync(CancellationToken cancellationToken)
        {
            tests.world.Time.Advance(RoundTrip);
            return Task.CompletedTask;
        }

        public Task ProbeLinkAsync(string payload, CancellationToken cancellationToken)
        {
            tests.world.Time.Advance(RoundTrip + TimeSpan.FromSeconds(payload.Length / 1e6));
            cancellationToken.ThrowIfCancellationRequested();
            return Task.CompletedTask;
        }

        public Task<DateTimeOffset> RenewAsync(CancellationToken cancellationToken)
        {
            Renewals++;
            return Task.FromResult(tests.Now.AddHours(1));
        }

        public void Dispose()
        {
        }
    }
}
