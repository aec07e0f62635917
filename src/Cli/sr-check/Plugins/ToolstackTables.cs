// The toolstack's database as drivers see it: classes of records, of which SR, VDI and PBD matter; generic getters and setters,
// and the calls that do more than that (research/storage.md 4.1).
using System.Text.RegularExpressions;
using StorageAccess.Wire;

namespace SrCheck.Plugins;

/// <summary>A XenAPI failure.</summary>
internal sealed class ToolstackException(string code, params string[] parameters) : Exception(code)
{
    public string Code { get; } = code;

    public IReadOnlyList<string> Parameters { get; } = parameters;
}

internal sealed partial class ToolstackTables
{
    private const string Null = "OpaqueRef:NULL";
    private readonly Lock gate = new();
    private readonly Dictionary<string, Dictionary<string, Dictionary<string, RpcValue>>> classes = [];

    public ToolstackTables(string srUuid, string type, Func<IReadOnlyDictionary<string, string>> deviceConfig, Func<string,
        string> onPlugin)
    {
        SrRef = "OpaqueRef:sr-" + srUuid;
        OnPlugin = onPlugin;
        foreach (string name in new[] { "VDI", "VM", "VBD", "task", "message", "secret", "host_metrics", "PUSB" })
            classes[name] = [];
        Add("host", HostRef, ("uuid", HostUuid), ("name_label", "sr-check"), ("other_config", Empty), ("enabled", true));
        Add("pool", "OpaqueRef:pool", ("uuid", Guid.NewGuid().ToString()), ("master", HostRef), ("other_config", Empty));
        Add("SM", "OpaqueRef:sm", ("type", type), ("capabilities", RpcValue.Strings([])), ("driver_filename", ""));
        Add("SR", SrRef, ("uuid", srUuid), ("name_label", World.SrName), ("name_description", World.SrDescription), ("type", type),
            ("shared", false), ("sm_config", Empty), ("other_config", Empty), ("virtual_allocation", "0"), ("physical_size", "0"),
            ("physical_utilisation", "0"), ("PBDs", RpcValue.Strings(["OpaqueRef:pbd"])));
        Add("PBD", "OpaqueRef:pbd", ("uuid", Guid.NewGuid().ToString()), ("host", HostRef), ("SR", SrRef), ("currently_attached", false),
            ("device_config", RpcValue.Map(deviceConfig())), ("other_config", Empty));
    }

    public static string HostRef => "OpaqueRef:host";

    public static string SessionRef => "OpaqueRef:session";

    public string SrRef { get; }

    private static string HostUuid => "9d3ce804-5b7f-4a5c-b0d1-6b6f3a1b0001";

    private static RpcStruct Empty => RpcValue.Map([]);

    /// <summary>Answers host.call_plugin: plugin/function to text.</summary>
    private Func<string, string> OnPlugin { get; }

    public long SrNumber(string field)
    {
        lock (gate)
            return long.TryParse(classes["SR"][SrRef][field].AsString(), out long number)
                ? number
                : throw new Checks.CheckFailedException($"SR.{field} was set to \"{classes["SR"][SrRef][field].AsString()}\"");
    }

    public void SetDeviceConfig(IReadOnlyDictionary<string, string> config)
    {
        lock (gate)
            classes["PBD"]["OpaqueRef:pbd"]["device_config"] = RpcValue.Map(config);
    }

    /// <summary>The records that users see.</summary>
    public IReadOnlyList<Volume> Volumes()
    {
        lock (gate)
            return [.. classes["VDI"].Where(static v => v.Value["managed"].AsBool()).Select(static v => VolumeOf(v.Key, v.Value))];
    }

    /// <summary>Null when the driver has not introduced it.</summary>
    public Volume? Find(string location)
    {
        lock (gate)
            return classes["VDI"].Where(v => v.Value["location"].AsString() == location).Select(static v => VolumeOf(v.Key, v.Value))
                .FirstOrDefault();
    }

    public void Set(string reference, string field, RpcValue value)
    {
        lock (gate)
            Record("VDI", reference)[field] = value;
    }

    /// <summary>As after an operator's "forget", or a toolstack whose database is older than the disks.</summary>
    public void ForgetVolumes()
    {
        lock (gate)
            classes["VDI"].Clear();
    }

