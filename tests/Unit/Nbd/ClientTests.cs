// Our client on our server: the whole contract of a block device, compared with a model.
using Nbd;
using Platform;
using Support;

namespace Unit.NbdTests;

public class ClientTests
{
    [Fact]
    public async Task The_export_is_described_as_it_is()
    {
        await using ClientServer world = await ClientServer.StartAsync(new MemoryBlockDevice(1 << 20));
        NbdClient client = world.Client;
        Assert.Equal((1L << 20, 512, false), (client.LengthBytes, client.BlockSizeBytes, client.IsReadOnly));
        Assert.True(client.CanFlush && client.HasExtents && client.HasStructuredReplies && client.IsConnected);
        Assert.Equal(32 << 20, client.MaxPayloadBytes);
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(2, 16)]
    [InlineData(3, 100)]
    public async Task A_random_life_through_the_wire_equals_the_same_life_without_it(int seed, int depth)
    {
        const int size = 8 << 20;
        MemoryBlockDevice served = new(size);
        MemoryBlockDevice model = new(size);
        await using ClientServer world = await ClientServer.StartAsync(served);
        // Each worker has a region of its own, so that order between workers does not matter.
        await Task.WhenAll(Enumerable.Range(0, depth).Select(worker =>
            LiveAsync(world.Client, model, new Random(seed * 1000 + worker), worker, size / depth)));
        Assert.True(served.Bytes.AsSpan().SequenceEqual(model.Bytes));
        Assert.Equal(await AllExtentsAsync(model), await AllExtentsAsync(world.Client));
    }

    [Fact]
    public async Task A_request_longer_than_the_limit_is_split()
    {
        const int size = 40 << 20;
        await using ClientServer world = await ClientServer.StartAsync(new MemoryBlockDevice(size));
        byte[] written = new byte[size];
        new Random(1).NextBytes(written);
        await world.Client.WriteAsync(0, written, WriteFlags.Fua, default);
        byte[] read = new byte[size];
        await world.Client.ReadAsync(0, read, default);
        Assert.True(read.AsSpan().SequenceEqual(written));
    }

    [Fact]
    public async Task A_request_outside_the_device_is_refused_before_it_is_sent()
    {
        await using ClientServer world = await ClientServer.StartAsync(new MemoryBlockDevice(4096));
        Assert.Equal(Errno.EINVAL, await ErrnoAsync(world.Client.ReadAsync(4096, new byte[512], default)));
        Assert.Equal(Errno.ENOSPC, await ErrnoAsync(world.Client.WriteAsync(3584, new byte[1024], WriteFlags.None, default)));
        Assert.Equal(Errno.EINVAL, await ErrnoAsync(world.Client.TrimAsync(1, 512, WriteFlags.None, default)));
    }

    [Fact]
    public async Task An_error_of_the_device_is_the_callers_error_and_the_connection_lives_on()
    {
        bool fails = true;
        HookedDevice device = new(
            new MemoryBlockDevice(4096), (_, _, _) => fails ? throw new BlockIoException(Errno.ENOSPC, "full") : Task.CompletedTask);
        await using ClientServer world = await ClientServer.StartAsync(device);
        Assert.Equal(Errno.ENOSPC, await ErrnoAsync(world.Client.WriteAsync(0, new byte[512], WriteFlags.None, default)));
        Assert.Equal(Errno.ENOSPC, await ErrnoAsync(world.Client.ReadAsync(0, new byte[512], default)));
        Assert.Equal(Errno.ENOSPC, await ErrnoAsync(world.Client.FlushAsync(default)));
        fails = false;
        await world.Client.FlushAsync(default);
    }

