// The control messages between two pools: POST /services/migration over TLS, JSON both ways, the token's secret as bearer (never in a URL). Every verb may be
// asked again and answers the same. Data (disks, memory) never travels here (docs/formats/migration-protocol.md).
using System.Text.Json;
using System.Text.Json.Nodes;
using Migration;

namespace Xapi.Migration;

/// <summary>What the source wants to know before it begins: nothing is made by asking.</summary>
/// <param name="Networks">One for each VIF; an earlier source does not send it.</param>
/// <param name="Version">What the source speaks; 1 is what did not say it yet.</param>
public sealed record PlanQuestion(
    string Vm, string VmName, IReadOnlyList<DiskPlan> Disks, long MemoryBytes, string SourceFingerprint, IReadOnlyList<NetworkWish>? Networks = null,
    int Version = 1);

/// <param name="Vif">The source's reference.</param>
/// <param name="DestinationNetwork">The destination's reference; empty: one of the same name is looked for.</param>
public sealed record NetworkWish(string Vif, string Device, string NetworkName, string DestinationNetwork);

/// <param name="Storages">The destination storage for each disk, by device, in the words of the destination.</param>
public sealed record PlanAnswer(IReadOnlyDictionary<string, string> Storages, string Host)
{
    /// <summary>Everything in the way here, errors and warnings; a disk whose storage is not known has no entry in <see cref="Storages"/>.</summary>
    public IReadOnlyList<Obstacle> Obstacles { get; init; } = [];

    public int Version { get; init; } = 1;

    /// <summary>The destination's clock.</summary>
    public DateTimeOffset? At { get; init; }

    public DateTimeOffset? TokenExpiresAt { get; init; }
}

/// <param name="Attempt">The source's, from 0: each gets connections of its own.</param>
public sealed record PrepareRequest(MigrationPlan Plan, int Attempt);

public sealed record RangeRequest(string Device, DigestRange Range);

public sealed record GrantRequest(long Epoch, ContentDigests Digests);

public static class PeerProtocol
{
    public const string Path = "/services/migration";

    public const int BodyLimitBytes = 4 * 1024 * 1024;

    /// <summary>Grows when one side can no longer understand the other.</summary>
    public const int Version = 1;

    public static string Request(string verb, string migration, JsonNode? body) =>
        new JsonObject { ["verb"] = verb, ["migration"] = migration, ["body"] = body }.ToJsonString();

    public static string Result(JsonNode? result) => new JsonObject { ["result"] = result }.ToJsonString();

    public static string Error(MigrationFailure failure) =>
        new JsonObject { ["error"] = JsonSerializer.SerializeToNode(failure, MigrationJson.Options) }.ToJsonString();

    public static JsonNode? Node<T>(T value) => JsonSerializer.SerializeToNode(value, MigrationJson.Options);

    public static T Read<T>(JsonNode? node) =>
        node.Deserialize<T>(MigrationJson.Options) ?? throw new JsonException($"a {typeof(T).Name} was expected");
}
