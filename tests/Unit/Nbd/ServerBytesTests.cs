// The server against bytes written down from the protocol document.
using Nbd;
using Platform;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

public class ServerBytesTests
{
    // has_flags | flush | fua | trim | write_zeroes | can_multi_conn; with structured replies also df.
    private const int Writable = 0x016d;
    private const int WritableDf = 0x01ed;
    private const int ReadOnly = 0x0107;

    private static readonly string BlockSizes = "0003" + U32(512) + U32(4096) + U32(32 * 1024 * 1024);

    [Fact]
    public async Task Go_tells_size_flags_and_block_sizes()
    {
        await using ServedPeer peer = await StartAsync(new NbdExport("disk", new MemoryBlockDevice(1 << 20)));
        await peer.Client.SendAsync(Option(7, Text("disk") + U16(1) + U16(3)));
        await peer.Client.ExpectAsync(
            OptionReply(7, 3, "0000" + U64(1 << 20) + U16(Writable)), OptionReply(7, 3, BlockSizes), OptionReply(7, 1));
        await peer.Client.SendAsync(Request(2, 0, 0, 0));
        Assert.Equal(new NbdSessionEnd(true, "the client disconnected"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task Info_answers_like_go_but_stays_in_the_handshake()
    {
        await using ServedPeer peer = await StartAsync(new NbdExport("disk", new MemoryBlockDevice(512), readOnly: true));
        await peer.Client.SendAsync(Option(6, Text("disk") + U16(0)));
        await peer.Client.ExpectAsync(
            OptionReply(6, 3, "0000" + U64(512) + U16(ReadOnly)), OptionReply(6, 3, BlockSizes), OptionReply(6, 1));
        await peer.Client.SendAsync(Option(2));
        await peer.Client.ExpectAsync(OptionReply(2, 1));
        Assert.Equal(new NbdSessionEnd(true, "the client left during the handshake"), await peer.End.WaitAsync(Deadline));
    }

    [Theory]
    [InlineData(3, 0)]
    [InlineData(1, 124)]
    [InlineData(0, 124)]
    public async Task Export_name_enters_at_once_with_zeroes_unless_both_sides_waive_them(int clientFlags, int zeroes)
    {
        await using ServedPeer peer = await ServedPeer.StartAsync(ServedPeer.OptionsFor(new NbdExport("disk", new MemoryBlockDevice(4096))));
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(clientFlags), Option(1, Convert.ToHexString("disk"u8)));
        await peer.Client.ExpectAsync(U64(4096), U16(Writable), Fill(0, zeroes));
        await peer.Client.SendAsync(Request(3, 7, 0, 0));
        await peer.Client.ExpectAsync(SimpleReply(7));
    }

    [Fact]
    public async Task List_names_only_what_may_be_listed()
    {
        MemoryBlockDevice device = new(512);
        await using ServedPeer peer = await StartAsync(
            new NbdExport("open", device) { IsListed = true }, new NbdExport("secret", device), new NbdExport("ü", device) { IsListed = true });
        await peer.Client.SendAsync(Option(3));
        await peer.Client.ExpectAsync(OptionReply(3, 2, Text("open")), OptionReply(3, 2, Text("ü")), OptionReply(3, 1));
    }

    [Fact]
    public async Task Meta_contexts_are_listed_and_set_for_the_export_they_name()
    {
        await using ServedPeer peer = await StartAsync(new NbdExport("disk", new MemoryBlockDevice(512)));
        string allocation = Convert.ToHexString("base:allocation"u8);
        await peer.Client.SendAsync(Option(9, Text("disk") + U32(0)));
        await peer.Client.ExpectAsync(OptionReply(9, 4, U32(0) + allocation), OptionReply(9, 1));
        await peer.Client.SendAsync(Option(10, Text("disk") + U32(1) + Text("base:allocation")));
        await peer.Client.ExpectAsync(OptionReply(10, 0x80000003)); // Structured replies come first.
        await peer.Client.SendAsync(Option(8));
        await peer.Client.ExpectAsync(OptionReply(8, 1));
        await peer.Client.SendAsync(Option(10, Text("disk") + U32(2) + Text("qemu:dirty-bitmap:x") + Text("base:allocation")));
        await peer.Client.ExpectAsync(OptionReply(10, 4, U32(1) + allocation), OptionReply(10, 1));
        await peer.Client.SendAsync(Option(7, Text("disk") + U16(0)));
        await peer.Client.ExpectAsync(OptionReply(7, 3, "0000" + U64(512) + U16(WritableDf)), OptionReply(7, 3, BlockSizes), OptionReply(7, 1));
        await peer.Client.SendAsync(Request(7, 9, 0, 512));
        await peer.Client.ExpectAsync(Chunk(1, 5, 9, U32(1) + U32(512) + U32(3)));
    }

    [Theory]
    [InlineData(5)] // STARTTLS, not offered
    [InlineData(4)] // PEEK_EXPORT, withdrawn
    [InlineData(11)] // EXTENDED_HEADERS
    [InlineData(12345)]
    public async Task An_option_that_we_do_not_have_is_refused_and_the_handshake_goes_on(int option)
    {
        await using ServedPeer peer = await StartAsync();
        await peer.Client.SendAsync(Option(option, option == 5 ? "" : "0102"));
        await peer.Client.ExpectAsync(OptionReply(option, 0x80000001));
        await peer.Client.SendAsync(Option(3));
        await peer.Client.ExpectAsync(OptionReply(3, 1));
    }

    [Fact]
    public async Task Each_command_is_answered_with_a_simple_reply()
    {
        MemoryBlockDevice device = new(8192);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(1, 1, 1024, 512), Fill(0xab, 512));
        await peer.Client.ExpectAsync(SimpleReply(1));
        await peer.Client.SendAsync(Request(0, 2, 512, 1024));
        await peer.Client.ExpectAsync(SimpleReply(2), Fill(0, 512), Fill(0xab, 512));
        await peer.Client.SendAsync(Request(6, 3, 1024, 512));
        await peer.Client.ExpectAsync(SimpleReply(3));
        Assert.Equal(0, device.Bytes[1024]);
        await peer.Client.SendAsync(Request(4, 4, 0, 8192));
        await peer.Client.ExpectAsync(SimpleReply(4));
        await peer.Client.SendAsync(Request(3, 5, 0, 0));
        await peer.Client.ExpectAsync(SimpleReply(5));
        Assert.Equal(1, device.FlushCount);
    }

    [Fact]
    public async Task Structured_reads_carry_offsets_and_leave_out_zeroes()
    {
        MemoryBlockDevice device = new(8192);
        device.Bytes.AsSpan(512, 512).Fill(0x11);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, structured: true);
        await peer.Client.SendAsync(Request(0, 1, 512, 1024));
        await peer.Client.ExpectAsync(Chunk(1, 1, 1, U64(512) + Fill(0x11, 512) + Fill(0, 512)));
        await peer.Client.SendAsync(Request(0, 2, 4096, 4096));
        await peer.Client.ExpectAsync(Chunk(1, 2, 2, U64(4096) + U32(4096)));
        await peer.Client.SendAsync(Request(0, 3, 8192, 512));
        await peer.Client.ExpectAsync(Chunk(1, 0x8001, 3, U32(22) + U16(0)));
    }

