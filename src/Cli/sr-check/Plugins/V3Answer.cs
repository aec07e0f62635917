// The shapes of SMAPIv3's answers (research/storage.md 5.2, 5.4), read without mercy.
using System.Text.Json;
using System.Text.Json.Nodes;

namespace SrCheck.Plugins;

internal static class V3Answer
{
    private const string NumberedCode = "SR_BACKEND_FAILURE_";
    private static readonly JsonDocumentOptions Limits = new() { MaxDepth = 64, AllowDuplicateProperties = false };

    /// <summary>The value on stdout of a call that succeeded.</summary>
    public static JsonNode? Read(string script, PluginCall call)
    {
        if (call.NoAnswer is { } why)
            throw new PluginBrokenException(script, why);
        if (call.ExitCode > 128)
            throw new PluginBrokenException(script, $"it was ended by signal {call.ExitCode - 128}");
        JsonNode? answer;
        try
        {
            answer = JsonNode.Parse(call.StandardOutput, documentOptions: Limits);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            string said = call.StandardError.Length == 0 ? "" : $"; stderr: {PluginCall.Cut(call.StandardError.ReplaceLineEndings(" "))}";
            throw new PluginBrokenException(
                script, $"exit {call.ExitCode}, and stdout is not one JSON value ({e.Message}): \"{call.Shown}\"{said}");
        }

        if (call.ExitCode != 0)
            throw Refusal(script, call, answer);
        if (answer is JsonObject error && error.ContainsKey("code") && error.ContainsKey("params"))
            throw new PluginBrokenException(script, $"an error with exit 0, which counts as success: {call.Shown}");
        return answer;
    }

    public static void Nothing(string script, JsonNode? answer)
    {
        if (answer is not null)
            throw new PluginBrokenException(script, $"the answer must be null, not {PluginCall.Cut(answer.ToJsonString())}");
    }

    public static JsonObject Dict(string script, JsonNode? answer) =>
        answer as JsonObject ?? throw Wrong(script, "the answer", "a dict", answer);

    public static JsonArray Array(string script, JsonNode? answer) =>
        answer as JsonArray ?? throw Wrong(script, "the answer", "a list", answer);

    public static string Text(string script, JsonObject dict, string name) =>
        dict[name] is JsonValue value && value.TryGetValue(out string? text) ? text : throw Wrong(script, name, "a string", dict[name]);

    public static IReadOnlyList<string> Texts(string script, JsonObject dict, string name)
    {
        JsonArray list = dict[name] as JsonArray ?? throw Wrong(script, name, "a list of strings", dict[name]);
        return [.. list.Select(item => item is JsonValue value && value.TryGetValue(out string? text)
            ? text : throw Wrong(script, name, "a list of strings", list))];
    }

    public static Dictionary<string, string> Map(string script, JsonObject dict, string name)
    {
        JsonObject map = dict[name] as JsonObject ?? throw Wrong(script, name, "a dict of strings", dict[name]);
        return map.ToDictionary(static p => p.Key, p => Text(script, map, p.Key));
    }

    public static Volume Volume(string script, JsonNode? answer)
    {
        JsonObject volume = Dict(script, answer);
        Flag(script, volume, "read_write");
        Flag(script, volume, "sharable");
        IReadOnlyList<string> uris = Texts(script, volume, "uri");
        if (uris.Count == 0 || uris.Any(static u => !u.Contains("://", StringComparison.Ordinal)))
            throw Wrong(script, "uri", "a list of URIs, at least one", volume["uri"]);
        return new Volume(
            Text(script, volume, "key"), volume["uuid"] is null ? "" : Text(script, volume, "uuid"), Text(script, volume, "name"),
            Text(script, volume, "description"), Size(script, volume, "virtual_size"), Size(script, volume, "physical_utilisation"),
            uris[0], Map(script, volume, "keys"));
    }

    public static SrSpace SrStat(string script, JsonNode? answer)
    {
        JsonObject stat = Dict(script, answer);
        Text(script, stat, "sr");
        Text(script, stat, "description");
        Texts(script, stat, "datasources");
        Flag(script, stat, "clustered");
        IReadOnlyList<string> health = Texts(script, stat, "health");
        if (health.Count != 2 || health[0] is not ("Healthy" or "Recovering" or "Unreachable" or "Unavailable"))
            throw Wrong(script, "health", "[\"Healthy\"|\"Recovering\"|\"Unreachable\"|\"Unavailable\", text]", stat["health"]);
        return new SrSpace(
            Size(script, stat, "total_space"), Size(script, stat, "free_space"), Text(script, stat, "name"), health[0]);
    }

