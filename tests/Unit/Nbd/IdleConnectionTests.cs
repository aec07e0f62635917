using System.Net.Sockets;
using Nbd;
using Support;

namespace Unit.NbdTests;

[Collection("measures memory")]
public sealed class IdleConnectionTests : IDisposable
{
    private readonly TemporaryDirectory folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task Row_92_idle_connections_cost_little_and_do_not_keep_others_out()
    {
        string path = folder.File("s.sock");
        NbdExport export = new("disk", new MemoryBlockDevice(4096));
        await using NbdListener listener = NbdListener.ListenUnix(path, ServedPeer.OptionsFor(export), 600);
        long before = GC.GetTotalMemory(forceFullCollection: true);
        List<Socket> idle = [];
        for (int i = 0; i < 500; i++)
        {
            Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            await socket.ConnectAsync(new UnixDomainSocketEndPoint(path));
            idle.Add(socket);
        }

        await using NbdClient client = await NbdClient.ConnectAsync(NbdUri.Unix(path, "disk"), new NbdClientOptions(), default);
        await client.FlushAsync(default).AsTask().WaitAsync(TimeSpan.FromSeconds(2));
        Assert.InRange(GC.GetTotalMemory(forceFullCollection: true) - before, long.MinValue, 64 << 20);
        idle.ForEach(static socket => socket.Dispose());
    }
}
