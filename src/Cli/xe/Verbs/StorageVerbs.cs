// SRs, their PBDs and the disks in them.
using System.Text.Json.Nodes;
using Xe.Grammar;
using Xe.Objects;
using Xe.Output;

namespace Xe.Verbs;

internal static class StorageVerbs
{
    private static readonly ObjectClass Sr = ObjectClass.Of("sr");
    private static readonly ObjectClass Vdi = ObjectClass.Of("vdi");
    private static readonly ObjectClass Pbd = ObjectClass.Of("pbd");

    public static IEnumerable<Verb> All() =>
    [
        new("sr-create", ["name-label", "name-description", "type", "content-type", "shared", "host-uuid", "physical-size", "device-config:", "sm-config:"],
            "name-label= type= [device-config:KEY=value] [content-type=] [shared=] [host-uuid=] [physical-size=]", "Make an SR and plug it.", CreateSrAsync)
        {
            Example = "xe sr-create name-label=disks type=vhdfile device-config:path=/srv/disks",
        },
        OnSr("sr-destroy", "Destroy an SR with everything in it.", static (c, sr) => c.RunAsync("SR.destroy", "destroy", sr)),
        OnSr("sr-forget", "Forget an SR; what is in it stays.", static (c, sr) => c.RunAsync("SR.forget", "forget", sr)),
        OnSr("sr-scan", "Look what is in an SR.", static (c, sr) => c.RunAsync("SR.scan", "scan", sr)),
        OnSr("sr-update", "Bring an SR's sizes up to date.", static (c, sr) => c.RunAsync("SR.update", "update", sr)),
        OnSr("sr-plug", "Plug an SR on every host that has a PBD for it.", static (c, sr) => EachPbdAsync(c, sr, "PBD.plug", isPlugged: false)),
        OnSr("sr-unplug", "Unplug an SR everywhere.", static (c, sr) => EachPbdAsync(c, sr, "PBD.unplug", isPlugged: true)),
        new("sr-introduce", ["uuid", "name-label", "name-description", "type", "content-type", "shared", "sm-config:"],
            "uuid= name-label= type= [content-type=] [shared=]", "Make an SR that exists known to the pool.", async c =>
            {
                await c.RunAsync("SR.introduce", "introduce", c.Arguments.Get("uuid"), c.Arguments.Get("name-label"), c.Arguments.Find("name-description") ?? "",
                    c.Arguments.Get("type"), c.Arguments.Find("content-type") ?? "", c.Arguments.Is("shared"), VmVerbs.MapOf(c.Arguments.Map("sm-config")));
                return Reply.Of(c.Arguments.Get("uuid"));
            }),
        new("sr-probe", ["type", "host-uuid", "device-config:", "sm-config:"], "type= [device-config:KEY=value] [host-uuid=]",
            "Ask a driver what it finds there.", static c => ProbeAsync(c, "SR.probe")),
        new("sr-probe-ext", ["type", "host-uuid", "device-config:", "sm-config:"], "type= [device-config:KEY=value] [host-uuid=]",
            "The same, as records.", static c => ProbeAsync(c, "SR.probe_ext")),
        new("pbd-create", ["host-uuid", "sr-uuid", "device-config:"], "sr-uuid= [host-uuid=] [device-config:KEY=value]", "Say how a host reaches an SR.", CreatePbdAsync),
        On(Pbd, "pbd-plug", "Plug an SR on one host.", static (c, pbd) => c.RunAsync("PBD.plug", "plug", pbd)),
        On(Pbd, "pbd-unplug", "Unplug an SR on one host.", static (c, pbd) => c.RunAsync("PBD.unplug", "unplug", pbd)),
        On(Pbd, "pbd-destroy", "Forget how a host reaches an SR.", static (c, pbd) => c.RunAsync("PBD.destroy", "destroy", pbd)),
        new("vdi-create", ["sr-uuid", "name-label", "name-description", "virtual-size", "type", "sharable", "read-only", "sm-config:", "other-config:"],
            "sr-uuid= name-label= virtual-size= [type=user]", "Make a disk.", CreateVdiAsync)
        {
            Example = "xe vdi-create sr-uuid=UUID name-label=data virtual-size=20GiB",
        },
        On(Vdi, "vdi-destroy", "Destroy a disk.", static (c, vdi) => c.RunAsync("VDI.destroy", "destroy", vdi)),
        On(Vdi, "vdi-forget", "Forget a disk; it stays where it is.", static (c, vdi) => c.RunAsync("VDI.forget", "forget", vdi)),
        On(Vdi, "vdi-enable-cbt", "Track which blocks change.", static (c, vdi) => c.RunAsync("VDI.enable_cbt", "enable-cbt", vdi)),
        On(Vdi, "vdi-disable-cbt", "Track no more.", static (c, vdi) => c.RunAsync("VDI.disable_cbt", "disable-cbt", vdi)),
        On(Vdi, "vdi-data-destroy", "Drop a snapshot's content and keep what changed since.", static (c, vdi) => c.RunAsync("VDI.data_destroy", "data-destroy", vdi)),
        new("vdi-snapshot", ["uuid", "driver-params:"], "uuid=", "Keep a disk as it is now.", static c => CopyAsync(c, "VDI.snapshot", "snapshot")),
        new("vdi-clone", ["uuid", "driver-params:", "new-name-label"], "uuid= [new-name-label=]", "Make a disk that shares what this one holds.",
            static c => CopyAsync(c, "VDI.clone", "clone")),
        new("vdi-resize", ["uuid", "disk-size"], "uuid= disk-size=", "Make a disk larger.", static async c =>
        {
            long size = c.Arguments.Bytes("disk-size");
            await c.RunAsync("VDI.resize", "resize", await Selector.ByUuidAsync(c.Pool, Vdi, c.Arguments.Get("uuid"), c.Cancel), Text(size));
            return Reply.Nothing;
        }),
        new("vdi-copy", ["uuid", "sr-uuid"], "uuid= sr-uuid=", "Copy a disk into an SR.", static async c =>
        {
            string vdi = await Selector.ByUuidAsync(c.Pool, Vdi, c.Arguments.Get("uuid"), c.Cancel);
            string sr = await Selector.ByUuidAsync(c.Pool, Sr, c.Arguments.Get("sr-uuid"), c.Cancel);
            return await UuidReplyAsync(c, await c.RunAsync("VDI.copy", "copy", vdi, sr));
        }),
        new("vdi-list-changed-blocks", ["vdi-from-uuid", "vdi-to-uuid"], "vdi-from-uuid= vdi-to-uuid=", "What changed between two disks, as a bitmap in base64.", static async c =>
        {
            string from = await Selector.ByUuidAsync(c.Pool, Vdi, c.Arguments.Get("vdi-from-uuid"), c.Cancel);
            string to = await Selector.ByUuidAsync(c.Pool, Vdi, c.Arguments.Get("vdi-to-uuid"), c.Cancel);
            return Reply.OfNode(await c.RunAsync("VDI.list_changed_blocks", "list-changed-blocks", from, to));
        }),
        new("vdi-introduce", ["uuid", "sr-uuid", "name-label", "name-description", "type", "location", "sharable", "read-only", "other-config:", "sm-config:"],
            "uuid= sr-uuid= location= [name-label=] [type=user]", "Make a disk that exists known to the pool.", IntroduceVdiAsync),
    ];

