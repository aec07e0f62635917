// An accept loop: a bounded number of clients, each served by a task of its own, and a stop that leaves nothing behind.
using System.Net.Sockets;

namespace Platform;

/// <summary>Owns the listening socket, and a unix socket's file. Disposing asks all clients' tasks to end and waits for them.</summary>
public sealed class SocketServer : IAsyncDisposable
{
    private static readonly TimeSpan RetryAfter = TimeSpan.FromMilliseconds(20);

    private readonly Socket listener;
    private readonly string? path;
    private readonly int maxClients;
    private readonly Func<Socket, CancellationToken, Task> serve;
    private readonly TimeProvider time;
    private readonly CancellationTokenSource stop = new();
    private readonly Lock gate = new();
    private readonly HashSet<Task> clients = [];
    private readonly Task accepting;

    /// <param name="serve">Owns the connection; fails with nothing but <see cref="InvariantException"/>, which ends the process; ends with the
    /// token.</param>
    public SocketServer(Socket listener, int maxClients, Func<Socket, CancellationToken, Task> serve, TimeProvider time)
    {
        this.listener = listener;
        this.maxClients = maxClients;
        this.serve = serve;
        this.time = time;
        path = (listener.LocalEndPoint as UnixDomainSocketEndPoint)?.ToString();
        accepting = AcceptAsync();
    }

    public int ClientCount
    {
        get
        {
            lock (gate)
                return clients.Count;
        }
    }

    public async ValueTask DisposeAsync()
    {
        if (stop.IsCancellationRequested)
            return;
        await stop.CancelAsync();
        await accepting;
        listener.Dispose();
        if (path is not null)
            File.Delete(path);
        Task[] rest;
        lock (gate)
            rest = [.. clients];
        await Task.WhenAll(rest);
        stop.Dispose();
    }

    private async Task AcceptAsync()
    {
        while (!stop.IsCancellationRequested)
        {
            try
            {
                Start(await listener.AcceptAsync(stop.Token));
            }
            catch (OperationCanceledException)
            {
                return;
            }
            catch (SocketException)
            {
                // Out of file descriptors, or a client that left while it waited: neither may end the service.
                await Task.Delay(RetryAfter, time, CancellationToken.None);
            }
        }
    }

    private void Start(Socket client)
    {
        lock (gate)
        {
            if (clients.Count >= maxClients)
            {
                client.Dispose(); // A refusal that the client sees at once; waiting in line would look like a hang.
                return;
            }

            Task serving = Task.Run(() => ServeAsync(client));
            clients.Add(serving);
            _ = serving.ContinueWith(Forget, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        }
    }

    private async Task ServeAsync(Socket client)
    {
        try
        {
            await serve(client, stop.Token);
        }
        catch (InvariantException bug)
        {
            Environment.FailFast(bug.Message, bug); // Nobody is served past a bug of our own: the journals recover.
        }
    }

    private void Forget(Task serving)
    {
        lock (gate)
            clients.Remove(serving);
    }
}
