// What must outlive the daemon of every migration on either side: records, the ownership of VMs, the tokens given out, the receipts.
// One SQLite file, one durable commit per record (design D6); a record and the ownership it brings are one transaction.
using System.Security.Cryptography;
using System.Text;
using Migration;
using Platform;

namespace Xapi.Migration;

/// <summary>A token that this pool gave out. Only a hash of its secret is kept.</summary>
public sealed record IssuedToken(string Migration, string SecretSha256, string Host, string Sr, DateTimeOffset ExpiresAt);

public sealed class MigrationStore : IJournal<SourceRecord>, IJournal<DestinationRecord>, IDisposable
{
    private const string Schema = """
        CREATE TABLE IF NOT EXISTS record (migration TEXT, role TEXT, sequence INTEGER, body TEXT NOT NULL, PRIMARY KEY (migration, role, sequence));
        CREATE TABLE IF NOT EXISTS ownership (vm TEXT PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT NOT NULL, migration TEXT NOT NULL);
        CREATE TABLE IF NOT EXISTS token (migration TEXT PRIMARY KEY, secret_sha256 TEXT, host TEXT, sr TEXT, expires_at INTEGER);
        CREATE TABLE IF NOT EXISTS peer (migration TEXT PRIMARY KEY, url TEXT, fingerprint TEXT, host TEXT, secret TEXT, expires_at INTEGER);
        """;

    private readonly SqliteFile file;

    public MigrationStore(string path) => file = SqliteFile.Open(path, Schema);

    public void Append(string migration, SourceRecord record) =>
        Append(migration, "source", MigrationJson.Write(record), () => Ownership.After(record, Source(migration)!.Plan));

    public void Append(string migration, DestinationRecord record) =>
        Append(migration, "destination", MigrationJson.Write(record), () => Ownership.After(record, Destination(migration)!.Plan));

    public SourceState? Source(string migration) =>
        Records<SourceRecord>(migration, "source") is { Count: > 0 } records ? new SourceState(records) : null;

    public DestinationState? Destination(string migration) =>
        Records<DestinationRecord>(migration, "destination") is { Count: > 0 } records ? new DestinationState(records) : null;

    /// <summary>All that are remembered, closed ones too.</summary>
    public IReadOnlyList<SourceState> Sources() => [.. Ids("source").Select(id => Source(id)!)];

    /// <summary>All that are remembered, closed ones too.</summary>
    public IReadOnlyList<DestinationState> Destinations() => [.. Ids("destination").Select(id => Destination(id)!)];

    public IReadOnlyList<SourceState> OpenSources() => [.. Ids("source").Select(id => Source(id)!).Where(static s => !s.IsClosed)];

    public IReadOnlyList<DestinationState> OpenDestinations() => [.. Ids("destination").Select(id => Destination(id)!).Where(static s => !s.IsClosed)];

    /// <summary>The VM's ownership; a VM of which no migration ever spoke is this pool's, in epoch 1.</summary>
    public Ownership OwnershipOf(string vm) =>
        file.Query(
            "SELECT epoch, owner, migration FROM ownership WHERE vm = $vm",
            row => new Ownership(vm, row.GetInt64(0), Enum.Parse<Owner>(row.GetString(1)), row.GetString(2)),
            ("$vm", vm)).FirstOrDefault() ?? new Ownership(vm, 1, Owner.Here, "");

    public void Issue(string migration, Secret secret, string host, string sr, DateTimeOffset expiresAt) =>
        file.Execute(
            "INSERT INTO token VALUES ($migration, $hash, $host, $sr, $expires)",
            ("$migration", migration), ("$hash", Hash(secret.Reveal())), ("$host", host), ("$sr", sr), ("$expires", expiresAt.ToUnixTimeSeconds()));

