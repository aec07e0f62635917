// Connections from their accept to their end: limits, graceful stops, exports that are taken away, clients that do not play along.
using System.Net;
using System.Net.Sockets;
using Nbd;
using Platform;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

public sealed class LifecycleTests : IDisposable
{
    private readonly TemporaryDirectory folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task A_unix_listener_serves_only_its_owner_and_removes_its_socket()
    {
        string path = folder.File("s.sock");
        NbdExport export = new("disk", new MemoryBlockDevice(4096));
        await using (NbdListener listener = NbdListener.ListenUnix(path, ServedPeer.OptionsFor(export), 4))
        {
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(path) & (UnixFileMode)511);
            await using NbdClient client = await NbdClient.ConnectAsync(NbdUri.Unix(path, "disk"), new NbdClientOptions(), default);
            await client.FlushAsync(default);
            Assert.Throws<IOException>(() => NbdListener.ListenUnix(path, ServedPeer.OptionsFor(export), 4)); // In use.
        }

        Assert.False(File.Exists(path));
    }

    [Fact]
    public async Task A_socket_file_left_by_a_dead_server_is_replaced_but_a_plain_file_is_not()
    {
        string path = folder.File("stale.sock");
        LeaveStale(path);
        await using NbdListener listener = NbdListener.ListenUnix(path, ServedPeer.OptionsFor(), 4);
        string file = folder.File("data");
        await File.WriteAllTextAsync(file, "precious");
        Assert.Throws<IOException>(() => NbdListener.ListenUnix(file, ServedPeer.OptionsFor(), 4));
        Assert.Equal("precious", await File.ReadAllTextAsync(file));
        Assert.Throws<IOException>(() => NbdListener.ListenUnix(folder.File(new string('x', 200)), ServedPeer.OptionsFor(), 4));
    }

    [Fact]
    public async Task A_tcp_listener_tells_the_port_it_got()
    {
        NbdExport export = new("disk", new MemoryBlockDevice(4096));
        await using NbdListener listener = NbdListener.ListenTcp(new IPEndPoint(IPAddress.Loopback, 0), ServedPeer.OptionsFor(export), 4);
        int port = ((IPEndPoint)listener.EndPoint).Port;
        await using NbdClient client =
            await NbdClient.ConnectAsync(NbdUri.Tcp("127.0.0.1", port, "disk", false), new NbdClientOptions(), default);
        await client.WriteAsync(0, new byte[512], WriteFlags.None, default);
    }

    [Fact]
    public async Task Row_92_clients_above_the_limit_are_turned_away_at_once_and_room_comes_back()
    {
        string path = folder.File("s.sock");
        NbdExport export = new("disk", new MemoryBlockDevice(4096));
        await using NbdListener listener = NbdListener.ListenUnix(path, ServedPeer.OptionsFor(export), 2);
        NbdUri uri = NbdUri.Unix(path, "disk");
        NbdClient first = await NbdClient.ConnectAsync(uri, new NbdClientOptions(), default);
        await using NbdClient second = await NbdClient.ConnectAsync(uri, new NbdClientOptions(), default);
        Assert.Equal(
            Errno.ESHUTDOWN, (await Assert.ThrowsAsync<BlockIoException>(() =>
                NbdClient.ConnectAsync(uri, new NbdClientOptions(), default))).Errno);
        await first.DisposeAsync();
        Assert.True(SpinWait.SpinUntil(() => listener.ConnectionCount == 1, Deadline));
        await using NbdClient third = await NbdClient.ConnectAsync(uri, new NbdClientOptions(), default);
    }

    [Fact]
    public async Task Taking_an_export_away_answers_what_runs_and_leaves_nothing_in_flight()
    {
        TaskCompletionSource gate = new();
        TaskCompletionSource reached = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) =>
        {
            reached.TrySetResult();
            return gate.Task;
        });
        await using NbdExport export = new("disk", device);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, options: ServedPeer.OptionsFor(export));
        await peer.Client.SendAsync(Request(1, 1, 0, 512), Fill(7, 512));
        await reached.Task.WaitAsync(Deadline);
        Task closing = export.DisposeAsync().AsTask();
        await using ServedPeer late = await ServedPeer.StartAsync(ServedPeer.OptionsFor(export));
        await late.Client.ExpectAsync(Greeting);
        await late.Client.SendAsync(U32(3), Option(7, Text("disk") + U16(0)));
        Assert.Equal(OptionReplyMagic + U32(7) + U32(0x80000007), Convert.ToHexStringLower(await late.Client.ReceiveAsync(16)));
        Assert.False(closing.IsCompleted);
        gate.SetResult();
        await closing.WaitAsync(Deadline);
        Assert.Equal(0, device.Running);
        await peer.Client.ExpectAsync(SimpleReply(1));
        await peer.Client.ExpectClosedAsync();
        Assert.Equal(new NbdSessionEnd(true, "the export was closed"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task A_stop_answers_what_runs_and_reads_nothing_more()
    {
        TaskCompletionSource gate = new();
        TaskCompletionSource reached = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) =>
        {
            reached.TrySetResult();
            return gate.Task;
        });
        using CancellationTokenSource stop = new();
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, stop: stop.Token);
        await peer.Client.SendAsync(Request(3, 1, 0, 0));
        await reached.Task.WaitAsync(Deadline);
        await stop.CancelAsync();
        Assert.False(peer.End.IsCompleted);
        gate.SetResult();
        await peer.Client.ExpectAsync(SimpleReply(1));
        Assert.Equal(new NbdSessionEnd(true, "the server was stopped"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task A_device_that_does_not_end_is_asked_to_after_the_drain_timeout()
    {
        TaskCompletionSource reached = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, cancellationToken) =>
        {
            reached.TrySetResult();
            return Task.Delay(Timeout.Infinite, cancellationToken);
        });
        using CancellationTokenSource stop = new();
        NbdServerOptions options =
            ServedPeer.OptionsFor(new NbdExport("disk", device)) with { DrainTimeout = TimeSpan.FromMilliseconds(100) };
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, options: options, stop: stop.Token);
        await peer.Client.SendAsync(Request(3, 1, 0, 0));
        await reached.Task.WaitAsync(Deadline);
        await stop.CancelAsync();
        await peer.End.WaitAsync(Deadline);
        Assert.Equal(0, device.Running);
    }

    [Fact]
    public async Task Row_91_a_client_that_never_reads_is_not_read_from_and_costs_bounded_memory_until_it_is_stopped()
    {
        int reads = 0;
        HookedDevice device = new(new MemoryBlockDevice(8 << 20), (_, _, _) =>
        {
            Interlocked.Increment(ref reads);
            return Task.CompletedTask;
        });
        using CancellationTokenSource stop = new();
        NbdServerOptions options =
            ServedPeer.OptionsFor(new NbdExport("disk", device)) with { DrainTimeout = TimeSpan.FromMilliseconds(100) };
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, options: options, stop: stop.Token);
        byte[] requests = Bytes(string.Concat(Enumerable.Range(0, 1000).Select(i => Request(0, (ulong)i, 0, 1 << 20))));
        await peer.Client.Stream.WriteAsync(requests);
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref reads) >= 2, Deadline));
        await stop.CancelAsync();
        await peer.End.WaitAsync(Deadline);
        // 16 MiB of budget, and what the socket's buffers swallow; never the 1000 MiB asked for.
        Assert.InRange(reads, 2, 32);
    }

    [Fact]
    public async Task A_half_closed_client_still_gets_its_answers()
    {
        TaskCompletionSource gate = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) => gate.Task);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(0, 1, 0, 512), Request(3, 2, 0, 0));
        peer.Pair.LeftSocket.Shutdown(SocketShutdown.Send);
        gate.SetResult();
        byte[] both = await peer.Client.ReceiveAsync(16 + 512 + 16);
        Assert.Equal(0x67446698u, System.Buffers.Binary.BinaryPrimitives.ReadUInt32BigEndian(both));
        Assert.Equal(new NbdSessionEnd(true, "the client closed the connection"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task Answers_come_in_the_order_in_which_the_device_gives_them()
    {
        TaskCompletionSource gate = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, offset, _) => offset == 0 ? gate.Task : Task.CompletedTask);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(4, 1, 0, 512), Request(4, 2, 512, 512));
        await peer.Client.ExpectAsync(SimpleReply(2));
        gate.SetResult();
        await peer.Client.ExpectAsync(SimpleReply(1));
    }

    [Fact]
    public async Task A_bug_in_a_device_ends_the_connection_and_is_not_swallowed()
    {
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) => throw new InvalidOperationException("bug"));
        using SocketPair pair = await SocketPair.CreateAsync();
        Task<NbdSessionEnd> serving = NbdServer.ServeAsync(pair.RightSocket, ServedPeer.OptionsFor(new NbdExport("disk", device)), default);
        NbdClient client = await NbdClient.ConnectAsync(pair.LeftSocket, "disk", new NbdClientOptions(), default);
        await Assert.ThrowsAsync<BlockIoException>(async () => await client.FlushAsync(default));
        await Assert.ThrowsAsync<InvariantException>(() => serving.WaitAsync(Deadline));
        await client.DisposeAsync();
    }

    private static void LeaveStale(string path)
    {
        // What a killed server leaves: a bound name that nobody listens on. A hard link survives the owner's own clean-up.
        using Socket dead = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        dead.Bind(new UnixDomainSocketEndPoint(path + ".bound"));
        Posix.CreateHardLink(path + ".bound", path);
    }
}
