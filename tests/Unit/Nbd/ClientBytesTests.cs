// The client against bytes written down from the protocol document, and against servers that are older, poorer, or wrong.
using System.Text;
using Nbd;
using Platform;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

public class ClientBytesTests
{
    public static TheoryData<string, string> WrongStructuredReads => new()
    {
        { "88 overlap", Chunk(0, 1, 1, U64(0) + Fill(1, 1024)) + Chunk(1, 1, 1, U64(512) + Fill(1, 1024)) },
        { "88 gap", Chunk(0, 1, 1, U64(0) + Fill(1, 512)) + Chunk(1, 1, 1, U64(1024) + Fill(1, 512)) },
        { "88 nothing at all", Chunk(1, 0, 1, "") },
        { "88 none without done", Chunk(0, 0, 1, "") },
        { "88 after the final one", Chunk(1, 2, 1, U64(0) + U32(1536)) + Chunk(1, 2, 1, U64(0) + U32(1536)) + Fill(0, 64) },
        { "88 length huge", Chunk(1, 1, 1, 0xffffffff, U64(0)) },
        { "88 longer than asked", Chunk(1, 1, 1, U64(0) + Fill(1, 2048)) },
        { "88 before the range", Chunk(1, 1, 1, U64(ulong.MaxValue - 511) + Fill(1, 1536)) },
        { "88 empty data", Chunk(0, 1, 1, U64(0)) },
        { "88 empty hole", Chunk(0, 2, 1, U64(0) + U32(0)) },
        { "88 hole and data in the same place", Chunk(0, 2, 1, U64(0) + U32(1536)) + Chunk(1, 1, 1, U64(0) + Fill(1, 512)) },
        { "88 block status to a read", Chunk(1, 5, 1, U32(5) + U32(512) + U32(0)) },
        { "88 unknown chunk type", Chunk(1, 77, 1, U64(0)) },
        { "88 error too short to be one", Chunk(1, 0x8001, 1, "0000") },
        { "87 unknown cookie", Chunk(1, 1, 99, U64(0) + Fill(1, 1536)) },
        { "simple reply where a structured one is due", SimpleReply(1) + Fill(0, 1536) },
        { "wrong magic", "11223344" + Fill(0, 32) },
    };

