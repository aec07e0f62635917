// The server's share of rows 69 to 97 of the bad-input plan (research/users-and-trust.md 5.4): one clear refusal, or the connection goes; never
// a crash, a hang, or a changed byte.
using Nbd;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

public class ServerBadInputTests
{
    private const int Einval = 22;

    [Theory]
    [InlineData("69 wrong option magic", "4948415645455454 00000003 00000000", "an option does not start with its magic")]
    [InlineData("70 old-style client", "2560951300000000", "an option does not start with its magic")]
    [InlineData("72 option length 2^32-1", "49484156454f5054 00000003 ffffffff", "option List carries 4294967295 bytes, more than 65536")]
    [InlineData("72 export name length 2^32-1", "49484156454f5054 00000001 ffffffff", "option ExportName carries 4294967295 bytes, more than 65536")]
    [InlineData("74 empty name that does not exist", "49484156454f5054 00000001 00000000", "the client asked for an export that does not exist")]
    [InlineData("74 name that is not UTF-8", "49484156454f5054 00000001 00000002 c328", "the client asked for an export that does not exist")]
    public async Task Garbage_in_the_handshake_ends_the_connection(string row, string hex, string reason)
    {
        Assert.NotEmpty(row);
        await using ServedPeer peer = await StartAsync();
        await peer.Client.SendAsync(hex, Fill(0, 16));
        Assert.Equal(new NbdSessionEnd(false, reason), await peer.End.WaitAsync(Deadline));
        await peer.Client.ExpectClosedAsync();
    }

    [Fact]
    public async Task Row_71_unknown_client_flags_end_the_connection()
    {
        await using ServedPeer peer = await ServedPeer.StartAsync(ServedPeer.OptionsFor());
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(0x80000003));
        Assert.Equal(new NbdSessionEnd(false, "unknown client flags 0x80000003"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task Row_73_a_flood_of_options_ends_the_connection()
    {
        await using ServedPeer peer = await StartAsync();
        Task replies = peer.Client.ExpectClosedAsync();
        byte[] options = Bytes(string.Concat(Enumerable.Repeat(Option(999), 5000)));
        await Assert.ThrowsAnyAsync<Exception>(async () =>
        {
            while (true)
                await peer.Client.Stream.WriteAsync(options).AsTask().WaitAsync(Deadline);
        });
        NbdSessionEnd end = await peer.End.WaitAsync(Deadline);
        Assert.Equal(new NbdSessionEnd(false, "the client sent more than 4096 options"), end);
        await replies;
    }

    [Theory]
    [InlineData("74 of 4097 bytes", 4097, "", 0x80000003)]
    [InlineData("74 empty", 0, "", 0x80000006)]
    [InlineData("74 not UTF-8", 0, "00000002c3280000", 0x80000003)]
    [InlineData("74 with /../", 0, "000000082f2e2e2f6469736b0000", 0x80000006)]
    [InlineData("fields cut short", 0, "0000", 0x80000003)]
    [InlineData("more fields than told", 0, "000000046469736b0000ff", 0x80000003)]
    public async Task A_bad_name_is_refused_and_the_handshake_goes_on(string row, int nameBytes, string data, long error)
    {
        Assert.NotEmpty(row);
        await using ServedPeer peer = await StartAsync();
        await peer.Client.SendAsync(Option(7, data.Length > 0 ? data : Text(new string('a', nameBytes)) + U16(0)));
        byte[] reply = await peer.Client.ReceiveAsync(20);
        Assert.Equal(OptionReplyMagic + U32(7) + U32(error), Convert.ToHexStringLower(reply.AsSpan(0, 16)));
        await peer.Client.ReceiveAsync(reply[19]); // The message, if any.
        await peer.Client.SendAsync(Option(3));
        await peer.Client.ExpectAsync(OptionReply(3, 1));
    }

    [Theory]
    [InlineData("79 read of nothing", 0, 0UL, 0L, 0, Einval)]
    [InlineData("79 write of nothing", 1, 0UL, 0L, 0, Einval)]
    [InlineData("80 read above the limit", 0, 0UL, 0x02000200L, 0, 75)]
    [InlineData("81 offset + length overflow", 0, 0xfffffffffffffe00UL, 512L, 0, Einval)]
    [InlineData("81 write with overflow", 1, 0x7ffffffffffffe00UL, 512L, 0, 28)]
    [InlineData("82 read past the end", 0, 4096UL, 512L, 0, Einval)]
    [InlineData("82 write past the end", 1, 3584UL, 1024L, 0, 28)]
    [InlineData("82 zeroes past the end", 6, 3584UL, 1024L, 0, 28)]
    [InlineData("82 trim past the end", 4, 3584UL, 0xfffffe00L, 0, 28)]
    [InlineData("83 read off the grid", 0, 1UL, 512L, 0, Einval)]
    [InlineData("83 write off the grid", 1, 0UL, 100L, 0, Einval)]
    [InlineData("85 unknown command", 42, 0UL, 512L, 0, Einval)]
    [InlineData("85 cache, not offered", 5, 0UL, 512L, 0, Einval)]
    [InlineData("85 resize", 8, 0UL, 512L, 0, Einval)]
    [InlineData("85 unknown flag", 0, 0UL, 512L, 0x8000, Einval)]
    [InlineData("85 no-hole on a write", 1, 0UL, 512L, 2, Einval)]
    [InlineData("85 fast zero, not offered", 6, 0UL, 512L, 16, Einval)]
    [InlineData("85 df without structured replies", 0, 0UL, 512L, 4, Einval)]
    [InlineData("85 block status without a context", 7, 0UL, 512L, 0, Einval)]
    public async Task A_bad_request_is_refused_and_the_stream_stays_in_step(
        string row, int command, ulong offset, long length, int flags, int errno)
    {
        Assert.NotEmpty(row);
        MemoryBlockDevice device = new(4096);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(command, 1, offset, length, flags), command == 1 ? Fill(0xee, (int)length) : "");
        await peer.Client.ExpectAsync(SimpleReply(1, errno));
        await peer.Client.SendAsync(Request(0, 2, 0, 512));
        await peer.Client.ExpectAsync(SimpleReply(2), Fill(0, 512));
        Assert.All(device.Bytes, static value => Assert.Equal(0, value));
    }

    [Fact]
    public async Task Row_80_a_write_above_the_limit_is_read_past_without_memory()
    {
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(new MemoryBlockDevice(64 << 20));
        await peer.Client.SendAsync(Request(1, 1, 0, 48 << 20));
        byte[] piece = new byte[1 << 20];
        for (int i = 0; i < 48; i++)
            await peer.Client.Stream.WriteAsync(piece);
        await peer.Client.ExpectAsync(SimpleReply(1, 75));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(6)]
    public async Task Row_84_a_change_of_a_read_only_export_is_refused(int command)
    {
        MemoryBlockDevice device = new(4096);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device, readOnly: true);
        await peer.Client.SendAsync(Request(command, 1, 0, 512), command == 1 ? Fill(0xee, 512) : "");
        await peer.Client.ExpectAsync(SimpleReply(1, 1));
        await peer.Client.SendAsync(Request(0, 2, 0, 512));
        await peer.Client.ExpectAsync(SimpleReply(2), Fill(0, 512));
    }

