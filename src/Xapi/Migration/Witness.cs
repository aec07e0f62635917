// The witness: registers that are written once, by which two pools that cannot ask each other agree who owns a VM (docs/decisions/0012). One daemon keeps
// them, best a third one; to serve them it needs nothing but a key. The same port would be an existing compare-and-set engine's.
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Migration;
using Platform;

namespace Xapi.Migration;

/// <summary>Registers that are written once.</summary>
public interface ICompareAndSet
{
    /// <summary>Writes the register if nobody did, durably.</summary>
    /// <returns>What stands in it, now and for ever.</returns>
    /// <exception cref="IOException">Nobody answered: the register may or may not be written.</exception>
    Task<string> SetOnceAsync(string register, string value, CancellationToken cancellationToken);
}

public sealed class CompareAndSetWitness(ICompareAndSet registers) : IWitness
{
    public async Task<Verdict> DecideAsync(string migration, Verdict proposal, CancellationToken cancellationToken)
    {
        string answer = await registers.SetOnceAsync($"migration/{migration}", proposal.ToString(), cancellationToken);
        return Enum.TryParse(answer, out Verdict verdict) && Enum.IsDefined(verdict)
            ? verdict
            : throw new IOException($"the witness holds \"{answer}\" for migration {migration}, which is no verdict");
    }
}

/// <summary>This daemon's registers: one SQLite file, one durable commit for each.</summary>
public sealed class EmbeddedWitness : ICompareAndSet, IDisposable
{
    public const string Path = "/services/witness";

    public const int BodyLimitBytes = 4096;

    private const int RegisterLimit = 128;
    private const int ValueLimit = 64;
    private const long CountLimit = 1_000_000;

    private readonly SqliteFile file;
    private readonly byte[] keyHash;

    /// <param name="key">What opens it; 16 characters at least.</param>
    public EmbeddedWitness(string path, Secret key)
    {
        file = SqliteFile.Open(path, "CREATE TABLE IF NOT EXISTS register (name TEXT PRIMARY KEY, value TEXT NOT NULL)");
        keyHash = SHA256.HashData(Encoding.UTF8.GetBytes(key.Reveal()));
    }

    public Task<string> SetOnceAsync(string register, string value, CancellationToken cancellationToken)
    {
        string? stands = null;
        file.Transaction(() =>
        {
            stands = Find(register);
            if (stands is not null)
                return;
            if (file.Query("SELECT COUNT(*) FROM register", static row => row.GetInt64(0))[0] >= CountLimit)
                throw new IOException($"the witness holds {CountLimit} registers and takes no more");
            file.Execute("INSERT INTO register VALUES ($name, $value)", ("$name", register), ("$value", value));
            stands = value;
        });
        return Task.FromResult(stands!);
    }

    /// <summary>Answers one request: <c>{"register","value"}</c> to <c>{"value"}</c> or <c>{"error"}</c>.</summary>
    /// <returns>The HTTP status and the body.</returns>
    public async Task<(int Status, string Body)> HandleAsync(string? bearer, string body, CancellationToken cancellationToken)
    {
        if (!CryptographicOperations.FixedTimeEquals(SHA256.HashData(Encoding.UTF8.GetBytes(bearer ?? "")), keyHash))
            return (401, Error("the key is not this witness's"));
        try
        {
            JsonObject request = JsonNode.Parse(body, documentOptions: new JsonDocumentOptions { MaxDepth = 4 })?.AsObject()
                ?? throw new JsonException("the request is null");
            string register = (string?)request["register"] ?? "", value = (string?)request["value"] ?? "";
            if (register.Length is 0 or > RegisterLimit || value.Length is 0 or > ValueLimit)
                return (400, Error($"a register's name has 1 to {RegisterLimit} characters, its value 1 to {ValueLimit}"));
            return (200, new JsonObject { ["value"] = await SetOnceAsync(register, value, cancellationToken) }.ToJsonString());
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException)
        {
            return (400, Error($"the request is malformed: {e.Message}"));
        }
        catch (IOException e)
        {
            return (503, Error(e.Message));
        }
    }