    /// <summary>An integer goes as text: the field's wire has no other form for 64 bits.</summary>
    private static string Text(long number) => number.ToString(System.Globalization.CultureInfo.InvariantCulture);

    private static Verb On(ObjectClass type, string name, string summary, Func<Call, string, Task> runAsync) => new(name, ["uuid"], "uuid=", summary, async c =>
    {
        await runAsync(c, await Selector.ByUuidAsync(c.Pool, type, c.Arguments.Get("uuid"), c.Cancel));
        return Reply.Nothing;
    });

    private static Verb OnSr(string name, string summary, Func<Call, string, Task> runAsync) => On(Sr, name, summary, runAsync);

    private static async Task<Reply> CreateSrAsync(Call call)
    {
        Arguments a = call.Arguments;
        string sr = PoolText(await call.RunAsync(
            "SR.create", "create", await HostAsync(call), VmVerbs.MapOf(a.Map("device-config")), Text(a.Find("physical-size") is null ? 0 : a.Bytes("physical-size")),
            a.Get("name-label"), a.Find("name-description") ?? "", a.Get("type"), a.Find("content-type") ?? "user", a.Is("shared"), VmVerbs.MapOf(a.Map("sm-config"))));
        return Reply.Of(await call.Pool.TextAsync("SR.get_uuid", call.Cancel, sr));
    }

