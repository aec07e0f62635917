using System.Text.Json.Nodes;
using Xe.Api;

namespace Xe.Objects;

/// <summary>What references stand for: people and scripts deal in uuids. A class is asked for once, when one of its objects is named.</summary>
internal sealed class RefNames(PoolClient pool)
{
    private readonly Dictionary<string, JsonObject> classes = [];

    public async Task LoadAsync(string wireClass, CancellationToken cancellationToken)
    {
        if (!classes.ContainsKey(wireClass))
            classes[wireClass] = await pool.RecordsAsync(wireClass, cancellationToken);
    }

    /// <summary>The records of a class that was loaded.</summary>
    public JsonObject Records(string wireClass) => classes[wireClass];

    public string UuidOf(string wireClass, string reference) => Member(wireClass, reference, "uuid");

    public string NameOf(string wireClass, string reference) => Member(wireClass, reference, "name_label");

    private string Member(string wireClass, string reference, string member) =>
        (string?)(classes.GetValueOrDefault(wireClass)?[reference] as JsonObject)?[member] ?? "<not in database>";
}
