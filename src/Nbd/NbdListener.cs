// Where clients come in: a unix socket's path or a TCP end point.
using System.Net;
using System.Net.Sockets;
using Platform;

namespace Nbd;

/// <summary>
/// Accepts clients and serves each with <see cref="NbdServer"/>. Disposing stops gracefully and removes a unix socket's file.
/// </summary>
public sealed class NbdListener : IAsyncDisposable
{
    private const int Backlog = 1024; // A unix socket refuses a burst above this, instead of letting it wait.

    private readonly NbdServerOptions options;
    private readonly Action<NbdSessionEnd> onSessionEnd;
    private readonly SocketServer server;

    private NbdListener(Socket listener, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd>? onSessionEnd)
    {
        this.options = options;
        this.onSessionEnd = onSessionEnd ?? (static _ => { });
        EndPoint = listener.LocalEndPoint!;
        server = new SocketServer(listener, maxConnections, ServeAsync, options.Time);
    }

    /// <summary>Where it listens: with TCP port 0 asked for, the port it got.</summary>
    public EndPoint EndPoint { get; }

    public int ConnectionCount => server.ClientCount;

    /// <summary>Listens on a unix socket that only its owner may open. A file left by a dead server is replaced.</summary>
    /// <exception cref="IOException">The path is in use, too long, or not ours to create.</exception>
    public static NbdListener ListenUnix(
        string path, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd>? onSessionEnd = null)
    {
        SocketFile.RemoveStale(path);
        return new NbdListener(SocketFile.Listen(path, Backlog), options, maxConnections, onSessionEnd);
    }

    /// <exception cref="IOException">The address is in use or not ours.</exception>
    public static NbdListener ListenTcp(
        IPEndPoint endPoint, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd>? onSessionEnd = null)
    {
        Socket listener = NbdSocket.Create(endPoint);
        try
        {
            listener.Bind(endPoint);
            listener.Listen(Backlog);
            return new NbdListener(listener, options, maxConnections, onSessionEnd);
        }
        catch (SocketException e)
        {
            listener.Dispose();
            throw new IOException($"cannot listen on {endPoint}: {e.Message}", e);
        }
    }

    public ValueTask DisposeAsync() => server.DisposeAsync();

    private async Task ServeAsync(Socket client, CancellationToken cancellationToken)
    {
        try
        {
            onSessionEnd(await NbdServer.ServeAsync(client, options, cancellationToken));
        }
        catch (Exception e) when (e is not InvariantException)
        {
            onSessionEnd(new NbdSessionEnd(false, "unexpected: " + e)); // One client's trouble never ends the service.
        }
    }
}
