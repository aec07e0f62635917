// One class's rows in memory, with its indexes: by reference, by uuid, and for each foreign key from its target to the rows that name it.
// Not thread-safe: PoolDatabase holds its lock around every call.
using Platform;
using StorageAccess.Wire;

namespace Xapi.Database;

internal sealed class Row(string reference, RpcValue[] values, long created)
{
    public string Ref { get; } = reference;

    /// <summary>By field index; the slot of a computed set stays empty.</summary>
    public RpcValue[] Values { get; } = values;

    /// <summary>The generation of its creation.</summary>
    public long Created { get; } = created;

    /// <summary>The generation of its last change, counting changes of its computed sets.</summary>
    public long Modified { get; set; } = created;
}

internal sealed class Table
{
    private readonly OrderedDictionary<string, Row> rows = [];
    private readonly Dictionary<string, string> byUuid = [];
    private readonly Dictionary<FieldModel, Dictionary<string, List<string>>> referrers = [];
    private readonly FieldModel uuid;

    public Table(ClassModel model)
    {
        Model = model;
        uuid = model.Field("uuid");
        ForeignKeys = model.Fields.Where(static f => f.Reverse is not null).ToList();
        foreach (FieldModel key in ForeignKeys)
            referrers[key] = [];
    }

    public ClassModel Model { get; }

    public IReadOnlyList<FieldModel> ForeignKeys { get; }

    public IEnumerable<Row> Rows => rows.Values;

    public Row? Find(string reference) => rows.GetValueOrDefault(reference);

    public string? FindByUuid(string value) => byUuid.GetValueOrDefault(value);

    /// <summary>The rows whose foreign key names the target, oldest link first.</summary>
    public IReadOnlyList<string> Referrers(FieldModel key, string target) => referrers[key].GetValueOrDefault(target) ?? [];

    public void Add(Row row)
    {
        rows.Add(row.Ref, row);
        byUuid.Add(row.Values[uuid.Index].AsString(), row.Ref);
        foreach (FieldModel key in ForeignKeys)
            Link(key, row);
    }

    public void Remove(Row row)
    {
        Invariant.Holds(rows.Remove(row.Ref), "a removed row was there");
        byUuid.Remove(row.Values[uuid.Index].AsString());
        foreach (FieldModel key in ForeignKeys)
            Unlink(key, row);
    }

    public void Replace(Row row, FieldModel field, RpcValue value)
    {
        bool isKey = field.Reverse is not null;
        if (field == uuid)
            byUuid.Remove(row.Values[uuid.Index].AsString());
        if (isKey)
            Unlink(field, row);
        row.Values[field.Index] = value;
        if (isKey)
            Link(field, row);
        if (field == uuid)
            byUuid.Add(value.AsString(), row.Ref);
    }

    /// <summary>The references that a value of a foreign key holds: one, or a set.</summary>
    public static IEnumerable<string> Targets(RpcValue value) =>
        (value is RpcArray set ? set.Items.Select(static v => v.AsString()).Distinct() : [value.AsString()])
            .Where(static r => !Ref.IsNull(r));

    private void Link(FieldModel key, Row row)
    {
        foreach (string target in Targets(row.Values[key.Index]))
        {
            if (!referrers[key].TryGetValue(target, out List<string>? list))
                referrers[key][target] = list = [];
            list.Add(row.Ref);
        }
    }

    private void Unlink(FieldModel key, Row row)
    {
        foreach (string target in Targets(row.Values[key.Index]))
        {
            List<string> list = referrers[key][target];
            list.Remove(row.Ref);
            if (list.Count == 0)
                referrers[key].Remove(target);
        }
    }
}