    [Fact]
    public async Task Each_command_goes_out_as_the_document_says()
    {
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: false);
        await RoundAsync(world, client => client.WriteAsync(512, Enumerable.Repeat((byte)9, 512).ToArray(), WriteFlags.Fua, default),
            Request(1, 1, 512, 512, 1) + Fill(9, 512), SimpleReply(1));
        byte[] read = new byte[512];
        await RoundAsync(world, client => client.ReadAsync(1024, read, default), Request(0, 2, 1024, 512), SimpleReply(2) + Fill(8, 512));
        Assert.All(read, static value => Assert.Equal(8, value));
        await RoundAsync(world, client =>
            client.WriteZeroesAsync(0, 4096, WriteFlags.NoHole, default), Request(6, 3, 0, 4096, 2), SimpleReply(3));
        await RoundAsync(world, client => client.TrimAsync(0, 4096, WriteFlags.None, default), Request(4, 4, 0, 4096), SimpleReply(4));
        await RoundAsync(world, client => client.FlushAsync(default), Request(3, 5, 0, 0), SimpleReply(5));
        await world.Client.DisposeAsync();
        await world.Server.ExpectAsync(Request(2, 0, 0, 0));
        await world.Server.ExpectClosedAsync();
    }

    [Fact]
    public async Task A_poor_server_gets_zeroes_as_bytes_and_fua_as_flush()
    {
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: false, flags: 0x5); // flush only
        Task zeroing = world.Client.WriteZeroesAsync(0, 1024, WriteFlags.Fua, default).AsTask();
        await world.Server.ExpectAsync(Request(1, 1, 0, 1024), Fill(0, 1024));
        await world.Server.SendAsync(SimpleReply(1));
        await world.Server.ExpectAsync(Request(3, 2, 0, 0));
        await world.Server.SendAsync(SimpleReply(2));
        await zeroing.WaitAsync(Deadline);
        await world.Client.TrimAsync(0, 1024, WriteFlags.None, default); // A hint: not even sent.
    }

    [Fact]
    public async Task The_original_tapdisk_has_no_flush_and_the_client_says_so()
    {
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: false, flags: 0x1);
        Assert.False(world.Client.CanFlush);
        await world.Client.FlushAsync(default);
        Assert.False(world.Client.HasExtents);
        Assert.Equal([new BlockExtent(0, 4096, ExtentKind.Data)], await world.Client.ExtentsAsync(0, 4096, default));
    }

    [Fact]
    public async Task A_server_without_go_is_entered_by_name()
    {
        using SocketPair pair = await SocketPair.CreateAsync();
        RawPeer server = new(pair.Right);
        Task<NbdClient> connecting = NbdClient.ConnectAsync(pair.LeftSocket, "disk", new NbdClientOptions(), default);
        await server.SendAsync("4e42444d41474943 49484156454f5054 0001"); // No NO_ZEROES.
        await server.ExpectAsync(U32(1), Option(8));
        await server.SendAsync(OptionReply(8, 0x80000001));
        await server.ExpectAsync(Option(7, Text("disk") + U16(1) + U16(3)));
        await server.SendAsync(OptionReply(7, 0x80000001));
        await server.ExpectAsync(Option(1, Convert.ToHexString("disk"u8)));
        await server.SendAsync(U64(1 << 20), U16(3), Fill(0, 124));
        NbdClient client = await connecting.WaitAsync(Deadline);
        Assert.True(client.IsReadOnly);
        Assert.Equal(1 << 20, client.LengthBytes);
        await client.DisposeAsync();
    }

    [Theory]
    [InlineData("69 not an NBD server", "485454502f312e3120343030204e6f", typeof(NbdProtocolException))]
    [InlineData("70 old-style", "4e42444d41474943 0000420281861253 0000000000100000", typeof(NbdProtocolException))]
    [InlineData("newstyle that is not fixed", "4e42444d41474943 49484156454f5054 0000", typeof(NbdProtocolException))]
    [InlineData("reply to another option", Greeting + "0003e889045565a9 00000007 00000001 00000000", typeof(NbdProtocolException))]
    [InlineData("reply with a huge length", Greeting + "0003e889045565a9 00000008 00000001 ffffffff", typeof(NbdProtocolException))]
    [InlineData("72 closed in the middle", Greeting + "0003e889", typeof(BlockIoException))]
    [InlineData("76 TLS demanded", Greeting + "0003e889045565a9 00000008 80000005 00000000", typeof(BlockIoException))]
    public async Task A_wrong_handshake_is_one_clear_error(string row, string hex, Type expected)
    {
        Assert.NotEmpty(row);
        using SocketPair pair = await SocketPair.CreateAsync();
        RawPeer server = new(pair.Right);
        await server.SendAsync(hex, hex.Length < 40 ? Fill(0, 8) : "");
        pair.RightSocket.Shutdown(System.Net.Sockets.SocketShutdown.Send);
        await Assert.ThrowsAsync(expected, () =>
            NbdClient.ConnectAsync(pair.LeftSocket, "disk", new NbdClientOptions(), default).WaitAsync(Deadline));
    }

    [Fact]
    public async Task A_silent_server_is_given_up()
    {
        using SocketPair pair = await SocketPair.CreateAsync();
        NbdClientOptions options = new() { ConnectTimeout = TimeSpan.FromMilliseconds(200) };
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(() => NbdClient.ConnectAsync(pair.LeftSocket, "disk", options, default));
        Assert.Equal(Errno.ETIMEDOUT, e.Errno);
    }

    [Fact]
    public async Task A_structured_read_may_come_in_any_order_with_holes()
    {
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: true);
        byte[] read = Enumerable.Repeat((byte)0xff, 2048).ToArray();
        await RoundAsync(world, client => client.ReadAsync(512, read, default), Request(0, 1, 512, 2048),
            Chunk(0, 1, 1, U64(1536) + Fill(3, 512)) + Chunk(0, 2, 1, U64(1024) + U32(512))
            + Chunk(0, 1, 1, U64(512) + Fill(1, 512)) + Chunk(0, 1, 1, U64(2048) + Fill(4, 512)) + Chunk(1, 0, 1, ""));
        byte[] expected = [.. Enumerable.Repeat((byte)1, 512), .. new byte[512], .. Enumerable.Repeat((byte)3, 512),
            .. Enumerable.Repeat((byte)4, 512)];
        Assert.Equal(expected, read);
    }

    [Theory]
    [MemberData(nameof(WrongStructuredReads))]
    public async Task A_wrong_structured_read_costs_the_connection_and_never_succeeds(string row, string chunks)
    {
        Assert.NotEmpty(row);
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: true);
        Task read = world.Client.ReadAsync(0, new byte[1536], default).AsTask();
        await world.Server.ExpectAsync(Request(0, 1, 0, 1536));
        await world.Server.SendAsync(chunks);
        BlockIoException lost = await world.Client.Lost.WaitAsync(Deadline);
        Assert.IsType<NbdProtocolException>(lost.InnerException);
        if (!row.Contains("after the final", StringComparison.Ordinal))
            Assert.Equal(Errno.ESHUTDOWN, (await Assert.ThrowsAsync<BlockIoException>(() => read.WaitAsync(Deadline))).Errno);
    }

    [Theory]
    [InlineData(0x8001, "00000005 0003 616263", Errno.EIO)]
    [InlineData(0x8002, "0000001c 0000 0000000000000200", Errno.ENOSPC)]
    [InlineData(0x8099, "00000016 0000", Errno.EINVAL)] // An error type from the future is still an error.
    [InlineData(0x8001, "0000ffff 0000", Errno.EINVAL)] // So is an errno from the future.
    public async Task Row_90_an_error_after_half_of_the_payload_fails_only_that_read(int type, string payload, Errno expected)
    {
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: true);
        Task read = world.Client.ReadAsync(0, new byte[1024], default).AsTask();
        await world.Server.ExpectAsync(Request(0, 1, 0, 1024));
        await world.Server.SendAsync(Chunk(0, 1, 1, U64(0) + Fill(1, 512)), Chunk(1, type, 1, payload));
        Assert.Equal(expected, (await Assert.ThrowsAsync<BlockIoException>(() => read.WaitAsync(Deadline))).Errno);
        await RoundAsync(world, client => client.FlushAsync(default), Request(3, 2, 0, 0), SimpleReply(2));
    }

    [Fact]
    public async Task Extents_are_cut_to_what_was_asked()
    {
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: true);
        Task<IReadOnlyList<BlockExtent>> asking = world.Client.ExtentsAsync(1024, 4096, default).AsTask();
        await world.Server.ExpectAsync(Request(7, 1, 1024, 4096));
        await world.Server.SendAsync(Chunk(1, 5, 1, U32(5) + U32(512) + U32(0) + U32(512) + U32(2) + U32(65536) + U32(3)));
        Assert.Equal(
            [new(1024, 512, ExtentKind.Data), new(1536, 512, ExtentKind.Zero), new(2048, 3072, ExtentKind.Hole)],
            await asking.WaitAsync(Deadline));
    }

    [Theory]
    [InlineData("89 no extents", "00000005")]
    [InlineData("89 an empty extent", "00000005 00000000 00000000")]
    [InlineData("89 more after the end", "00000005 00001000 00000000 00000200 00000000")]
    [InlineData("89 another context", "00000006 00001000 00000000")]
    [InlineData("89 half an extent", "00000005 00001000")]
    public async Task A_wrong_block_status_costs_the_connection(string row, string payload)
    {
        Assert.NotEmpty(row);
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: true);
        Task asking = world.Client.ExtentsAsync(0, 4096, default).AsTask();
        await world.Server.ExpectAsync(Request(7, 1, 0, 4096));
        await world.Server.SendAsync(Chunk(1, 5, 1, payload));
        Assert.Equal(Errno.ESHUTDOWN, (await Assert.ThrowsAsync<BlockIoException>(() => asking.WaitAsync(Deadline))).Errno);
    }

    [Theory]
    [InlineData("87 unknown cookie", "67446698 00000000 0000000000000063")]
    [InlineData("wrong magic", "67446699 00000000 0000000000000001")]
    [InlineData("structured, not negotiated", "668e33ef 0001 0000 0000000000000001 00000000")]
    [InlineData("truncated", "67446698 0000")]
    public async Task A_wrong_simple_reply_costs_the_connection(string row, string reply)
    {
        Assert.NotEmpty(row);
        await using ScriptedServer world = await ScriptedServer.StartAsync(1 << 20, structured: false);
        Task flush = world.Client.FlushAsync(default).AsTask();
        await world.Server.ExpectAsync(Request(3, 1, 0, 0));
        await world.Server.SendAsync(reply);
        world.Server.Stream.Dispose();
        Assert.Equal(Errno.ESHUTDOWN, (await Assert.ThrowsAsync<BlockIoException>(() => flush.WaitAsync(Deadline))).Errno);
    }

    [Fact]
    public async Task A_name_longer_than_the_protocol_allows_is_not_sent()
    {
        using SocketPair pair = await SocketPair.CreateAsync();
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(
            () => NbdClient.ConnectAsync(pair.LeftSocket, new StringBuilder().Append('a', 4097).ToString(), new NbdClientOptions(), default));
        Assert.Equal(Errno.EINVAL, e.Errno);
    }

    private static async Task RoundAsync(ScriptedServer world, Func<NbdClient, ValueTask> call, string request, string reply)
    {
        Task running = call(world.Client).AsTask();
        await world.Server.ExpectAsync(request);
        await world.Server.SendAsync(reply);
        await running.WaitAsync(Deadline);
    }
}
