// The life of a VM, of tasks, and what the host does for a caller.
using System.Text.Json.Nodes;
using Xe.Grammar;
using Xe.Objects;
using Xe.Output;

namespace Xe.Verbs;

internal static class VmVerbs
{
    public static IEnumerable<Verb> All() =>
    [
        OnVms("vm-start", "[paused=]", ["paused"], "Start a VM.", (c, vm) => c.RunAsync("VM.start", "start", vm, c.Arguments.Is("paused"), c.Arguments.Is("force"))),
        OnVms("vm-shutdown", "[force=]", [], "Shut a VM down; force=true switches it off.", (c, vm) =>
            c.RunAsync(c.Arguments.Is("force") ? "VM.hard_shutdown" : "VM.clean_shutdown", "shutdown", vm)),
        OnVms("vm-pause", "", [], "Hold a VM's processors.", static (c, vm) => c.RunAsync("VM.pause", "pause", vm)),
        OnVms("vm-unpause", "", [], "Let a paused VM go on.", static (c, vm) => c.RunAsync("VM.unpause", "unpause", vm)),
        OnVms("vm-destroy", "", [], "Remove a halted VM's record; its disks stay.", static (c, vm) => c.RunAsync("VM.destroy", "destroy", vm)),
        new("vm-uninstall", ["uuid", "vm", "force"], "(vm= | uuid=) force=true", "Remove a VM and the disks that only it uses.", UninstallAsync)
        {
            Example = "xe vm-uninstall uuid=UUID force=true",
        },
        new("vbd-create", ["vm-uuid", "vdi-uuid", "device", "mode", "type", "bootable"], "vm-uuid= vdi-uuid= device= [mode=RW|RO] [type=Disk|CD] [bootable=]",
            "Give a VM a disk.", CreateVbdAsync),
        new("vbd-destroy", ["uuid"], "uuid=", "Take a disk from a VM; the disk stays.", async c =>
        {
            await c.Pool.CallAsync("VBD.destroy", c.Cancel, await Selector.ByUuidAsync(c.Pool, ObjectClass.Of("vbd"), c.Arguments.Get("uuid"), c.Cancel));
            return Reply.Nothing;
        }),
        OnUuid("task-cancel", "task", "Ask for a task to be cancelled.", static (c, task) => c.Pool.CallAsync("task.cancel", c.Cancel, task)),
        OnUuid("task-destroy", "task", "Forget a task that is over.", static (c, task) => c.Pool.CallAsync("task.destroy", c.Cancel, task)),
        OnUuid("message-destroy", "message", "Remove a message.", static (c, message) => c.Pool.CallAsync("message.destroy", c.Cancel, message)),
        new("host-call-plugin", ["host-uuid", "plugin", "fn", "args:"], "host-uuid= plugin= fn= [args:KEY=value]", "Run a plugin of a host.", async c =>
        {
            string host = await Selector.ByUuidAsync(c.Pool, ObjectClass.Of("host"), c.Arguments.Get("host-uuid"), c.Cancel);
            return Reply.OfNode(await c.RunAsync(
                "host.call_plugin", "the plugin", host, c.Arguments.Get("plugin"), c.Arguments.Get("fn"), MapOf(c.Arguments.Map("args"))));
        }),
        new("event-wait", ["*"], "class= [uuid=] NAME=value", "Wait until an object has a value (class=vm uuid=UUID power-state=halted).", WaitAsync)
        {
            Example = "xe event-wait class=vm uuid=UUID power-state=halted",
        },
    ];

    public static JsonObject MapOf(IReadOnlyDictionary<string, string> map) => new(map.Select(static m => KeyValuePair.Create(m.Key, (JsonNode?)m.Value)));

    /// <summary>A verb on VMs, by the field's selectors.</summary>
    private static Verb OnVms(string name, string usage, IReadOnlyList<string> own, string summary, Func<Call, string, Task> runAsync)
    {
        return new Verb(name, ["*"], $"(vm= | uuid= | FILTER= [--multiple]) {usage}".TrimEnd(), summary, RunAsync)
        {
            IsCommon = true,
            Example = $"xe {name} vm=NAME",
        };

        async Task<Reply> RunAsync(Call call)
        {
            if (call.Arguments.Find("uuid", "vm", "vm-uuid", "vm-name") is not null)
                call.Arguments.RefuseOthers(name, ["uuid", "vm", "vm-uuid", "vm-name", "multiple", "all", "force", .. own]);
            foreach (string vm in await Selector.VmsAsync(call.Pool, call.Arguments, call.Cancel))
                await runAsync(call, vm);
            return Reply.Nothing;
        }
    }

    private static Verb OnUuid(string name, string type, string summary, Func<Call, string, Task> runAsync) => new(name, ["uuid"], "uuid=", summary, async c =>
    {
        await runAsync(c, await Selector.ByUuidAsync(c.Pool, ObjectClass.Of(type), c.Arguments.Get("uuid"), c.Cancel));
        return Reply.Nothing;
    });

