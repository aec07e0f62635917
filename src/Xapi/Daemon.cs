// The composition root: what the daemon is made of, in the order in which it starts; it ends in the reverse order. Storage, domains and
// migration are built in AddMessages' place and give their messages to the same table.
using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.Logging;
using Platform;
using Xapi.Database;
using Xapi.Rpc;
using Xapi.Server;
using Xapi.Sessions;
using Xapi.Tasks;

namespace Xapi;

public sealed class Daemon : IAsyncDisposable
{
    /// <summary>How long a wrong password waits.</summary>
    private static readonly TimeSpan RefusalDelay = TimeSpan.FromSeconds(2);

    private readonly XapiOptions options;
    private readonly FileStream stateLock;
    private readonly X509Certificate2 certificate;
    private HttpServer? server;

    private Daemon(XapiOptions options, FileStream stateLock, PoolDatabase database, ILoggerFactory logging, TimeProvider time)
    {
        this.options = options;
        this.stateLock = stateLock;
        Database = database;
        Secret password = new(File.ReadAllText(options.RootPasswordFile).Trim());
        Pool = PoolRows.Open(Database, options, time);
        Sessions = new SessionTable(Database, time, password, Pool.Host, RefusalDelay);
        Tasks = new TaskTable(Database, time, Pool.Host);
        Messages = new MessageTable(Database.Model);
        Dispatcher = new Dispatcher(Messages, Database, Sessions, Tasks, logging.CreateLogger<Dispatcher>());
        certificate = ServerCertificate.LoadOrCreate(Path.Combine(options.StateDirectory, "xapi-ssl.pem"), options.HostName, time);
        AddMessages();
    }

    public PoolDatabase Database { get; }

    /// <summary>The rows that are always there.</summary>
    public PoolRows Pool { get; }

    public SessionTable Sessions { get; }

    public TaskTable Tasks { get; }

    public MessageTable Messages { get; }

    public Dispatcher Dispatcher { get; }

    public HttpServer Server => server ?? throw new InvariantException("the server runs from StartAsync to DisposeAsync");

    /// <summary>Starts everything; when this returns, clients are answered and STATE/endpoints.json says where.</summary>
    /// <exception cref="IOException">The state is damaged or in use, or an address is not free; nothing was left running.</exception>
    public static async Task<Daemon> StartAsync(
        XapiOptions options, ILoggerFactory logging, TimeProvider time, CancellationToken cancellationToken)
    {
        const UnixFileMode ownerOnly = UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute;
        Directory.CreateDirectory(options.StateDirectory, ownerOnly);
        Directory.CreateDirectory(options.RuntimeDirectory, ownerOnly);
        FileStream stateLock = LockState(options.StateDirectory);
        PoolDatabase? database = null;
        Daemon? daemon = null;
        try
        {
            database = PoolDatabase.Open(Path.Combine(options.StateDirectory, "xapi.db"), DataModel.Load(), Guid.NewGuid);
            daemon = new Daemon(options, stateLock, database, logging, time);
            RpcEndpoint rpc = new(daemon.Dispatcher, daemon.Messages);
            string unixPath = Path.Combine(options.RuntimeDirectory, "xapi");
            daemon.server = await HttpServer.StartAsync(
                options, daemon.certificate, unixPath, rpc, daemon.AddRoutes, logging, cancellationToken);
            daemon.WriteEndpoints();
            return daemon;
        }
        catch
        {
            if (daemon is not null)
                await daemon.DisposeAsync();
            database?.Dispose();
            await stateLock.DisposeAsync();
            throw;
        }
    }

    public async ValueTask DisposeAsync()
    {
        File.Delete(EndpointsPath);
        if (server is not null)
            await server.DisposeAsync();
        await Tasks.DisposeAsync();
        Sessions.Dispose();
        Database.Dispose();
        certificate.Dispose();
        await stateLock.DisposeAsync();
    }

    private string EndpointsPath => Path.Combine(options.StateDirectory, "endpoints.json");

    /// <summary>The kernel drops the lock with the process, so a killed daemon does not leave it behind.</summary>
    private static FileStream LockState(string folder)
    {
        string path = Path.Combine(folder, "lock");
        try
        {
            return new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
        }
        catch (IOException e)
        {
            throw new IOException($"another daemon runs on {folder} ({e.Message})", e);
        }
    }

    /// <summary>Generic messages first: a later handler takes the place of an earlier one.</summary>
    private void AddMessages()
    {
        GenericMessages.AddTo(Messages, Database.Model);
        RowMessages.AddTo(Messages, Database.Model);
        SessionMessages.AddTo(Messages, Sessions);
        TaskMessages.AddTo(Messages, Tasks);
    }

    /// <summary>Routes besides XML-RPC.</summary>
    private void AddRoutes(WebApplication application)
    {
    }

    private void WriteEndpoints() => DurableFile.Write(EndpointsPath, JsonSerializer.Serialize(new Dictionary<string, object?>
    {
        ["https"] = Server.HttpsUrl,
        ["http"] = Server.HttpUrl,
        ["unix"] = Server.UnixPath,
        ["fingerprint"] = Server.Fingerprint,
        ["pid"] = Environment.ProcessId,
    }));
}
