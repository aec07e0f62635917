// The token of VM.migrate_receive: a map that clients treat as opaque, with the field's five keys so that known clients work, and one key of ours that
// carries the capability (design D5). It opens nothing but this one migration: its session_id is no session, its URLs hold no secret.
//   x-storage-token = base64url(JSON {v, migration, url, fingerprint, host, expires, secret}) "." first 32 hex digits of SHA-256 over that and the other keys
using System.Buffers.Text;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Migration;
using Platform;

namespace Xapi.Migration;

public sealed record MigrationToken(string Migration, PeerAddress Destination, DateTimeOffset ExpiresAt, Secret Secret)
{
    /// <summary>The member of the map that is the token; the others are the field's.</summary>
    public const string Key = "x-storage-token";

    /// <summary>How long a token can be used to begin, unless it is asked for otherwise; and how much longer a renewal makes it last.</summary>
    public static readonly TimeSpan Life = TimeSpan.FromHours(1);

    private const int Version = 1;
    private const int LengthLimit = 8192;

    private sealed record Body(int V, string Migration, string Url, string Fingerprint, string Host, long Expires, string Secret);

    /// <param name="address">Host and port of this pool's API, for the field's keys.</param>
    public Dictionary<string, string> ToMap(string address)
    {
        Dictionary<string, string> map = new()
        {
            ["host"] = Destination.Host,
            ["SM"] = $"http://{address}/services/SM?session_id=OpaqueRef:{Migration}",
            ["xenops"] = $"http://{address}/services/xenops?session_id=OpaqueRef:{Migration}",
            ["master"] = $"http://{address}",
            ["session_id"] = $"OpaqueRef:{Migration}",
        };
        Body body = new(
            Version, Migration, Destination.Url, Destination.FingerprintSha256, Destination.Host, ExpiresAt.ToUnixTimeSeconds(), Secret.Reveal());
        string text = Base64Url.EncodeToString(JsonSerializer.SerializeToUtf8Bytes(body, MigrationJson.Options));
        map[Key] = $"{text}.{Check(text, map)}";
        return map;
    }

    /// <exception cref="FormatException">Not a token of ours, or cut short, or altered; the message says which.</exception>
    public static MigrationToken Parse(IReadOnlyDictionary<string, string> map)
    {
        if (!map.TryGetValue(Key, out string? value))
            throw new FormatException($"the key {Key} is missing: this is not what VM.migrate_receive of a pool of this kind returned");
        string[] parts = value.Split('.');
        if (value.Length > LengthLimit || parts.Length != 2)
            throw new FormatException("the token was cut short or altered");
        Dictionary<string, string> others = map.Where(static e => e.Key != Key).ToDictionary();
        if (!CryptographicOperations.FixedTimeEquals(Encoding.UTF8.GetBytes(Check(parts[0], others)), Encoding.UTF8.GetBytes(parts[1])))
            throw new FormatException("the token was cut short or altered");
        try
        {
            Body? body = JsonSerializer.Deserialize<Body>(Base64Url.DecodeFromChars(parts[0]), MigrationJson.Options);
            if (body is not { Migration: not null, Url: not null, Fingerprint: not null, Host: not null, Secret: not null })
                throw new FormatException("the token was altered: a member is missing");
            if (body.V != Version)
                throw new FormatException($"the token's version is {body.V}; this pool understands {Version}");
            return new MigrationToken(
                body.Migration, new PeerAddress(body.Url, body.Fingerprint, body.Host), DateTimeOffset.FromUnixTimeSeconds(body.Expires),
                new Secret(body.Secret));
        }
        catch (Exception e) when (e is JsonException or ArgumentOutOfRangeException) // The second: a time that no calendar has.
        {
            throw new FormatException($"the token was altered: {e.Message}", e);
        }
    }

    private static string Check(string text, Dictionary<string, string> map)
    {
        StringBuilder all = new(text);
        foreach ((string key, string value) in map.OrderBy(static e => e.Key, StringComparer.Ordinal))
            all.Append('\n').Append(key).Append('=').Append(value);
        return Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(all.ToString())))[..32];
    }
}