    /// <summary>The token of a migration when the secret is its own; null otherwise.</summary>
    public IssuedToken? FindToken(string migration, string secret)
    {
        IssuedToken? token = file.Query(
            "SELECT secret_sha256, host, sr, expires_at FROM token WHERE migration = $migration",
            row => new IssuedToken(migration, row.GetString(0), row.GetString(1), row.GetString(2), DateTimeOffset.FromUnixTimeSeconds(row.GetInt64(3))),
            ("$migration", migration)).FirstOrDefault();
        return token is not null
            && CryptographicOperations.FixedTimeEquals(Encoding.ASCII.GetBytes(token.SecretSha256), Encoding.ASCII.GetBytes(Hash(secret)))
                ? token
                : null;
    }

    /// <summary>When the token of a migration expires; null when this pool never gave one out.</summary>
    public DateTimeOffset? ExpiryOf(string migration) =>
        file.Query(
            "SELECT expires_at FROM token WHERE migration = $migration", static row => (DateTimeOffset?)DateTimeOffset.FromUnixTimeSeconds(row.GetInt64(0)),
            ("$migration", migration)).FirstOrDefault();

    /// <summary>Nothing can be begun with the token any more; it expired at the epoch's beginning.</summary>
    public void Spend(string migration) => file.Execute("UPDATE token SET expires_at = 0 WHERE migration = $migration", ("$migration", migration));

    public void Extend(string migration, DateTimeOffset expiresAt) => file.Execute(
        "UPDATE token SET expires_at = $expires WHERE migration = $migration", ("$migration", migration), ("$expires", expiresAt.ToUnixTimeSeconds()));

    /// <summary>Keeps what a source needs to reach its destination again after a restart. The only secret kept; the folder is its owner's alone.</summary>
    public void RememberPeer(MigrationToken token) =>
        file.Execute(
            "INSERT OR REPLACE INTO peer VALUES ($migration, $url, $fingerprint, $host, $secret, $expires)",
            ("$migration", token.Migration), ("$url", token.Destination.Url), ("$fingerprint", token.Destination.FingerprintSha256),
            ("$host", token.Destination.Host), ("$secret", token.Secret.Reveal()), ("$expires", token.ExpiresAt.ToUnixTimeSeconds()));

    public MigrationToken? FindPeer(string migration) =>
        file.Query(
            "SELECT url, fingerprint, host, secret, expires_at FROM peer WHERE migration = $migration",
            row => new MigrationToken(
                migration, new PeerAddress(row.GetString(0), row.GetString(1), row.GetString(2)),
                DateTimeOffset.FromUnixTimeSeconds(row.GetInt64(4)), new Secret(row.GetString(3))),
            ("$migration", migration)).FirstOrDefault();

    public void Dispose() => file.Dispose();

    private static string Hash(string secret) => Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(secret)));

    private void Append(string migration, string role, string body, Func<Ownership?> ownership) => file.Transaction(() =>
    {
        file.Execute(
            """
            INSERT INTO record VALUES ($migration, $role,
              (SELECT COALESCE(MAX(sequence), 0) + 1 FROM record WHERE migration = $migration AND role = $role), $body)
            """,
            ("$migration", migration), ("$role", role), ("$body", body));
        if (ownership() is { } owner)
        {
            file.Execute(
                "INSERT OR REPLACE INTO ownership VALUES ($vm, $epoch, $owner, $migration)",
                ("$vm", owner.Vm), ("$epoch", owner.Epoch), ("$owner", owner.Owner.ToString()), ("$migration", owner.Migration));
        }
    });

    private List<T> Records<T>(string migration, string role) =>
        file.Query(
            "SELECT body FROM record WHERE migration = $migration AND role = $role ORDER BY sequence",
            static row => MigrationJson.Read<T>(row.GetString(0)),
            ("$migration", migration), ("$role", role));

    private List<string> Ids(string role) =>
        file.Query("SELECT DISTINCT migration FROM record WHERE role = $role", static row => row.GetString(0), ("$role", role));
}
