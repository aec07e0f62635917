// A unix socket on which the field's daemons hand over connections that they made (SCM_RIGHTS, research: storage.md 6.4 and 6.5): one
// message per sender, with a label or nothing in its body.
using System.Net.Sockets;
using System.Text;
using Platform;

namespace Tapdisk;

/// <summary>Takes connections for as long as it lives. What it gave away is served by tasks that it waits for when it ends.</summary>
internal sealed class DescriptorReceiver : IAsyncDisposable
{
    private const int MaximumLabelBytes = 255;
    private static readonly TimeSpan ReadLimit = TimeSpan.FromSeconds(2);

    private readonly string path;
    private readonly Func<Socket, string, CancellationToken, Task> take;
    private readonly SocketServer server;

    /// <param name="maximum">Senders and connections being served, together; who comes above it is turned away.</param>
    /// <param name="take">Owns the connection from now on; ends with the token.</param>
    /// <exception cref="IOException">The path cannot be had.</exception>
    public DescriptorReceiver(string path, int maximum, Func<Socket, string, CancellationToken, Task> take, TimeProvider time)
    {
        this.path = path;
        this.take = take;
        File.Delete(path); // A dead process had our id.
        server = new SocketServer(SocketFile.Listen(path, maximum), maximum, ReceiveAsync, time);
    }

    public ValueTask DisposeAsync() => server.DisposeAsync();

    private async Task ReceiveAsync(Socket sender, CancellationToken cancellationToken)
    {
        try
        {
            (Socket Connection, string Label)? received;
            using (sender)
                received = await MessageAsync(sender, cancellationToken);
            if (received is not { } message)
                Log.Write($"a message on {path} carried no connection");
            else
                await take(message.Connection, message.Label, cancellationToken);
        }
        catch (Exception e) when (e is IOException or SocketException or OperationCanceledException or ArgumentException)
        {
            Log.Write($"a connection handed over on {path} is of no use: {e.Message}");
        }
    }

    private async Task<(Socket Connection, string Label)?> MessageAsync(
        Socket sender, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(ReadLimit);
        _ = await sender.ReceiveAsync(Memory<byte>.Empty, SocketFlags.None, limit.Token); // Until there is something.
        byte[] body = new byte[MaximumLabelBytes];
        if (Posix.ReceiveSocket(sender.SafeHandle, body) is not { } received)
            return null;
        try
        {
            string label = Encoding.UTF8.GetString(body, 0, received.BodyBytes).TrimEnd('\0');
            return (new Socket(received.Socket), label);
        }
        catch
        {
            received.Socket.Dispose(); // A descriptor, but no socket.
            throw;
        }
    }
}
