// xe vm-migrate: a VM to another pool. The far pool gives a token (VM.migrate_receive), the near one takes it (VM.migrate_send). What
// the keys leave open is chosen, and told.
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Xe.Api;
using Xe.Grammar;
using Xe.Objects;
using Xe.Output;

namespace Xe.Verbs;

internal static class MigrateVerb
{
    private static readonly string[] Keys =
    [
        "vm", "uuid", "host", "host-uuid", "host-name", "remote-master", "remote-username", "remote-password", "remote-password-file", "remote-fingerprint",
        "destination-sr-uuid", "vdi:", "vif:", "live", "force", "copy", "compress", "bandwidth", "keep-source-for", "plan",
    ];

    public static IEnumerable<Verb> All() =>
    [
        new("vm-migrate", Keys,
            "vm= remote-master= remote-username= remote-password-file= [destination-sr-uuid=] [vdi:UUID=SR] [vif:UUID=NETWORK] [host=] [live=] "
            + "[force=] [copy=] [bandwidth=] [keep-source-for=] [--plan]",
            "Move a VM to another pool while it runs.", MigrateAsync)
        {
            IsCommon = true,
            Example = "xe vm-migrate vm=web1 remote-master=pool-b.example remote-username=root remote-password-file=/root/b.pw bandwidth=50MiB",
        },
    ];

    private sealed record Destination(JsonObject Token, string SrUuid, string SrName, string HostName, JsonObject VdiMap, JsonObject VifMap);

    private static async Task<Reply> MigrateAsync(Call call)
    {
        JsonObject options = await OptionsAsync(call);
        string vm = await Selector.FindAsync(call.Pool, ObjectClass.Of("vm"), call.Arguments.Find("vm", "uuid") ?? call.Arguments.Get("vm"), call.Cancel);
        JsonObject record = await call.Pool.RecordAsync("VM", vm, call.Cancel);
        if (call.Arguments.Find("remote-master") is not { } remote)
            return await MoveInPoolAsync(call, vm, options);
        // A pool that moves only running VMs must not take "copy" for "move": a copy is of a VM that does not run.
        if (call.Arguments.Is("copy") && (string?)record["power_state"] != "Halted")
            throw XeException.Refused(["VM_BAD_POWER_STATE", vm, "halted", ((string?)record["power_state"] ?? "").ToLowerInvariant()], "copy=true is for a VM that is halted");

        FarPool far = new(
            remote, call.Arguments.Find("remote-username") ?? "root", call.Arguments.Find("remote-password"), call.Arguments.Find("remote-password-file"),
            call.Arguments.Find("remote-fingerprint"));
        await using PoolClient there = await call.Connect(far, call.Cancel);
        Destination destination = await ChooseAsync(call, there);
        JsonNode?[] arguments = [vm, destination.Token, call.Arguments.Is("live", true), destination.VdiMap, destination.VifMap, options];
        if (call.Arguments.Is("plan"))
            return await PlanAsync(call, destination, arguments);
        call.Notes.WriteLine($"{record["name_label"]} goes to {destination.HostName} of {there.Name}, its disks to {destination.SrName} ({destination.SrUuid})");
        try
        {
            (JsonNode? moved, JsonObject told) = await call.WatchAsync("VM.migrate_send", "migration", arguments);
            return await DoneAsync(call, there, RecordView.Text(record["uuid"]), PoolClient.Text(moved), told);
        }
        catch (XeException e) when (e.Code == "TASK_CANCELLED")
        {
            throw new XeException(e.ExitCode, e.Code, e.Parameters, $"{e.Detail}; {await StateAsync(call, vm)}");
        }
        catch (XeException e) when (e.ExitCode == ExitCodes.Refused)
        {
            throw new XeException(e.ExitCode, e.Code, e.Parameters, $"{(e.Detail.Length == 0 ? "the migration did not happen" : e.Detail)}; {await StateAsync(call, vm)}");
        }
    }