    [Fact]
    public async Task A_long_structured_read_comes_in_pieces_and_in_one_when_asked_so()
    {
        MemoryBlockDevice device = new(3 << 20);
        device.Bytes.AsSpan().Fill(1);
        device.Bytes.AsSpan(1 << 20, 1 << 20).Clear();
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, structured: true);
        await peer.Client.SendAsync(Request(0, 1, 0, 3 << 20));
        await peer.Client.ExpectAsync(
            Chunk(0, 1, 1, U64(0) + Fill(1, 1 << 20)), Chunk(0, 2, 1, U64(1 << 20) + U32(1 << 20)), Chunk(1, 1, 1, U64(2 << 20) + Fill(1, 1 << 20)));
        await peer.Client.SendAsync(Request(0, 2, 0, 3 << 20, flags: 4));
        await peer.Client.ExpectAsync(Chunk(1, 1, 2, U64(0) + Fill(1, 1 << 20) + Fill(0, 1 << 20) + Fill(1, 1 << 20)));
    }

    [Fact]
    public async Task Block_status_tells_data_zeroes_and_holes_and_stops_after_one_when_asked_so()
    {
        MemoryBlockDevice device = new(4096);
        await device.WriteAsync(512, new byte[512], WriteFlags.None, default);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, structured: true);
        await peer.Client.SendAsync(Request(7, 1, 0, 2048));
        await peer.Client.ExpectAsync(Chunk(1, 5, 1, U32(1) + U32(512) + U32(3) + U32(512) + U32(0) + U32(1024) + U32(3)));
        await peer.Client.SendAsync(Request(7, 2, 0, 2048, flags: 8));
        await peer.Client.ExpectAsync(Chunk(1, 5, 2, U32(1) + U32(512) + U32(3)));
    }

    [Theory]
    [InlineData(1, 1, "write Fua")]
    [InlineData(6, 1, "zero Fua")]
    [InlineData(6, 2, "zero NoHole")]
    [InlineData(6, 3, "zero Fua, NoHole")]
    [InlineData(4, 1, "trim Fua")]
    public async Task Flags_reach_the_device(int command, int flags, string expected)
    {
        List<string> seen = [];
        HookedDevice device = new(new MemoryBlockDevice(4096), (what, _, _) =>
        {
            seen.Add(what);
            return Task.CompletedTask;
        });
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(command, 1, 0, 512, flags), command == 1 ? Fill(1, 512) : "");
        await peer.Client.ExpectAsync(SimpleReply(1));
        Assert.Equal([expected], seen);
    }

    [Theory]
    [InlineData(Errno.EIO, 5)]
    [InlineData(Errno.ENOSPC, 28)]
    [InlineData(Errno.ESHUTDOWN, 108)]
    [InlineData(Errno.EROFS, 1)]
    [InlineData(Errno.EBUSY, 5)] // Not one of the protocol's.
    public async Task A_device_error_becomes_the_protocols_error(Errno errno, int expected)
    {
        HookedDevice device = new(new MemoryBlockDevice(4096), (_, _, _) => throw new BlockIoException(errno, "injected"));
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(3, 1, 0, 0));
        await peer.Client.ExpectAsync(SimpleReply(1, expected));
        await peer.Client.SendAsync(Request(0, 2, 0, 512));
        await peer.Client.ExpectAsync(SimpleReply(2, expected));
    }

    private static async Task<ServedPeer> StartAsync(params NbdExport[] exports)
    {
        ServedPeer peer = await ServedPeer.StartAsync(ServedPeer.OptionsFor(exports));
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(3));
        return peer;
    }
}