    public RpcValue Run(XmlRpcCall call)
    {
        lock (gate)
        {
            IReadOnlyList<RpcValue> parameters = call.Parameters;
            if (call.Method == "session.login_with_password")
                return SessionRef;
            if (parameters.Count == 0 || parameters[0].AsString() != SessionRef)
                throw new ToolstackException("SESSION_INVALID", parameters.Count == 0 ? "" : "another session than the call's");
            List<RpcValue> rest = [.. parameters.Skip(1)];
            return call.Method switch
            {
                "session.logout" => new RpcNil(),
                "VDI.db_introduce" or "VDI.introduce" => Introduce(rest),
                "VDI.db_forget" or "VDI.forget" => Forget(rest),
                "host.call_plugin" => OnPlugin($"{Text(rest, 1)}/{Text(rest, 2)}"),
                "message.create" or "task.create" or "secret.create" => "OpaqueRef:" + Guid.NewGuid(),
                "Async.SR.update" => "OpaqueRef:task",
                "task.set_progress" or "task.set_status" or "task.set_other_config" or "task.destroy" or "message.destroy" => new RpcNil(),
                _ => Generic(call.Method, rest),
            };
        }
    }

    private RpcValue Introduce(List<RpcValue> p)
    {
        if (p.Count < 11)
            throw new ToolstackException("MESSAGE_PARAMETER_COUNT_MISMATCH", "VDI.db_introduce", "11", $"{p.Count}");
        string uuid = p[0].AsString();
        if (!Guid.TryParse(uuid, out _))
            throw new ToolstackException("UUID_INVALID", "VDI", uuid);
        string location = p[8].AsString();
        if (classes["VDI"].Values.Any(v => v["uuid"].AsString() == uuid || v["location"].AsString() == location))
            throw new ToolstackException("LOCATION_NOT_UNIQUE", SrRef, location);
        string reference = "OpaqueRef:vdi-" + uuid;
        Add("VDI", reference, ("uuid", uuid), ("name_label", p[1]), ("name_description", p[2]), ("SR", p[3]), ("type", p[4]),
            ("sharable", p[5].AsBool()), ("read_only", p[6].AsBool()), ("other_config", p[7].AsStruct()), ("location", location),
            ("xenstore_data", p[9].AsStruct()), ("sm_config", p[10].AsStruct()), ("managed", p.Count <= 11 || p[11].AsBool()),
            ("virtual_size", Number(p, 12)), ("physical_utilisation", Number(p, 13)), ("metadata_of_pool", Or(p, 14, Null)),
            ("is_a_snapshot", p.Count > 15 && p[15].AsBool()), ("snapshot_time", Or(p, 16, "19700101T00:00:00Z")),
            ("snapshot_of", Or(p, 17, Null)), ("cbt_enabled", p.Count > 18 && p[18].AsBool()), ("on_boot", "persist"),
            ("allow_caching", false), ("missing", false), ("VBDs", RpcValue.Strings([])));
        return reference;
    }

    private RpcNil Forget(List<RpcValue> p) =>
        classes["VDI"].Remove(Text(p, 0)) ? new RpcNil() : throw new ToolstackException("HANDLE_INVALID", "VDI", Text(p, 0));

    /// <summary>CLASS.get_FIELD, set_FIELD, add_to_FIELD, remove_from_FIELD, get_all…, get_record, get_by_uuid.</summary>
    private RpcValue Generic(string method, List<RpcValue> p)
    {
        string[] parts = method.Split('.', 2);
        if (parts.Length != 2 || !classes.TryGetValue(parts[0], out Dictionary<string, Dictionary<string, RpcValue>>? table))
            throw new ToolstackException("MESSAGE_METHOD_UNKNOWN", method);
        string verb = parts[1];
        switch (verb)
        {
            case "get_all":
                return RpcValue.Strings(table.Keys);
            case "get_all_records":
                return RpcValue.Struct([.. table.Select(static r => (r.Key, Struct(r.Value)))]);
            case "get_all_records_where":
                Func<Dictionary<string, RpcValue>, bool> filter = Filter(Text(p, 0));
                return RpcValue.Struct([.. table.Where(r => filter(r.Value)).Select(static r => (r.Key, Struct(r.Value)))]);
            case "get_by_uuid":
                return table.Where(r => r.Value.TryGetValue("uuid", out RpcValue? uuid) && uuid.AsString() == Text(p, 0))
                    .Select(static r => (RpcValue)r.Key).FirstOrDefault() ?? throw new ToolstackException("UUID_INVALID", parts[0], Text(p,
                        0));
        }

        Dictionary<string, RpcValue> record = Record(parts[0], Text(p, 0));
        return verb switch
        {
            "get_record" => Struct(record),
            "get_VDIs" => RpcValue.Strings(classes["VDI"].Keys),
            _ when verb.StartsWith("get_", StringComparison.Ordinal) => Field(record, method, verb[4..]),
            _ when verb.StartsWith("set_", StringComparison.Ordinal) => Changed(record, method, verb[4..], p[1]),
            _ when verb.StartsWith("add_to_", StringComparison.Ordinal) => AddedTo(record, method, verb[7..], Text(p, 1), p[2]),
            _ when verb.StartsWith("remove_from_", StringComparison.Ordinal) => RemovedFrom(record, method, verb[12..], Text(p, 1)),
            _ => throw new ToolstackException("MESSAGE_METHOD_UNKNOWN", method),
        };
    }

