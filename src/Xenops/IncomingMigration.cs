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

    private readonly Vm vm;
    private readonly X509Certificate2 certificate;
    private readonly TimeProvider time;
    private readonly CancellationTokenSource closing = new();
    private readonly Socket listener;
    private MemoryReceiver? receiver;

    private IncomingMigration(string id, Vm vm, Socket listener, X509Certificate2 certificate, TimeProvider time)
    {
        Id = id;
        this.vm = vm;
        this.listener = listener;
        this.certificate = certificate;
        this.time = time;
        Loading = Task.FromException<ImageSummary>(new InvalidOperationException("not started"));
    }

    public string Id { get; }

    public Secret Secret { get; } = Secret.Create();

    public int Port => ((IPEndPoint)listener.LocalEndPoint!).Port;

    /// <summary>Completes when the stream ended and every check passed, or fails with what did not.</summary>
    public Task<ImageSummary> Loading { get; private set; }

    /// <summary>The loaded guest; its domain takes it when it may run.</summary>
    public IGuest? Guest { get; set; }

    /// <summary>When the first step of a vCPU was done here.</summary>
    public string? RunningAt { get; set; }

    public string Progress => receiver is null ? "no stream came yet" : $"{receiver.Rounds} rounds and {receiver.Bytes} bytes came";

    public static IncomingMigration Start(
        string id, Vm vm, IDomainBackend backend, IReadOnlyList<GuestDisk> disks, IPAddress address, X509Certificate2 certificate,
        TimeProvider time)
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

        IncomingMigration migration = new(id, vm, listener, certificate, time);
        migration.Loading = migration.LoadAsync(backend, disks);
        return migration;
    }

    /// <summary>Closes the stream and the listener and destroys the guest, if nobody took it.</summary>
    public async ValueTask DisposeAsync()
    {
        await closing.CancelAsync();
        listener.Dispose();
        await Loading.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        if (Guest is { } guest)
            await guest.DisposeAsync();
        Guest = null;
    }

    private async Task<ImageSummary> LoadAsync(IDomainBackend backend, IReadOnlyList<GuestDisk> disks)
    {
        GuestMemory memory = new(vm.MemoryBytes);
        try
        {
            await using FrameStream frames = await AcceptSenderAsync();
            receiver = new MemoryReceiver(frames, vm, memory);
            ImageReceived image = await receiver.ReceiveAsync(closing.Token);
            Guest = backend.Restore(vm, memory, image.DeviceState, disks);
            return new ImageSummary(image.Digest, image.Pages, image.Bytes);
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

    private async Task<FrameStream> AcceptSenderAsync()
    {
        TaskCompletionSource<SslStream> sender = new(TaskCreationOptions.RunContinuationsAsynchronously);
        using CancellationTokenSource deadline = new(StreamDeadline, time);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(closing.Token, deadline.Token);
        List<Task> handshakes = [];
        try
        {
            Task accepting = AcceptAsync(handshakes, sender, limit.Token);
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

    private async Task AcceptAsync(List<Task> handshakes, TaskCompletionSource<SslStream> sender, CancellationToken cancellationToken)
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
                handshakes.Add(GreetAsync(socket, sender, cancellationToken));
        }
    }

    private async Task GreetAsync(Socket socket, TaskCompletionSource<SslStream> sender, CancellationToken cancellationToken)
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
