// out/xe as a shell script would call it, against two real pools.
using System.Text.Json.Nodes;
using Demo;
using Platform;
using Support;

namespace EndToEnd;

public sealed class XeTests : IClassFixture<ServedPools>, IDisposable
{
    private readonly ServedPools pools;
    private readonly TemporaryDirectory folder = new();

    public XeTests(ServedPools pools)
    {
        this.pools = pools;
        File.WriteAllText(folder.File("a.pw"), pools.A.Password + "\n");
        File.WriteAllText(folder.File("b.pw"), pools.B.Password + "\n");
    }

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task A_vm_is_looked_at_moved_and_found_where_it_went()
    {
        // 1. Nobody is trusted because he answers.
        ChildResult stranger = await XeAsync(pools.A.Https, "a.pw", "vm-list");
        Assert.Equal(3, stranger.ExitCode);
        Assert.Contains($"with the fingerprint {FingerprintOf(pools.A)}", stranger.StandardError, StringComparison.Ordinal);
        string vm = await GoodAsync(pools.A, "vm-list", $"name-label={Journey.VmName}", "--minimal", "--trust-on-first-use");
        Assert.True(Guid.TryParse(vm, out _), vm);
        Assert.Equal("running", await GoodAsync(pools.A, "vm-param-get", $"uuid={vm}", "param-name=power-state"));

        // 2. Who has its disk, and how its chain is.
        string vdi = await GoodAsync(pools.A, "vbd-list", $"vm-uuid={vm}", "params=vdi-uuid", "--minimal");
        JsonNode holder = JsonNode.Parse(await GoodAsync(pools.A, "vdi-who-holds", $"uuid={vdi}", "--json"))!.AsObject().Single().Value!;
        Assert.Equal((vm, Journey.VmName, "pool A's host", "Activated(RW)"), ((string?)holder["vm"], (string?)holder["vm_name"], (string?)holder["host"], (string?)holder["state"]));
        Assert.Matches(@"^tapdisk\[\d+\]$", (string)holder["process"]!);
        string sr = await GoodAsync(pools.A, "vdi-list", $"uuid={vdi}", "params=sr-uuid", "--minimal");
        string doctor = await GoodAsync(pools.A, "sr-doctor", $"uuid={sr}");
        Assert.Contains(vdi, doctor, StringComparison.Ordinal);
        Assert.Contains(", 0 errors; collecting frees about", doctor, StringComparison.Ordinal);

        // 3. It moves, while it runs.
        string target = await GoodAsync(pools.B, "sr-list", "params=uuid", "--minimal", "--trust-on-first-use");
        string[] migrate =
        [
            "vm-migrate", $"vm={Journey.VmName}", $"remote-master={pools.B.Https}", "remote-username=root", $"remote-password-file={folder.File("b.pw")}",
            "live=true",
        ];
        ChildResult refused = await XeAsync(pools.A.Https, "a.pw", [.. migrate, "destination-sr-uuid=99999999-9999-9999-9999-999999999999"]);
        Assert.Equal((1, ""), (refused.ExitCode, refused.StandardOutput));
        Assert.StartsWith("Error code: UUID_INVALID\nError parameters: SR, 9999", refused.StandardError, StringComparison.Ordinal);

        ChildResult moved = await XeAsync(pools.A.Https, "a.pw", [.. migrate, $"destination-sr-uuid={target}", "keep-source-for=10m", "--json"]);
        Assert.True(moved.ExitCode == 0, moved.StandardError);
        JsonNode answer = JsonNode.Parse(moved.StandardOutput)!;
        Assert.Equal((vm, "running"), ((string?)answer["vm"], (string?)answer["power_state"]));
        Assert.True((long)answer["receipt"]!["sent_bytes"]! > 0);
        Assert.Equal("", await GoodAsync(pools.A, "vm-list", $"uuid={vm}", "--minimal"));
        Assert.Equal("running", await GoodAsync(pools.B, "vm-list", $"uuid={vm}", "params=power-state", "--minimal"));

        // 4. Its disk was kept, and nobody can use it; while the VM runs over there it does not come back, then it does.
        string migration = await GoodAsync(pools.A, "migration-list", "--minimal");
        JsonNode status = JsonNode.Parse(await GoodAsync(pools.A, "migration-status", $"uuid={migration}", "--json"))!;
        Assert.Equal(("destination", "hold"), ((string?)status["owner"], (string?)status["phase"]));
        ChildResult kept = await XeAsync(pools.A.Https, "a.pw", "vdi-destroy", $"uuid={vdi}");
        Assert.Contains("migration.undo brings the VM back", kept.StandardError, StringComparison.Ordinal);
        ChildResult running = await XeAsync(pools.A.Https, "a.pw", "migration-undo", $"uuid={migration}");
        Assert.Equal(1, running.ExitCode);
        await GoodAsync(pools.B, "vm-shutdown", $"uuid={vm}", "force=true");
        await GoodAsync(pools.A, "migration-undo", $"uuid={migration}");
        await GoodAsync(pools.A, "vm-start", $"uuid={vm}");
        Assert.Equal("running", await GoodAsync(pools.A, "vm-list", $"uuid={vm}", "params=power-state", "--minimal"));
        ChildResult over = await XeAsync(pools.B.Https, "b.pw", "vm-start", $"uuid={vm}");
        Assert.Contains("is not this pool's to run", over.StandardError, StringComparison.Ordinal);
        await GoodAsync(pools.A, "pool-migration-bandwidth", "bandwidth=20MiB");
        Assert.Equal("", await GoodAsync(pools.A, "orphans-list"));
    }

