// From what people type to the pool's reference: a uuid, or a name that one object has.
using System.Text.Json.Nodes;
using Xe.Api;
using Xe.Grammar;

namespace Xe.Objects;

internal static class Selector
{
    /// <summary>The object that a uuid or a unique name stands for.</summary>
    /// <exception cref="XeException">1: there is no such object, or more than one of that name.</exception>
    public static async Task<string> FindAsync(PoolClient pool, ObjectClass type, string uuidOrName, CancellationToken cancellationToken)
    {
        if (Guid.TryParse(uuidOrName, out _))
            return await pool.TextAsync($"{type.Wire}.get_by_uuid", cancellationToken, uuidOrName);
        JsonArray found = await pool.CallAsync($"{type.Wire}.get_by_name_label", cancellationToken, uuidOrName) as JsonArray ?? [];
        return found.Count switch
        {
            1 => PoolClient.Text(found[0]),
            0 => throw XeException.Refused(["UUID_INVALID", type.Wire, uuidOrName], $"no {type.Name} of {pool.Name} has that uuid or name"),
            _ => throw XeException.Refused(
                ["NOT_UNIQUE", type.Wire, uuidOrName], $"{found.Count} objects of class {type.Name} are named \"{uuidOrName}\"; give the uuid instead"),
        };
    }

    /// <summary>One object by its uuid alone.</summary>
    public static Task<string> ByUuidAsync(PoolClient pool, ObjectClass type, string uuid, CancellationToken cancellationToken) =>
        pool.TextAsync($"{type.Wire}.get_by_uuid", cancellationToken, uuid);

    /// <summary>
    /// The VMs that uuid=, vm= or filters name (research: xapi.md 10). More than one only with --multiple, or all of them with --all.
    /// </summary>
    public static async Task<IReadOnlyList<string>> VmsAsync(PoolClient pool, Arguments arguments, CancellationToken cancellationToken)
    {
        if (arguments.Find("uuid", "vm", "vm-uuid", "vm-name") is { } named)
            return [await FindAsync(pool, ObjectClass.Of("vm"), named, cancellationToken)];
        string[] own = ["multiple", "all", "force", "paused"];
        List<KeyValuePair<string, string>> filters = [.. arguments.All.Where(k => !own.Contains(k.Key))];
        if (filters.Count == 0 && !arguments.Is("all"))
            throw XeException.BadCommandLine("which VM? Give vm=NAME or uuid=UUID, or filters with --multiple");
        RefNames names = new(pool);
        List<RecordView> found =
        [
            .. Filter(await RecordView.AllAsync(pool, ObjectClass.Of("vm"), names, cancellationToken), filters)
                .Where(static v => v.Record["is_control_domain"] is JsonValue flag && !(bool)flag),
        ];
        if (found.Count == 0)
            throw XeException.Refused(["UUID_INVALID", "VM", string.Join(' ', filters.Select(static f => $"{f.Key}={f.Value}"))], "no VM matches");
        return found.Count == 1 || arguments.Is("multiple") || arguments.Is("all")
            ? [.. found.Select(static v => v.Reference)]
            : throw XeException.Refused(["NOT_UNIQUE", "VM"], $"{found.Count} VMs match; say --multiple when all of them are meant");
    }

    /// <summary>Those whose parameters have the values; <c>other-config:key=value</c> looks into a map.</summary>
    public static IEnumerable<RecordView> Filter(IEnumerable<RecordView> views, IReadOnlyList<KeyValuePair<string, string>> filters) =>
        views.Where(view => filters.All(filter => Matches(view, filter.Key, filter.Value)));

    private static bool Matches(RecordView view, string key, string wanted)
    {
        int colon = key.IndexOf(':', StringComparison.Ordinal);
        if (colon < 0)
            return string.Equals(view.TextOf(key), wanted, key.EndsWith("state", StringComparison.Ordinal) ? StringComparison.OrdinalIgnoreCase : StringComparison.Ordinal);
        return view.Value(key[..colon]) is JsonObject map && map[key[(colon + 1)..]] is { } value && RecordView.Text(value) == wanted;
    }
}
