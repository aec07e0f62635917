// The ways in which the field writes down an NBD export. Parsed by hand: System.Uri would rewrite names ("/../", upper case, escapes).
//   nbd:unix:SOCKET:exportname=NAME     xapi, tapdisk, qemu      (NAME as it is, to the end)
//   nbd+unix:///NAME?socket=SOCKET      the NBD URI document     (percent-encoded)
//   nbd://HOST[:PORT]/NAME, nbds://…    the same over TCP        (nbds: TLS is required)
using System.Globalization;

namespace Nbd;

/// <summary>
/// Where an export is. An export name may be a capability, so <see cref="ToString"/> belongs onto a wire, not into a log.
/// </summary>
public sealed record NbdUri
{
    public const int DefaultPort = 10809;

    private const string ColonPrefix = "nbd:unix:";
    private const string ColonName = ":exportname=";

    private NbdUri(string? socketPath, string? host, int port, string exportName, bool isTls, bool isColonForm)
    {
        SocketPath = socketPath;
        Host = host;
        Port = port;
        ExportName = exportName;
        IsTls = isTls;
        IsColonForm = isColonForm;
    }

    /// <summary>The unix socket, or null for TCP.</summary>
    public string? SocketPath { get; }

    /// <summary>A name or an address (IPv6 without brackets), or null for a unix socket.</summary>
    public string? Host { get; }

    public int Port { get; }

    public string ExportName { get; }

    public bool IsTls { get; }

    /// <summary>Written as nbd:unix:…; only decides how it is written back.</summary>
    public bool IsColonForm { get; }

    /// <summary>The form that xapi and tapdisk pass around.</summary>
    public static NbdUri Unix(string socketPath, string exportName) =>
        new(socketPath, null, 0, exportName, isTls: false, isColonForm: true);

    public static NbdUri Tcp(string host, int port, string exportName, bool isTls) =>
        new(null, host, port, exportName, isTls, isColonForm: false);

    /// <returns>Null when the text is none of the forms above.</returns>
    public static NbdUri? TryParse(string text)
    {
        if (text.StartsWith(ColonPrefix, StringComparison.Ordinal))
            return ParseColonForm(text[ColonPrefix.Length..]);
        int schemeEnd = text.IndexOf("://", StringComparison.Ordinal);
        if (schemeEnd < 0)
            return null;
        string rest = text[(schemeEnd + 3)..];
        return text[..schemeEnd] switch
        {
            "nbd+unix" => ParseUnix(rest, isTls: false),
            "nbds+unix" => ParseUnix(rest, isTls: true),
            "nbd" => ParseTcp(rest, isTls: false),
            "nbds" => ParseTcp(rest, isTls: true),
            _ => null,
        };
    }

    public override string ToString()
    {
        if (IsColonForm)
            return ColonPrefix + SocketPath + (ExportName.Length == 0 ? "" : ColonName + ExportName);
        string scheme = IsTls ? "nbds" : "nbd";
        string name = Uri.EscapeDataString(ExportName);
        if (SocketPath is not null)
            return $"{scheme}+unix:///{name}?socket={Uri.EscapeDataString(SocketPath).Replace("%2F", "/", StringComparison.Ordinal)}";
        string host = Host!.Contains(':', StringComparison.Ordinal) ? $"[{Host}]" : Host;
        return Port == DefaultPort ? $"{scheme}://{host}/{name}"
            : string.Create(CultureInfo.InvariantCulture, $"{scheme}://{host}:{Port}/{name}");
    }

    private static NbdUri? ParseColonForm(string rest)
    {
        int name = rest.IndexOf(ColonName, StringComparison.Ordinal);
        string path = name < 0 ? rest : rest[..name];
        return path.Length == 0 ? null : Unix(path, name < 0 ? "" : rest[(name + ColonName.Length)..]);
    }

    private static NbdUri? ParseUnix(string rest, bool isTls)
    {
        const string key = "socket=";
        int query = rest.IndexOf('?', StringComparison.Ordinal);
        if (query < 0 || !rest.StartsWith('/'))
            return null;
        string? socket = rest[(query + 1)..].Split('&').FirstOrDefault(static part => part.StartsWith(key, StringComparison.Ordinal));
        return socket is null || socket.Length == key.Length
            ? null
            : new NbdUri(Uri.UnescapeDataString(socket[key.Length..]), null, 0, Uri.UnescapeDataString(rest[1..query]), isTls,
                isColonForm: false);
    }

    private static NbdUri? ParseTcp(string rest, bool isTls)
    {
        int slash = rest.IndexOf('/', StringComparison.Ordinal);
        string authority = slash < 0 ? rest : rest[..slash];
        string name = slash < 0 ? "" : rest[(slash + 1)..];
        int hostEnd = authority.StartsWith('[') ? authority.IndexOf(']', StringComparison.Ordinal) + 1 : authority.LastIndexOf(':');
        if (hostEnd < 0 || (hostEnd == 0 && !authority.StartsWith(':')))
            hostEnd = authority.Length;
        string host = authority[..hostEnd].Trim('[', ']');
        int port = DefaultPort;
        if (hostEnd < authority.Length
            && (authority[hostEnd] != ':'
                || !int.TryParse(authority[(hostEnd + 1)..], NumberStyles.None, CultureInfo.InvariantCulture, out port)
                || port is 0 or > ushort.MaxValue))
            return null;
        return host.Length == 0 || host.Contains('[', StringComparison.Ordinal) || host.Contains(']', StringComparison.Ordinal)
            ? null
            : Tcp(host, port, Uri.UnescapeDataString(name), isTls);
    }
}