    private Dictionary<string, RpcValue> Record(string name, string reference) =>
        classes[name].TryGetValue(reference, out Dictionary<string, RpcValue>? record)
            ? record
            : throw new ToolstackException("HANDLE_INVALID", name, reference);

    private static RpcValue Field(Dictionary<string, RpcValue> record, string method, string field) =>
        record.TryGetValue(field, out RpcValue? value) ? value : throw new ToolstackException("MESSAGE_METHOD_UNKNOWN", method);

    private static RpcNil Changed(Dictionary<string, RpcValue> record, string method, string field, RpcValue value)
    {
        Field(record, method, field);
        record[field] = value;
        return new RpcNil();
    }

    /// <summary>A key that is there already is refused: drivers use that as a test-and-set.</summary>
    private static RpcNil AddedTo(Dictionary<string, RpcValue> record, string method, string field, string key, RpcValue value)
    {
        RpcStruct map = Field(record, method, field).AsStruct();
        if (map.Find(key) is not null)
            throw new ToolstackException("MAP_DUPLICATE_KEY", method.Split('.')[0], field, "", key);
        record[field] = new RpcStruct([.. map.Members, KeyValuePair.Create(key, value)]);
        return new RpcNil();
    }

    private static RpcNil RemovedFrom(Dictionary<string, RpcValue> record, string method, string field, string key)
    {
        RpcStruct map = Field(record, method, field).AsStruct();
        record[field] = new RpcStruct([.. map.Members.Where(m => m.Key != key)]);
        return new RpcNil();
    }

    /// <summary><c>field "SR" = "OpaqueRef:…" and field "type" = "nfs"</c>, also without the space after "and".</summary>
    private static Func<Dictionary<string, RpcValue>, bool> Filter(string text)
    {
        MatchCollection terms = Terms().Matches(text);
        if (terms.Count == 0 && text != "true")
            throw new ToolstackException("INTERNAL_ERROR", $"the filter \"{text}\" is not understood");
        return record => terms.All(t => record.TryGetValue(t.Groups[1].Value, out RpcValue? value)
            && value.AsString() == t.Groups[2].Value);
    }

    [GeneratedRegex("field\\s*\"([^\"]+)\"\\s*=\\s*\"([^\"]*)\"")]
    private static partial Regex Terms();

    private void Add(string name, string reference, params (string Field, RpcValue Value)[] fields)
    {
        if (!classes.TryGetValue(name, out Dictionary<string, Dictionary<string, RpcValue>>? table))
            classes[name] = table = [];
        table[reference] = fields.ToDictionary(static f => f.Field, static f => f.Value);
    }

    private static Volume VolumeOf(string reference, Dictionary<string, RpcValue> record) => new(
        record["location"].AsString(), record["uuid"].AsString(), record["name_label"].AsString(), record["name_description"].AsString(),
        record["virtual_size"].AsLong(), record["physical_utilisation"].AsLong(), reference, record["sm_config"].AsMap());

    private static RpcValue Struct(Dictionary<string, RpcValue> record) => new RpcStruct([.. record]);

    private static string Text(List<RpcValue> p, int index) =>
        index < p.Count ? p[index].AsString() : throw new ToolstackException("MESSAGE_PARAMETER_COUNT_MISMATCH", $"{index + 1}",
            $"{p.Count}");

    private static RpcValue Or(List<RpcValue> p, int index, RpcValue other) => index < p.Count ? p[index] : other;

    private static RpcString Number(List<RpcValue> p, int index) =>
        index < p.Count && long.TryParse(p[index].AsString(), out long number) && number >= 0
            ? new RpcString($"{number}")
            : index < p.Count ? throw new ToolstackException("FIELD_TYPE_ERROR", p[index].AsString()) : new RpcString("0");
}
