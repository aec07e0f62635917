// The destination's half of one migration: a listener for one stream, the load, and the guest that comes out of it, which does not run.
// Whoever does not know the secret costs one connection of at most eight, for at most ten seconds; the first who knows it is the
// sender, and the listener closes.
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography.X509Certificates;
using Platform;
using Xenops.Streaming;

namespace Xenops;

internal sealed class IncomingMigration : IAsyncDisposable
{
    private const int HandshakeLimit = 8;
    private static readonly TimeSpan HandshakeDeadline = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan SilenceLimit = TimeSpan.FromSeconds(60);

    /// <summary>Storage is mirrored before memory is sent, so a stream may be long in coming; but not for ever.</summary>
    private static readonly TimeSpan StreamDeadline = TimeSpan.FromHours(24);

    private readonly CancellationTokenSource closing = new();
    private Socket? listener;
    private MemoryReceiver? receiver;

    private IncomingMigration(string id, Task<ImageSummary> loading)
    {
        Id = id;
        Loading = loading;
    }

    public string Id { get; }

    public Secret Secret { get; } = Secret.Create();

    public int Port { get; private set; }

    /// <summary>Completes when the stream ended and every check passed, or fails with what did not.</summary>
    public Task<ImageSummary> Loading { get; private set; }

    /// <summary>When the first step of a vCPU was done here.</summary>
    public string? RunningAt { get; set; }

    public string Progress => receiver is null ? "no stream came yet" : $"{receiver.Rounds} rounds and {receiver.Bytes} bytes came";

    /// <param name="guest">Created; the stream fills its memory.</param>
    public static IncomingMigration Start(
        string id, Vm vm, IGuest guest, IPAddress address, X509Certificate2 certificate, TimeProvider time)
    {
        Socket listener = new(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            listener.Bind(new IPEndPoint(address, 0));
            listener.Listen(HandshakeLimit);
        }
        catch (SocketException e)
        {
            listener.Dispose();
            throw XenopsException.Internal($"cannot listen on {address}: {e.Message}");
        }

        IncomingMigration migration = new(id, Task.FromException<ImageSummary>(new InvalidOperationException("not started")))
        {
            Port = ((IPEndPoint)listener.LocalEndPoint!).Port,
            listener = listener,
        };
        migration.Loading = migration.LoadAsync(vm, guest, listener, certificate, time);
        return migration;
    }

    /// <summary>One whose guest was complete, and may have run, before an earlier xenopsd died.</summary>
    public static IncomingMigration Loaded(string id, ImageSummary image, string? runningAt) => new(id, Task.FromResult(image)) { RunningAt = runningAt };

    /// <summary>Closes the stream and the listener; the guest is its domain's.</summary>
    public async ValueTask DisposeAsync()
    {
        await closing.CancelAsync();
        listener?.Dispose();
        await Loading.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
    }

    private async Task<ImageSummary> LoadAsync(Vm vm, IGuest guest, Socket listener, X509Certificate2 certificate, TimeProvider time)
    {
        try
        {
            await using FrameStream frames = await AcceptSenderAsync(listener, certificate, time);
            receiver = new MemoryReceiver(frames, vm, guest.Memory);
            ImageReceived received = await receiver.ReceiveAsync(closing.Token);
            ImageSummary image = new(received.Digest, received.Pages, received.Bytes);
            await guest.LoadAsync(received.DeviceState, Id, image, closing.Token);
            return image;
        }
        catch (MemoryStreamException e)
        {
            throw XenopsException.Internal($"the load of migration {Id} is refused: {e.Message}");
        }
        catch (OperationCanceledException)
        {
            throw XenopsException.Cancelled(Id);
        }
    }

    private async Task<FrameStream> AcceptSenderAsync(Socket listener, X509Certificate2 certificate, TimeProvider time)
    {
        TaskCompletionSource<SslStream> sender = new(TaskCreationOptions.RunContinuationsAsynchronously);
        using CancellationTokenSource deadline = new(StreamDeadline, time);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(closing.Token, deadline.Token);
        List<Task> handshakes = [];
        try
        {
            Task accepting = AcceptAsync(
                listener, handshakes, socket => GreetAsync(socket, certificate, sender, time, limit.Token), limit.Token);
            await Task.WhenAny(accepting, sender.Task);
            if (sender.Task.IsCompletedSuccessfully)
                return new FrameStream(await sender.Task, time, SilenceLimit);
            await accepting;
            throw new MemoryStreamException("the listener ended");
        }
        catch (OperationCanceledException) when (deadline.IsCancellationRequested)
        {
            throw new MemoryStreamException($"no stream came within {StreamDeadline.TotalHours:0} hours");
        }
        finally
        {
            listener.Close();
            await limit.CancelAsync();
            await Task.WhenAll(handshakes.ToArray());
        }
    }

    private static async Task AcceptAsync(
        Socket listener, List<Task> handshakes, Func<Socket, Task> greet, CancellationToken cancellationToken)
    {
        while (true)
        {
            Socket socket;
            try
            {
                socket = await listener.AcceptAsync(cancellationToken);
            }
            catch (Exception e) when (e is SocketException or ObjectDisposedException)
            {
                throw new MemoryStreamException($"the listener failed: {e.Message}", e);
            }

            handshakes.RemoveAll(static h => h.IsCompleted);
            if (handshakes.Count >= HandshakeLimit)
                socket.Dispose();
            else
                handshakes.Add(greet(socket));
        }
    }

    private async Task GreetAsync(
        Socket socket, X509Certificate2 certificate, TaskCompletionSource<SslStream> sender, TimeProvider time, CancellationToken cancellationToken)
    {
        using CancellationTokenSource deadline = new(HandshakeDeadline, time);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, deadline.Token);
        SslStream? tls = null;
        try
        {
            socket.NoDelay = true;
            tls = await StreamTls.AcceptAsync(socket, certificate, limit.Token);
            StreamHello hello = await StreamHello.ReadAsync(tls, limit.Token);
            if (hello.Migration == Id && hello.Secret.Equals(Secret) && sender.TrySetResult(tls))
                return;
        }
        catch (Exception e)
            when (e is IOException or AuthenticationException or OperationCanceledException or SocketException or InvalidOperationException)
        {
            // A stranger: closed without a word.
        }

        if (tls is not null)
            await tls.DisposeAsync();
        socket.Dispose();
    }
}
