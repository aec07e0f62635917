using System.Globalization;
using System.Text.Json.Nodes;

namespace VhdFile;

/// <summary>An error as the script prints it.</summary>
internal sealed class ScriptException(string code, params IReadOnlyList<string> parameters) : Exception(code)
{
    public string Code { get; } = code;

    public IReadOnlyList<string> Parameters { get; } = parameters;
}

/// <summary>The named parameters; unknown ones are ignored.</summary>
internal sealed class Parameters(JsonObject json)
{
    public string Text(string name) =>
        json[name] is JsonValue value ? value.ToString() : throw Missing(name, "a string");

    public long Number(string name) =>
        long.TryParse(json[name]?.ToString(), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out long value)
            ? value
            : throw Missing(name, "an integer");

    public IReadOnlyDictionary<string, string> Map(string name) =>
        json[name] is JsonObject map
            ? map.ToDictionary(static p => p.Key, static p => p.Value?.ToString() ?? "")
            : throw Missing(name, "a dict");

    private static ScriptException Missing(string name, string kind) => new("SR_BACKEND_FAILURE", "bad request", $"\"{name}\" must be {kind}");
}