    public static IReadOnlyList<string> Probe(JsonNode? answer)
    {
        const string script = "SR.probe";
        List<string> found = [];
        foreach (JsonNode? item in Array(script, answer))
        {
            JsonObject entry = Dict(script, item);
            Dictionary<string, string> configuration = Map(script, entry, "configuration");
            bool isComplete = Flag(script, entry, "complete");
            Map(script, entry, "extra_info");
            bool hasUuid = configuration.TryGetValue("sr_uuid", out string? uuid);
            if (hasUuid && !isComplete)
                throw new PluginBrokenException(script, $"the entry with sr_uuid {uuid} is not complete");
            if (entry["sr"] is { } stat)
                SrStat(script, stat);
            if (entry["sr"] is not null && !hasUuid)
                throw new PluginBrokenException(script, "an entry with \"sr\" has no sr_uuid in its configuration");
            if (hasUuid)
                found.Add(uuid!);
        }

        return found;
    }

    public static IReadOnlyList<Access> Implementations(JsonNode? answer)
    {
        const string script = "Datapath.attach";
        JsonObject dict = Dict(script, answer);
        JsonArray list = dict["implementations"] as JsonArray
            ?? throw Wrong(script, "implementations", "a list", dict["implementations"]);
        List<Access> accesses = [];
        foreach (JsonNode? item in list)
        {
            if (item is not JsonArray { Count: 2 } pair || pair[0] is not JsonValue tag || pair[1] is not JsonObject members)
                throw Wrong(script, "implementations", "a list of [kind, dict]", item);
            switch (tag.ToString())
            {
                case "Nbd":
                    accesses.Add(new Access(AccessKind.Nbd, Text(script, members, "uri")));
                    break;
                case "File":
                    accesses.Add(new Access(AccessKind.File, Text(script, members, "path")));
                    break;
                case "BlockDevice":
                    accesses.Add(new Access(AccessKind.BlockDevice, Text(script, members, "path")));
                    break;
                case "XenDisk":
                    Text(script, members, "params");
                    Text(script, members, "backend_type");
                    break;
                default:
                    throw Wrong(script, "implementations", "XenDisk, BlockDevice, File or Nbd", tag);
            }
        }

        return accesses;
    }

    private static bool Flag(string script, JsonObject dict, string name) =>
        dict[name] is JsonValue value && value.TryGetValue(out bool flag) ? flag : throw Wrong(script, name, "true or false", dict[name]);

    private static long Size(string script, JsonObject dict, string name) =>
        dict[name] is JsonValue value && value.TryGetValue(out long size) && size >= 0
            ? size
            : throw Wrong(script, name, "a number of bytes", dict[name]);

    private static Exception Refusal(string script, PluginCall call, JsonNode? answer)
    {
        if (answer is not JsonObject error || error["code"] is not JsonValue codeValue || !codeValue.TryGetValue(out string? code)
            || error["params"] is not JsonArray parameters)
            return new PluginBrokenException(
                script, $"exit {call.ExitCode} with something that is no error {{code, params}}: \"{call.Shown}\"");
        if (parameters.Any(static p => p is not JsonValue value || !value.TryGetValue(out string? _)))
            return new PluginBrokenException(script, $"an error's params must be strings: {call.Shown}");
        int? number = code switch
        {
            "Volume_does_not_exist" => 144,
            "Unimplemented" => 38,
            "SR_does_not_exist" or "Sr_not_attached" => 47,
            _ when code.StartsWith(NumberedCode, StringComparison.Ordinal) =>
                int.TryParse(code[NumberedCode.Length..], out int n)
                    ? n
                    : throw new PluginBrokenException(script, $"\"{code}\" has text where an error number belongs"),
            _ => null,
        };
        return new PluginRefusalException(script, code, number, string.Join("; ", parameters.Select(static p => p!.ToString())));
    }

    private static PluginBrokenException Wrong(string script, string what, string kind, JsonNode? found) =>
        new(script, $"{what} must be {kind}, not {PluginCall.Cut(found?.ToJsonString() ?? "null")}");
}
