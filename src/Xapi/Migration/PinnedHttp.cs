using System.Net.Http.Headers;
using System.Net.Security;
using System.Security.Cryptography;
using Platform;

namespace Xapi.Migration;

/// <summary>A client of another daemon, which is known by its certificate's fingerprint and by nothing else.</summary>
internal static class PinnedHttp
{
    /// <param name="fingerprintSha256">In hex.</param>
    public static HttpClient Create(string url, string fingerprintSha256, Secret bearer, TimeSpan connectLimit, TimeSpan callLimit)
    {
        byte[] pinned = Convert.FromHexString(fingerprintSha256);
        HttpClient http = new(new SocketsHttpHandler
        {
            ConnectTimeout = connectLimit,
            SslOptions = new SslClientAuthenticationOptions
            {
                RemoteCertificateValidationCallback = (_, certificate, _, _) => certificate is not null
                    && CryptographicOperations.FixedTimeEquals(SHA256.HashData(certificate.GetRawCertData()), pinned),
            },
        })
        {
            BaseAddress = new Uri(url),
            Timeout = callLimit,
        };
        http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", bearer.Reveal());
        return http;
    }
}
