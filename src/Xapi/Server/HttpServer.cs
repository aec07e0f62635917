// The listening side: TLS on TCP, plain HTTP on loopback only, and a unix socket that only its owner can open, where every caller is root.
// No configuration files, no environment: what is not said here is not on.
using System.Net;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography.X509Certificates;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.AspNetCore.Server.Kestrel.Transport.Sockets;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Platform;

namespace Xapi.Server;

/// <summary>Marks a connection that came through the daemon's unix socket.</summary>
public sealed class LocalPeer
{
    internal static readonly LocalPeer Instance = new();
}

public sealed class HttpServer : IAsyncDisposable
{
    private const int ConnectionLimit = 1024;
    private static readonly TimeSpan StopDeadline = TimeSpan.FromSeconds(10);

    private readonly WebApplication application;

    private HttpServer(WebApplication application, string unixPath, string fingerprint)
    {
        this.application = application;
        UnixPath = unixPath;
        Fingerprint = fingerprint;
        ICollection<string> addresses =
            application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses;
        HttpsUrl = addresses.First(static a => a.StartsWith("https:", StringComparison.Ordinal));
        HttpUrl = addresses.FirstOrDefault(static a =>
            a.StartsWith("http:", StringComparison.Ordinal) && !a.StartsWith("http://unix:", StringComparison.Ordinal));
    }

    public string HttpsUrl { get; }

    public string? HttpUrl { get; }

    public string UnixPath { get; }

    /// <summary>SHA-256 of the certificate.</summary>
    public string Fingerprint { get; }

    /// <param name="configure">Adds routes; what has no route goes to <paramref name="rpc"/> when it is a POST.</param>
    /// <exception cref="IOException">An address is in use or not ours; the message names it.</exception>
    public static async Task<HttpServer> StartAsync(
        XapiOptions options,
        X509Certificate2 certificate,
        string unixPath,
        RpcEndpoint rpc,
        Action<WebApplication> configure,
        ILoggerFactory logging,
        CancellationToken cancellationToken)
    {
        SocketFile.RemoveStale(unixPath);
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.AddSingleton(logging);
        builder.Services.AddSingleton<IHostLifetime, CallersLifetime>();
        builder.Services.AddRoutingCore();
        builder.Services.Configure<HostOptions>(static o => o.ShutdownTimeout = StopDeadline);
        builder.Services.Configure<SocketTransportOptions>(static o => o.CreateBoundListenSocket = Bind);
        builder.WebHost.UseKestrelCore().UseKestrelHttpsConfiguration();
        builder.WebHost.ConfigureKestrel(kestrel => Listen(kestrel, options, certificate, unixPath));
        WebApplication application = builder.Build();
        try
        {
            configure(application);
            application.Map("{**path}", http => AnswerAsync(http, rpc, application.Lifetime.ApplicationStopping));
            await application.StartAsync(cancellationToken);
            return new HttpServer(application, unixPath, ServerCertificate.Fingerprint(certificate));
        }
        catch
        {
            await application.DisposeAsync();
            throw;
        }
    }

    /// <summary>Stops accepting, lets running requests end up to a deadline, and removes the socket.</summary>
    public async ValueTask DisposeAsync()
    {
        await application.StopAsync();
        await application.DisposeAsync();
        File.Delete(UnixPath);
    }

    private static void Listen(KestrelServerOptions kestrel, XapiOptions options, X509Certificate2 certificate, string unixPath)
    {
        kestrel.AddServerHeader = false;
        kestrel.Limits.MaxRequestBodySize = RpcEndpoint.BodyLimitBytes;
        kestrel.Limits.MaxConcurrentConnections = ConnectionLimit;
        kestrel.Limits.MaxConcurrentUpgradedConnections = ConnectionLimit;
        kestrel.Limits.RequestHeadersTimeout = TimeSpan.FromSeconds(10);
        kestrel.Listen(options.Https, listen =>
        {
            listen.Protocols = HttpProtocols.Http1;
            listen.UseHttps(certificate, static https => https.SslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13);
        });
        if (options.Http is { } http)
            kestrel.Listen(http, static listen => listen.Protocols = HttpProtocols.Http1);
        kestrel.ListenUnixSocket(unixPath, static listen =>
        {
            listen.Protocols = HttpProtocols.Http1;
            listen.Use(static next => connection =>
            {
                connection.Features.Set(LocalPeer.Instance);
                return next(connection);
            });
        });
    }

    /// <summary>Between bind and listen nobody can connect: the socket never has another mode than 0600.</summary>
    private static Socket Bind(EndPoint endpoint)
    {
        Socket socket = SocketTransportOptions.CreateDefaultBoundListenSocket(endpoint);
        if (endpoint is UnixDomainSocketEndPoint unix)
            File.SetUnixFileMode(unix.ToString(), UnixFileMode.UserRead | UnixFileMode.UserWrite);
        return socket;
    }

    private static async Task AnswerAsync(HttpContext http, RpcEndpoint rpc, CancellationToken stopping)
    {
        switch (http.Request.Method)
        {
            case "POST":
                await rpc.AnswerAsync(http, stopping);
                return;
            case "OPTIONS":
                http.Response.Headers.AccessControlAllowOrigin = "*";
                http.Response.Headers.AccessControlAllowHeaders = "X-Requested-With, Content-Type";
                http.Response.Headers.AccessControlAllowMethods = "POST, OPTIONS";
                return;
            case "GET" or "HEAD" or "PUT":
                http.Response.StatusCode = StatusCodes.Status403Forbidden;
                return;
            default:
                http.Response.StatusCode = StatusCodes.Status501NotImplemented;
                return;
        }
    }

    /// <summary>Whoever starts the server decides when it stops: signals are the program's.</summary>
    private sealed class CallersLifetime : IHostLifetime
    {
        public Task WaitForStartAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;
    }
}
