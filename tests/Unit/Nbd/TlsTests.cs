using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Nbd;
using Platform;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

public sealed class TlsTests : IDisposable
{
    private readonly X509Certificate2 certificate =
        Certificate("CN=pool", DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));

    public void Dispose() => certificate.Dispose();

    [Fact]
    public async Task A_disk_works_inside_tls()
    {
        MemoryBlockDevice device = new(4 << 20);
        await using ClientServer world = await ClientServer.StartAsync(
            device, new NbdClientOptions { Tls = NbdTls.ForClient(NbdTls.FingerprintOf(certificate)) }, Server(device));
        byte[] written = new byte[3 << 20];
        new Random(5).NextBytes(written);
        await Task.WhenAll(Enumerable.Range(0, 6).Select(i =>
            world.Client.WriteAsync(i << 19, written.AsMemory(i << 19, 1 << 19), WriteFlags.None, default).AsTask()));
        byte[] read = new byte[written.Length];
        await world.Client.ReadAsync(0, read, default);
        Assert.True(read.AsSpan().SequenceEqual(written));
        Assert.True(world.Client.HasStructuredReplies && world.Client.HasExtents);
    }

    [Theory]
    [InlineData("78 expired", -20, -10)]
    [InlineData("78 not yet valid", 10, 20)]
    public async Task The_pin_is_the_trust_whatever_the_dates_say(string row, int from, int to)
    {
        Assert.NotEmpty(row);
        using X509Certificate2 odd = Certificate("CN=odd", DateTimeOffset.UtcNow.AddDays(from), DateTimeOffset.UtcNow.AddDays(to));
        MemoryBlockDevice device = new(4096);
        await using ClientServer world = await ClientServer.StartAsync(
            device, new NbdClientOptions { Tls = NbdTls.ForClient(NbdTls.FingerprintOf(odd)) },
            Server(device) with { Tls = NbdTls.ForServer(odd) });
        await world.Client.FlushAsync(default);
    }

    [Fact]
    public async Task Row_78_another_certificate_is_refused_even_with_the_same_name()
    {
        using X509Certificate2 other = Certificate("CN=pool", DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
        await RefusedAsync(Server(new MemoryBlockDevice(4096)),
            new NbdClientOptions { Tls = NbdTls.ForClient(NbdTls.FingerprintOf(other)) });
    }

    [Fact]
    public async Task Row_76_a_client_that_wants_tls_never_falls_back() =>
        await RefusedAsync(
            Server(new MemoryBlockDevice(4096)) with { Tls = null },
            new NbdClientOptions { Tls = NbdTls.ForClient(NbdTls.FingerprintOf(certificate)) });

    [Fact]
    public async Task Row_77_nothing_works_before_tls_when_it_is_required()
    {
        await using ServedPeer peer = await ServedPeer.StartAsync(Server(new MemoryBlockDevice(4096)));
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(3));
        foreach (int option in new[] { 3, 6, 7, 8, 9, 10, 999 })
        {
            await peer.Client.SendAsync(Option(option, "00"));
            await peer.Client.ExpectAsync(OptionReply(option, 0x80000005, Convert.ToHexString("TLS is required"u8)));
        }

        await peer.Client.SendAsync(Option(1, Convert.ToHexString("disk"u8)));
        await peer.Client.ExpectClosedAsync();
        Assert.False((await peer.End.WaitAsync(Deadline)).IsClean);
    }

    [Fact]
    public async Task Row_75_plain_text_in_the_segment_of_starttls_ends_the_connection()
    {
        await using ServedPeer peer = await ServedPeer.StartAsync(Server(new MemoryBlockDevice(4096)));
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(3), Option(5), Option(8), Option(7, Text("disk") + U16(0)));
        Assert.Equal(
            new NbdSessionEnd(false, "plain text arrived together with STARTTLS"), await peer.End.WaitAsync(Deadline));
    }

    [Fact]
    public async Task Plain_text_behind_the_servers_answer_to_starttls_is_never_read_as_an_answer()
    {
        using SocketPair pair = await SocketPair.CreateAsync();
        RawPeer server = new(pair.Right);
        NbdClientOptions options = new() { Tls = NbdTls.ForClient(NbdTls.FingerprintOf(certificate)) };
        Task<NbdClient> connecting = NbdClient.ConnectAsync(pair.LeftSocket, "disk", options, default);
        await server.SendAsync(Greeting);
        await server.ExpectAsync(U32(3), Option(5));
        await server.SendAsync(OptionReply(5, 1), OptionReply(8, 1));
        await Assert.ThrowsAsync<NbdProtocolException>(() => connecting.WaitAsync(Deadline));
    }

    [Fact]
    public async Task A_client_that_starts_tls_with_garbage_is_dropped()
    {
        await using ServedPeer peer = await ServedPeer.StartAsync(Server(new MemoryBlockDevice(4096)));
        await peer.Client.ExpectAsync(Greeting);
        await peer.Client.SendAsync(U32(3), Option(5));
        await peer.Client.ExpectAsync(OptionReply(5, 1));
        await peer.Client.SendAsync(Fill(0x16, 600));
        Assert.False((await peer.End.WaitAsync(Deadline)).IsClean);
    }

    [Fact]
    public async Task An_nbds_uri_without_a_fingerprint_is_refused_before_anything_is_sent()
    {
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(
            () => NbdClient.ConnectAsync(NbdUri.TryParse("nbds://127.0.0.1:1/disk")!, new NbdClientOptions(), default));
        Assert.Equal(Errno.EACCES, e.Errno);
    }

    [Theory]
    [InlineData("")]
    [InlineData("abcd")]
    [InlineData("zz")]
    public void A_fingerprint_that_is_none_is_refused(string text) => Assert.Throws<FormatException>(() => NbdTls.ForClient(text));

    private NbdServerOptions Server(IBlockDevice device) =>
        ServedPeer.OptionsFor(new NbdExport("disk", device)) with { Tls = NbdTls.ForServer(certificate) };

    private static async Task RefusedAsync(NbdServerOptions server, NbdClientOptions client)
    {
        using SocketPair pair = await SocketPair.CreateAsync();
        Task<NbdSessionEnd> end = Task.Run(() => NbdServer.ServeAsync(pair.RightSocket, server, CancellationToken.None));
        await Assert.ThrowsAsync<NbdProtocolException>(() =>
            NbdClient.ConnectAsync(pair.LeftSocket, "disk", client, default).WaitAsync(Deadline));
        await end.WaitAsync(Deadline);
    }

    private static X509Certificate2 Certificate(string subject, DateTimeOffset from, DateTimeOffset to)
    {
        using ECDsa key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        return new CertificateRequest(subject, key, HashAlgorithmName.SHA256).CreateSelfSigned(from, to);
    }
}
