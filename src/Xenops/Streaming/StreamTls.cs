// TLS under the memory stream. The client believes exactly one certificate, by its SHA-256 fingerprint, which came through the control
// connection; no name, no authority, no date is looked at. The server believes whoever knows the incoming domain's secret.
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Xenops.Streaming;

public static class StreamTls
{
    private static readonly TimeSpan ConnectDeadline = TimeSpan.FromSeconds(10);

    /// <summary>SHA-256 of the certificate, lower-case hex without separators.</summary>
    public static string FingerprintOf(X509Certificate2 certificate) => Convert.ToHexStringLower(SHA256.HashData(certificate.RawData));

    /// <summary>A certificate and key of our own, for when none is given.</summary>
    public static X509Certificate2 CreateCertificate(DateTimeOffset now)
    {
        using ECDsa key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        CertificateRequest request = new("CN=xenopsd", key, HashAlgorithmName.SHA256);
        return request.CreateSelfSigned(now.AddDays(-1), now.AddYears(10));
    }

    /// <summary>A PEM file that holds a certificate and its unencrypted key.</summary>
    /// <exception cref="IOException">It does not.</exception>
    public static X509Certificate2 ReadCertificate(string path)
    {
        try
        {
            return X509Certificate2.CreateFromPemFile(path);
        }
        catch (CryptographicException e)
        {
            throw new IOException($"{path} does not hold a certificate with its key: {e.Message}", e);
        }
    }

    /// <param name="fingerprint">Hex; colons and case do not matter.</param>
    /// <exception cref="XenopsException">Not reached in time, or another certificate.</exception>
    internal static async Task<SslStream> ConnectAsync(
        string host, int port, string fingerprint, TimeProvider time, CancellationToken cancellationToken)
    {
        byte[] pinned = ParseFingerprint(fingerprint);
        using CancellationTokenSource deadline = new(ConnectDeadline, time);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, deadline.Token);
        Socket socket = new(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        SslStream? tls = null;
        try
        {
            await socket.ConnectAsync(host, port, limit.Token);
            tls = new SslStream(new NetworkStream(socket, ownsSocket: true));
            SslClientAuthenticationOptions options = new()
            {
                TargetHost = host,
                EnabledSslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13,
                RemoteCertificateValidationCallback = (_, certificate, _, _) => certificate is not null
                    && CryptographicOperations.FixedTimeEquals(SHA256.HashData(certificate.GetRawCertData()), pinned),
            };
            await tls.AuthenticateAsClientAsync(options, limit.Token);
            return tls;
        }
        catch (Exception e)
        {
            await (tls?.DisposeAsync() ?? ValueTask.CompletedTask);
            socket.Dispose();
            throw e switch
            {
                OperationCanceledException when cancellationToken.IsCancellationRequested => e,
                OperationCanceledException => Unreachable(host, port, $"no TLS connection within {ConnectDeadline.TotalSeconds:0} s"),
                AuthenticationException =>
                    Unreachable(host, port, $"its certificate does not have the fingerprint {fingerprint}: {e.Message}"),
                SocketException or IOException => Unreachable(host, port, e.Message),
                _ => e,
            };
        }
    }

    /// <summary>Takes the socket over. Fails with whatever TLS fails with; the connection is closed then.</summary>
    internal static async Task<SslStream> AcceptAsync(Socket socket, X509Certificate2 certificate, CancellationToken cancellationToken)
    {
        SslStream tls = new(new NetworkStream(socket, ownsSocket: true));
        try
        {
            SslServerAuthenticationOptions options = new()
            {
                ServerCertificate = certificate,
                EnabledSslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13,
            };
            await tls.AuthenticateAsServerAsync(options, cancellationToken);
            return tls;
        }
        catch
        {
            await tls.DisposeAsync();
            throw;
        }
    }

    private static byte[] ParseFingerprint(string fingerprint)
    {
        string digits = fingerprint.Replace(":", "", StringComparison.Ordinal);
        return digits.Length == 64 && digits.All(char.IsAsciiHexDigit)
            ? Convert.FromHexString(digits)
            : throw XenopsException.Internal($"the fingerprint \"{fingerprint}\" is not the hex of a SHA-256");
    }

    private static XenopsException Unreachable(string host, int port, string why) =>
        XenopsException.RemoteService($"the destination's memory stream at {host}:{port}: {why}");
}
