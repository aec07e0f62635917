// One pool of the demo: a folder, a daemon in its own process, a XenAPI session.
using System.Diagnostics;
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;

namespace Demo;

internal sealed class Pool : IAsyncDisposable
{
    private const int Sigterm = 15;
    private static readonly TimeSpan StartLimit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(20);

    private readonly Process daemon;

    private Pool(string name, string folder, Process daemon, JsonObject endpoints, string password)
    {
        Name = name;
        Folder = folder;
        this.daemon = daemon;
        Password = password;
        Https = (string)endpoints["https"]!;
        Http = (string)endpoints["http"]!;
        Api = new XenApi(new Uri(Http));
    }

    public string Name { get; }

    public string Folder { get; }

    public string Https { get; }

    public string Http { get; }

    public string Password { get; }

    public XenApi Api { get; }

    public string StateFolder => Path.Combine(Folder, "state");

    public string StorageFolder => Path.Combine(Folder, "sr");

    public string OracleLog(string vmUuid) => Path.Combine(StateFolder, "xenopsd", "oracle", vmUuid + ".log");

    /// <summary>Starts the daemon and logs in. Nothing is left when it fails.</summary>
    public static async Task<Pool> StartAsync(string name, string hostName, string folder, string password, CancellationToken cancellationToken)
    {
        foreach (string part in (string[])["state", "run", "sr"])
            Directory.CreateDirectory(Path.Combine(folder, part), UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        string tools = AppContext.BaseDirectory;
        string passwordFile = Path.Combine(folder, "password");
        await File.WriteAllTextAsync(passwordFile, password, cancellationToken);
        File.SetUnixFileMode(passwordFile, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        string config = Path.Combine(folder, "xapi.json");
        JsonObject options = new()
        {
            ["state_directory"] = Path.Combine(folder, "state"),
            ["runtime_directory"] = Path.Combine(folder, "run"),
            ["pool_name"] = $"pool {name}",
            ["host_name"] = hostName,
            ["https"] = "127.0.0.1:0",
            ["http"] = "127.0.0.1:0",
            ["root_password_file"] = passwordFile,
            ["tools_directory"] = tools,
            ["sm_directory"] = Path.Combine(tools, "sm"),
            ["storage_scripts_directory"] = Path.Combine(tools, "storage-scripts"),
        };
        await File.WriteAllTextAsync(config, options.ToJsonString(), cancellationToken);
        string log = Path.Combine(folder, "xapi.log");
        Process daemon = ChildProcess.StartDaemon(
            Path.Combine(tools, "xapi"), ["serve", "--config", config], log, new Dictionary<string, string?>());
        try
        {
            JsonObject endpoints = await AwaitEndpointsAsync(daemon, Path.Combine(folder, "state", "endpoints.json"), log, cancellationToken);
            Pool pool = new(name, folder, daemon, endpoints, password);
            await pool.Api.LoginAsync("root", password, cancellationToken);
            return pool;
        }
        catch
        {
            daemon.Kill(entireProcessTree: true);
            throw;
        }
    }

    /// <summary>Cancels what is under way and waits until it has unwound: a pool that is in the middle of something is not stopped.</summary>
    public async Task QuiesceAsync()
    {
        using CancellationTokenSource limit = new(StopLimit);
        try
        {
            HashSet<string> asked = [];
            while (await PendingTasksAsync(limit.Token) is { Count: > 0 } pending)
            {
                foreach (string task in pending.Where(asked.Add))
                    await CancelAsync(task, limit.Token);
                await Task.Delay(100, limit.Token);
            }
        }
        catch (Exception e) when (e is HttpRequestException or XenApiException or OperationCanceledException)
        {
            await Console.Error.WriteLineAsync($"pool {Name}: {e.Message}");
        }
    }

    /// <summary>Powers every VM off, then asks the daemon to stop; kills it, and what it left, when it does not.</summary>
    public async ValueTask DisposeAsync()
    {
        await QuiesceAsync();
        try
        {
            foreach (string vm in await RunningVmsAsync())
                await Api.CallAsync("VM.hard_shutdown", CancellationToken.None, vm);
            await Api.LogoutAsync();
        }
        catch (Exception e) when (e is HttpRequestException or XenApiException or TaskCanceledException)
        {
            await Console.Error.WriteLineAsync($"pool {Name}: {e.Message}");
        }

        Posix.TryKill(daemon.Id, Sigterm);
        using CancellationTokenSource limit = new(StopLimit);
        try
        {
            await daemon.WaitForExitAsync(limit.Token);
        }
        catch (OperationCanceledException)
        {
            await Console.Error.WriteLineAsync($"pool {Name}: the daemon did not stop within {StopLimit.TotalSeconds:0} s and was killed");
            daemon.Kill(entireProcessTree: true);
        }

        await EndLeftoversAsync();
        Api.Dispose();
        daemon.Dispose();
    }

    /// <summary>The demo promises that nothing of it goes on running, also when something went wrong on the way.</summary>
    private async Task EndLeftoversAsync()
    {
        const int sigkill = 9;
        foreach (int signal in (int[])[Sigterm, sigkill])
        {
            (int Pid, string Command)[] left = [.. Leftovers.Processes(Folder)];
            if (left.Length == 0)
                return;
            foreach ((int pid, string command) in left)
            {
                await Console.Error.WriteLineAsync($"pool {Name}: {command} ({pid}) was still there; signal {signal}");
                Posix.TryKill(pid, signal);
            }

            for (int waited = 0; waited < 50 && Leftovers.Processes(Folder).Any(); waited++)
                await Task.Delay(100);
        }
    }

    private async Task<List<string>> PendingTasksAsync(CancellationToken cancellationToken) =>
    [
        .. (await Api.CallAsync("task.get_all_records", cancellationToken)).AsStruct().Members
            .Where(static m => m.Value.AsStruct().Get("status").AsString() is "pending" or "cancelling")
            .Select(static m => m.Key),
    ];

    private async Task CancelAsync(string task, CancellationToken cancellationToken)
    {
        try
        {
            await Api.CallAsync("task.cancel", cancellationToken, task);
        }
        catch (XenApiException)
        {
            // Past its point of no return, or over by now: it is waited for.
        }
    }

    private async Task<List<string>> RunningVmsAsync()
    {
        List<string> running = [];
        foreach ((string vm, StorageAccess.Wire.RpcValue record) in (await Api.CallAsync("VM.get_all_records", CancellationToken.None)).AsStruct().Members)
        {
            bool isControlDomain = record.AsStruct().Get("is_control_domain").AsBool();
            if (!isControlDomain && record.AsStruct().Get("power_state").AsString() is not "Halted")
                running.Add(vm);
        }

        return running;
    }

    private static async Task<JsonObject> AwaitEndpointsAsync(Process daemon, string path, string log, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(StartLimit);
        while (true)
        {
            if (daemon.HasExited)
                throw new InvalidOperationException($"the daemon did not start: {await File.ReadAllTextAsync(log, cancellationToken)}");
            try
            {
                if (File.Exists(path))
                    return JsonNode.Parse(await File.ReadAllTextAsync(path, cancellationToken))!.AsObject();
                await Task.Delay(50, limit.Token);
            }
            catch (JsonException)
            {
                // Being written.
            }
            catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
            {
                throw new InvalidOperationException(
                    $"the daemon was not ready within {StartLimit.TotalSeconds:0} s: {await File.ReadAllTextAsync(log, CancellationToken.None)}");
            }
        }
    }
}
