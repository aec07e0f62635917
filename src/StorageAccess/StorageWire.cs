// SMAPIv2's nouns as JSON: field names, variants, optional fields and errors as research/storage.md 1.2, 1.3 and 1.4 give them. Names and
// tags are read without regard to case; a missing field takes the field's default.
using System.Globalization;
using System.Text.Json.Nodes;
using StorageAccess.Wire;

namespace StorageAccess;

internal static class StorageWire
{
    public static JsonObject Write(VdiInfo vdi)
    {
        JsonObject json = new()
        {
            ["vdi"] = vdi.Vdi.Value,
            ["content_id"] = vdi.ContentId,
            ["name_label"] = vdi.NameLabel,
            ["name_description"] = vdi.NameDescription,
            ["ty"] = vdi.Type,
            ["metadata_of_pool"] = "",
            ["is_a_snapshot"] = vdi.IsASnapshot,
            ["snapshot_time"] = vdi.SnapshotTime,
            ["snapshot_of"] = vdi.SnapshotOf,
            ["read_only"] = vdi.ReadOnly,
            ["cbt_enabled"] = vdi.CbtEnabled,
            ["virtual_size"] = vdi.VirtualSizeBytes,
            ["physical_utilisation"] = vdi.PhysicalUtilisationBytes,
            ["persistent"] = true,
            ["sharable"] = vdi.Sharable,
            ["sm_config"] = Write(vdi.SmConfig),
            ["tags"] = Strings(vdi.Tags),
        };
        if (vdi.Uuid.Length != 0)
            json["uuid"] = vdi.Uuid;
        return json;
    }

    public static VdiInfo ReadVdiInfo(JsonNode? node)
    {
        JsonObject json = Object(node, "vdi_info");
        return new VdiInfo
        {
            Vdi = new VdiId(Text(json, "vdi")),
            Uuid = Text(json, "uuid", ""),
            ContentId = Text(json, "content_id", ""),
            NameLabel = Text(json, "name_label", ""),
            NameDescription = Text(json, "name_description", ""),
            Type = Text(json, "ty", "user"),
            IsASnapshot = Flag(json, "is_a_snapshot", false),
            SnapshotTime = Text(json, "snapshot_time", "19700101T00:00:00Z"),
            SnapshotOf = Text(json, "snapshot_of", ""),
            ReadOnly = Flag(json, "read_only", false),
            VirtualSizeBytes = Number(json, "virtual_size", 0),
            PhysicalUtilisationBytes = Number(json, "physical_utilisation", 0),
            Sharable = Flag(json, "sharable", false),
            CbtEnabled = Flag(json, "cbt_enabled", false),
            Tags = Items(Find(json, "tags")).Select(TextOf).ToList(),
            SmConfig = Map(Find(json, "sm_config")),
        };
    }

    public static JsonObject Write(SrInfo sr)
    {
        JsonObject json = new()
        {
            ["name_label"] = sr.NameLabel,
            ["name_description"] = sr.NameDescription,
            ["total_space"] = sr.TotalSpaceBytes,
            ["free_space"] = sr.FreeSpaceBytes,
            ["clustered"] = sr.Clustered,
            ["health"] = sr.Health,
        };
        if (sr.Uuid.Length != 0)
            json["sr_uuid"] = sr.Uuid;
        return json;
    }

    public static SrInfo ReadSrInfo(JsonNode? node)
    {
        JsonObject json = Object(node, "sr_info");
        return new SrInfo(
            Text(json, "sr_uuid", ""), Text(json, "name_label", ""), Text(json, "name_description", ""), Number(json, "total_space", 0),
            Number(json, "free_space", 0), Flag(json, "clustered", false), Text(json, "health", "Healthy"));
    }

    public static JsonNode Write(ProbeResult probe) => probe switch
    {
        RawProbe raw => new JsonArray("Raw", raw.Xml),
        ProbeList list => new JsonArray("Probe", new JsonArray([.. list.Found.Select(Write)])),
        _ => throw new ArgumentOutOfRangeException(nameof(probe)),
    };

    private static JsonNode Write(ProbedSr found)
    {
        JsonObject json = new()
        {
            ["configuration"] = Write(found.Configuration),
            ["complete"] = found.Complete,
            ["extra_info"] = Write(found.ExtraInfo),
        };
        if (found.Sr is { } sr)
            json["sr"] = Write(sr);
        return json;
    }

    public static JsonObject Write(QueryResult query) => new()
    {
        ["driver"] = query.Driver,
        ["name"] = query.Name,
        ["description"] = query.Description,
        ["vendor"] = query.Vendor,
        ["copyright"] = "",
        ["version"] = query.Version,
        ["required_api_version"] = query.RequiredApiVersion,
        ["features"] = Strings(query.Features),
        ["configuration"] = Write(query.Configuration),
        ["required_cluster_stack"] = new JsonArray(),
        ["supported_image_formats"] = new JsonArray(),
        ["smapi_version"] = query.SmapiVersion,
    };

