// The composition root: what the daemon is made of, in the order in which it starts; it ends in the reverse order.
using System.Net;
using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Logging;
using Nbd;
using Platform;
using Xapi.Database;
using Xapi.Migration;
using Xapi.Rpc;
using Xapi.Server;
using Xapi.Sessions;
using Xapi.Storage;
using Xapi.Tasks;
using Xapi.Vms;

namespace Xapi;

public sealed class Daemon : IAsyncDisposable
{
    /// <summary>How long a wrong password waits.</summary>
    private static readonly TimeSpan RefusalDelay = TimeSpan.FromSeconds(2);

    private readonly XapiOptions options;
    private readonly FileStream stateLock;
    private readonly X509Certificate2 certificate;
    private readonly ILoggerFactory logging;
    private readonly TimeProvider time;
    private HttpServer? server;
    private StorageHost? storage;
    private StorageMessages? disks;
    private XenopsHost? xenops;
    private MigrationStore? migrations;
    private PeerEndpoint? peers;
    private VmMigration? migration;
    private EmbeddedWitness? witness;

    private Daemon(XapiOptions options, FileStream stateLock, PoolDatabase database, ILoggerFactory logging, TimeProvider time)
    {
        this.options = options;
        this.stateLock = stateLock;
        this.logging = logging;
        this.time = time;
        Database = database;
        Secret password = new(File.ReadAllText(options.RootPasswordFile).Trim());
        Pool = PoolRows.Open(Database, options, time);
        Sessions = new SessionTable(Database, time, password, Pool.Host, RefusalDelay);
        Tasks = new TaskTable(Database, time, Pool.Host);
        Messages = new MessageTable(Database.Model);
        Dispatcher = new Dispatcher(Messages, Database, Sessions, Tasks, logging.CreateLogger<Dispatcher>());
        certificate = ServerCertificate.LoadOrCreate(CertificatePath, options.HostName, time);
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
            await daemon.StartServicesAsync(cancellationToken);
            RpcEndpoint rpc = new(daemon.Dispatcher, daemon.Messages);
            string unixPath = Path.Combine(options.RuntimeDirectory, "xapi");
            daemon.server = await HttpServer.StartAsync(
                options, daemon.certificate, unixPath, rpc, daemon.AddRoutes, logging, cancellationToken);
            await daemon.storage!.ReconcileAsync(daemon.disks!.ReplugAsync, cancellationToken);
            await daemon.peers!.RecoverAsync(cancellationToken);
            daemon.migration!.Recover();
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
        if (migration is not null)
            await migration.DisposeAsync();
        peers?.Dispose();
        if (xenops is not null)
            await xenops.DisposeAsync();
        if (storage is not null)
            await storage.DisposeAsync();
        migrations?.Dispose();
        witness?.Dispose();
        Sessions.Dispose();
        Database.Dispose();
        certificate.Dispose();
        await stateLock.DisposeAsync();
    }

