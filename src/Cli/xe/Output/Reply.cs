using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Xe.Output;

/// <summary>What a verb answers: a text for people and scripts, and the same as JSON.</summary>
/// <param name="Text">Without the last end of line; "" prints nothing.</param>
internal sealed record Reply(string Text, JsonNode? Json)
{
    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>Done, and nothing more to say.</summary>
    public static Reply Nothing => new("", new JsonObject());

    public static Reply Of(string text) => new(text, text);

    public static Reply OfMany(IReadOnlyList<string> lines, bool isMinimal) =>
        new(string.Join(isMinimal ? "," : "\n", lines), new JsonArray([.. lines.Select(static l => (JsonNode?)l)]));

    /// <summary>A struct or a list of structs as "key: value" lines, and as it is.</summary>
    public static Reply OfNode(JsonNode? node) => new(Lines(node), node?.DeepClone());

    public static string JsonText(JsonNode? node) => node is null ? "null" : node.ToJsonString(Indented);

    private static string Lines(JsonNode? node) => node switch
    {
        JsonObject map when map.Count > 0 && map.All(static m => m.Value is JsonObject) =>
            string.Join("\n\n", map.Select(static m => $"{m.Key}\n{Indent(Lines(m.Value))}")),
        JsonObject map => string.Join("\n", map.Select(static m =>
            m.Value is JsonObject or JsonArray { Count: > 0 } and [JsonObject, ..] ? $"{m.Key}:\n{Indent(Lines(m.Value))}" : $"{m.Key}: {Objects.RecordView.Text(m.Value)}")),
        JsonArray items => string.Join(items is [JsonObject, ..] ? "\n\n" : "\n", items.Select(Lines)),
        _ => Objects.RecordView.Text(node),
    };

    private static string Indent(string lines) => "  " + lines.Replace("\n", "\n  ", StringComparison.Ordinal);
}
