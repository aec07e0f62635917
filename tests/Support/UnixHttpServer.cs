using System.Net;
using System.Net.Sockets;
using System.Text;

namespace Support;

/// <summary>HTTP/1.1 POSTs on a unix socket: body in, body out. Enough for the daemons' RPC; anything else closes the connection.</summary>
public sealed class UnixHttpServer : IAsyncDisposable
{
    private const int BodyLimitBytes = 16 * 1024 * 1024;
    private readonly Socket listener;
    private readonly CancellationTokenSource stop = new();
    private readonly Func<string, Task<string>> answer;
    private readonly Task loop;

    public UnixHttpServer(string path, Func<string, Task<string>> answer)
        : this(new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified), new UnixDomainSocketEndPoint(path), answer)
    {
    }

    private UnixHttpServer(Socket listener, EndPoint at, Func<string, Task<string>> answer)
    {
        this.listener = listener;
        this.answer = answer;
        listener.Bind(at);
        listener.Listen(64);
        loop = AcceptAsync();
    }

    /// <summary>The same on a free TCP port of this machine, for clients that have a url to call.</summary>
    public static UnixHttpServer OnLoopback(Func<string, Task<string>> answer) =>
        new(new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp), new IPEndPoint(IPAddress.Loopback, 0), answer);

    /// <summary>With a slash at its end; of a server on TCP.</summary>
    public string Url => $"http://{listener.LocalEndPoint}/";

    public async ValueTask DisposeAsync()
    {
        await stop.CancelAsync();
        listener.Dispose();
        await loop;
        stop.Dispose();
    }

    private async Task AcceptAsync()
    {
        List<Task> connections = [];
        try
        {
            while (true)
                connections.Add(ServeAsync(await listener.AcceptAsync(stop.Token)));
        }
        catch (Exception e) when (e is OperationCanceledException or SocketException or ObjectDisposedException)
        {
            await Task.WhenAll(connections);
        }
    }

    private async Task ServeAsync(Socket socket)
    {
        try
        {
            await using NetworkStream stream = new(socket, ownsSocket: true);
            while (await ReadHeadAsync(stream) is { } length)
            {
                byte[] body = new byte[length];
                await stream.ReadExactlyAsync(body, stop.Token);
                byte[] reply = Encoding.UTF8.GetBytes(await answer(Encoding.UTF8.GetString(body)));
                await stream.WriteAsync(Encoding.ASCII.GetBytes($"HTTP/1.1 200 OK\r\nContent-Length: {reply.Length}\r\n\r\n"), stop.Token);
                await stream.WriteAsync(reply, stop.Token);
            }
        }
        catch (Exception e) when (e is OperationCanceledException or IOException)
        {
            // The client went away, or the test is over.
        }
    }

    private async Task<int?> ReadHeadAsync(NetworkStream stream)
    {
        StringBuilder head = new();
        byte[] one = new byte[1];
        while (!head.ToString().EndsWith("\r\n\r\n", StringComparison.Ordinal))
        {
            if (head.Length > 8192 || await stream.ReadAsync(one, stop.Token) == 0)
                return null;
            head.Append((char)one[0]);
        }

        string? field =
            head.ToString().Split("\r\n").FirstOrDefault(static l => l.StartsWith("content-length:", StringComparison.OrdinalIgnoreCase));
        return field is not null && int.TryParse(field[15..], out int length) && length is >= 0 and <= BodyLimitBytes ? length : null;
    }
}