    /// <summary>Key and certificate: of the API, of exported disks and of memory streams; its fingerprint is this pool to its peers.</summary>
    private string CertificatePath => Path.Combine(options.StateDirectory, "xapi-ssl.pem");

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
        AlertMessages.AddTo(Messages, time);
    }

    /// <summary>Storage, domains, migration: each needs the one before.</summary>
    private async Task StartServicesAsync(CancellationToken cancellationToken)
    {
        ILogger log = logging.CreateLogger("xapi");
        storage = await StorageHost.StartAsync(options, Database, Sessions, Pool.Host, time, log, cancellationToken);
        xenops = await XenopsHost.StartAsync(options, CertificatePath, log, cancellationToken);
        migrations = new MigrationStore(Path.Combine(options.StateDirectory, "migrations.db"));
        VmOperations operations = new(Database);
        operations.Clear();
        disks = new StorageMessages(storage, Database, Pool.Host);
        VmMessages vms = new(Database, xenops, migrations, operations, Pool.Host, time, log);
        string fingerprint = NbdTls.FingerprintOf(certificate);
        DestinationSide destination = new(
            Database, migrations, storage, disks, xenops, vms, IPAddress.Parse(Database.GetString("host", Pool.Host, "address")), CertificatePath, fingerprint, Pool.Host);
        DateTimeOffset expiresAt = new(certificate.NotAfter.ToUniversalTime());
        PlanCheck check = new(Database, storage.Layer.SrStatAsync, migrations, Pool.Pool, fingerprint, expiresAt, time);
        SourceCheck sourceCheck = new(Database, migrations, storage.Layer.VdiStatAsync, Identity, expiresAt, time);
        witness = options.WitnessKeyFile is { } keyFile
            ? new EmbeddedWitness(Path.Combine(options.StateDirectory, "witness.db"), new Secret((await File.ReadAllTextAsync(keyFile, cancellationToken)).Trim()))
            : null;
        Witnesses witnesses = new(options.WitnessesFile, witness, fingerprint);
        peers = new PeerEndpoint(migrations, destination, check, witnesses.Of, time, log);
        migration = new VmMigration(Database, migrations, storage, disks, xenops, operations, peers, witnesses, sourceCheck, Identity, time, log);
        disks.AddTo(Messages);
        new StorageDiagnosis(storage, Database, Pool.Host, options.ToolsDirectory, options.HostName).AddTo(Messages);
        new VdiMessages(storage.Layer, new NbdDiskCopier(), Database).AddTo(Messages);
        vms.AddTo(Messages);
        migration.AddTo(Messages);
        new Orphans(Database, migrations, new OrphanGround(storage, disks, xenops)).AddTo(Messages);
        HeldDisks.Guard(Messages, Database);
        await vms.ReconcileAsync(cancellationToken);
        xenops.Supervise(vms.ReconcileAsync);

        PoolIdentity Identity() => new(Server.HttpsUrl, fingerprint, Pool.Host, new Uri(Server.HttpsUrl).Authority);
    }

    /// <summary>Routes besides XML-RPC.</summary>
    private void AddRoutes(WebApplication application)
    {
        Map(application, PeerProtocol.Path, PeerProtocol.BodyLimitBytes, async (bearer, body, token) => (200, await peers!.HandleAsync(bearer, body, token)));
        if (witness is { } registers)
            Map(application, EmbeddedWitness.Path, EmbeddedWitness.BodyLimitBytes, registers.HandleAsync);
    }

    /// <summary>A POST over TLS with a bearer's secret: a body in, JSON out.</summary>
    private static void Map(
        WebApplication application, string path, int bodyLimitBytes, Func<string?, string, CancellationToken, Task<(int Status, string Body)>> answer) =>
        application.Map(path, async (HttpContext http) =>
        {
            if (http.Request.Method != HttpMethods.Post || http.Request.ContentLength is not { } length || length > bodyLimitBytes)
            {
                http.Response.StatusCode = StatusCodes.Status400BadRequest;
                return;
            }

            const string scheme = "Bearer ";
            string header = http.Request.Headers.Authorization.ToString();
            using StreamReader reader = new(http.Request.Body);
            (int status, string body) = await answer(
                header.StartsWith(scheme, StringComparison.Ordinal) ? header[scheme.Length..] : null,
                await reader.ReadToEndAsync(http.RequestAborted),
                http.RequestAborted);
            http.Response.StatusCode = status;
            http.Response.ContentType = "application/json";
            await http.Response.WriteAsync(body, http.RequestAborted);
        });

    private void WriteEndpoints() => DurableFile.Write(EndpointsPath, JsonSerializer.Serialize(new Dictionary<string, object?>
    {
        ["https"] = Server.HttpsUrl,
        ["http"] = Server.HttpUrl,
        ["unix"] = Server.UnixPath,
        ["fingerprint"] = Server.Fingerprint,
        ["pid"] = Environment.ProcessId,
    }));
}
