// Seeded mutations of whole client conversations: the server answers or hangs up, within a deadline, in bounded memory, and serves the next
// one.
using System.Net.Sockets;
using Nbd;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

/// <summary>Tests that look at the whole process's memory run alone.</summary>
[CollectionDefinition("measures memory", DisableParallelization = true)]
public sealed class MeasuresMemory;

[Collection("measures memory")]
public class FuzzTests
{
    private static readonly byte[] Conversation = Bytes(
        U32(3) + Option(8) + Option(3) + Option(10, Text("disk") + U32(1) + Text("base:allocation"))
            + Option(6, Text("disk") + U16(1) + U16(3))
        + Option(7, Text("disk") + U16(0)) + Request(1, 1, 0, 512) + Fill(1, 512) + Request(0, 2, 0, 4096) + Request(7, 3, 0, 65536)
        + Request(6, 4, 512, 512, 3) + Request(3, 5, 0, 0) + Request(4, 6, 0, 65536) + Request(0, 7, 0, 65536, 4) + Request(2, 8, 0, 0));

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public async Task Mutated_conversations_neither_hang_nor_crash_the_server(int seed)
    {
        Random random = new(seed);
        NbdServerOptions options = Options();
        long before = GC.GetTotalMemory(forceFullCollection: true);
        for (int round = 0; round < 150; round++)
        {
            byte[] input = Mutate(random);
            using SocketPair pair = await SocketPair.CreateAsync();
            Task<NbdSessionEnd> serving = Task.Run(() => NbdServer.ServeAsync(pair.RightSocket, options, CancellationToken.None));
            Task draining = DrainAsync(pair.Left);
            try
            {
                await pair.Left.WriteAsync(input).AsTask().WaitAsync(Deadline);
                pair.LeftSocket.Shutdown(SocketShutdown.Send);
            }
            catch (Exception e) when (e is IOException or SocketException)
            {
                // The server has hung up already.
            }

            NbdSessionEnd end = await serving.WaitAsync(Deadline);
            Assert.NotEmpty(end.Reason);
            await draining.WaitAsync(Deadline);
        }

        Assert.InRange(GC.GetTotalMemory(forceFullCollection: true) - before, long.MinValue, 64 << 20);
        await using ClientServer after = await ClientServer.StartAsync(new MemoryBlockDevice(65536), null, options);
        await after.Client.FlushAsync(default);
    }

    [Fact]
    public async Task The_unmutated_conversation_gets_to_its_end()
    {
        NbdServerOptions options = Options();
        using SocketPair pair = await SocketPair.CreateAsync();
        Task<NbdSessionEnd> serving = Task.Run(() => NbdServer.ServeAsync(pair.RightSocket, options, CancellationToken.None));
        Task draining = DrainAsync(pair.Left);
        await pair.Left.WriteAsync(Conversation);
        Assert.Equal(new NbdSessionEnd(true, "the client disconnected"), await serving.WaitAsync(Deadline));
        await draining.WaitAsync(Deadline);
    }

    private static NbdServerOptions Options() =>
        ServedPeer.OptionsFor(new NbdExport("disk", new MemoryBlockDevice(65536)) { IsListed = true }) with
        {
            HandshakeTimeout = TimeSpan.FromSeconds(2),
        };

    private static byte[] Mutate(Random random)
    {
        List<byte> bytes = [.. Conversation];
        for (int count = random.Next(1, 6); count > 0; count--)
        {
            int at = random.Next(bytes.Count);
            int length = random.Next(1, Math.Min(40, bytes.Count - at) + 1);
            switch (random.Next(6))
            {
                case 0:
                    bytes[at] ^= (byte)(1 << random.Next(8));
                    break;
                case 1:
                    bytes[at] = random.Next(2) == 0 ? (byte)0xff : (byte)random.Next(256);
                    break;
                case 2:
                    bytes.RemoveRange(at, length);
                    break;
                case 3:
                    bytes.InsertRange(at, bytes.GetRange(at, length));
                    break;
                case 4:
                    bytes.InsertRange(at, Enumerable.Range(0, length).Select(_ => (byte)random.Next(256)));
                    break;
                default:
                    bytes.RemoveRange(at, random.Next(8) == 0 ? bytes.Count - at : 1);
                    break;
            }

            if (bytes.Count == 0)
                return [];
        }

        return [.. bytes];
    }

    private static async Task DrainAsync(Stream stream)
    {
        byte[] sink = new byte[65536];
        try
        {
            while (await stream.ReadAsync(sink) > 0)
            {
            }
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
            // Hung up: as good an end as any.
        }
    }
}
