// One object as xe shows it: parameters in the field's spelling, references as uuids. Values stay structured for --json and become the
// field's texts for people: sets joined by "; ", maps as "key: value; key: value".
using System.Globalization;
using System.Text.Json.Nodes;
using Xe.Api;
using Xe.Grammar;

namespace Xe.Objects;

internal sealed class RecordView(ObjectClass type, string reference, JsonObject record, RefNames names)
{
    private const string NameSuffix = "-name-label";

    public string Reference => reference;

    public JsonObject Record => record;

    /// <summary>Every object of the class that the verb is about.</summary>
    public static async Task<List<RecordView>> AllAsync(PoolClient pool, ObjectClass type, RefNames names, CancellationToken cancellationToken)
    {
        await names.LoadAsync(type.Wire, cancellationToken);
        return
        [
            .. names.Records(type.Wire)
                .Where(m => m.Value is JsonObject record && (type.Only is null || type.Only(record)))
                .Select(m => new RecordView(type, m.Key, (JsonObject)m.Value!, names)),
        ];
    }

    /// <summary>Asks the pool for what the parameters refer to.</summary>
    public async Task LoadNamesAsync(IEnumerable<string> parameters, CancellationToken cancellationToken)
    {
        foreach (string parameter in parameters)
        {
            (string? field, _) = Find(parameter);
            if (field is not null && type.ReferenceClass(field) is { } wireClass)
                await names.LoadAsync(wireClass, cancellationToken);
        }
    }

    /// <summary>All parameters: uuid first, then in the alphabet's order.</summary>
    public IReadOnlyList<string> Parameters =>
    [
        "uuid",
        .. record.Select(static m => m.Key).Where(f => f != "uuid" && ObjectClass.IsShown(f)).Select(type.ParamOf).Order(StringComparer.OrdinalIgnoreCase),
    ];

    public bool Has(string parameter) => Find(parameter).Field is not null;

    /// <exception cref="XeException">2: the class has no such parameter.</exception>
    public string FieldOf(string parameter) => Find(parameter).Field
        ?? throw XeException.BadCommandLine($"a {type.Name} has no parameter {parameter}"
            + (Arguments.Nearest(parameter, Parameters) is { } near ? $"; {near} was probably meant" : ""));

    public JsonNode? Value(string parameter)
    {
        (string? found, bool isName) = Find(parameter);
        string field = found ?? FieldOf(parameter);
        JsonNode? value = record[field];
        if (type.ReferenceClass(field) is not { } wireClass)
            return field == "power_state" ? ((string?)value)?.ToLowerInvariant() : value?.DeepClone();
        return value is JsonArray many
            ? new JsonArray([.. many.Select(v => (JsonNode?)names.UuidOf(wireClass, (string)v!))])
            : isName ? names.NameOf(wireClass, (string)value!) : names.UuidOf(wireClass, (string)value!);
    }

    public string TextOf(string parameter) => Text(Value(parameter));

    public static string Text(JsonNode? value) => value switch
    {
        null => "",
        JsonArray set => string.Join("; ", set.Select(Text)),
        JsonObject map => string.Join("; ", map.Select(static m => $"{m.Key}: {Text(m.Value)}")),
        JsonValue v when v.TryGetValue(out bool flag) => flag ? "true" : "false",
        JsonValue v when v.TryGetValue(out double number) => number.ToString("0.000", CultureInfo.InvariantCulture),
        _ => (string)value!,
    };

    /// <summary>vm-name-label of a VBD is the name of what its VM refers to.</summary>
    private (string? Field, bool IsName) Find(string parameter)
    {
        if (type.FieldOf(record, parameter) is { } field)
            return (field, false);
        bool isName = parameter.EndsWith(NameSuffix, StringComparison.OrdinalIgnoreCase);
        string? referring = isName ? type.FieldOf(record, parameter[..^NameSuffix.Length]) : null;
        return referring is not null && record[referring] is JsonValue && type.ReferenceClass(referring) is not null ? (referring, true) : (null, false);
    }
}
