// The classes that the generic verbs know, and how the field's command line spells the fields of their records (research: xapi.md 6, 10).
using System.Text.Json.Nodes;

namespace Xe.Objects;

/// <param name="Name">As in the verb: vm-list.</param>
/// <param name="Wire">As in messages: VM.get_record.</param>
/// <param name="Shown">What a list shows when no params= are given; the first is what --minimal prints.</param>
internal sealed record ObjectClass(string Name, string Wire, IReadOnlyList<string> Shown, Func<JsonObject, bool>? Only = null)
{
    public static readonly IReadOnlyList<ObjectClass> All =
    [
        new("vm", "VM", ["uuid", "name-label", "power-state"], static r => !Is(r, "is_a_template") && !Is(r, "is_a_snapshot")),
        new("snapshot", "VM", ["uuid", "name-label", "name-description", "snapshot-of", "snapshot-time"], static r => Is(r, "is_a_snapshot")),
        new("template", "VM", ["uuid", "name-label", "name-description"], static r => Is(r, "is_a_template") && !Is(r, "is_a_snapshot")),
        new("vdi", "VDI", ["uuid", "name-label", "name-description", "sr-uuid", "virtual-size", "sharable", "read-only"]),
        new("vbd", "VBD", ["uuid", "vm-uuid", "vm-name-label", "vdi-uuid", "empty", "userdevice"]),
        new("sr", "SR", ["uuid", "name-label", "name-description", "type", "content-type"]),
        new("pbd", "PBD", ["uuid", "host-uuid", "sr-uuid", "device-config", "currently-attached"]),
        new("host", "host", ["uuid", "name-label", "name-description", "address"]),
        new("pool", "pool", ["uuid", "name-label", "name-description", "master", "default-SR"]),
        new("network", "network", ["uuid", "name-label", "name-description", "bridge"]),
        new("vif", "VIF", ["uuid", "vm-uuid", "vm-name-label", "device", "MAC", "network-uuid"]),
        new("task", "task", ["uuid", "name-label", "name-description", "status", "progress"]),
        new("message", "message", ["uuid", "name", "priority", "cls", "obj-uuid", "timestamp", "body"]),
    ];

    /// <summary>A reference to a session is its password: it is never shown.</summary>
    private static readonly string[] Hidden = ["session"];

    private static readonly Dictionary<string, string> References = new()
    {
        ["VM"] = "VM",
        ["VDI"] = "VDI",
        ["SR"] = "SR",
        ["host"] = "host",
        ["network"] = "network",
        ["VBDs"] = "VBD",
        ["VDIs"] = "VDI",
        ["PBDs"] = "PBD",
        ["VIFs"] = "VIF",
        ["resident_on"] = "host",
        ["affinity"] = "host",
        ["master"] = "host",
        ["control_domain"] = "VM",
        ["resident_VMs"] = "VM",
        ["default_SR"] = "SR",
        ["suspend_image_SR"] = "SR",
        ["crash_dump_SR"] = "SR",
        ["suspend_image_sr"] = "SR",
        ["crash_dump_sr"] = "SR",
        ["local_cache_sr"] = "SR",
        ["suspend_SR"] = "SR",
        ["suspend_VDI"] = "VDI",
        ["metadata_of_pool"] = "pool",
        ["subtask_of"] = "task",
        ["subtasks"] = "task",
    };

    /// <summary>References among objects of one class.</summary>
    private static readonly string[] Own = ["snapshot_of", "snapshots", "parent", "children"];

    public static ObjectClass Of(string name) => All.First(c => c.Name == name);

    public static bool IsShown(string field) => !Hidden.Contains(field);

    /// <summary>The class that a field's references are of; null when it holds none, or of a class that this tool does not know.</summary>
    public string? ReferenceClass(string field) => Own.Contains(field) ? Wire : References.GetValueOrDefault(field);

    /// <summary>The field's spelling of a record's member: <c>name_label</c> is name-label, a VBD's <c>VDI</c> is vdi-uuid.</summary>
    public string ParamOf(string field) => field switch
    {
        "VM" or "VDI" or "SR" or "host" or "network" when Wire is not "host" => $"{field.ToLowerInvariant()}-uuid",
        "VBDs" or "VIFs" or "PBDs" or "VDIs" when Wire is not "SR" => $"{field[..^1].ToLowerInvariant()}-uuids",
        _ => field.Replace('_', '-'),
    };

    /// <summary>The record's member that a parameter means: any of its spellings will do. Null when there is none.</summary>
    public string? FieldOf(JsonObject record, string param) =>
        record.Select(static m => m.Key).FirstOrDefault(f => IsShown(f) && Same(ParamOf(f), param))
        ?? record.Select(static m => m.Key).FirstOrDefault(f => IsShown(f) && Same(f, param));

    private static bool Same(string a, string b) => string.Equals(a.Replace('_', '-'), b.Replace('_', '-'), StringComparison.OrdinalIgnoreCase);

    private static bool Is(JsonObject record, string field) => record[field] is JsonValue value && value.TryGetValue(out bool flag) && flag;
}
