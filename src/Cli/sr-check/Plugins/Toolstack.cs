// A small toolstack for SMAPIv1 drivers: XML-RPC over HTTP on the unix socket where they open their session, over tables in memory. It
// answers the call-backs of research/storage.md section 4; what it does not know is an error, so that a driver cannot rely on more.
using System.Net.Sockets;
using System.Text;
using Platform;
using StorageAccess.Wire;

namespace SrCheck.Plugins;

/// <summary>What a driver's call-back meets.</summary>
internal enum ToolstackFault
{
    None,

    /// <summary>An orderly failure.</summary>
    Refuses,

    /// <summary>The answer is no XML.</summary>
    Garbage,

    /// <summary>The connection ends in the middle of the answer.</summary>
    CutsOff,

    /// <summary>The answer takes its time.</summary>
    Slow,
}

internal sealed class Toolstack : IAsyncDisposable
{
    private const int BodyLimitBytes = 4 * 1024 * 1024;
    private const int HeadLimitBytes = 16 * 1024;
    private const int ClientLimit = 64;
    private const int LogLimit = 2000;
    private static readonly TimeSpan Slowness = TimeSpan.FromMilliseconds(400);

    private readonly SocketServer server;
    private readonly ToolstackTables tables;
    private readonly Lock gate = new();
    private readonly List<string> log = [];

    public Toolstack(string socketPath, ToolstackTables tables)
    {
        this.tables = tables;
        server = new SocketServer(SocketFile.Listen(socketPath, ClientLimit), ClientLimit, ServeAsync, TimeProvider.System);
    }

    public ToolstackFault Fault { get; set; }

    /// <summary>Which call-backs the fault strikes.</summary>
    public Func<string, bool> Strikes { get; set; } = static _ => true;

    /// <summary>Told of each call-back before it is answered.</summary>
    public Action<string>? OnCall { get; set; }

    /// <summary>The methods called, in order.</summary>
    public IReadOnlyList<string> Log
    {
        get
        {
            lock (gate)
                return [.. log];
        }
    }

    public int Struck { get; private set; }

    public ValueTask DisposeAsync() => server.DisposeAsync();

    private async Task ServeAsync(Socket socket, CancellationToken stop)
    {
        try
        {
            await using NetworkStream stream = new(socket, ownsSocket: true);
            while (await ReadHeadAsync(stream, stop) is { } length)
            {
                byte[] body = new byte[length];
                await stream.ReadExactlyAsync(body, stop);
                if (!await AnswerAsync(stream, Encoding.UTF8.GetString(body), stop))
                    return;
            }
        }
        catch (Exception e) when (e is OperationCanceledException or IOException or SocketException)
        {
            // The driver went away, or the world ends.
        }
    }

    private async Task<bool> AnswerAsync(NetworkStream stream, string body, CancellationToken stop)
    {
        (string method, string text) = Run(body);
        ToolstackFault fault = Strikes(method) ? Fault : ToolstackFault.None;
        if (fault != ToolstackFault.None)
            Struck++;
        OnCall?.Invoke(method);
        switch (fault)
        {
            case ToolstackFault.Refuses:
                text = Failure("INTERNAL_ERROR", "sr-check refuses this call-back");
                break;
            case ToolstackFault.Garbage:
                text = "<html>502 Bad Gateway";
                break;
            case ToolstackFault.Slow:
                await Task.Delay(Slowness, stop);
                break;
        }

        byte[] reply = Encoding.UTF8.GetBytes(text);
        string head = $"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {reply.Length}\r\n\r\n";
        await stream.WriteAsync(Encoding.ASCII.GetBytes(head), stop);
        if (fault == ToolstackFault.CutsOff)
        {
            await stream.WriteAsync(reply.AsMemory(0, reply.Length / 2), stop);
            return false;
        }

        await stream.WriteAsync(reply, stop);
        return true;
    }

    private (string Method, string Text) Run(string body)
    {
        XmlRpcCall call;
        try
        {
            call = XmlRpc.ReadCall(body);
        }
        catch (RpcFormatException e)
        {
            return ("", Failure("INTERNAL_ERROR", e.Message));
        }

        lock (gate)
        {
            if (log.Count < LogLimit)
                log.Add(call.Method);
        }

        // A refused call-back changes nothing, so it is not run at all.
        if (Fault == ToolstackFault.Refuses && Strikes(call.Method))
            return (call.Method, "");
        try
        {
            return (call.Method, XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Success"), ("Value", tables.Run(call)))));
        }
        catch (ToolstackException e)
        {
            return (call.Method, Failure([e.Code, .. e.Parameters]));
        }
        catch (RpcFormatException e)
        {
            return (call.Method, Failure("INTERNAL_ERROR", call.Method, e.Message));
        }
    }

    private static string Failure(params string[] description) =>
        XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Failure"), ("ErrorDescription", RpcValue.Strings(description))));

    /// <summary>The body's length, or null when the connection ends.</summary>
    private static async Task<int?> ReadHeadAsync(NetworkStream stream, CancellationToken stop)
    {
        StringBuilder head = new();
        byte[] one = new byte[1];
        while (head.Length < 4 || head[^1] != '\n' || head[^2] != '\r' || head[^3] != '\n')
        {
            if (head.Length > HeadLimitBytes || await stream.ReadAsync(one, stop) == 0)
                return null;
            head.Append((char)one[0]);
        }

        const string field = "content-length:";
        string? line = head.ToString().Split("\r\n").FirstOrDefault(static l => l.StartsWith(field, StringComparison.OrdinalIgnoreCase));
        return line is not null && int.TryParse(line[field.Length..], out int length) && length is >= 0 and <= BodyLimitBytes ? length
            : null;
    }
}