    public static QueryResult ReadQuery(JsonNode? node)
    {
        JsonObject json = Object(node, "query_result");
        return new QueryResult(
            Text(json, "driver"), Text(json, "name", ""), Text(json, "description", ""), Text(json, "vendor", ""),
            Text(json, "version", ""),
            Text(json, "required_api_version", ""), Items(Find(json, "features")).Select(TextOf).ToList(), Map(Find(json, "configuration")),
            Text(json, "smapi_version", "SMAPIv2"));
    }

    public static JsonObject Write(Backend backend) => new()
    {
        ["implementations"] = new JsonArray(backend.Implementations.Select(Write).ToArray()),
    };

    public static Backend ReadBackend(JsonNode? node) =>
        new(Items(Get(Object(node, "backend"), "implementations")).Select(ReadImplementation).ToList());

    public static JsonNode Write(VdiState state) =>
        state.Phase == VdiPhase.Detached
            ? JsonValue.Create("Detached")
            : new JsonArray(state.Phase.ToString(), state.Access == VdiAccess.ReadWrite ? "RW" : "RO");

    public static VdiState ReadState(JsonNode? node) => node switch
    {
        JsonArray { Count: 2 } pair when Enum.TryParse(TextOf(pair[0]), ignoreCase: true, out VdiPhase phase) =>
            new VdiState(phase, TextOf(pair[1]).Equals("RW", StringComparison.OrdinalIgnoreCase) ? VdiAccess.ReadWrite
                : VdiAccess.ReadOnly),
        _ => VdiState.Detached,
    };

    public static JsonArray Write(DataOperation operation) => new(operation.Kind, operation.Key);

    public static DataOperation ReadOperation(JsonNode? node) =>
        node is JsonArray { Count: 2 } pair ? new DataOperation(TextOf(pair[0]), TextOf(pair[1]))
        : throw new RpcFormatException("an operation must be a variant with a key");

    public static JsonObject Write(DataStatus status)
    {
        JsonObject json = new() { ["failed"] = status.HasFailed, ["complete"] = status.IsComplete };
        if (status.Progress is { } progress)
            json["progress"] = progress;
        return json;
    }

    public static DataStatus ReadDataStatus(JsonNode? node)
    {
        JsonObject json = Object(node, "status");
        double? progress = Find(json, "progress") is not { } said ? null
            : double.TryParse(TextOf(said), NumberStyles.Float, CultureInfo.InvariantCulture, out double value) ? value
            : throw new RpcFormatException("\"progress\" must be a number");
        return new DataStatus(Flag(json, "failed"), Flag(json, "complete"), progress);
    }

    /// <summary>A list of pairs, which travels as a dict.</summary>
    public static Dictionary<VdiId, VdiInfo> ReadVdiInfos(JsonNode? node) =>
        node is null ? [] : Object(node, "a dict").ToDictionary(static p => new VdiId(p.Key), static p => ReadVdiInfo(p.Value));

    public static JsonObject Write(IEnumerable<KeyValuePair<string, string>> map)
    {
        JsonObject json = [];
        foreach ((string name, string value) in map)
            json[name] = value;
        return json;
    }

    /// <summary>The variant that an exception travels as.</summary>
    public static JsonNode WriteError(Exception exception) => exception switch
    {
        StorageException { Transition: { } t } => new JsonArray("Illegal_transition", new JsonArray(Write(t.From), Write(t.To))),
        StorageException { Tag: "Does_not_exist", Parameters: [{ } kind, { } id] } => new JsonArray("Does_not_exist", new JsonArray(kind, id)),
        StorageException { Tag: "Content_ids_do_not_match", Parameters: [{ } one, { } other] } =>
            new JsonArray("Content_ids_do_not_match", new JsonArray(one, other)),
        StorageException { Tag: "Backend_error" } e => new JsonArray("Backend_error", new JsonArray(e.Code, Strings(e.Parameters))),
        StorageException e => new JsonArray(e.Tag, e.Parameters.Count == 0 ? "" : e.Parameters[0]),
        OperationCanceledException => new JsonArray("Cancelled", ""),
        _ => new JsonArray("Internal_error", exception.Message),
    };

