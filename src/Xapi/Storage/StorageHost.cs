// The storage access layer of this host, put together: drivers and plugins found, the layer over them, its JSON-RPC on a unix socket for
// xenopsd and tools, an SM row for each type.
using System.Collections.Concurrent;
using System.Text;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Platform;
using SmapiV1Adapter;
using SmapiV3Bridge;
using StorageAccess;
using StorageAccess.Tap;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;

namespace Xapi.Storage;

public sealed partial class StorageHost : IAsyncDisposable
{
    private const long BodyLimitBytes = 4 << 20;
    private static readonly TimeSpan CallPatience = TimeSpan.FromSeconds(10);

    /// <summary>How long a start waits for drivers that mend; after it they go on beside the API, and each disk waits for its own.</summary>
    private static readonly TimeSpan MendPatience = TimeSpan.FromSeconds(30);

    private readonly CancellationTokenSource stopping = new();
    private readonly TimeProvider time;
    private readonly ILogger log;
    private readonly StorageState state;
    private readonly WebApplication socket;
    private readonly string socketPath;
    private readonly ConcurrentDictionary<string, IStorageBackend> backends;
    private readonly StorageTasks tasks;
    private PluginWatch? watch;
    private Task mending = Task.CompletedTask;

    private StorageHost(
        StorageState state, ConcurrentDictionary<string, IStorageBackend> backends, StorageLayer layer, StorageTasks tasks, TapControl tap,
        HostPlugins plugins, WebApplication socket, string socketPath, TimeProvider time, ILogger log)
    {
        this.time = time;
        this.log = log;
        this.state = state;
        this.backends = backends;
        this.tasks = tasks;
        Layer = layer;
        Tap = tap;
        Plugins = plugins;
        this.socket = socket;
        this.socketPath = socketPath;
    }

    public StorageLayer Layer { get; }

    /// <summary>The host's tapdisks.</summary>
    public TapControl Tap { get; }

    /// <summary>What host.call_plugin runs.</summary>
    public HostPlugins Plugins { get; }

    /// <summary>For what is about no SR in particular (a probe): it needs none of the layer's locks.</summary>
    /// <exception cref="StorageException">SR_UNKNOWN_DRIVER.</exception>
    public IStorageBackend BackendOf(string type) =>
        backends.TryGetValue(type.ToLowerInvariant(), out IStorageBackend? backend)
            ? backend
            : throw new StorageException("SR_UNKNOWN_DRIVER", type);

