// The verbs that every class has: <class>-list and <class>-param-... (research: xapi.md 10). Nothing here knows a class's fields: a
// record says what it has, and system.listMethods what can be changed.
using System.Text;
using System.Text.Json.Nodes;
using Xe.Grammar;
using Xe.Objects;
using Xe.Output;

namespace Xe.Verbs;

internal static class GenericVerbs
{
    public static IEnumerable<Verb> All() => ObjectClass.All.SelectMany(Of);

    private static IEnumerable<Verb> Of(ObjectClass type)
    {
        string name = type.Name;
        yield return new Verb($"{name}-list", ["*"], "[params=all|A,B] [FILTER=value] [map:KEY=value]", $"List objects of class {name}.", c => ListAsync(c, type))
        {
            IsCommon = name is "vm" or "vdi" or "sr" or "host" or "task",
            Example = $"xe {name}-list params=uuid,name-label --minimal",
        };
        yield return new Verb($"{name}-param-list", ["uuid"], "uuid=", $"Print every parameter of a {name}.", async c =>
        {
            RecordView view = await FindAsync(c, type);
            await view.LoadNamesAsync(view.Parameters, c.Cancel);
            return Print([view], view.Parameters, c, await MarksAsync(c, type, view, view.Parameters));
        });
        yield return new Verb(
            $"{name}-param-get", ["uuid", "param-name", "param-key"], "uuid= param-name= [param-key=]", $"Print one parameter of a {name}.", c => GetAsync(c, type))
        {
            Example = $"xe {name}-param-get uuid=UUID param-name=other-config param-key=KEY",
        };
        yield return new Verb($"{name}-param-set", ["*"], "uuid= NAME=value [map:KEY=value]", $"Set parameters of a {name}.", c => SetAsync(c, type));
        yield return new Verb(
            $"{name}-param-add", ["*"], "uuid= param-name= (KEY=value | param-key=MEMBER)", $"Add to a map or set of a {name}.", c => AddAsync(c, type));
        yield return new Verb(
            $"{name}-param-remove", ["uuid", "param-name", "param-key"], "uuid= param-name= param-key=", $"Remove from a map or set of a {name}.",
            c => RemoveAsync(c, type));
        yield return new Verb(
            $"{name}-param-clear", ["uuid", "param-name"], "uuid= param-name=", $"Empty a parameter of a {name}.", c => ClearAsync(c, type));
    }

