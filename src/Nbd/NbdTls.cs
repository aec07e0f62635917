// TLS for both ends. Trust is a pinned certificate, nothing else: names, dates and authorities are not looked at, because the fingerprint
// came with the token that named the peer (docs/formats/nbd.md).
using System.Net.Security;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Nbd;

/// <summary>
/// One end's half of TLS 1.2 or later. With it given, that end insists: a server refuses everything before STARTTLS, a client never falls
/// back.
/// </summary>
public sealed class NbdTls
{
    private const SslProtocols Accepted = SslProtocols.Tls12 | SslProtocols.Tls13;

    private readonly X509Certificate2? certificate;
    private readonly byte[] pinned;

    private NbdTls(X509Certificate2? certificate, byte[] pinned)
    {
        this.certificate = certificate;
        this.pinned = pinned;
    }

    /// <param name="certificate">With its private key; stays the caller's.</param>
    public static NbdTls ForServer(X509Certificate2 certificate) => certificate.HasPrivateKey
        ? new NbdTls(certificate, [])
        : throw new ArgumentException("a server's certificate needs its private key", nameof(certificate));

    /// <param name="sha256Fingerprint">64 hex digits, colons allowed: the SHA-256 of the server's certificate (DER).</param>
    /// <exception cref="FormatException">It is not a SHA-256 fingerprint.</exception>
    public static NbdTls ForClient(string sha256Fingerprint)
    {
        byte[] pinned = Convert.FromHexString(sha256Fingerprint.Replace(":", "", StringComparison.Ordinal));
        return pinned.Length == SHA256.HashSizeInBytes
            ? new NbdTls(null, pinned)
            : throw new FormatException($"a SHA-256 fingerprint has {SHA256.HashSizeInBytes} bytes, this one has {pinned.Length}");
    }

    /// <summary>What a client has to be given, in lower-case hex.</summary>
    public static string FingerprintOf(X509Certificate2 certificate) =>
        Convert.ToHexStringLower(SHA256.HashData(certificate.RawDataMemory.Span));

    internal SslStream AuthenticateAsServer(Stream plain)
    {
        SslStream stream = new(plain, leaveInnerStreamOpen: true);
        SslServerAuthenticationOptions options = new()
        {
            ServerCertificate = certificate ?? throw new InvalidOperationException("these TLS options are a client's"),
            EnabledSslProtocols = Accepted,
            ClientCertificateRequired = false,
        };
        Authenticate(stream, () => stream.AuthenticateAsServer(options));
        return stream;
    }

    internal SslStream AuthenticateAsClient(Stream plain)
    {
        if (certificate is not null)
            throw new InvalidOperationException("these TLS options are a server's");
        SslStream stream = new(plain, leaveInnerStreamOpen: true);
        SslClientAuthenticationOptions options = new()
        {
            TargetHost = "",
            EnabledSslProtocols = Accepted,
            RemoteCertificateValidationCallback = (_, presented, _, _) => IsPinned(presented),
        };
        Authenticate(stream, () => stream.AuthenticateAsClient(options));
        return stream;
    }

    private bool IsPinned(X509Certificate? presented) =>
        presented is not null && CryptographicOperations.FixedTimeEquals(SHA256.HashData(presented.GetRawCertData()), pinned);

    private static void Authenticate(SslStream stream, Action authenticate)
    {
        try
        {
            authenticate();
        }
        catch (AuthenticationException e)
        {
            stream.Dispose();
            throw new NbdProtocolException("TLS could not be established: " + e.Message, e);
        }
        catch
        {
            stream.Dispose();
            throw;
        }
    }
}
