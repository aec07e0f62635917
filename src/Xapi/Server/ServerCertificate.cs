// The daemon's own certificate, STATE/xapi-ssl.pem: certificate and key (ECDSA P-256, 10 years), made at the first start, readable by its
// owner only. Peers do not check who signed it: they pin its fingerprint (decision D5).
using System.Net;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Xapi.Server;

public static class ServerCertificate
{
    /// <exception cref="IOException">The file is there but cannot be read as a certificate with its key; it was left as it is.</exception>
    public static X509Certificate2 LoadOrCreate(string path, string hostName, TimeProvider time)
    {
        if (!File.Exists(path))
            DurableFile.Write(path, Create(hostName, time));
        try
        {
            return X509Certificate2.CreateFromPemFile(path);
        }
        catch (CryptographicException e)
        {
            throw new IOException($"{path} is no certificate with key ({e.Message}); it was left as it is. Remove it for a new one.", e);
        }
    }

    /// <summary>SHA-256 over the certificate, as the field writes it: <c>AB:CD:…</c>.</summary>
    public static string Fingerprint(X509Certificate2 certificate) =>
        string.Join(':', SHA256.HashData(certificate.RawData).Select(static b => $"{b:X2}"));

    private static string Create(string hostName, TimeProvider time)
    {
        using ECDsa key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        X500DistinguishedNameBuilder subject = new();
        subject.AddCommonName(hostName);
        CertificateRequest request = new(subject.Build(), key, HashAlgorithmName.SHA256);
        SubjectAlternativeNameBuilder names = new();
        names.AddDnsName("localhost");
        names.AddIpAddress(IPAddress.Loopback);
        names.AddIpAddress(IPAddress.IPv6Loopback);
        request.CertificateExtensions.Add(names.Build());
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(false, false, 0, true));
        request.CertificateExtensions.Add(new X509KeyUsageExtension(X509KeyUsageFlags.DigitalSignature, true));
        DateTimeOffset now = time.GetUtcNow();
        using X509Certificate2 certificate = request.CreateSelfSigned(now.AddDays(-1), now.AddYears(10));
        return $"{certificate.ExportCertificatePem()}\n{key.ExportPkcs8PrivateKeyPem()}\n";
    }
}
