// The messages of class message: what drivers and clients want an administrator to read (research: storage.md 4.1).
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Rpc;

public static class AlertMessages
{
    /// <summary>The oldest goes for each one beyond.</summary>
    private const int Limit = 10_000;

    /// <summary>The field's names of classes of objects, as our tables have them.</summary>
    private static readonly Dictionary<string, string> Tables = new()
    {
        ["VM"] = "VM",
        ["Host"] = "host",
        ["SR"] = "SR",
        ["Pool"] = "pool",
        ["VMPP"] = "VMPP",
        ["VMSS"] = "VMSS",
        ["PVS_proxy"] = "PVS_proxy",
        ["VDI"] = "VDI",
        ["Certificate"] = "Certificate",
    };

    public static void AddTo(MessageTable messages, TimeProvider time)
    {
        messages.Add("message.create", (context, a) => Create(context.Database, a, time));
        messages.Add("message.destroy", (context, a) =>
        {
            context.Database.Destroy("message", a[0].AsString());
            return "";
        });
        messages.Add("message.destroy_many", (context, a) => context.Database.Transaction(() =>
        {
            foreach (RpcValue message in a[0].AsArray())
                context.Database.Destroy("message", message.AsString());
            return (RpcValue)"";
        }));
        messages.Add("message.get", (context, a) => Get(context.Database, a[0].AsString(), a[1].AsString(), a[2].AsString()));
        messages.Add("message.get_all", (context, _) => RpcValue.Strings(context.Database.All("message")));
        messages.Add("message.get_record", (context, a) => context.Database.Record("message", a[0].AsString()));
        messages.Add("message.get_by_uuid", (context, a) => context.Database.ByUuid("message", a[0].AsString()));
        messages.Add("message.get_all_records", (context, _) => Records(context.Database, "true"));
        messages.Add("message.get_all_records_where", (context, a) => Records(context.Database, a[0].AsString()));
    }

    /// <exception cref="XapiException">UUID_INVALID: there is no such object.</exception>
    private static RpcValue Create(PoolDatabase database, IReadOnlyList<RpcValue> a, TimeProvider time) => database.Transaction(() =>
    {
        database.ByUuid(Tables[a[2].AsString()], a[3].AsString());
        return (RpcValue)Add(database, time, a[0], a[1], a[2], a[3], a[4]);
    });

    /// <summary>The field's VM_CRASHED, of the priority "loss of a service": a guest ended that nobody shut down.</summary>
    public static void AddCrash(PoolDatabase database, TimeProvider time, string vmUuid, string body) =>
        database.Transaction(() => Add(database, time, "VM_CRASHED", "2", "VM", vmUuid, body));

    private static string Add(
        PoolDatabase database, TimeProvider time, RpcValue name, RpcValue priority, RpcValue objectClass, RpcValue objectUuid, RpcValue body)
    {
        IReadOnlyList<string> all = database.All("message");
        foreach (string oldest in all.Take(all.Count - Limit + 1))
            database.Destroy("message", oldest);
        return database.Create(
            "message", ("name", name), ("priority", priority), ("cls", objectClass), ("obj_uuid", objectUuid), ("body", body),
            ("timestamp", DateTimeType.Of(time.GetUtcNow())));
    }

    /// <summary>Those about one object, from a time on: times of one form compare as texts.</summary>
    private static RpcStruct Get(PoolDatabase database, string objectClass, string objectUuid, string since) =>
        new(database.Records("message", "true")
            .Where(r => r.Record.Get("cls").AsString() == objectClass && r.Record.Get("obj_uuid").AsString() == objectUuid
                && string.CompareOrdinal(r.Record.Get("timestamp").AsString(), since) >= 0)
            .Select(static r => KeyValuePair.Create(r.Ref, (RpcValue)r.Record))
            .ToList());

    private static RpcStruct Records(PoolDatabase database, string expression) =>
        new(database.Records("message", expression).Select(static r => KeyValuePair.Create(r.Ref, (RpcValue)r.Record)).ToList());
}
