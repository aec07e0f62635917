// Two real pools for tests: ./demo --serve on a small disk (what moves often must be quick), its JSON lines, and the clients to them. What the tests see is what any client sees.
using System.Diagnostics;
using System.Text.Json.Nodes;
using Demo;
using Platform;
using StorageAccess.Wire;
using Support;
using Vhd;

namespace EndToEnd;

internal sealed record ServedPool(string Name, string Https, string Http, string Password, string Folder, XenApi Api);

/// <summary>
/// One pair for all classes of the collection: a start of two pools costs as much as a test. Each test begins with <see cref="ServedPools.BringHomeAsync"/>
/// and leaves nothing behind.
/// </summary>
[CollectionDefinition(Name)]
public sealed class SharedPair : ICollectionFixture<ServedPools>
{
    public const string Name = "a shared pair of pools";
}

public sealed class ServedPools : IAsyncLifetime
{
    private const long DiskBytes = 256 << 20;
    private const int DataBytes = 48 << 20;

    private Process? demo;

    internal ServedPool A { get; private set; } = null!;

    internal ServedPool B { get; private set; } = null!;

    public static string Out
    {
        get
        {
            string folder = AppContext.BaseDirectory;
            while (!File.Exists(Path.Combine(folder, "Storage.sln")))
                folder = Path.GetDirectoryName(folder)!;
            return Path.Combine(folder, "out");
        }
    }

    public async Task InitializeAsync()
    {
        Assert.True(File.Exists(Path.Combine(Out, "demo")), "./dev publish makes out/demo; ./test does it");
        using TemporaryDirectory folder = new();
        string disk = folder.File("disk.vhd");
        await MakeDiskAsync(disk);
        demo = Process.Start(new ProcessStartInfo(Path.Combine(Out, "demo"), ["--serve", "--disk", disk]) { RedirectStandardOutput = true })!;
        A = await ReadAsync();
        B = await ReadAsync();
    }

    /// <summary>The VM runs in pool A, on its first storage, wherever an earlier test left it.</summary>
    internal async Task BringHomeAsync()
    {
        if ((await A.Api.CallAsync("VM.get_by_name_label", default, Journey.VmName)).AsArray().Count > 0)
            return;
        RpcValue token = await A.Api.CallAsync(
            "VM.migrate_receive", default, await A.Api.ByNameAsync("host", "pool A's host", default), await A.Api.ByNameAsync("SR", "pool A's storage", default),
            RpcValue.Struct());
        await B.Api.CallAsync("VM.migrate", default, await B.Api.ByNameAsync("VM", Journey.VmName, default), token, true, RpcValue.Struct());
    }

    /// <summary>Data with holes between.</summary>
    private static async Task MakeDiskAsync(string path)
    {
        VhdImage.CreateDynamic(path, DiskBytes);
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        byte[] content = new byte[1 << 20];
        Random random = new(4);
        for (long at = 0; at < DiskBytes; at += DiskBytes / DataBytes * content.Length)
        {
            random.NextBytes(content);
            await chain.WriteAsync(at, content, Platform.WriteFlags.None, default);
        }
    }

    public async Task DisposeAsync()
    {
        const int Sigterm = 15;
        A.Api.Dispose();
        B.Api.Dispose();
        Posix.TryKill(demo!.Id, Sigterm);
        await demo.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(60));
        Assert.Equal(0, demo.ExitCode);
        string root = Path.GetDirectoryName(A.Folder)!;
        Assert.Empty(Leftovers.Processes(root));
        Assert.False(Directory.Exists(root), "the demo takes its folder with it");
        demo.Dispose();
    }

    internal async Task AssertUnchangedAsync(SortedSet<string> before)
    {
        SortedSet<string> now = await SeeAsync();
        string[] more = [.. now.Except(before)], less = [.. before.Except(now)];
        Assert.True(more.Length + less.Length == 0, $"too much: {string.Join("; ", more)}; missing: {string.Join("; ", less)}");
    }

    /// <summary>Everything of both pools that a call could have changed.</summary>
    internal async Task<SortedSet<string>> SeeAsync()
    {
        SortedSet<string> all = [];
        foreach (ServedPool pool in (ServedPool[])[A, B])
        {
            all.UnionWith(await Leftovers.SeeAsync(pool.Name, pool.Folder, pool.Api, CancellationToken.None));
            foreach ((string vm, RpcValue record) in (await pool.Api.CallAsync("VM.get_all_records", default)).AsStruct().Members)
                all.Add($"{pool.Name}: {vm} is {record.AsStruct().Get("power_state").AsString()}");
        }

        return all;
    }

    /// <summary>SIGKILL to a pool's daemon, and a new one on the same configuration.</summary>
    /// <param name="between">Given the state folder, while no daemon runs on it.</param>
    internal async Task KillAndRestartAsync(string name, Action<string>? between = null)
    {
        const int Sigkill = 9;
        ServedPool pool = name == "A" ? A : B;
        string endpoints = Path.Combine(pool.Folder, "state", "endpoints.json");
        int pid = (int)JsonNode.Parse(await File.ReadAllTextAsync(endpoints))!["pid"]!;
        Assert.True(Posix.TryKill(pid, Sigkill));
        for (int tries = 0; ProcessTable.IsAlive(pid); tries++)
        {
            Assert.True(tries < 1000, $"process {pid} outlives a SIGKILL"); // Until it is gone its lock on the state folder is held.
            await Task.Delay(10);
        }

        // A peer knows the daemon by the address in its token: the next one is on the same port.
        string config = Path.Combine(pool.Folder, "xapi.json");
        JsonNode settings = JsonNode.Parse(await File.ReadAllTextAsync(config))!;
        settings["https"] = new Uri((string)JsonNode.Parse(await File.ReadAllTextAsync(endpoints))!["https"]!).Authority;
        await File.WriteAllTextAsync(config, settings.ToJsonString());
        File.Delete(endpoints);
        between?.Invoke(Path.Combine(pool.Folder, "state"));
        using Process daemon = ChildProcess.StartDaemon(
            Path.Combine(Out, "xapi"), ["serve", "--config", Path.Combine(pool.Folder, "xapi.json")], Path.Combine(pool.Folder, "xapi.log"),
            new Dictionary<string, string?>());
        for (int tries = 0; !File.Exists(endpoints); tries++)
        {
            Assert.True(tries < 600 && !daemon.HasExited, await File.ReadAllTextAsync(Path.Combine(pool.Folder, "xapi.log")));
            await Task.Delay(50);
        }

        string http = (string)JsonNode.Parse(await File.ReadAllTextAsync(endpoints))!["http"]!;
        XenApi api = new(new Uri(http));
        await api.LoginAsync("root", pool.Password, CancellationToken.None);
        pool.Api.Dispose();
        pool = pool with { Http = http, Api = api };
        (A, B) = name == "A" ? (pool, B) : (A, pool);
    }

    private async Task<ServedPool> ReadAsync()
    {
        string line = await demo!.StandardOutput.ReadLineAsync().WaitAsync(TimeSpan.FromSeconds(60))
            ?? throw new InvalidOperationException("demo --serve ended before it served");
        JsonNode json = JsonNode.Parse(line)!;
        XenApi api = new(new Uri((string)json["http"]!));
        await api.LoginAsync((string)json["user"]!, (string)json["password"]!, CancellationToken.None);
        return new ServedPool(
            (string)json["pool"]!, (string)json["url"]!, (string)json["http"]!, (string)json["password"]!, (string)json["state"]!, api);
    }
}