    public static StorageException ReadError(JsonRpcException error)
    {
        JsonNode? payload = error.Payload;
        string text = payload is JsonValue ? TextOf(payload) : payload?.ToJsonString() ?? "";
        return error.Tag.ToLowerInvariant() switch
        {
            "backend_error" when payload is JsonArray { Count: 2 } pair =>
                new StorageException(TextOf(pair[0]), Items(pair[1]).Select(TextOf).ToList()),
            // The first parameter is the backtrace.
            "backend_error_with_backtrace" when payload is JsonArray { Count: 2 } pair =>
                new StorageException(TextOf(pair[0]), Items(pair[1]).Skip(1).Select(TextOf).ToList()),
            "sr_not_attached" => StorageException.SrNotAttached(new SrId(text)),
            "no_storage_plugin_for_sr" => StorageException.NoPluginForSr(new SrId(text)),
            "vdi_does_not_exist" => StorageException.VdiDoesNotExist(new VdiId(text)),
            "unimplemented" => StorageException.Unimplemented(text),
            "internal_error" => StorageException.Internal(text),
            "illegal_transition" when payload is JsonArray { Count: 2 } pair =>
                StorageException.IllegalTransition(ReadState(pair[0]), ReadState(pair[1]), "the storage access layer refused it"),
            _ => StorageException.FromWire(error.Tag, "INTERNAL_ERROR", [$"{error.Tag} {text}".TrimEnd()]),
        };
    }

    public static JsonNode? Find(JsonObject json, string name)
    {
        if (json.TryGetPropertyValue(name, out JsonNode? exact))
            return exact;
        foreach ((string key, JsonNode? value) in json)
        {
            if (key.Equals(name, StringComparison.OrdinalIgnoreCase))
                return value;
        }

        return null;
    }

    public static JsonNode Get(JsonObject json, string name) =>
        Find(json, name) ?? throw new RpcFormatException($"the member \"{name}\" is missing");

    public static string Text(JsonObject json, string name) => TextOf(Get(json, name));

    public static string Text(JsonObject json, string name, string fallback) => Find(json, name) is { } node ? TextOf(node) : fallback;

    public static bool Flag(JsonObject json, string name) => FlagOf(Get(json, name), name);

    public static bool Flag(JsonObject json, string name, bool fallback) => Find(json, name) is { } node ? FlagOf(node, name) : fallback;

    public static long Number(JsonObject json, string name) => NumberOf(Get(json, name), name);

    public static long Number(JsonObject json, string name, long fallback) =>
        Find(json, name) is { } node ? NumberOf(node, name) : fallback;

    public static Dictionary<string, string> Map(JsonNode? node) =>
        node is null ? [] : Object(node, "a dict").ToDictionary(static p => p.Key, static p => TextOf(p.Value));

    public static JsonArray Items(JsonNode? node) => node switch
    {
        null => [],
        JsonArray array => array,
        _ => throw new RpcFormatException("an array was expected"),
    };

    public static string TextOf(JsonNode? node)
    {
        try
        {
            return node switch
            {
                JsonValue value => value.ToString(),
                null => "",
                _ => throw new RpcFormatException("a string was expected"),
            };
        }
        catch (InvalidOperationException) // System.Text.Json looks at escapes only now.
        {
            throw new RpcFormatException("a string holds half of a surrogate pair");
        }
    }

    public static JsonArray Strings(IEnumerable<string> items) => new(items.Select(static s => (JsonNode)JsonValue.Create(s)).ToArray());

    private static JsonObject Object(JsonNode? node, string what) =>
        node as JsonObject ?? throw new RpcFormatException($"{what} must be a dict");

    private static JsonNode Write(Implementation implementation) => implementation switch
    {
        XenDisk disk => new JsonArray(
            "XenDisk", new JsonObject { ["params"] = disk.Params, ["extra"] = Write(disk.Extra), ["backend_type"] = disk.BackendType }),
        BlockDevicePath device => new JsonArray("BlockDevice", new JsonObject { ["path"] = device.Path }),
        FilePath file => new JsonArray("File", new JsonObject { ["path"] = file.Path }),
        NbdImplementation nbd => new JsonArray("Nbd", new JsonObject { ["uri"] = nbd.Uri }),
        _ => throw new ArgumentOutOfRangeException(nameof(implementation)),
    };

    private static Implementation ReadImplementation(JsonNode? node)
    {
        if (node is not JsonArray { Count: 2 } pair || pair[1] is not JsonObject json)
            throw new RpcFormatException("an implementation must be a variant with a dict");
        return TextOf(pair[0]).ToLowerInvariant() switch
        {
            "xendisk" => new XenDisk(Text(json, "params"), Map(Find(json, "extra")), Text(json, "backend_type", "vbd3")),
            "blockdevice" => new BlockDevicePath(Text(json, "path")),
            "file" => new FilePath(Text(json, "path")),
            "nbd" => new NbdImplementation(Text(json, "uri")),
            string other => throw new RpcFormatException($"\"{other}\" is not an implementation"),
        };
    }

    private static bool FlagOf(JsonNode node, string name) =>
        bool.TryParse(TextOf(node), out bool value) ? value : throw new RpcFormatException($"\"{name}\" must be a boolean");

    private static long NumberOf(JsonNode node, string name) =>
        long.TryParse(TextOf(node), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out long value)
            ? value
            : throw new RpcFormatException($"\"{name}\" must be an integer");
}
