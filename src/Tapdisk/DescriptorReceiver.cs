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
    private readonly int maximum;
    private readonly Func<Socket, string, CancellationToken, Task> take;
    private readonly Socket listener;
    private readonly CancellationTokenSource stop = new();
    private readonly Lock gate = new();
    private readonly HashSet<Task> taken = [];
    private readonly Task accepting;

    /// <param name="maximum">Senders and connections being served, together; who comes above it is turned away.</param>
    /// <param name="take">Owns the connection from now on; ends with the token.</param>
    public DescriptorReceiver(string path, int maximum, Func<Socket, string, CancellationToken, Task> take)
    {
        this.path = path;
        this.maximum = maximum;
        this.take = take;
        File.Delete(path); // A dead process had our id.
        listener = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(path));
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        listener.Listen(maximum);
        accepting = AcceptAsync();
    }

    public async ValueTask DisposeAsync()
    {
        await stop.CancelAsync();
        await accepting;
        listener.Dispose();
        File.Delete(path);
        Task[] rest;
        lock (gate)
            rest = [.. taken];
        await Task.WhenAll(rest);
        stop.Dispose();
    }

    private async Task AcceptAsync()
    {
        while (true)
        {
            try
            {
                Start(await listener.AcceptAsync(stop.Token));
            }
            catch (OperationCanceledException)
            {
                return;
            }
            catch (SocketException e)
            {
                Log.Write($"accept on {path} failed: {e.Message}");
                await Task.Delay(20, CancellationToken.None);
            }
        }
    }

    private void Start(Socket sender)
    {
        lock (gate)
        {
            if (taken.Count >= maximum)
            {
                sender.Dispose();
                return;
            }

            Task task = Task.Run(() => ReceiveAsync(sender));
            taken.Add(task);
            _ = task.ContinueWith(Forget, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        }
    }

    private void Forget(Task task)
    {
        lock (gate)
            taken.Remove(task);
    }

    private async Task ReceiveAsync(Socket sender)
    {
        try
        {
            (Socket Connection, string Label)? received;
            using (sender)
                received = await MessageAsync(sender);
            if (received is not { } message)
                Log.Write($"a message on {path} carried no connection");
            else
                await take(message.Connection, message.Label, stop.Token);
        }
        catch (Exception e) when (e is IOException or SocketException or OperationCanceledException or ArgumentException)
        {
            Log.Write($"a connection handed over on {path} is of no use: {e.Message}");
        }
    }

    private async Task<(Socket Connection, string Label)?> MessageAsync(Socket sender)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(stop.Token);
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