    /// <summary>The record first, then each disk that no other VM has: what stays when one cannot be removed is told by its uuid.</summary>
    private static async Task<Reply> UninstallAsync(Call call)
    {
        string vm = (await Selector.VmsAsync(call.Pool, call.Arguments, call.Cancel))[0];
        JsonObject record = await call.Pool.RecordAsync("VM", vm, call.Cancel);
        JsonObject vdis = await call.Pool.RecordsAsync("VDI", call.Cancel);
        JsonObject vbds = await call.Pool.RecordsAsync("VBD", call.Cancel);
        List<string> own =
        [
            .. vbds.Where(b => (string?)b.Value!["VM"] == vm && (string?)b.Value!["type"] == "Disk").Select(static b => (string?)b.Value!["VDI"] ?? "")
                .Where(d => vdis[d] is JsonObject disk && ((JsonArray)disk["VBDs"]!).All(b => (string?)vbds[(string)b!]?["VM"] == vm)),
        ];
        if (!call.Arguments.Is("force"))
        {
            string disks = string.Join(", ", own.Select(d => $"{vdis[d]!["uuid"]} ({vdis[d]!["name_label"]})"));
            throw XeException.BadCommandLine(
                $"this would remove VM {record["uuid"]} ({record["name_label"]}) for good, and its disks: {(own.Count == 0 ? "none" : disks)}. Say force=true to do it");
        }

        if ((string?)record["power_state"] != "Halted")
            await call.RunAsync("VM.hard_shutdown", "shutdown", vm);
        await call.RunAsync("VM.destroy", "destroy", vm);
        List<string> stayed = [];
        foreach (string vdi in own)
        {
            try
            {
                await call.RunAsync("VDI.destroy", "destroy of a disk", vdi);
            }
            catch (XeException e) when (e.ExitCode == ExitCodes.Refused)
            {
                stayed.Add($"{vdis[vdi]!["uuid"]} ({e.Code})");
            }
        }

        return stayed.Count == 0
            ? Reply.Nothing
            : throw XeException.Refused(["VDI_NOT_DESTROYED", .. stayed], $"the VM is gone; {stayed.Count} of its disks stayed. Remove them with xe vdi-destroy uuid=");
    }

    private static async Task<Reply> CreateVbdAsync(Call call)
    {
        JsonObject record = new()
        {
            ["VM"] = await Selector.ByUuidAsync(call.Pool, ObjectClass.Of("vm"), call.Arguments.Get("vm-uuid"), call.Cancel),
            ["VDI"] = await Selector.ByUuidAsync(call.Pool, ObjectClass.Of("vdi"), call.Arguments.Get("vdi-uuid"), call.Cancel),
            ["userdevice"] = call.Arguments.Get("device"),
            ["bootable"] = call.Arguments.Is("bootable"),
            ["mode"] = call.Arguments.Find("mode") ?? "RW",
            ["type"] = call.Arguments.Find("type") ?? "Disk",
            ["unpluggable"] = true,
            ["empty"] = false,
            ["other_config"] = new JsonObject(),
            ["qos_algorithm_type"] = "",
            ["qos_algorithm_params"] = new JsonObject(),
        };
        string vbd = await call.Pool.TextAsync("VBD.create", call.Cancel, record);
        return Reply.Of(await call.Pool.TextAsync("VBD.get_uuid", call.Cancel, vbd));
    }

    private static async Task<Reply> WaitAsync(Call call)
    {
        const double pollSeconds = 30;
        ObjectClass type = ObjectClass.All.FirstOrDefault(c => c.Name == call.Arguments.Get("class"))
            ?? throw XeException.BadCommandLine($"class={call.Arguments.Get("class")}: one of {string.Join(' ', ObjectClass.All.Select(static c => c.Name))}");
        List<KeyValuePair<string, string>> filters = [.. call.Arguments.All.Where(static k => k.Key != "class")];
        if (filters.Count == 0)
            throw XeException.BadCommandLine("wait for what? Give NAME=value");
        string token = "";
        while (true)
        {
            JsonObject batch = await call.Pool.CallAsync("event.from", call.Cancel, new JsonArray(type.Wire), token, pollSeconds) as JsonObject ?? [];
            token = (string?)batch["token"] ?? token;
            List<RecordView> views = await RecordView.AllAsync(call.Pool, type, new RefNames(call.Pool), call.Cancel);
            foreach (RecordView view in views.Take(1))
                await view.LoadNamesAsync(filters.Select(static f => f.Key.Split(':')[0]), call.Cancel);
            if (Selector.Filter(views, filters).FirstOrDefault() is { } found)
                return Reply.Of(found.TextOf("uuid"));
        }
    }
}
