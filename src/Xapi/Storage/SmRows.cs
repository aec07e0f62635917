// SM rows: what kinds of SR this pool can have (research: storage.md 3.7). Written at each start from what was found.
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Storage;

/// <param name="Features">Name to version.</param>
/// <param name="FileName">The driver's program; "" when it is a folder of scripts.</param>
public sealed record SmKind(
    QueryResult Query, IReadOnlyDictionary<string, int> Features, string Copyright, string FileName, IReadOnlyList<string> ImageFormats)
{
    public static SmKind Of(SmDriver driver) => new(driver.Info, driver.Capabilities, driver.Copyright, driver.Path, driver.ImageFormats);

    /// <summary>A plugin does not say which version of a feature it has: the first.</summary>
    public static SmKind Of(QueryResult query) =>
        new(query, query.Features.Distinct().ToDictionary(static f => f, static _ => 1), "", "", []);
}

public static class SmRows
{
    private static readonly string[] KnownFormats = ["raw", "vhd", "qcow2"];

    /// <summary>One row for each type that was found; those of other types go, except where an SR still has that type.</summary>
    public static void Record(PoolDatabase database, IReadOnlyDictionary<string, SmKind> found) => database.Transaction(() =>
    {
        HashSet<string> used = [.. database.All("SR").Select(sr => database.GetString("SR", sr, "type"))];
        Dictionary<string, string> rows = [];
        foreach (string sm in database.All("SM"))
        {
            string type = database.GetString("SM", sm, "type");
            bool isWanted = found.ContainsKey(type) || used.Contains(type);
            if (!isWanted || !rows.TryAdd(type, sm))
                database.Destroy("SM", sm);
        }

        foreach ((string type, SmKind kind) in found)
            Write(database, rows.TryGetValue(type, out string? sm) ? sm : database.Create("SM", ("type", type)), kind);
    });

    private static void Write(PoolDatabase database, string sm, SmKind kind)
    {
        QueryResult query = kind.Query;
        (string Field, RpcValue Value)[] fields =
        [
            ("name_label", query.Name), ("name_description", query.Description), ("vendor", query.Vendor), ("copyright", kind.Copyright),
            ("version", query.Version), ("required_api_version", query.RequiredApiVersion),
            ("capabilities", RpcValue.Strings(kind.Features.Keys)),
            ("features", new RpcStruct(kind.Features.Select(static f => KeyValuePair.Create(f.Key, (RpcValue)new RpcInt(f.Value))).ToList())),
            ("configuration", RpcValue.Map(query.Configuration)),
            ("driver_filename", kind.FileName),
            ("supported_image_formats", RpcValue.Strings(kind.ImageFormats.Where(KnownFormats.Contains))),
        ];
        foreach ((string field, RpcValue value) in fields)
            database.Set("SM", sm, field, value);
    }
}