    public static async Task<StorageHost> StartAsync(
        XapiOptions options, PoolDatabase database, SessionTable sessions, string hostRef, TimeProvider time, ILogger log,
        CancellationToken cancellationToken)
    {
        TapControl tap = new(options.TapControlDirectory);
        Directory.CreateDirectory(options.TapControlDirectory);
        Dictionary<string, string> environment = new()
        {
            ["BLKTAP_CONTROL_DIRECTORY"] = options.TapControlDirectory,
            ["XAPI_UNIX_SOCKET"] = Path.Combine(options.RuntimeDirectory, "xapi"),
            [OrphanedCalls.Mark] = options.StateDirectory,
        };
        await EndOrphanedCallsAsync(options, tap, time, log, cancellationToken);
        StorageState state = StorageState.Open(Path.Combine(options.StateDirectory, "storage.db"));
        try
        {
            ConcurrentDictionary<string, IStorageBackend> backends = [];
            SmDatabase port = new(database, sessions, hostRef, time);
            await AddDriversAsync(backends, options, port, environment, log, cancellationToken);
            await FindPluginsAsync(backends, options, state, environment, time, log, cancellationToken);
            await RecordKindsAsync(database, backends, cancellationToken);
            HostPlugins plugins = new(options.PluginsDirectory, options.ToolsDirectory, environment, HostPlugins.DefaultDeadline);
            StorageLayer layer = new(state, backends, new HostReality(options.HostName), time, StorageLayer.DefaultLockWait);
            StorageTasks tasks = new(layer.Updates, time);
            string path = Path.Combine(options.RuntimeDirectory, "storage");
            WebApplication socket = await ListenAsync(path, new StorageServer(layer, tasks, new NbdDiskCopier()).Dispatcher, cancellationToken);
            StorageHost host = new(state, backends, layer, tasks, tap, plugins, socket, path, time, log);
            host.watch = Watch(options, database, state, backends, environment, time, log);
            return host;
        }
        catch
        {
            state.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Makes records and reality agree, once the API answers drivers' call-backs. What cannot be mended now is logged, and tried again before
    /// its next use.
    /// </summary>
    /// <param name="replug">Plugs again what a start of the machine has taken down; answers a sentence for each.</param>
    public async Task ReconcileAsync(Func<CancellationToken, Task<IReadOnlyList<string>>> replug, CancellationToken cancellationToken)
    {
        mending = MendAsync(replug);
        await Task.WhenAny(mending, Task.Delay(MendPatience, time, cancellationToken));
        cancellationToken.ThrowIfCancellationRequested();
    }

    public async ValueTask DisposeAsync()
    {
        await stopping.CancelAsync();
        await mending;
        if (watch is not null)
            await watch.DisposeAsync();
        stopping.Dispose();
        await socket.StopAsync();
        await socket.DisposeAsync();
        await tasks.DisposeAsync();
        File.Delete(socketPath);
        Plugins.Dispose();
        state.Dispose();
    }

    private async Task MendAsync(Func<CancellationToken, Task<IReadOnlyList<string>>> replug)
    {
        try
        {
            RestartReport report = await Layer.ReconcileAsync("restart", stopping.Token);
            foreach (string found in report.Mended.Concat(report.Unmended).Concat(await replug(stopping.Token)))
                LogRestart(log, found);
            foreach (string found in await Layer.UntrackedTapdisksAsync(Tap, stopping.Token))
                LogRestart(log, found);
        }
        catch (OperationCanceledException)
        {
            // The daemon ends; what is left is marked in storage.db.
        }
    }

    private static async Task EndOrphanedCallsAsync(
        XapiOptions options, TapControl tap, TimeProvider time, ILogger log, CancellationToken cancellationToken)
    {
        IReadOnlySet<int> serving = (await tap.ListAsync(cancellationToken)).Select(static entry => entry.ProcessId ?? 0).ToHashSet();
        string[] programs = [.. new[] { options.SmDirectory, options.StorageScriptsDirectory }.OfType<string>().Select(Path.GetFullPath)];
        foreach (string killed in await OrphanedCalls.EndAsync(options.StateDirectory, programs, serving, CallPatience, time, cancellationToken))
            LogRestart(log, killed);
    }

    /// <summary>Plugins come and go without a restart. One that goes while its SRs are plugged is missed by their next call.</summary>
    private static PluginWatch? Watch(
        XapiOptions options, PoolDatabase database, StorageState state, ConcurrentDictionary<string, IStorageBackend> backends,
        Dictionary<string, string> environment, TimeProvider time, ILogger log)
    {
        if (options.StorageScriptsDirectory is null)
            return null;
        try
        {
            return new PluginWatch(options.StorageScriptsDirectory, LookAsync, time);
        }
        catch (IOException e)
        {
            LogRejected(log, options.StorageScriptsDirectory, e.Message);
            return null;
        }

        async Task LookAsync(CancellationToken cancellationToken)
        {
            try
            {
                await FindPluginsAsync(backends, options, state, environment, time, log, cancellationToken);
                await RecordKindsAsync(database, backends, cancellationToken);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                LogRejected(log, options.StorageScriptsDirectory, e.Message); // What was known stays; the next change is another look.
            }
        }
    }

    private static async Task RecordKindsAsync(
        PoolDatabase database, ConcurrentDictionary<string, IStorageBackend> backends, CancellationToken cancellationToken)
    {
        Dictionary<string, SmKind> kinds = [];
        foreach ((string type, IStorageBackend backend) in backends)
            kinds[type] = backend is SmapiV1Backend v1
                ? SmKind.Of(v1.Driver)
                : SmKind.Of(await backend.QueryAsync("start", cancellationToken));
        SmRows.Record(database, kinds);
    }

    private static async Task AddDriversAsync(
        ConcurrentDictionary<string, IStorageBackend> backends, XapiOptions options, SmDatabase port, Dictionary<string, string> environment, ILogger log,
        CancellationToken cancellationToken)
    {
        if (options.SmDirectory is null)
            return;
        SmDriverSettings settings = new(options.ToolsDirectory, environment, SmDriverSettings.DefaultDeadline);
        (IReadOnlyList<SmDriver> drivers, IReadOnlyList<RejectedDriver> rejected) =
            await SmDrivers.DiscoverAsync(options.SmDirectory, options.SmPlugins, port.HostRef, settings, cancellationToken);
        foreach (SmDriver driver in drivers)
        {
            backends[driver.Type] = new SmapiV1Backend(driver, port, settings);
            if (driver.UnknownCapabilities.Count != 0)
                LogUnknown(log, driver.Path, string.Join(", ", driver.UnknownCapabilities));
        }

        foreach (RejectedDriver driver in rejected)
            LogRejected(log, driver.Path, driver.Reason);
    }

    /// <summary>The plugins that are there now take the place of those that were.</summary>
    private static async Task FindPluginsAsync(
        ConcurrentDictionary<string, IStorageBackend> backends, XapiOptions options, StorageState state, Dictionary<string, string> environment, TimeProvider time,
        ILogger log, CancellationToken cancellationToken)
    {
        if (options.StorageScriptsDirectory is null)
            return;
        ScriptSettings settings = new(options.ToolsDirectory, environment, ScriptSettings.DefaultDeadline);
        StoragePlugins plugins = await StoragePlugins.DiscoverAsync(options.StorageScriptsDirectory, settings, cancellationToken);
        foreach (VolumePlugin plugin in plugins.Volumes)
            backends[plugin.Type] = new SmapiV3Backend(plugin, plugins, state, time);
        HashSet<string> found = [.. plugins.Volumes.Select(static plugin => plugin.Type)];
        foreach ((string gone, IStorageBackend backend) in backends.Where(b => b.Value is SmapiV3Backend && !found.Contains(b.Key)))
        {
            if (backends.TryRemove(KeyValuePair.Create(gone, backend)))
                LogGone(log, gone);
        }

        foreach (RejectedPlugin plugin in plugins.Rejected)
            LogRejected(log, plugin.Path, plugin.Reason);
    }

    /// <summary>The field's storage socket: HTTP POST / with JSON-RPC or XML-RPC, for this host's own daemons.</summary>
    private static async Task<WebApplication> ListenAsync(string path, JsonRpcDispatcher dispatcher, CancellationToken cancellationToken)
    {
        SocketFile.RemoveStale(path); // Another daemon's state may be elsewhere and its sockets here.
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.Configure<HostOptions>(static o => o.ShutdownTimeout = TimeSpan.FromSeconds(10));
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel =>
        {
            kestrel.Limits.MaxRequestBodySize = BodyLimitBytes;
            kestrel.ListenUnixSocket(path);
        });
        WebApplication application = builder.Build();
        application.Run(async http =>
        {
            using StreamReader reader = new(http.Request.Body, Encoding.UTF8);
            string body = await reader.ReadToEndAsync(http.RequestAborted);
            bool isXml = StorageXml.IsXml(body);
            string answer = isXml
                ? await StorageXml.HandleAsync(dispatcher, body, http.RequestAborted)
                : await dispatcher.HandleAsync(body, http.RequestAborted);
            http.Response.ContentType = isXml ? "text/xml" : "application/json";
            await http.Response.WriteAsync(answer, http.RequestAborted);
        });
        await application.StartAsync(cancellationToken);
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        return application;
    }

    [LoggerMessage(Level = LogLevel.Warning, Message = "after the restart: {What}")]
    private static partial void LogRestart(ILogger log, string what);

    [LoggerMessage(Level = LogLevel.Warning, Message = "the plugin of SR type {Type} is gone")]
    private static partial void LogGone(ILogger log, string type);

    [LoggerMessage(Level = LogLevel.Warning, Message = "{Path} is not used: {Reason}")]
    private static partial void LogRejected(ILogger log, string path, string reason);

    [LoggerMessage(Level = LogLevel.Information, Message = "{Path} claims what this layer does not know, and it is left out: {Names}")]
    private static partial void LogUnknown(ILogger log, string path, string names);
}
