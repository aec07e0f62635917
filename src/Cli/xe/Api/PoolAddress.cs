// Where a pool is, and how it is known to be the one that was meant: by a fingerprint that the caller gives, by one that was trusted
// before, or by a certificate that this machine's own authorities vouch for. Never by nothing.
using System.Net;
using Xe.Grammar;

namespace Xe.Api;

/// <param name="Url">http only to this machine.</param>
/// <param name="UnixPath">The daemon's own socket, where root needs no password; null for TCP.</param>
internal sealed record PoolAddress(Uri Url, string? UnixPath)
{
    private const int HttpsPort = 443;
    private const int HttpPort = 80;

    /// <summary>How people and the file of known pools write it.</summary>
    public string Name => UnixPath is null ? $"{Url.IdnHost}:{Url.Port}" : $"unix:{UnixPath}";

    /// <param name="text">HOST, HOST:PORT, https://HOST:PORT, http://127.0.0.1:PORT or unix:PATH.</param>
    /// <exception cref="XeException">2: none of them, or plain HTTP to another machine.</exception>
    public static PoolAddress Parse(string text, int? port = null, bool isPlain = false)
    {
        const string unix = "unix:";
        if (text.StartsWith(unix, StringComparison.Ordinal))
            return new PoolAddress(new Uri("http://localhost/"), text[unix.Length..]);
        bool isBareIpv6 = IPAddress.TryParse(text, out IPAddress? address) && address.AddressFamily == System.Net.Sockets.AddressFamily.InterNetworkV6;
        string full = text.Contains("://", StringComparison.Ordinal)
            ? text
            : $"{(isPlain ? "http" : "https")}://{(isBareIpv6 ? $"[{text}]" : text)}";
        if (!Uri.TryCreate(full, UriKind.Absolute, out Uri? url) || url.Host.Length == 0 || url.Scheme is not ("http" or "https") || url.UserInfo.Length != 0)
            throw XeException.BadCommandLine($"\"{text}\" is no pool's address; it is HOST, HOST:PORT, https://HOST:PORT or unix:PATH");
        if (url.Scheme == "http" && !url.IsLoopback)
            throw XeException.BadCommandLine($"{full}: plain HTTP would show the password to the network; it is for this machine only. Use https://");
        int inText = url.IsDefaultPort && !full.TrimEnd('/').EndsWith($":{url.Port}", StringComparison.Ordinal) ? -1 : url.Port;
        int chosen = port ?? (inText > 0 ? inText : url.Scheme == "http" ? HttpPort : HttpsPort);
        return new PoolAddress(new UriBuilder(url.Scheme, url.Host, chosen, "/").Uri, null);
    }
}

/// <summary>What makes a pool's certificate good.</summary>
/// <param name="Fingerprint">SHA-256 of the certificate in hexadecimal, with or without colons; null when the caller gave none.</param>
internal sealed record PoolTrust(string? Fingerprint, bool MayTrustFirstUse, KnownPools Known)
{
    /// <summary>Why the certificate that was shown is not good; null when it is.</summary>
    /// <param name="isVouchedFor">This machine's authorities signed it, for this name.</param>
    public string? WhyNot(string pool, string shown, bool isVouchedFor)
    {
        if (Fingerprint is not null)
        {
            return Normalized(Fingerprint) == Normalized(shown)
                ? null
                : $"{pool} shows the certificate {shown}, and --fingerprint is another one: this is not the pool that was meant, or its certificate is new";
        }

        if (Known.Find(pool) is { } kept)
        {
            return Normalized(kept) == Normalized(shown)
                ? null
                : $"{pool} shows the certificate {shown}, and {Known.Path} has another one for it: this is not the same pool, or its certificate is new. "
                    + "If it is new, remove the line and trust it again";
        }

        if (isVouchedFor)
            return null;
        if (!MayTrustFirstUse)
        {
            return $"{pool} shows a certificate that nobody vouches for, with the fingerprint {shown}. Compare it with the pool's own "
                + "(STATE/endpoints.json there), then give it with --fingerprint or XE_FINGERPRINT, or call once with --trust-on-first-use";
        }

        Known.Add(pool, shown);
        return null;
    }

    /// <exception cref="XeException">2: it is no SHA-256.</exception>
    public static string Checked(string fingerprint) => Normalized(fingerprint) is { Length: 64 } hex && hex.All(char.IsAsciiHexDigit)
        ? fingerprint
        : throw XeException.BadCommandLine($"\"{fingerprint}\" is no SHA-256 fingerprint: 64 hexadecimal digits, with or without colons");

    private static string Normalized(string fingerprint) => fingerprint.Replace(":", "", StringComparison.Ordinal).Trim().ToUpperInvariant();
}
