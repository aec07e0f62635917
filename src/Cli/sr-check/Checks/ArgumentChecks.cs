// What a toolstack never sends and a plugin must survive: missing, misspelt,
// absurd and hostile arguments. Each is answered by a well-formed no, and nothing is changed.
using System.Text.Json.Nodes;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class ArgumentChecks
{
    private const string Fix = "check every argument before the first change, and answer 143 (BadRequest) or the number that fits";
    private static readonly string TooLong = new('k', 10_000);

    public static IEnumerable<Check> All(bool isV1)
    {
        CheckList list = new("arguments", Level.Bronze, isV1 ? "3.1, 3.2" : "5.2, 5.4");
        if (isV1)
        {
            Add(list, V1Missing(), isRefused: true);
            Add(list, V1Optional(), isRefused: false);
            V1Program(list);
        }
        else
        {
            Add(list, V3Missing(), isRefused: true);
            Add(list, V3Wrong(), isRefused: true);
            V3Program(list);
        }

        list.Must("changed-nothing", "a refused call changes nothing", Fix, async static w =>
        {
            (Volume volume, _) = await w.StandingAsync();
            await World.AnsweredAsync(() => w.Plugin.CreateAsync("negative", "", -1));
            Seen.Equal(1, (await w.Plugin.ScanAsync()).Count, "the number of disks");
            Seen.That(await w.IsListedAsync(volume), "the standing disk is gone");
        });
        return list.All;
    }

    private static void Add(CheckList list, IEnumerable<(string Name, string Operation, Action<JsonObject> Change)> rows, bool isRefused)
    {
        foreach ((string name, string operation, Action<JsonObject> change) in rows)
        {
            string reason = isRefused ? "a call that cannot be meant is refused in the form of a refusal"
                : "a call may lack what you do not need";
            list.Must(name, reason, Fix, async w =>
            {
                Volume volume = (await w.StandingAsync()).Volume;
                Task Call() => w.Plugin.RawAsync(new RawCall(operation, volume, change));
                if (isRefused)
                    await World.RefusedAsync(name.Replace('.', ' '), Call);
                else
                    await World.AnsweredAsync(Call);
            });
        }
    }

    private static Action<JsonObject> Without(string name) => p => p.Remove(name);

    private static Action<JsonObject> With(string name, JsonNode? value) => p => p[name] = value?.DeepClone();

    private static IEnumerable<(string Name, string Operation, Action<JsonObject> Change)> V3Missing()
    {
        (string Script, string[] Names)[] needed =
        [
            ("SR.create", ["configuration"]), ("SR.attach", ["configuration"]), ("SR.stat", ["sr"]), ("SR.ls", ["sr"]),
            ("Volume.create", ["sr", "size"]), ("Volume.stat", ["sr", "key"]), ("Volume.destroy", ["sr", "key"]),
            ("Datapath.attach", ["uri"]), ("Datapath.activate", ["uri"]), ("Datapath.deactivate", ["uri"]), ("Datapath.detach", ["uri"]),
        ];
        return needed.SelectMany(static n => n.Names.Select(name => ($"missing.{n.Script}.{name}", n.Script, Without(name))));
    }

    private static (string Name, string Operation, Action<JsonObject> Change)[] V3Wrong() =>
    [
        ("size.text", "Volume.create", With("size", "big")),
        ("size.negative", "Volume.create", With("size", -1)),
        ("size.null", "Volume.create", With("size", null)),
        ("size.list", "Volume.create", With("size", new JsonArray(1))),
        ("size.huge", "Volume.create", With("size", long.MaxValue)),
        ("size.beyond-64-bits", "Volume.create", With("size", JsonNode.Parse("100000000000000000000000"))),
        ("size.fraction", "Volume.create", With("size", JsonNode.Parse("1048576.5"))),
        ("key.empty", "Volume.stat", With("key", "")),
        ("key.path", "Volume.stat", With("key", "../../../../etc/passwd")),
        ("key.path-destroy", "Volume.destroy", With("key", "../x")),
        ("key.nul", "Volume.stat", With("key", "a\0b")),
        ("key.long", "Volume.stat", With("key", TooLong)),
        ("key.number", "Volume.stat", With("key", 7)),
        ("key.list", "Volume.stat", With("key", new JsonArray("a"))),
        ("sr.empty", "SR.ls", With("sr", "")),
        ("sr.relative", "SR.ls", With("sr", "not/absolute")),
        ("sr.other", "Volume.create", With("sr", "/proc/self")),
        ("configuration.list", "SR.attach", With("configuration", new JsonArray("path"))),
        ("configuration.text", "SR.attach", With("configuration", "path=/srv")),
        ("uri.empty", "Datapath.attach", With("uri", "")),
        ("uri.other-scheme", "Datapath.attach", With("uri", "gopher://host/disk")),
        ("uri.path", "Datapath.attach", p => p["uri"] = $"{p["uri"]}/../../../etc/passwd"),
    ];

    private static void V3Program(CheckList list)
    {
        (string Name, string[] Arguments, string Input)[] rows =
        [
            ("input.empty", ["--json"], ""), ("input.no-json", ["--json"], "hello\n"), ("input.half", ["--json"], "{\"sr\": \"/sr\n"),
            ("input.list", ["--json"], "[1,2]\n"), ("input.null", ["--json"], "null\n"), ("input.nothing-asked", [], ""),
        ];
        foreach ((string name, string[] arguments, string input) in rows)
        {
            list.Must(name, "whoever tries it by hand must get an error, not a traceback or a hang",
                "read one line, check that it is a dict", async w =>
            {
                PluginCall call = await w.V3.ProgramAsync("SR.stat", arguments, input);
                if (arguments.Length == 0)
                    Seen.That(call.NoAnswer is null && call.ExitCode is > 0 and < 128, $"{call.NoAnswer ?? $"exit {call.ExitCode}"}");
                else
                    await World.RefusedAsync("SR.stat of such an input", () => Task.FromResult(V3Answer.Read("SR.stat", call)));
            });
        }

        list.Must("input.second-line", "only the first line is the call", "read one line", static async w =>
        {
            PluginCall call = await w.V3.ProgramAsync("Plugin.Query", ["--json"], "{\"dbg\":\"a\"}\n{\"dbg\":\"b\"}\n");
            V3Answer.Read("Plugin.Query", call);
        });
        list.Must("input.unknown-ignored", "a newer toolstack sends more than you know", "ignore what you do not know", static async w =>
            await w.Plugin.RawAsync(new RawCall("Volume.stat", (await w.StandingAsync()).Volume, With("from_the_future",
                new JsonArray()))));
        list.Must("input.long-text", "descriptions are as long as people write them", "take or refuse them", static w =>
            World.AnsweredAsync(() => w.VolumeAsync(description: new string('d', 200_000))));
    }

    private static IEnumerable<(string Name, string Operation, Action<JsonObject> Change)> V1Missing() =>
    [
        ("missing.command", "sr_update", Without("command")),
        ("missing.device_config", "sr_scan", Without("device_config")),
        ("missing.device_config-content", "sr_scan", With("device_config", new JsonObject())),
        ("missing.size", "vdi_create", With("args", new JsonArray())),
        ("missing.location", "vdi_delete", static p => { p.Remove("vdi_location"); p.Remove("vdi_uuid"); }),
        ("missing.location-attach", "vdi_attach", static p => { p.Remove("vdi_location"); p.Remove("vdi_uuid"); }),
        ("missing.args", "vdi_create", Without("args")),
        ("size.text", "vdi_create", Size("big")),
        ("size.negative", "vdi_create", Size("-1")),
        ("size.empty", "vdi_create", Size("")),
        ("size.fraction", "vdi_create", Size("1048576.5")),
        ("size.huge", "vdi_create", Size("9223372036854775807")),
        ("size.beyond-64-bits", "vdi_create", Size("100000000000000000000000")),
        ("location.path", "vdi_delete", Location("../../../../etc/passwd")),
        ("location.empty", "vdi_delete", Location("")),
        ("location.shell", "vdi_delete", Location("$(id)")),
        ("location.markup", "vdi_delete", Location("<a>&b</a>")),
        ("location.long", "vdi_delete", Location(TooLong)),
        ("location.path-attach", "vdi_attach", Location("../../../../etc/passwd")),
        ("command.other", "sr_update", With("command", "sr_frobnicate")),
        ("command.list", "sr_update", With("command", new JsonArray("sr_update"))),
        ("device_config.text", "sr_scan", With("device_config", "location=/srv")),
        ("device_config.absurd", "sr_scan", Absurd),
    ];

    private static IEnumerable<(string Name, string Operation, Action<JsonObject> Change)> V1Optional() =>
    [
        ("optional.subtask_of", "sr_scan", Without("subtask_of")),
        ("optional.host_ref", "sr_scan", Without("host_ref")),
        ("optional.vdi_on_boot", "vdi_attach", Without("vdi_on_boot")),
        ("optional.vdi_allow_caching", "vdi_attach", Without("vdi_allow_caching")),
        ("optional.unknown", "vdi_attach", With("from_the_future", new JsonObject { ["a"] = "b" })),
        ("optional.args-of-attach", "vdi_attach", Without("args")),
    ];

    private static void V1Program(CheckList list)
    {
        const string fix = "read the argument with an XML parser that knows no entities; answer 143 or 413";
        (string Name, Func<World, string> Argument)[] rows =
        [
            ("xml.empty", static _ => ""), ("xml.text", static _ => "hello"), ("xml.half", static w => w.V1.XmlOf("sr_scan")[..200]),
            ("xml.no-struct",
                static _ => "<methodCall><methodName>sr_scan</methodName><params><param><value>x</value></param></params></methodCall>"),
            ("xml.no-params", static _ => "<methodCall><methodName>sr_scan</methodName><params/></methodCall>"),
        ];
        foreach ((string name, Func<World, string> argument) in rows)
        {
            list.Must(name, "an argument that is no call is refused, never a crash", fix, async w =>
            {
                PluginCall call = await w.V1.RunAsync("sr_scan", argument(w));
                Seen.That(call.NoAnswer is null && call.ExitCode < 128, $"{call.NoAnswer ?? $"signal {call.ExitCode - 128}"}");
                if (call.ExitCode == 0)
                    await World.RefusedAsync("such an argument", () => Task.FromResult(V1Answer.Read("sr_scan", call)));
            });
        }

        list.Must("xml.entity", "an entity in a name must not read a file into it", fix, async static w =>
        {
            const string entity = "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/hostname\">]>";
            string xml = entity + w.V1.XmlOf("sr_scan").Replace("sr_scan", "&e;", StringComparison.Ordinal);
            PluginCall call = await w.V1.RunAsync("sr_scan", xml);
            string hostName = (await File.ReadAllTextAsync("/etc/hostname")).Trim();
            Seen.That(hostName.Length == 0 || !call.StandardOutput.Contains(hostName, StringComparison.Ordinal),
                "the entity was read: the answer holds /etc/hostname");
        });
        list.Must("program.no-argument", "whoever runs it by hand must get an error, not a hang", "say how it is used, and exit non-zero",
            async static w =>
        {
            PluginCall call = await w.V1.ProgramAsync("no argument", []);
            Seen.That(call.NoAnswer is null && call.ExitCode < 128, $"{call.NoAnswer ?? $"signal {call.ExitCode - 128}"}");
        });
    }

    private static Action<JsonObject> Size(string text) => p => p["args"]!.AsArray()[0] = text;

    private static Action<JsonObject> Location(string text) => p =>
    {
        p["vdi_location"] = text;
        p["vdi_uuid"] = text;
    };

    private static void Absurd(JsonObject call)
    {
        JsonObject config = call["device_config"]!.AsObject();
        foreach (string key in config.Select(static p => p.Key).Where(static k => k != "SRmaster").ToList())
            config[key] = "/proc/no/such/place";
    }
}
