using Nbd;
using Platform;
using Support;

namespace Unit.NbdTests;

/// <summary>A server on one end of a connection, a hand-driven client on the other.</summary>
internal sealed class ServedPeer : IAsyncDisposable
{
    private readonly SocketPair pair;

    private ServedPeer(SocketPair pair, NbdServerOptions options, CancellationToken stop)
    {
        this.pair = pair;
        Client = new RawPeer(pair.Left);
        End = Task.Run(() => NbdServer.ServeAsync(pair.RightSocket, options, stop), CancellationToken.None);
    }

    public RawPeer Client { get; }

    public SocketPair Pair => pair;

    public Task<NbdSessionEnd> End { get; }

    public static NbdServerOptions OptionsFor(params NbdExport[] exports) => new()
    {
        Find = name => exports.FirstOrDefault(export => export.Name == name),
        List = () => exports,
    };

    public static async Task<ServedPeer> StartAsync(NbdServerOptions options, CancellationToken stop = default) =>
        new(await SocketPair.CreateAsync(), options, stop);

    /// <summary>Past the handshake: export "disk", with or without structured replies and base:allocation.</summary>
    public static async Task<ServedPeer> InTransmissionAsync(
        IBlockDevice device, bool structured = false, bool readOnly = false, NbdServerOptions? options = null,
        CancellationToken stop = default)
    {
        ServedPeer peer = await StartAsync(options ?? OptionsFor(new NbdExport("disk", device, readOnly)), stop);
        await peer.Client.ExpectAsync(RawPeer.Greeting);
        await peer.Client.SendAsync(RawPeer.U32(3));
        if (structured)
        {
            await peer.Client.SendAsync(
                RawPeer.Option(8), RawPeer.Option(10, RawPeer.Text("disk") + RawPeer.U32(1) + RawPeer.Text("base:allocation")));
            await peer.Client.ReceiveAsync(20 + 20 + 4 + 15 + 20);
        }

        await peer.Client.SendAsync(RawPeer.Option(7, RawPeer.Text("disk") + RawPeer.U16(0)));
        await peer.Client.ReceiveAsync(20 + 12 + 20 + 14 + 20);
        return peer;
    }

    public async ValueTask DisposeAsync()
    {
        pair.Left.Dispose();
        await End.WaitAsync(RawPeer.Deadline);
        pair.Dispose();
    }
}
