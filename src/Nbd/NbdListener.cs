// The accept loop: a unix socket's path or a TCP end point, a bounded number of clients, and a stop that leaves nothing behind.
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

    private readonly Socket socket;
    private readonly NbdServerOptions options;
    private readonly int maxConnections;
    private readonly Action<NbdSessionEnd> onSessionEnd;
    private readonly CancellationTokenSource stop = new();
    private readonly Lock gate = new();
    private readonly HashSet<Task> sessions = [];
    private readonly Task accepting;

    private NbdListener(Socket socket, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd> onSessionEnd)
    {
        this.socket = socket;
        this.options = options;
        this.maxConnections = maxConnections;
        this.onSessionEnd = onSessionEnd;
        EndPoint = socket.LocalEndPoint!;
        accepting = AcceptAsync();
    }

    /// <summary>Where it listens: with TCP port 0 asked for, the port it got.</summary>
    public EndPoint EndPoint { get; }

    public int ConnectionCount
    {
        get
        {
            lock (gate)
                return sessions.Count;
        }
    }

    /// <summary>Listens on a unix socket that only its owner may open. A file left by a dead server is replaced.</summary>
    /// <exception cref="IOException">The path is in use, too long, or not ours to create.</exception>
    public static NbdListener ListenUnix(
        string path, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd>? onSessionEnd = null)
    {
        RemoveStale(path);
        return Listen(AddressOf(path), options, maxConnections, onSessionEnd);
    }

    /// <exception cref="IOException">The address is in use or not ours.</exception>
    public static NbdListener ListenTcp(
        IPEndPoint endPoint, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd>? onSessionEnd = null) =>
        Listen(endPoint, options, maxConnections, onSessionEnd);

    public async ValueTask DisposeAsync()
    {
        if (stop.IsCancellationRequested)
            return;
        await stop.CancelAsync();
        await accepting;
        socket.Dispose();
        if (EndPoint is UnixDomainSocketEndPoint)
            File.Delete(EndPoint.ToString()!);
        Task[] rest;
        lock (gate)
            rest = [.. sessions];
        await Task.WhenAll(rest);
        stop.Dispose();
    }

    private static NbdListener Listen(
        EndPoint endPoint, NbdServerOptions options, int maxConnections, Action<NbdSessionEnd>? onSessionEnd)
    {
        Socket socket = NbdSocket.Create(endPoint);
        try
        {
            socket.Bind(endPoint);
            if (endPoint is UnixDomainSocketEndPoint)
                File.SetUnixFileMode(endPoint.ToString()!, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            socket.Listen(Backlog);
            return new NbdListener(socket, options, maxConnections, onSessionEnd ?? (static _ => { }));
        }
        catch (SocketException e)
        {
            socket.Dispose();
            throw new IOException($"cannot listen on {endPoint}: {e.Message}", e);
        }
    }

    private static UnixDomainSocketEndPoint AddressOf(string path)
    {
        try
        {
            return new UnixDomainSocketEndPoint(path);
        }
        catch (ArgumentException e)
        {
            throw new IOException($"{path} cannot be a unix socket: {e.Message}", e);
        }
    }

    private static void RemoveStale(string path)
    {
        if (!Path.Exists(path))
            return;
        if (!Posix.IsSocket(path)) // Connecting to a plain file is "refused" too: without this it would be deleted.
            throw new IOException($"{path} exists and is not a socket; it was left as it is");
        using Socket probe = NbdSocket.Create(AddressOf(path));
        try
        {
            probe.Connect(AddressOf(path));
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            File.Delete(path); // Nobody listens: its server was killed.
            return;
        }
        catch (SocketException e)
        {
            throw new IOException($"{path} exists and cannot be replaced: {e.Message}", e);
        }

        throw new IOException($"{path} is already served by another process");
    }

    private async Task AcceptAsync()
    {
        while (!stop.IsCancellationRequested)
        {
            Socket client;
            try
            {
                client = await socket.AcceptAsync(stop.Token);
            }
            catch (OperationCanceledException)
            {
                return;
            }
            catch (SocketException)
            {
                // Out of file descriptors, or a client that left while it waited: neither may end the service.
                await Task.Delay(TimeSpan.FromMilliseconds(20), options.Time, CancellationToken.None);
                continue;
            }

            Start(client);
        }
    }

    private void Start(Socket client)
    {
        lock (gate)
        {
            if (sessions.Count >= maxConnections)
            {
                client.Dispose(); // A refusal that the client sees at once; waiting in line would look like a hang.
                return;
            }

            Task session = ServeAsync(client);
            sessions.Add(session);
            _ = session.ContinueWith(Forget, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        }
    }

    private void Forget(Task session)
    {
        lock (gate)
            sessions.Remove(session);
    }

    private async Task ServeAsync(Socket client)
    {
        try
        {
            onSessionEnd(await NbdServer.ServeAsync(client, options, stop.Token));
        }
        catch (InvariantException bug)
        {
            Environment.FailFast("NBD server: " + bug.Message, bug); // Nobody is served past a bug of our own: the journals recover.
        }
        catch (Exception e)
        {
            onSessionEnd(new NbdSessionEnd(false, "unexpected: " + e)); // One client's trouble never ends the service.
        }
    }
}
