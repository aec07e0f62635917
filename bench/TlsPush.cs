// A push over TLS beside the same bytes through a bare SslStream. Both servers are threads of this process and throw away what they get; both
// clients are processes of their own.
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Nbd;
using Platform;

namespace Bench;

internal sealed class TlsPush : IAsyncDisposable
{
    private const int ChunkBytes = 1 << 20;

    private readonly RSA key = RSA.Create(2048);
    private readonly X509Certificate2 certificate;
    private readonly TcpListener bare = new(IPAddress.Loopback, 0);
    private readonly Discard device;
    private readonly NbdExport export;
    private readonly NbdListener listener;
    private readonly Task accepting;

    public TlsPush(long sizeBytes)
    {
        CertificateRequest request = new("CN=bench", key, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);
        certificate = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
        device = new Discard(sizeBytes);
        export = new NbdExport("disk", device);
        NbdServerOptions options = new() { Find = name => name == export.Name ? export : null, Tls = NbdTls.ForServer(certificate) };
        listener = NbdListener.ListenTcp(new IPEndPoint(IPAddress.Loopback, 0), options, maxConnections: 16);
        bare.Start();
        accepting = DedicatedThread.Run("bare TLS server", AcceptBare);
    }

    public string Fingerprint => NbdTls.FingerprintOf(certificate);

    public string Arguments => $"nbds://127.0.0.1:{((IPEndPoint)listener.EndPoint).Port}/disk --fingerprint {Fingerprint}";

    public int BarePort => ((IPEndPoint)bare.LocalEndpoint).Port;

    /// <summary>What the export was sent.</summary>
    public long WrittenBytes => device.WrittenBytes;

    /// <summary>The bare client: so many MiB, then the end of the stream.</summary>
    public static void Send(int port, long mebibytes, string fingerprint)
    {
        using TcpClient client = new() { NoDelay = true };
        client.Connect(IPAddress.Loopback, port);
        using SslStream stream = new(client.GetStream(), leaveInnerStreamOpen: false, (_, presented, _, _) =>
            presented is not null && presented.GetCertHashString(HashAlgorithmName.SHA256).Equals(fingerprint, StringComparison.OrdinalIgnoreCase));
        stream.AuthenticateAsClient("bench");
        byte[] chunk = new byte[ChunkBytes];
        Random.Shared.NextBytes(chunk);
        for (long sent = 0; sent < mebibytes; sent++)
            stream.Write(chunk);
        stream.ShutdownAsync().GetAwaiter().GetResult();
        _ = stream.ReadByte(); // The server has read everything when it closes.
    }

    public async ValueTask DisposeAsync()
    {
        bare.Stop();
        await accepting;
        await listener.DisposeAsync();
        await export.DisposeAsync();
        certificate.Dispose();
        key.Dispose();
    }

    private bool AcceptBare()
    {
        byte[] chunk = new byte[ChunkBytes];
        while (true)
        {
            try
            {
                using TcpClient client = bare.AcceptTcpClient();
                using SslStream stream = new(client.GetStream(), leaveInnerStreamOpen: false);
                stream.AuthenticateAsServer(certificate);
                while (stream.Read(chunk) > 0)
                {
                }
            }
            catch (Exception e) when (e is SocketException or ObjectDisposedException or InvalidOperationException)
            {
                return true;
            }
        }
    }

    /// <summary>A disk that takes every write and keeps none.</summary>
    private sealed class Discard(long lengthBytes) : IBlockDevice
    {
        private long written;

        public long LengthBytes => lengthBytes;

        public int BlockSizeBytes => 512;

        public bool IsReadOnly => false;

        public long WrittenBytes => Interlocked.Read(ref written);

        public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
        {
            destination.Span.Clear();
            return default;
        }

        public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
        {
            Interlocked.Add(ref written, source.Length);
            return default;
        }

        public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => default;

        public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => default;

        public ValueTask FlushAsync(CancellationToken cancellationToken) => default;

        public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
            new([new BlockExtent(offsetBytes, lengthBytes, ExtentKind.Data)]);

        public ValueTask DisposeAsync() => default;
    }
}
