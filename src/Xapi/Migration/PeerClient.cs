// The destination, as the source calls it.
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Migration;
using Platform;

namespace Xapi.Migration;

public interface IClosablePeer : IPeer, IDisposable;

/// <summary>What can be asked of a destination before anything is begun; it makes nothing there.</summary>
public interface IPlanPeer : IDisposable
{
    Task<PlanAnswer> PlanAsync(PlanQuestion question, CancellationToken cancellationToken);

    /// <summary>The least that goes there and back.</summary>
    Task PingAsync(CancellationToken cancellationToken);

    /// <param name="payload">Thrown away there; ASCII, so as many bytes as characters.</param>
    Task ProbeLinkAsync(string payload, CancellationToken cancellationToken);

    /// <summary>The token, for a source that waits for its turn. Returns the new expiry.</summary>
    Task<DateTimeOffset> RenewAsync(CancellationToken cancellationToken);
}

/// <summary>One migration's control channel. The peer is known by its certificate's fingerprint from the token, by nothing else.</summary>
public sealed class PeerClient : IClosablePeer, IPlanPeer
{
    private static readonly TimeSpan ConnectLimit = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan Deadline = TimeSpan.FromMinutes(5);
    private readonly MigrationToken token;
    private readonly HttpClient http;

    public PeerClient(MigrationToken token)
    {
        this.token = token;
        http = PinnedHttp.Create(token.Destination.Url, token.Destination.FingerprintSha256, token.Secret, ConnectLimit, Deadline);
    }

    public Task<PlanAnswer> PlanAsync(PlanQuestion question, CancellationToken cancellationToken) =>
        CallAsync<PlanAnswer>("plan", PeerProtocol.Node(question), cancellationToken);

    public Task PingAsync(CancellationToken cancellationToken) => CallAsync("ping", null, cancellationToken);

    public Task ProbeLinkAsync(string payload, CancellationToken cancellationToken) =>
        CallAsync("probe_link", JsonValue.Create(payload), cancellationToken);

    public Task<DateTimeOffset> RenewAsync(CancellationToken cancellationToken) => CallAsync<DateTimeOffset>("renew", null, cancellationToken);

    public Task<PreparedDestination> PrepareAsync(MigrationPlan plan, int attempt, CancellationToken cancellationToken) =>
        CallAsync<PreparedDestination>("prepare", PeerProtocol.Node(new PrepareRequest(plan, attempt)), cancellationToken);

    public Task HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken) => CallAsync("heartbeat", null, cancellationToken);

    public async Task<IReadOnlyList<DiskDigest>> DigestAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        await CallAsync<DiskDigest[]>("digest", null, cancellationToken);

    public Task<string> RangeDigestAsync(MigrationPlan plan, string device, DigestRange range, CancellationToken cancellationToken) =>
        CallAsync<string>("digest_range", PeerProtocol.Node(new RangeRequest(device, range)), cancellationToken);

    public Task ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken) => CallAsync("probe", null, cancellationToken);

    public Task<ContentDigests> LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
        CallAsync<ContentDigests>("loaded", null, cancellationToken);

    public Task<GrantAnswer> GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken) =>
        CallAsync<GrantAnswer>("grant", PeerProtocol.Node(new GrantRequest(epoch, digests)), cancellationToken);

    public Task AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken) =>
        CallAsync("abort", JsonValue.Create(reason), cancellationToken);

    public Task ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken) =>
        CallAsync("confirm", PeerProtocol.Node(receipt), cancellationToken);

    public Task RelinquishAsync(MigrationPlan plan, long epoch, CancellationToken cancellationToken) =>
        CallAsync("relinquish", JsonValue.Create(epoch), cancellationToken);

    public void Dispose() => http.Dispose();

    private async Task<T> CallAsync<T>(string verb, JsonNode? body, CancellationToken cancellationToken) =>
        PeerProtocol.Read<T>(await CallAsync(verb, body, cancellationToken));

    private async Task<JsonNode?> CallAsync(string verb, JsonNode? body, CancellationToken cancellationToken)
    {
        try
        {
            using StringContent content = new(PeerProtocol.Request(verb, token.Migration, body), Encoding.UTF8, "application/json");
            using HttpResponseMessage response = await http.PostAsync(new Uri(PeerProtocol.Path, UriKind.Relative), content, cancellationToken);
            string text = await response.Content.ReadAsStringAsync(cancellationToken);
            if (!response.IsSuccessStatusCode)
                throw new IOException($"{token.Destination.Url} answered {(int)response.StatusCode} to {verb}");
            JsonObject answer = JsonNode.Parse(text)?.AsObject() ?? throw new IOException($"{token.Destination.Url} answered null to {verb}");
            if (answer["error"] is { } error)
                throw PeerProtocol.Read<MigrationFailure>(error).ToException();
            return answer["result"]?.DeepClone();
        }
        catch (HttpRequestException e)
        {
            throw new IOException($"the destination {token.Destination.Url} cannot be reached for {verb}: {Innermost(e)}", e);
        }
        catch (TaskCanceledException e) when (!cancellationToken.IsCancellationRequested)
        {
            throw new IOException($"the destination {token.Destination.Url} did not answer {verb} within {Deadline.TotalSeconds:0} s", e);
        }
        catch (JsonException e)
        {
            throw new IOException($"the destination {token.Destination.Url} answered {verb} with something that is not understood: {e.Message}", e);
        }
    }

    private static string Innermost(Exception e) => e.InnerException is { } inner ? Innermost(inner) : e.Message;
}
