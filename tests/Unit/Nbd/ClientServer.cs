using Nbd;
using Platform;
using Support;

namespace Unit.NbdTests;

/// <summary>Our client and our server on the two ends of one connection.</summary>
internal sealed class ClientServer : IAsyncDisposable
{
    private readonly Task<NbdSessionEnd> end;

    private ClientServer(SocketPair pair, NbdClient client, Task<NbdSessionEnd> end)
    {
        Pair = pair;
        Client = client;
        this.end = end;
    }

    public SocketPair Pair { get; }

    public NbdClient Client { get; }

    public static async Task<ClientServer> StartAsync(
        IBlockDevice device, NbdClientOptions? options = null, NbdServerOptions? serverOptions = null)
    {
        SocketPair pair = await SocketPair.CreateAsync();
        NbdServerOptions server = serverOptions ?? ServedPeer.OptionsFor(new NbdExport("disk", device));
        Task<NbdSessionEnd> end = Task.Run(() => NbdServer.ServeAsync(pair.RightSocket, server, CancellationToken.None));
        return new ClientServer(pair, await NbdClient.ConnectAsync(pair.LeftSocket, "disk", options ?? new NbdClientOptions(), default), end);
    }

    public async ValueTask DisposeAsync()
    {
        await Client.DisposeAsync();
        await end.WaitAsync(RawPeer.Deadline);
        Pair.Dispose();
    }
}
