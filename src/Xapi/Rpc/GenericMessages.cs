// The messages that the model makes for every class: getters and setters of fields, get_all and its relatives, and constructors and
// destructors of classes that are nothing but a row (research: xapi.md 1.5).
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Rpc;

public static class GenericMessages
{
    /// <summary>A VDI is more than its row: only the storage layer makes and removes one.</summary>
    private static readonly string[] NotJustRows = ["VDI"];

    public static void AddTo(MessageTable messages, DataModel model)
    {
        foreach (ClassModel c in model.Classes.Where(static c => c.IsInDatabase))
        {
            foreach (MessageModel message in c.Messages)
            {
                Func<CallContext, IReadOnlyList<RpcValue>, RpcValue>? handler = message.Kind switch
                {
                    MessageKind.Field => ForField(c, message.Name),
                    MessageKind.Object => ForObject(c, message.Name),
                    _ => null,
                };
                if (handler is not null && !message.IsRemoved)
                    messages.Add(message.WireName, handler);
            }
        }
    }

    /// <summary>
    /// set_F, add_to_F, remove_from_F, add_F, remove_F and get_F by name; null when the class has no such field. Also for custom messages
    /// whose whole effect is the row.
    /// </summary>
    public static Func<CallContext, IReadOnlyList<RpcValue>, RpcValue>? ForField(ClassModel c, string message)
    {
        if (FieldOf("get_") is { } read)
            return (context, a) => context.Database.Get(c.Name, Self(a), read);
        if (FieldOf("set_") is { } set)
            return Void((database, a) => database.Set(c.Name, Self(a), set, a[1]));
        if (FieldOf("add_to_") is { } addTo)
            return Void((database, a) => database.AddToMap(c.Name, Self(a), addTo, a[1].AsString(), a[2]));
        if (FieldOf("remove_from_") is { } removeFrom)
            return Void((database, a) => database.RemoveFromMap(c.Name, Self(a), removeFrom, a[1].AsString()));
        if (FieldOf("add_") is { } add)
            return Void((database, a) => database.AddToSet(c.Name, Self(a), add, a[1]));
        if (FieldOf("remove_") is { } remove)
            return Void((database, a) => database.RemoveFromSet(c.Name, Self(a), remove, a[1]));
        return null;

        string? FieldOf(string prefix) =>
            message.StartsWith(prefix, StringComparison.Ordinal) ? c.Find(message[prefix.Length..])?.Name : null;
    }

    private static Func<CallContext, IReadOnlyList<RpcValue>, RpcValue>? ForObject(ClassModel c, string message) => message switch
    {
        "get_record" => (context, a) => context.Database.Record(c.Name, Self(a)),
        "get_by_uuid" => (context, a) => context.Database.ByUuid(c.Name, a[0].AsString()),
        "get_by_name_label" => (context, a) => RpcValue.Strings(context.Database.ByNameLabel(c.Name, a[0].AsString())),
        "get_all" => (context, _) => RpcValue.Strings(context.Database.All(c.Name)),
        "get_all_where" => (context, a) => RpcValue.Strings(context.Database.Where(c.Name, a[0].AsString())),
        "get_all_records" => (context, _) => Records(context.Database, c, "true"),
        "get_all_records_where" => (context, a) => Records(context.Database, c, a[0].AsString()),
        "create" when !NotJustRows.Contains(c.Name) => (context, a) => context.Database.Create(c.Name, Constructor(c, a[0].AsStruct())),
        "destroy" when !NotJustRows.Contains(c.Name) => Void((database, a) => database.Destroy(c.Name, Self(a))),
        _ => null,
    };

    /// <summary>The fields that a client may give; others are ignored, one without a default must be there.</summary>
    private static IEnumerable<(string, RpcValue)> Constructor(ClassModel c, RpcStruct record)
    {
        foreach (FieldModel field in c.Fields.Where(static f => f.Qualifier != FieldQualifier.DynamicRO && f.ComputedFrom is null))
        {
            if (record.Find(field.Name) is { } value)
                yield return (field.Name, value);
            else if (field.Default is null)
                throw new XapiException("INTERNAL_ERROR", $"the record for {c.Name}.create lacks \"{field.Name}\", which has no default");
        }
    }

    private static RpcStruct Records(PoolDatabase database, ClassModel c, string expression) => new(
        database.Records(c.Name, expression).Select(static r => KeyValuePair.Create(r.Ref, (RpcValue)r.Record)).ToList());

    private static string Self(IReadOnlyList<RpcValue> arguments) => arguments[0].AsString();

    private static Func<CallContext, IReadOnlyList<RpcValue>, RpcValue> Void(Action<PoolDatabase, IReadOnlyList<RpcValue>> body) =>
        (context, arguments) =>
        {
            body(context.Database, arguments);
            return "";
        };
}
