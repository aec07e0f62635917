// A SMAPIv3 volume and what SMAPIv2 makes of it: the custom keys under which another toolstack finds the rest (research/storage.md 5.4,
// 5.5).
using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV3Bridge;

internal sealed record Volume(VdiInfo Info, IReadOnlyList<string> Uris, IReadOnlyDictionary<string, string> Keys)
{
    public const string TypeKey = "vdi-type";
    public const string ContentIdKey = "content_id";
    public const string SnapshotTimeKey = "snapshot_time";
    public const string IsASnapshotKey = "is_a_snapshot";
    public const string SnapshotOfKey = "snapshot_of";
    public const string CloneOnBootKey = "clone-on-boot";
    public const string TagPrefix = "tags"; // No separator follows, and the value is the name again.
    public const string SmConfigPrefix = "_sm_config_";

    /// <exception cref="RpcFormatException">Not a volume.</exception>
    public static Volume Read(JsonNode? node)
    {
        JsonObject json = node as JsonObject ?? throw new RpcFormatException("a volume must be a dict");
        Dictionary<string, string> keys = StorageWire.Map(StorageWire.Find(json, "keys"));
        VdiInfo info = new()
        {
            Vdi = new VdiId(StorageWire.Text(json, "key")),
            Uuid = StorageWire.Text(json, "uuid", ""),
            ContentId = keys.GetValueOrDefault(ContentIdKey, ""),
            NameLabel = StorageWire.Text(json, "name", ""),
            NameDescription = StorageWire.Text(json, "description", ""),
            Type = keys.GetValueOrDefault(TypeKey) is { Length: > 0 } type ? type : "user",
            IsASnapshot = keys.GetValueOrDefault(IsASnapshotKey) == "true",
            SnapshotTime = keys.GetValueOrDefault(SnapshotTimeKey, "19700101T00:00:00Z"),
            SnapshotOf = keys.GetValueOrDefault(SnapshotOfKey, ""),
            ReadOnly = !StorageWire.Flag(json, "read_write", true),
            Sharable = StorageWire.Flag(json, "sharable", false),
            VirtualSizeBytes = StorageWire.Number(json, "virtual_size"),
            PhysicalUtilisationBytes = StorageWire.Number(json, "physical_utilisation", 0),
            CbtEnabled = StorageWire.Flag(json, "cbt_enabled", false),
            Tags = keys.Where(static k => k.Key.StartsWith(TagPrefix, StringComparison.Ordinal) && k.Key == TagPrefix + k.Value)
                .Select(static k => k.Value).Order(StringComparer.Ordinal).ToList(),
            SmConfig = keys.Where(static k => k.Key.StartsWith(SmConfigPrefix, StringComparison.Ordinal))
                .ToDictionary(static k => k.Key[SmConfigPrefix.Length..], static k => k.Value),
        };
        return new Volume(info, StorageWire.Items(StorageWire.Get(json, "uri")).Select(StorageWire.TextOf).ToList(), keys);
    }
}