    private static async Task<Reply> ListAsync(Call call, ObjectClass type)
    {
        string[] own = ["params", "multiple", "all"];
        List<KeyValuePair<string, string>> filters = [.. call.Arguments.All.Where(k => !own.Contains(k.Key))];
        RefNames names = new(call.Pool);
        List<RecordView> views = await RecordView.AllAsync(call.Pool, type, names, call.Cancel);
        if (views.Count == 0)
            return new Reply("", new JsonArray());
        IReadOnlyList<string> shown = call.Arguments.Find("params") switch
        {
            null => call.IsMinimal ? ["uuid"] : type.Shown,
            "all" => views[0].Parameters,
            { } given => given.Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries),
        };
        string[] filtered = [.. filters.Select(static f => f.Key.Split(':')[0])];
        foreach (string parameter in shown.Concat(filtered))
            views[0].FieldOf(parameter);
        await views[0].LoadNamesAsync(shown.Concat(filtered), call.Cancel);
        List<RecordView> found = [.. Selector.Filter(views, filters)];
        return Print(found, shown, call, found.Count == 0 ? [] : await MarksAsync(call, type, found[0], shown));
    }

    private static Reply Print(IReadOnlyList<RecordView> views, IReadOnlyList<string> shown, Call call, IReadOnlyList<string> marks)
    {
        JsonArray json = [.. views.Select(v => (JsonNode?)new JsonObject(shown.Distinct().Select(p => KeyValuePair.Create(p, v.Value(p)))))];
        if (call.IsMinimal)
            return new Reply(string.Join(',', views.Select(v => v.TextOf(shown[0]).Replace(",", "\\,", StringComparison.Ordinal))), json);
        StringBuilder text = new();
        string[] heads = [.. shown.Select((p, i) => $"{p} {(marks.Count > i ? marks[i] : "")}".Trim())];
        int width = heads.Select(static h => h.Length).DefaultIfEmpty().Max();
        foreach (RecordView view in views)
        {
            for (int i = 0; i < shown.Count; i++)
                text.Append(i == 0 ? heads[i].PadRight(width) : heads[i].PadLeft(width)).Append(": ").AppendLine(view.TextOf(shown[i]));
            text.AppendLine().AppendLine();
        }

        return new Reply(text.ToString().TrimEnd(), json);
    }

    /// <summary>( RO), ( RW), (SRW), (MRO) ...: what the pool has a message for can be changed.</summary>
    private static async Task<IReadOnlyList<string>> MarksAsync(Call call, ObjectClass type, RecordView view, IReadOnlyList<string> shown)
    {
        if (call.IsMinimal || call.IsJson)
            return [];
        IReadOnlySet<string> messages = await call.Pool.MessagesAsync(call.Cancel);
        return [.. shown.Select(MarkOf)];

        string MarkOf(string parameter)
        {
            string field = view.FieldOf(parameter);
            bool canChange = messages.Contains($"{type.Wire}.set_{field}") || messages.Contains($"{type.Wire}.add_to_{field}")
                || messages.Contains($"{type.Wire}.add_{field}");
            char kind = view.Record[field] switch { JsonObject => 'M', JsonArray => 'S', _ => ' ' };
            return $"({kind}{(canChange ? "RW" : "RO")})";
        }
    }

    private static async Task<Reply> GetAsync(Call call, ObjectClass type)
    {
        RecordView view = await FindAsync(call, type);
        string parameter = call.Arguments.Get("param-name");
        view.FieldOf(parameter);
        await view.LoadNamesAsync([parameter], call.Cancel);
        JsonNode? value = view.Value(parameter);
        if (call.Arguments.Find("param-key") is not { } key)
            return new Reply(RecordView.Text(value), value);
        if (value is not JsonObject map)
            throw XeException.BadCommandLine($"{parameter} is no map; leave param-key= out");
        if (!map.ContainsKey(key))
            throw XeException.Refused(["NO_SUCH_KEY", type.Wire, parameter, key], $"{parameter} has no key {key}");
        return new Reply(RecordView.Text(map[key]), map[key]?.DeepClone());
    }

    private static async Task<Reply> SetAsync(Call call, ObjectClass type)
    {
        RecordView view = await FindAsync(call, type);
        List<KeyValuePair<string, string>> sets = [.. call.Arguments.All.Where(static k => k.Key != "uuid")];
        if (sets.Count == 0)
            throw XeException.BadCommandLine("nothing to set: give NAME=value");
        List<(string Method, JsonNode?[] Arguments)> calls = [];
        foreach ((string key, string value) in sets) // All are looked at before the first is set.
        {
            string[] parts = key.Split(':', 2);
            string field = view.FieldOf(parts[0]);
            if (parts.Length == 1)
            {
                calls.Add(($"{type.Wire}.set_{field}", [view.Reference, await ValueForAsync(call, type, view, field, value)]));
                continue;
            }

            if (view.Record[field] is not JsonObject)
                throw XeException.BadCommandLine($"{parts[0]} is no map");
            calls.Add(($"{type.Wire}.remove_from_{field}", [view.Reference, parts[1]]));
            calls.Add(($"{type.Wire}.add_to_{field}", [view.Reference, parts[1], value]));
        }

        foreach ((string method, JsonNode?[] arguments) in calls)
            await ChangeAsync(call, type, method, arguments);
        return Reply.Nothing;
    }

    /// <summary>A text in the form that the field has: what is in it now tells which.</summary>
    private static async Task<JsonNode?> ValueForAsync(Call call, ObjectClass type, RecordView view, string field, string text)
    {
        switch (view.Record[field])
        {
            case JsonArray:
                return new JsonArray([.. text.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(static t => (JsonNode?)t)]);
            case JsonObject:
                throw XeException.BadCommandLine($"{type.ParamOf(field)} is a map: give {type.ParamOf(field)}:KEY={text}");
            case JsonValue value when value.TryGetValue<bool>(out _):
                return Arguments.ReadBool(field, text);
            case JsonValue value when value.TryGetValue<double>(out _):
                return double.TryParse(text, System.Globalization.CultureInfo.InvariantCulture, out double number)
                    ? number
                    : throw XeException.BadCommandLine($"{field}={text}: a number");
        }

        return type.ReferenceClass(field) is { } wireClass
            ? text.Length == 0 ? "OpaqueRef:NULL" : await call.Pool.TextAsync($"{wireClass}.get_by_uuid", call.Cancel, text)
            : text;
    }

    private static async Task<Reply> AddAsync(Call call, ObjectClass type)
    {
        RecordView view = await FindAsync(call, type);
        string parameter = call.Arguments.Get("param-name");
        string field = view.FieldOf(parameter);
        bool isSet = view.Record[field] is JsonArray;
        if (!isSet && view.Record[field] is not JsonObject)
            throw XeException.BadCommandLine($"{parameter} is neither a set nor a map; use {type.Name}-param-set");
        if (isSet)
        {
            await ChangeAsync(call, type, $"{type.Wire}.add_{field}", [view.Reference, call.Arguments.Get("param-key")]);
            return Reply.Nothing;
        }

        List<KeyValuePair<string, string>> members = [.. call.Arguments.All.Where(static k => k.Key is not ("uuid" or "param-name"))];
        if (members.Count == 0)
            throw XeException.BadCommandLine("nothing to add: give KEY=value");
        foreach ((string key, string value) in members)
            await ChangeAsync(call, type, $"{type.Wire}.add_to_{field}", [view.Reference, key, value]);
        return Reply.Nothing;
    }

    private static async Task<Reply> RemoveAsync(Call call, ObjectClass type)
    {
        RecordView view = await FindAsync(call, type);
        string parameter = call.Arguments.Get("param-name");
        string field = view.FieldOf(parameter);
        string key = call.Arguments.Get("param-key");
        string message = view.Record[field] switch
        {
            JsonObject => "remove_from",
            JsonArray => "remove",
            _ => throw XeException.BadCommandLine($"{parameter} is neither a set nor a map"),
        };
        await ChangeAsync(call, type, $"{type.Wire}.{message}_{field}", [view.Reference, key]);
        return Reply.Nothing;
    }

    private static async Task<Reply> ClearAsync(Call call, ObjectClass type)
    {
        RecordView view = await FindAsync(call, type);
        string field = view.FieldOf(call.Arguments.Get("param-name"));
        JsonNode? empty = view.Record[field] switch
        {
            JsonObject => new JsonObject(),
            JsonArray => new JsonArray(),
            JsonValue value when value.TryGetValue(out string? _) => type.ReferenceClass(field) is null ? "" : "OpaqueRef:NULL",
            _ => throw XeException.BadCommandLine($"{field} has no empty value"),
        };
        await ChangeAsync(call, type, $"{type.Wire}.set_{field}", [view.Reference, empty]);
        return Reply.Nothing;
    }

    private static async Task ChangeAsync(Call call, ObjectClass type, string method, JsonNode?[] arguments)
    {
        try
        {
            await call.Pool.CallAsync(method, call.Cancel, arguments);
        }
        catch (XeException e) when (e.Code is "MESSAGE_METHOD_UNKNOWN" or "NOT_IMPLEMENTED")
        {
            throw XeException.Refused([e.Code, .. e.Parameters], $"this parameter of a {type.Name} is read-only here: this pool's daemon does not have {method}");
        }
    }

    private static async Task<RecordView> FindAsync(Call call, ObjectClass type)
    {
        string uuid = call.Arguments.Get("uuid");
        string reference = await Selector.ByUuidAsync(call.Pool, type, uuid, call.Cancel);
        return new RecordView(type, reference, await call.Pool.RecordAsync(type.Wire, reference, call.Cancel), new RefNames(call.Pool));
    }
}