    [Fact]
    public async Task Row_86_equal_cookies_in_flight_are_each_answered()
    {
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(new MemoryBlockDevice(4096));
        await peer.Client.SendAsync(Request(3, 5, 0, 0), Request(3, 5, 0, 0), Request(3, 5, 0, 0));
        await peer.Client.ExpectAsync(SimpleReply(5), SimpleReply(5), SimpleReply(5));
    }

    [Fact]
    public async Task A_request_with_a_wrong_magic_ends_the_connection()
    {
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(new MemoryBlockDevice(4096));
        await peer.Client.SendAsync("25609514", Fill(0, 24));
        Assert.Equal(new NbdSessionEnd(false, "a request does not start with its magic"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task Row_91_a_client_that_dribbles_through_the_handshake_is_cut_off()
    {
        NbdServerOptions options = ServedPeer.OptionsFor() with { HandshakeTimeout = TimeSpan.FromMilliseconds(300) };
        await using ServedPeer peer = await ServedPeer.StartAsync(options);
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync("00");
        Assert.Equal(new NbdSessionEnd(false, "the handshake took longer than 0.3 s"), await peer.End.WaitAsync(Deadline));
        await peer.Client.ExpectClosedAsync();
    }

    [Fact]
    public async Task Row_93_a_disconnect_inside_a_payload_changes_nothing()
    {
        MemoryBlockDevice device = new(4096);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(1, 1, 0, 1024), Fill(0xee, 1000));
        peer.Pair.Left.Dispose();
        Assert.False((await peer.End.WaitAsync(Deadline)).IsClean);
        Assert.All(device.Bytes, static value => Assert.Equal(0, value));
    }

    [Theory]
    [InlineData(4)]
    [InlineData(6)]
    public async Task Row_94_the_whole_disk_may_be_trimmed_or_zeroed_at_once(int command)
    {
        MemoryBlockDevice device = new(64 << 20);
        device.Bytes.AsSpan().Fill(7);
        await using ServedPeer peer = await ServedPeer.InTransmissionAsync(device);
        await peer.Client.SendAsync(Request(command, 1, 0, 64 << 20, command == 6 ? 2 : 0));
        await peer.Client.ExpectAsync(SimpleReply(1));
        Assert.False(device.Bytes.AsSpan().ContainsAnyExcept((byte)0));
    }

    private static async Task<ServedPeer> StartAsync()
    {
        ServedPeer peer = await ServedPeer.StartAsync(ServedPeer.OptionsFor(new NbdExport("disk", new MemoryBlockDevice(4096))));
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(3));
        return peer;
    }
}