    [Fact]
    public async Task A_disk_lives_and_dies_by_command()
    {
        string sr = await GoodAsync(pools.B, "sr-list", "--minimal", "--trust-on-first-use");
        string vdi = await GoodAsync(pools.B, "vdi-create", $"sr-uuid={sr}", "name-label=by hand", "virtual-size=64MiB");
        await GoodAsync(pools.B, "vdi-resize", $"uuid={vdi}", "disk-size=128MiB");
        Assert.Equal($"{128 << 20}", await GoodAsync(pools.B, "vdi-param-get", $"uuid={vdi}", "param-name=virtual-size"));
        Assert.Equal("nobody has it", await GoodAsync(pools.B, "vdi-who-holds", $"uuid={vdi}"));
        await GoodAsync(pools.B, "vdi-destroy", $"uuid={vdi}");
        Assert.Equal("", await GoodAsync(pools.B, "vdi-list", $"uuid={vdi}", "--minimal"));
    }

    private async Task<string> GoodAsync(ServedPool pool, params string[] words)
    {
        ChildResult ran = await XeAsync(pool.Https, $"{pool.Name.ToLowerInvariant()}.pw", words);
        Assert.True(ran.ExitCode == 0, $"{string.Join(' ', words)}: {ran.StandardOutput}{ran.StandardError}");
        return ran.StandardOutput.Trim();
    }

    private Task<ChildResult> XeAsync(string url, string passwordFile, params string[] words) => ChildProcess.RunAsync(
        Path.Combine(ServedPools.Out, "xe"), words, "",
        new Dictionary<string, string?>
        {
            ["XE_SERVER"] = url,
            ["XE_PASSWORD_FILE"] = folder.File(passwordFile),
            ["XDG_CONFIG_HOME"] = folder.Path,
            ["HOME"] = folder.Path,
        },
        TimeSpan.FromSeconds(60), 1 << 20, CancellationToken.None);

    private static string FingerprintOf(ServedPool pool) =>
        (string)JsonNode.Parse(File.ReadAllText(Path.Combine(pool.Folder, "state", "endpoints.json")))!["fingerprint"]!;
}