    private static async Task<Reply> ProbeAsync(Call call, string method) => Reply.OfNode(await call.RunAsync(
        method, "probe", await HostAsync(call), VmVerbs.MapOf(call.Arguments.Map("device-config")), call.Arguments.Get("type"),
        VmVerbs.MapOf(call.Arguments.Map("sm-config"))));

    private static async Task<Reply> CreatePbdAsync(Call call)
    {
        JsonObject record = new()
        {
            ["host"] = await HostAsync(call),
            ["SR"] = await Selector.ByUuidAsync(call.Pool, Sr, call.Arguments.Get("sr-uuid"), call.Cancel),
            ["device_config"] = VmVerbs.MapOf(call.Arguments.Map("device-config")),
            ["other_config"] = new JsonObject(),
        };
        string pbd = await call.Pool.TextAsync("PBD.create", call.Cancel, record);
        return Reply.Of(await call.Pool.TextAsync("PBD.get_uuid", call.Cancel, pbd));
    }

    private static async Task<Reply> CreateVdiAsync(Call call)
    {
        Arguments a = call.Arguments;
        JsonObject record = new()
        {
            ["name_label"] = a.Get("name-label"),
            ["name_description"] = a.Find("name-description") ?? "",
            ["SR"] = await Selector.ByUuidAsync(call.Pool, Sr, a.Get("sr-uuid"), call.Cancel),
            ["virtual_size"] = Text(a.Bytes("virtual-size")),
            ["type"] = a.Find("type") ?? "user",
            ["sharable"] = a.Is("sharable"),
            ["read_only"] = a.Is("read-only"),
            ["other_config"] = VmVerbs.MapOf(a.Map("other-config")),
            ["sm_config"] = VmVerbs.MapOf(a.Map("sm-config")),
        };
        return await UuidReplyAsync(call, await call.RunAsync("VDI.create", "create", record));
    }

    private static async Task<Reply> CopyAsync(Call call, string method, string what)
    {
        string vdi = await Selector.ByUuidAsync(call.Pool, Vdi, call.Arguments.Get("uuid"), call.Cancel);
        string copy = PoolText(await call.RunAsync(method, what, vdi, VmVerbs.MapOf(call.Arguments.Map("driver-params"))));
        if (call.Arguments.Find("new-name-label") is { } name)
            await call.Pool.CallAsync("VDI.set_name_label", call.Cancel, copy, name);
        return await UuidReplyAsync(call, copy);
    }

    private static async Task<Reply> IntroduceVdiAsync(Call call)
    {
        Arguments a = call.Arguments;
        string sr = await Selector.ByUuidAsync(call.Pool, Sr, a.Get("sr-uuid"), call.Cancel);
        return await UuidReplyAsync(call, await call.RunAsync(
            "VDI.introduce", "introduce", a.Get("uuid"), a.Find("name-label") ?? "", a.Find("name-description") ?? "", sr, a.Find("type") ?? "user",
            a.Is("sharable"), a.Is("read-only"), VmVerbs.MapOf(a.Map("other-config")), a.Get("location"), new JsonObject(), VmVerbs.MapOf(a.Map("sm-config"))));
    }

    private static async Task EachPbdAsync(Call call, string sr, string method, bool isPlugged)
    {
        JsonObject pbds = await call.Pool.RecordsAsync("PBD", call.Cancel);
        List<string> own = [.. pbds.Where(p => (string?)p.Value!["SR"] == sr && (bool)p.Value!["currently_attached"]! == isPlugged).Select(static p => p.Key)];
        foreach (string pbd in own)
            await call.RunAsync(method, "plug", pbd);
    }

    /// <summary>The one that host-uuid= names, or the pool's own.</summary>
    private static async Task<string> HostAsync(Call call)
    {
        if (call.Arguments.Find("host-uuid") is { } uuid)
            return await Selector.ByUuidAsync(call.Pool, ObjectClass.Of("host"), uuid, call.Cancel);
        JsonObject pools = await call.Pool.RecordsAsync("pool", call.Cancel);
        return (string?)pools.FirstOrDefault().Value?["master"] ?? throw XeException.Refused(["INTERNAL_ERROR"], "the pool has no master");
    }

    private static async Task<Reply> UuidReplyAsync(Call call, JsonNode? vdi) =>
        Reply.Of(await call.Pool.TextAsync("VDI.get_uuid", call.Cancel, PoolText(vdi)));

    private static string PoolText(JsonNode? reference) => Api.PoolClient.Text(reference);
}