    [Fact]
    public async Task Requests_overtake_each_other()
    {
        TaskCompletionSource gate = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, offset, _) => offset == 0 ? gate.Task : Task.CompletedTask);
        await using ClientServer world = await ClientServer.StartAsync(device);
        Task slow = world.Client.ReadAsync(0, new byte[512], default).AsTask();
        await world.Client.ReadAsync(512, new byte[512], default).AsTask().WaitAsync(RawPeer.Deadline);
        Assert.False(slow.IsCompleted);
        gate.SetResult();
        await slow.WaitAsync(RawPeer.Deadline);
    }

    [Fact]
    public async Task A_cancelled_caller_leaves_at_once_and_the_stream_stays_in_step()
    {
        TaskCompletionSource gate = new();
        TaskCompletionSource reached = new();
        MemoryBlockDevice inner = new(8192);
        inner.Bytes.AsSpan(0, 4096).Fill(0xaa);
        HookedDevice device = new(inner, (_, offset, _) =>
        {
            if (offset != 0)
                return Task.CompletedTask;
            reached.TrySetResult();
            return gate.Task;
        });
        await using ClientServer world = await ClientServer.StartAsync(device);
        using CancellationTokenSource cancel = new();
        byte[] abandoned = new byte[4096];
        Task read = world.Client.ReadAsync(0, abandoned, cancel.Token).AsTask();
        await reached.Task.WaitAsync(RawPeer.Deadline);
        await cancel.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => read.WaitAsync(RawPeer.Deadline));
        gate.SetResult(); // Now the late reply comes, and belongs to nobody.
        byte[] next = new byte[4096];
        await world.Client.ReadAsync(4096, next, default).AsTask().WaitAsync(RawPeer.Deadline);
        await world.Client.ReadAsync(0, next, default).AsTask().WaitAsync(RawPeer.Deadline);
        Assert.All(next, static value => Assert.Equal(0xaa, value));
        Assert.All(abandoned, static value => Assert.Equal(0, value));
    }

    [Fact]
    public async Task More_callers_than_slots_wait_their_turn_and_can_give_up_waiting()
    {
        TaskCompletionSource gate = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) => gate.Task);
        await using ClientServer world = await ClientServer.StartAsync(device, new NbdClientOptions { MaxRequestsInFlight = 2 });
        Task[] running = [.. Enumerable.Range(0, 2).Select(_ => world.Client.FlushAsync(default).AsTask())];
        using CancellationTokenSource cancel = new();
        Task waiting = world.Client.FlushAsync(cancel.Token).AsTask();
        Task patient = world.Client.FlushAsync(default).AsTask();
        await cancel.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => waiting.WaitAsync(RawPeer.Deadline));
        Assert.False(patient.IsCompleted);
        gate.SetResult();
        await Task.WhenAll([.. running, patient]).WaitAsync(RawPeer.Deadline);
    }

    [Fact]
    public async Task A_lost_connection_fails_everything_at_once_and_says_so()
    {
        TaskCompletionSource gate = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) => gate.Task);
        await using ClientServer world = await ClientServer.StartAsync(device, new NbdClientOptions { MaxRequestsInFlight = 4 });
        Task<Errno>[] calls = [.. Enumerable.Range(0, 8).Select(_ => ErrnoAsync(world.Client.FlushAsync(default)))];
        world.Pair.Right.Dispose();
        Assert.All(await Task.WhenAll(calls).WaitAsync(RawPeer.Deadline), static errno => Assert.Equal(Errno.ESHUTDOWN, errno));
        Assert.Equal(Errno.ESHUTDOWN, (await world.Client.Lost.WaitAsync(RawPeer.Deadline)).Errno);
        Assert.False(world.Client.IsConnected);
        Assert.Equal(Errno.ESHUTDOWN, await ErrnoAsync(world.Client.ReadAsync(0, new byte[512], default)));
        gate.SetResult();
    }

    [Fact]
    public async Task A_server_that_owes_an_answer_is_seen_to_stall_and_the_limit_ends_it()
    {
        TaskCompletionSource gate = new();
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) => gate.Task);
        NbdClientOptions options = new() { RequestTimeout = TimeSpan.FromMilliseconds(400) };
        await using ClientServer world = await ClientServer.StartAsync(device, options);
        Assert.Equal(TimeSpan.Zero, world.Client.StalledFor);
        Task<Errno> call = ErrnoAsync(world.Client.FlushAsync(default));
        Assert.True(SpinWait.SpinUntil(() => world.Client.StalledFor > TimeSpan.FromMilliseconds(100), RawPeer.Deadline));
        Assert.Equal(Errno.ETIMEDOUT, await call.WaitAsync(RawPeer.Deadline));
        Assert.Equal(Errno.ESHUTDOWN, await ErrnoAsync(world.Client.FlushAsync(default)));
        gate.SetResult();
    }

    [Fact]
    public async Task A_write_that_the_peer_does_not_take_can_be_cancelled_while_it_waits_and_ends_with_the_client()
    {
        // The server reads nothing: the first write fills the socket and sticks; the second has not begun and may leave.
        using SocketPair pair = await SocketPair.CreateAsync();
        Task serving = ScriptedServer.HandshakeOnlyAsync(new RawPeer(pair.Right), 64 << 20);
        NbdClient client = await NbdClient.ConnectAsync(pair.LeftSocket, "disk", new NbdClientOptions(), default);
        await serving;
        Task<Errno> stuck = ErrnoAsync(client.WriteAsync(0, new byte[32 << 20], WriteFlags.None, default));
        using CancellationTokenSource cancel = new();
        Task waiting = client.WriteAsync(0, new byte[512], WriteFlags.None, cancel.Token).AsTask();
        await cancel.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => waiting.WaitAsync(RawPeer.Deadline));
        Assert.False(stuck.IsCompleted);
        await client.DisposeAsync();
        Assert.Equal(Errno.ESHUTDOWN, await stuck.WaitAsync(RawPeer.Deadline));
    }

    [Fact]
    public async Task An_unknown_export_is_told_apart_from_an_unreachable_server()
    {
        using SocketPair pair = await SocketPair.CreateAsync();
        Task<NbdSessionEnd> serving = NbdServer.ServeAsync(pair.RightSocket, ServedPeer.OptionsFor(), default);
        BlockIoException unknown = await Assert.ThrowsAsync<BlockIoException>(
            () => NbdClient.ConnectAsync(pair.LeftSocket, "nothing", new NbdClientOptions(), default));
        Assert.Equal(Errno.ENOENT, unknown.Errno);
        await serving.WaitAsync(RawPeer.Deadline);
        BlockIoException unreachable = await Assert.ThrowsAsync<BlockIoException>(
            () => NbdClient.ConnectAsync(NbdUri.Unix("/nonexistent/socket", "disk"), new NbdClientOptions(), default));
        Assert.Equal(Errno.ESHUTDOWN, unreachable.Errno);
    }

    private static async Task LiveAsync(IBlockDevice device, IBlockDevice model, Random random, int worker, int regionBytes)
    {
        int blocks = regionBytes / 512;
        for (int step = 0; step < 60; step++)
        {
            int count = random.Next(1, Math.Min(blocks, random.Next(4) == 0 ? 4096 : 64) + 1);
            long offset = ((long)worker * blocks + random.Next(blocks - count + 1)) * 512;
            WriteFlags flags = (WriteFlags)random.Next(2);
            byte[] bytes = new byte[count * 512];
            switch (random.Next(6))
            {
                case 0 or 1:
                    random.NextBytes(bytes);
                    await device.WriteAsync(offset, bytes, flags, default);
                    await model.WriteAsync(offset, bytes, flags, default);
                    break;
                case 2:
                    flags |= random.Next(2) == 0 ? WriteFlags.None : WriteFlags.NoHole;
                    await device.WriteZeroesAsync(offset, bytes.Length, flags, default);
                    await model.WriteZeroesAsync(offset, bytes.Length, flags, default);
                    break;
                case 3:
                    await device.TrimAsync(offset, bytes.Length, flags, default);
                    await model.TrimAsync(offset, bytes.Length, flags, default);
                    break;
                case 4:
                    await device.FlushAsync(default);
                    break;
                default:
                    byte[] expected = new byte[bytes.Length];
                    random.NextBytes(bytes);
                    await device.ReadAsync(offset, bytes, default);
                    await model.ReadAsync(offset, expected, default);
                    Assert.True(bytes.AsSpan().SequenceEqual(expected), $"worker {worker} step {step} at {offset}+{bytes.Length}");
                    break;
            }
        }
    }

    private static async Task<List<BlockExtent>> AllExtentsAsync(IBlockDevice device)
    {
        List<BlockExtent> all = [];
        for (long at = 0; at < device.LengthBytes; at = all[^1].EndBytes)
            all.AddRange(await device.ExtentsAsync(at, device.LengthBytes - at, default));
        return all;
    }

    private static async Task<Errno> ErrnoAsync(ValueTask call) =>
        (await Assert.ThrowsAsync<BlockIoException>(async () => await call)).Errno;
}