    public void Dispose() => file.Dispose();

    private string? Find(string register) =>
        file.Query("SELECT value FROM register WHERE name = $name", static row => row.GetString(0), ("$name", register)).FirstOrDefault();

    private static string Error(string why) => new JsonObject { ["error"] = why }.ToJsonString();
}

/// <summary>Another daemon's registers, over TLS; it is known by its certificate's fingerprint and opened by its key.</summary>
public sealed class WitnessClient(WitnessAddress address) : ICompareAndSet
{
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(5);

    public async Task<string> SetOnceAsync(string register, string value, CancellationToken cancellationToken)
    {
        using HttpClient http = PinnedHttp.Create(address.Url, address.FingerprintSha256, new Secret(address.Key), Deadline, Deadline);
        http.MaxResponseContentBufferSize = EmbeddedWitness.BodyLimitBytes;
        try
        {
            JsonObject request = new() { ["register"] = register, ["value"] = value };
            using StringContent content = new(request.ToJsonString(), Encoding.UTF8, "application/json");
            using HttpResponseMessage response = await http.PostAsync(new Uri(EmbeddedWitness.Path, UriKind.Relative), content, cancellationToken);
            string text = await response.Content.ReadAsStringAsync(cancellationToken);
            JsonObject? answer = JsonNode.Parse(text) as JsonObject;
            return response.IsSuccessStatusCode && (string?)answer?["value"] is { } stands
                ? stands
                : throw new IOException($"the witness {address.Url} answered {(int)response.StatusCode}: {(string?)answer?["error"]}");
        }
        catch (Exception e) when (e is HttpRequestException or JsonException or InvalidOperationException
            || (e is TaskCanceledException && !cancellationToken.IsCancellationRequested))
        {
            throw new IOException($"the witness {address.Url} cannot be asked: {e.Message}", e);
        }
    }
}

/// <summary>The witness of each plan, and the ones that this pool's operators know.</summary>
/// <param name="listPath">One witness a line: <c>https://host:port#FINGERPRINT KEY</c>; null: none is known.</param>
/// <param name="own">This daemon's registers, when it serves them.</param>
public sealed class Witnesses(string? listPath, ICompareAndSet? own, string ownFingerprint)
{
    private const int LinesLimit = 64;

    /// <summary>Null exactly when the plan names none.</summary>
    public IWitness? Of(MigrationPlan plan) => plan.Options.Witness is not { } address ? null
        : own is not null && address.FingerprintSha256 == ownFingerprint ? new CompareAndSetWitness(own)
        : new CompareAndSetWitness(new WitnessClient(address));

    /// <summary>The witness that a caller names, with its key from the list.</summary>
    /// <param name="name"><c>https://host:port#FINGERPRINT</c>.</param>
    /// <exception cref="FormatException">Not an address, or one that is not in the list.</exception>
    public WitnessAddress Find(string name)
    {
        string[] parts = name.Split('#');
        bool isGood = parts.Length == 2 && Uri.TryCreate(parts[0], UriKind.Absolute, out Uri? url) && url.Scheme == Uri.UriSchemeHttps
            && url.UserInfo.Length == 0 && url.PathAndQuery == "/" && parts[1].Length == 64 && parts[1].All(char.IsAsciiHexDigit);
        if (!isGood)
            throw new FormatException("a witness is https://host:port#FINGERPRINT, the SHA-256 of its certificate in hex; its key is in the daemon's list");
        foreach (string line in listPath is null ? [] : File.ReadLines(listPath).Take(LinesLimit))
        {
            string[] words = line.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            if (words.Length == 2 && words[0].Equals(name, StringComparison.OrdinalIgnoreCase))
                return new WitnessAddress(parts[0], parts[1].ToLowerInvariant(), words[1]);
        }

        throw new FormatException($"this daemon knows no witness {name}: witnesses_file holds no line for it");
    }
}
