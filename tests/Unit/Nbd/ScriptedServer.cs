using Nbd;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

/// <summary>
/// A server that says what the test tells it to, right or wrong. Its export "disk" is what <see cref="NbdClient"/> asks for.
/// </summary>
internal sealed class ScriptedServer : IAsyncDisposable
{
    public const int AllFlags = 0x6d;

    private readonly SocketPair pair;

    private ScriptedServer(SocketPair pair, NbdClient client)
    {
        this.pair = pair;
        Client = client;
        Server = new RawPeer(pair.Right);
    }

    public NbdClient Client { get; }

    public RawPeer Server { get; }

    public static async Task<ScriptedServer> StartAsync(long sizeBytes, bool structured, int flags = AllFlags)
    {
        SocketPair pair = await SocketPair.CreateAsync();
        Task handshake = HandshakeOnlyAsync(new RawPeer(pair.Right), sizeBytes, structured, flags);
        NbdClient client = await NbdClient.ConnectAsync(pair.LeftSocket, "disk", new NbdClientOptions(), default);
        await handshake;
        return new ScriptedServer(pair, client);
    }

    public static async Task HandshakeOnlyAsync(RawPeer server, long sizeBytes, bool structured = false, int flags = AllFlags)
    {
        await server.SendAsync(Greeting);
        await server.ExpectAsync(U32(3), Option(8));
        await server.SendAsync(OptionReply(8, structured ? 1 : 0x80000001));
        if (structured)
        {
            await server.ExpectAsync(Option(10, Text("disk") + U32(1) + Text("base:allocation")));
            await server.SendAsync(OptionReply(10, 4, U32(5) + Convert.ToHexString("base:allocation"u8)), OptionReply(10, 1));
        }

        await server.ExpectAsync(Option(7, Text("disk") + U16(1) + U16(3)));
        await server.SendAsync(
            OptionReply(7, 3, "0000" + U64((ulong)sizeBytes) + U16(flags)),
            OptionReply(7, 3, "0003" + U32(512) + U32(4096) + U32(32 << 20)),
            OptionReply(7, 1));
    }

    public async ValueTask DisposeAsync()
    {
        await Client.DisposeAsync();
        pair.Dispose();
    }
}
