// A real xenopsd in a process, over a storage whose disks are in this one: it can be killed and started again.
using System.Collections.Concurrent;
using System.Diagnostics;
using System.Text.Json.Nodes;
using Nbd;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Support;
using Xenops;

namespace Unit.XenopsTests;

internal sealed class XenopsProcess : IAsyncDisposable
{
    private const int Sigkill = 9;
    private const int Sigterm = 15;
    private static readonly CancellationToken None = CancellationToken.None;

    private readonly TemporaryDirectory folder = new();
    private readonly ConcurrentDictionary<string, string> datapaths = new();
    private readonly Dictionary<string, NbdExport> exports = [];
    private readonly UnixHttpServer storage;
    private readonly NbdListener nbd;
    private Process? process;

    public XenopsProcess(SharedDisks disks, params IEnumerable<string> vdis)
    {
        foreach (string vdi in vdis)
            exports[vdi] = new NbdExport(vdi, disks.Find(vdi));
        nbd = NbdListener.ListenUnix(folder.File("nbd"), new NbdServerOptions { Find = exports.GetValueOrDefault }, maxConnections: 64);
        Dictionary<string, JsonRpcHandler> handlers = new()
        {
            ["VDI.attach3"] = (p, _) => Task.FromResult<JsonNode?>(Attach(p)),
            ["VDI.activate3"] = (_, _) => Task.FromResult<JsonNode?>(null),
            ["VDI.deactivate"] = (_, _) => Task.FromResult<JsonNode?>(null),
            ["VDI.detach"] = (p, _) => Task.FromResult<JsonNode?>(Remove(p)),
            ["DP.destroy"] = (p, _) => Task.FromResult<JsonNode?>(Remove(p)),
        };
        JsonRpcDispatcher dispatcher = new(handlers, static e => new JsonArray("Internal_error", e.Message));
        storage = new UnixHttpServer(folder.File("storage"), body => dispatcher.HandleAsync(body, None));
        Client = new XenopsClient(folder.File("xenopsd"), TimeSpan.FromMinutes(2));
    }

    public XenopsClient Client { get; }

    public IReadOnlyCollection<string> Datapaths => [.. datapaths.Keys];

    /// <summary>By VM, in no order.</summary>
    public IReadOnlyDictionary<string, int> GuestProcesses => Directory.GetFiles(folder.File("guests"), "*.lock")
        .ToDictionary(static f => Path.GetFileNameWithoutExtension(f), static f => int.Parse(FileLock.Read(f)));

    public string Log => File.ReadAllText(folder.File("log"));

    public async Task StartAsync()
    {
        process = ChildProcess.StartDaemon(
            Path.Combine(AppContext.BaseDirectory, "xenopsd"),
            ["--socket", folder.File("xenopsd"), "--state", folder.Path, "--storage-socket", folder.File("storage")],
            folder.File("log"), new Dictionary<string, string?>());
        for (int tries = 0; ; tries++)
        {
            try
            {
                await Client.QueryAsync(None);
                return;
            }
            catch (IOException) when (tries < 2000)
            {
                Assert.False(process.HasExited, Log);
                await Task.Delay(10);
            }
        }
    }

    public Task KillAsync() => EndAsync(Sigkill);

    public async Task<string> StateOfAsync(string id) => (await Client.VmStatAsync("test", id, None)).State;

    public async ValueTask DisposeAsync()
    {
        await EndAsync(Sigterm);
        Assert.Empty(Directory.GetFiles(folder.File("guests")));
        Assert.Empty(datapaths);
        Client.Dispose();
        await nbd.DisposeAsync();
        foreach (NbdExport export in exports.Values)
            await export.DisposeAsync();
        await storage.DisposeAsync();
        folder.Dispose();
    }

    private async Task EndAsync(int signal)
    {
        Assert.True(Posix.TryKill(process!.Id, signal));
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(60));
        process.Dispose();
    }

    private JsonObject Attach(JsonObject parameters)
    {
        datapaths[(string)parameters["dp"]!] = "";
        string uri = $"nbd:unix:{folder.File("nbd")}:exportname={(string)parameters["vdi"]!}";
        return new JsonObject { ["implementations"] = new JsonArray(new JsonArray("Nbd", new JsonObject { ["uri"] = uri })) };
    }

    private JsonNode? Remove(JsonObject parameters)
    {
        datapaths.TryRemove((string)parameters["dp"]!, out _);
        return null;
    }
}