    private static async Task<JsonObject> OptionsAsync(Call call)
    {
        Arguments a = call.Arguments;
        JsonObject options = [];
        foreach (string name in (string[])["force", "copy", "compress"])
        {
            if (a.Find(name) is not null)
                options[name] = a.Is(name) ? "true" : "false";
        }

        if (a.Find("bandwidth") is not null)
            options["bandwidth_limit"] = a.Bytes("bandwidth").ToString(CultureInfo.InvariantCulture);
        if (a.Find("keep-source-for") is { } keep)
        {
            // Ignored by a daemon without an undo, it would be a promise that nobody keeps.
            options["keep_source_for"] = Arguments.ReadSeconds("keep-source-for", keep).ToString(CultureInfo.InvariantCulture);
            if (!(await call.Pool.MessagesAsync(call.Cancel)).Contains("migration.undo"))
                throw XeException.Refused(["NOT_IMPLEMENTED", "migration.undo"], "this pool's daemon does not have migration.undo, so it cannot keep the source; nothing was begun");
        }

        return options;
    }

    private static async Task<Reply> MoveInPoolAsync(Call call, string vm, JsonObject options)
    {
        string name = call.Arguments.Find("host", "host-uuid", "host-name")
            ?? throw XeException.BadCommandLine("where to? Give remote-master= for another pool, or host= for another host of this one");
        string host = await Selector.FindAsync(call.Pool, ObjectClass.Of("host"), name, call.Cancel);
        options["live"] = call.Arguments.Is("live", true) ? "true" : "false";
        await call.RunAsync("VM.pool_migrate", "migration", vm, host, options);
        return Reply.Nothing;
    }

    private static async Task<Destination> ChooseAsync(Call call, PoolClient there)
    {
        JsonObject pool = (await there.RecordsAsync("pool", call.Cancel)).FirstOrDefault().Value as JsonObject ?? [];
        string host = call.Arguments.Find("host", "host-uuid", "host-name") is { } name
            ? await Selector.FindAsync(there, ObjectClass.Of("host"), name, call.Cancel)
            : (string?)pool["master"] ?? throw XeException.Refused(["INTERNAL_ERROR"], $"{there.Name} has no master");
        JsonObject srs = await there.RecordsAsync("SR", call.Cancel);
        string sr = call.Arguments.Find("destination-sr-uuid") is { } wanted
            ? await Selector.FindAsync(there, ObjectClass.Of("sr"), wanted, call.Cancel)
            : PreferredSr(srs, (string?)pool["default_SR"] ?? "")
                ?? throw XeException.Refused(["SR_NOT_FOUND"], $"{there.Name} has no SR with room for disks; make one there, or give destination-sr-uuid=");
        JsonObject vdiMap = await MapAsync(call, "vdi", there, "sr");
        JsonObject vifMap = await MapAsync(call, "vif", there, "network");
        JsonObject options = call.Arguments.Is("plan") ? new JsonObject { ["lifetime_seconds"] = "60" } : []; // A plan's token is for one look.
        JsonObject token = await there.CallAsync("VM.migrate_receive", call.Cancel, host, sr, options) as JsonObject
            ?? throw XeException.Unreachable(there.Name, "the answer to VM.migrate_receive is no token");
        return new Destination(
            token, RecordView.Text(srs[sr]?["uuid"]), RecordView.Text(srs[sr]?["name_label"]),
            RecordView.Text(await there.CallAsync("host.get_name_label", call.Cancel, host)), vdiMap, vifMap);
    }

    /// <summary>The pool's default, or a shared one before others, or the one with the most room (research: xapi.md 10).</summary>
    private static string? PreferredSr(JsonObject srs, string defaultSr) => srs.ContainsKey(defaultSr)
        ? defaultSr
        : srs.Where(static s => (string?)s.Value!["content_type"] != "iso")
            .OrderByDescending(static s => (bool)s.Value!["shared"]!)
            .ThenByDescending(static s => Number(s.Value!["physical_size"]) - Number(s.Value!["physical_utilisation"]))
            .Select(static s => s.Key)
            .FirstOrDefault();

