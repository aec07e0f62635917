using Microsoft.Extensions.Logging.Abstractions;
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Support;
using Xapi;
using Xapi.Database;
using Xapi.Rpc;
using Xapi.Storage;

namespace Conformance.PluginsTests;

/// <summary>
/// A daemon with golden/GoldenSR.py as its SMAPIv1 driver and golden/plugins as its host plugins, and a second view of the driver, by which
/// a test issues single commands over the daemon's database.
/// </summary>
internal sealed class GoldenWorld : IAsyncDisposable
{
    private readonly TemporaryDirectory folder = new();
    private Daemon daemon = null!;

    public SmDatabase Port { get; private set; } = null!;

    public SmapiV1Backend Backend { get; private set; } = null!;

    public SmDriverSettings Settings { get; private set; } = null!;

    public PoolDatabase Database => daemon.Database;

    public string Host => daemon.Pool.Host;

    public string DriverPath => folder.File("sm/GoldenSR");

    public static string Golden(string name) => Path.Combine(Root(), "tests/Conformance/Plugins/golden", name);

    public static async Task<GoldenWorld> StartAsync()
    {
        GoldenWorld world = new();
        try
        {
            await world.OpenAsync();
            return world;
        }
        catch
        {
            world.folder.Dispose();
            throw;
        }
    }

    /// <summary>The arguments that the driver was given since the last time, by command, oldest first.</summary>
    public IReadOnlyList<(string Command, string Argument)> TakeCalls()
    {
        List<(string, string)> calls = [];
        foreach (string path in Directory.EnumerateFiles(folder.File("sm/log"), "*.xml").Order(StringComparer.Ordinal).Skip(taken))
            calls.Add((Path.GetFileNameWithoutExtension(path)[7..], File.ReadAllText(path)));
        taken += calls.Count;
        return calls;
    }

    private int taken;

    public string LogFile(string name) => folder.File($"sm/log/{name}");

    /// <summary>As a client does that is logged in.</summary>
    public async Task<RpcValue> CallAsync(string method, params RpcValue[] parameters) =>
        await daemon.Dispatcher.CallAsync(
            method, [daemon.Sessions.CreateForPool("test").Ref, .. parameters], new CallOrigin(true, "test", ""), CancellationToken.None);

    public string SessionOf(string sr) => Database.Where("session", "true")
        .Last(s => Database.GetMap("session", s, "other_config").GetValueOrDefault("_sm_session") == sr);

    public async ValueTask DisposeAsync()
    {
        await daemon.DisposeAsync();
        folder.Dispose();
    }

    private async Task OpenAsync()
    {
        Copy(Golden("GoldenSR.py"), DriverPath);
        foreach (string plugin in Directory.GetFiles(Golden("plugins")))
            Copy(plugin, folder.File($"plugins/{Path.GetFileName(plugin)}"));
        File.WriteAllText(folder.File("password"), "pw\n");
        File.SetUnixFileMode(folder.File("password"), UnixFileMode.UserRead);
        File.WriteAllText(folder.File("config"), """
            {"state_directory":"state","runtime_directory":"run","pool_name":"A","host_name":"hostA","root_password_file":"password",
             "sm_directory":"sm","sm_plugins":"golden","plugins_directory":"plugins"}
            """);
        daemon = await Daemon.StartAsync(
            XapiOptions.Read(folder.File("config")), NullLoggerFactory.Instance, TimeProvider.System, CancellationToken.None);
        Port = new SmDatabase(Database, daemon.Sessions, Host, TimeProvider.System);
        Settings = new SmDriverSettings(
            "/usr/bin", new Dictionary<string, string> { ["XAPI_UNIX_SOCKET"] = folder.File("run/xapi") }, TimeSpan.FromSeconds(30));
        (IReadOnlyList<SmDriver> drivers, _) =
            await SmDrivers.DiscoverAsync(folder.File("sm"), ["GOLDEN"], Host, Settings, CancellationToken.None);
        Backend = new SmapiV1Backend(Assert.Single(drivers), Port, Settings);
    }

    private static void Copy(string from, string to)
    {
        Directory.CreateDirectory(Path.GetDirectoryName(to)!);
        File.Copy(from, to);
        File.SetUnixFileMode(to, UnixFileMode.UserRead | UnixFileMode.UserExecute);
    }

    private static string Root()
    {
        string root = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(root, "Storage.sln")))
            root = Path.GetDirectoryName(root)!;
        return root;
    }
}
