// The daemon around Domains: arguments, the unix socket, signals. SIGTERM is a clean end: no new call is taken, guests are powered off,
// disks are given back, the socket is removed, exit 0. A start that is refused says why on standard error and exits 2.
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Nbd;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Xenops.Simulator;
using Xenops.Streaming;

namespace Xenops;

public static class Daemon
{
    private const string Usage =
        "usage: xenopsd --socket PATH --state DIR --storage-socket PATH [--listen 127.0.0.1] [--certificate PEM]";

    private const long RequestLimitBytes = 1 << 20;
    private static readonly TimeSpan StorageDeadline = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan CallsEndDeadline = TimeSpan.FromSeconds(5);

    public static async Task<int> RunAsync(string[] args)
    {
        try
        {
            Options options = Options.Parse(args);
            Posix.Detach();
            await ServeAsync(options);
            return 0;
        }
        catch (Exception e) when (e is ArgumentException or IOException or UnauthorizedAccessException or SocketException)
        {
            await Console.Error.WriteLineAsync($"xenopsd: {e.Message}");
            return 2;
        }
    }

    private static async Task ServeAsync(Options options)
    {
        Directory.CreateDirectory(options.State);
        using FileLock stateLock = FileLock.TryTake(Path.Combine(options.State, "lock"), isExclusive: true)
            ?? throw new IOException($"another xenopsd runs on {options.State}");
        SocketFile.RemoveStale(options.Socket);
        TimeProvider time = TimeProvider.System;
        using X509Certificate2 certificate = options.Certificate is null
            ? StreamTls.CreateCertificate(time.GetUtcNow())
            : StreamTls.ReadCertificate(options.Certificate);
        using JsonRpcClient rpc = new(options.StorageSocket, StorageDeadline);
        DiskSource disks = new(new StorageClient(rpc), OpenDiskAsync, Path.Combine(options.State, "datapaths"));
        SimulatorBackend simulator = new(Path.Combine(options.State, "oracle"), time);
        await using Domains domains = new(new Dictionary<string, IDomainBackend> { ["simulator"] = simulator }, disks, time, Log);
        XenopsServer server = new(domains, new MigrationSource(domains), new MigrationDestination(domains, options.Listen, certificate));

        await using WebApplication web = Build(options.Socket, server);
        await web.StartAsync();
        File.SetUnixFileMode(options.Socket, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        Log($"serves {options.Socket}");
        foreach (string failure in await disks.DestroyLeftoversAsync(web.Lifetime.ApplicationStopping))
            Log($"left by an earlier xenopsd, tried again later: {failure}");
        await web.WaitForShutdownAsync();
        Log("stops");
        File.Delete(options.Socket);
    }

    private static WebApplication Build(string socket, XenopsServer server)
    {
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.Configure<HostOptions>(static o => o.ShutdownTimeout = CallsEndDeadline);
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel =>
        {
            kestrel.Limits.MaxRequestBodySize = RequestLimitBytes;
            kestrel.ListenUnixSocket(socket);
        });
        WebApplication web = builder.Build();
        web.Run(context => AnswerAsync(context, server, web.Lifetime.ApplicationStopping));
        return web;
    }

    private static async Task AnswerAsync(HttpContext context, XenopsServer server, CancellationToken stopping)
    {
        if (context.Request.Method != HttpMethods.Post || context.Request.Path != "/")
        {
            context.Response.StatusCode = StatusCodes.Status404NotFound;
            return;
        }

        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(context.RequestAborted, stopping);
        using StreamReader reader = new(context.Request.Body);
        string request = await reader.ReadToEndAsync(limit.Token);
        string answer = "";
        try
        {
            answer = await server.HandleAsync(request, limit.Token);
        }
        catch (InvariantException e)
        {
            throw Invariant.Stop(e);
        }

        context.Response.ContentType = "application/json";
        await context.Response.WriteAsync(answer, CancellationToken.None);
    }

    internal static async Task<IBlockDevice> OpenDiskAsync(string uri, CancellationToken cancellationToken)
    {
        NbdUri address = NbdUri.TryParse(uri) ?? throw XenopsException.Internal($"the storage offers \"{uri}\", which is no NBD URI");
        return await NbdClient.ConnectAsync(address, new NbdClientOptions(), cancellationToken);
    }

    private static void Log(string line) => Console.Error.WriteLine($"{DateTimeOffset.UtcNow:O} xenopsd: {line}");

    private sealed record Options(string Socket, string State, string StorageSocket, IPAddress Listen, string? Certificate)
    {
        public static Options Parse(string[] args)
        {
            Dictionary<string, string> given = [];
            for (int i = 0; i < args.Length; i += 2)
            {
                if (args[i] is not ("--socket" or "--state" or "--storage-socket" or "--listen" or "--certificate"))
                    throw new ArgumentException($"unknown option {args[i]}; {Usage}");
                if (i + 1 == args.Length || !given.TryAdd(args[i], args[i + 1]))
                    throw new ArgumentException($"{args[i]} needs one value, once; {Usage}");
            }

            string Required(string name) => given.GetValueOrDefault(name) ?? throw new ArgumentException($"{name} is missing; {Usage}");
            string listen = given.GetValueOrDefault("--listen", "127.0.0.1");
            return new Options(
                Path.GetFullPath(Required("--socket")),
                Path.GetFullPath(Required("--state")),
                Required("--storage-socket"),
                IPAddress.TryParse(listen, out IPAddress? address) ? address
                    : throw new ArgumentException($"--listen {listen} is no IP address"),
                given.GetValueOrDefault("--certificate"));
        }
    }
}