    private static long Number(JsonNode? text) => long.TryParse((string?)text, CultureInfo.InvariantCulture, out long number) ? number : 0;

    /// <summary>vdi:UUID=SR and vif:UUID=NETWORK: ours by uuid, theirs by uuid or name.</summary>
    private static async Task<JsonObject> MapAsync(Call call, string ours, PoolClient there, string theirs)
    {
        JsonObject map = [];
        foreach ((string uuid, string target) in call.Arguments.Map(ours))
        {
            string from = await Selector.ByUuidAsync(call.Pool, ObjectClass.Of(ours), uuid, call.Cancel);
            map[from] = await Selector.FindAsync(there, ObjectClass.Of(theirs), target, call.Cancel);
        }

        return map;
    }

    /// <summary>The daemon's own plan, or, of one that has none, its yes or no.</summary>
    private static async Task<Reply> PlanAsync(Call call, Destination destination, JsonNode?[] arguments)
    {
        JsonObject chosen = new() { ["host"] = destination.HostName, ["sr"] = destination.SrUuid, ["sr_name"] = destination.SrName };
        if ((await call.Pool.MessagesAsync(call.Cancel)).Contains("VM.migrate_plan"))
        {
            string text = await call.Pool.TextAsync("VM.migrate_plan", call.Cancel, arguments);
            try
            {
                return Reply.OfNode(new JsonObject { ["destination"] = chosen, ["plan"] = JsonNode.Parse(text) });
            }
            catch (JsonException e)
            {
                throw XeException.Unreachable(call.Pool.Name, $"the answer to VM.migrate_plan is no JSON ({e.Message})");
            }
        }

        await call.Pool.CallAsync("VM.assert_can_migrate", call.Cancel, arguments);
        chosen["can_migrate"] = true;
        return Reply.OfNode(chosen);
    }

    private static async Task<Reply> DoneAsync(Call call, PoolClient there, string uuid, string vm, JsonObject told)
    {
        string state = "running"; // What the migration's own end means, should the far pool not answer this question.
        try
        {
            state = (await there.TextAsync("VM.get_power_state", call.Interrupts.Insisted, vm)).ToLowerInvariant();
        }
        catch (XeException e)
        {
            call.Notes.WriteLine($"the VM has moved; {there.Name} does not say how it is there ({e.Code})");
        }

        JsonObject answer = new() { ["vm"] = uuid, ["pool"] = there.Name, ["power_state"] = state };
        string text = $"VM {uuid} is {state} in {there.Name}";
        if (told["receipt"] is { } written && JsonNode.Parse((string)written!) is JsonObject receipt)
        {
            answer["receipt"] = receipt.DeepClone();
            string pause = string.Create(CultureInfo.InvariantCulture, $"{(double?)receipt["blackout"]?["total_ms"] ?? 0:0.0}");
            text += $"; {RecordSize(receipt["logical_bytes"])} of disks, {RecordSize(receipt["sent_bytes"])} sent, paused for {pause} ms; both sides' digests are equal";
        }

        return new Reply(call.IsMinimal ? uuid : text, answer);
    }

    private static string RecordSize(JsonNode? bytes) => string.Create(CultureInfo.InvariantCulture, $"{((long?)bytes ?? 0) / 1048576.0:0.#} MiB");

    /// <summary>Where the VM is after all: the near pool is asked, not assumed.</summary>
    private static async Task<string> StateAsync(Call call, string vm)
    {
        try
        {
            JsonObject record = await call.Pool.RecordAsync("VM", vm, call.Interrupts.Insisted);
            return $"VM {record["uuid"]} is {RecordView.Text(record["power_state"]).ToLowerInvariant()} in {call.Pool.Name}, its source, with its disks";
        }
        catch (XeException e)
        {
            return $"where the VM is could not be asked ({e.Code}): see xe vm-list in both pools";
        }
        catch (OperationCanceledException)
        {
            return "where the VM is was not asked: see xe vm-list in both pools";
        }
    }
}
