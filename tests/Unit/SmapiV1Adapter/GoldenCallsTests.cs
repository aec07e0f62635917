// The argument that each command gives a driver, and what is made of real drivers' answers, against 59 recorded calls of DummySR, FileSR
// and ISOSR (Golden/smapiv1.jsonl). The recorder wrote tagged strings and its own order; the field's form and order are research/storage.md
// 3.1.
using System.Text.Json.Nodes;
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Support;

namespace Unit.SmapiV1AdapterTests;

public sealed class GoldenCallsTests : IDisposable
{
    private static readonly string[] FieldsOrder =
    [
        "host_ref", "command", "args", "device_config", "session_ref", "sr_sm_config", "sr_ref", "vdi_type", "sr_uuid", "vdi_ref",
        "vdi_location",
        "vdi_uuid", "driver_params", "vdi_sm_config", "new_uuid", "subtask_of", "vdi_on_boot", "vdi_allow_caching", "local_cache_sr",
    ];

    private readonly TemporaryDirectory folder = new();

    public static TheoryData<int> Lines()
    {
        TheoryData<int> lines = [];
        for (int line = 0; line < File.ReadLines(GoldenFile).Count(); line++)
            lines.Add(line);
        return lines;
    }

    public void Dispose() => folder.Dispose();

    [Theory]
    [MemberData(nameof(Lines))]
    public async Task The_argument_and_the_answer_are_as_recorded(int line)
    {
        JsonNode golden = JsonNode.Parse(File.ReadLines(GoldenFile).ElementAt(line))!;
        RpcStruct recorded = XmlRpc.ReadCall(golden["argv1"]!.ToString()).Parameters[0].AsStruct();
        File.WriteAllText(folder.File("answer"), golden["stdout"]!.ToString());
        SmapiV1Backend backend = Backend(recorded);

        StorageException? refused = null;
        try
        {
            await RunAsync(backend, recorded);
        }
        catch (StorageException e)
        {
            refused = e;
        }

        string argument = await File.ReadAllTextAsync(folder.File("argument"));
        XmlRpcCall sent = XmlRpc.ReadCall(argument);
        Assert.Equal(golden["cmd"]!.ToString(), sent.Method);
        RpcStruct members = Assert.Single(sent.Parameters).AsStruct();
        Assert.Equal(Canonical(recorded), Canonical(members));
        Assert.Equal(FieldsOrder.Where(n => members.Find(n) is not null), members.Members.Select(static m => m.Key));
        Assert.DoesNotContain("<string>", argument);
        Assert.Equal(golden["fault"]?[0]?.GetValue<int>() switch
        {
            null => null,
            38 => "UNIMPLEMENTED_IN_SM_BACKEND",
            79 =>
            "SR_BACKEND_FAILURE_79",
            _ => "?"
        }, refused?.Code);
    }

    private SmapiV1Backend Backend(RpcStruct recorded)
    {
        string path =
            FakeProgram.Write(folder.File("FakeSR"), $"printf %s \"$1\" > {folder.File("argument")}; cat {folder.File("answer")}");
        Dictionary<string, string> config = recorded.Get("device_config").AsMap();
        FakeSmDatabase database = new()
        {
            HostRef = recorded.Get("host_ref").AsString(),
            TaskRef = recorded.Get("subtask_of").AsString(),
            SrRecord = new SmSr(
                recorded.Get("sr_ref").AsString(), recorded.Get("session_ref").AsString(), config.Remove("SRmaster", out string? master)
                    && master == "true",
                config, recorded.Find("local_cache_sr")?.AsString()),
            IntroducesAnything = true,
        };
        if (recorded.Find("vdi_location") is { } location)
        {
            VdiInfo info = new()
            {
                Vdi = new VdiId(location.AsString()),
                Uuid = recorded.Get("vdi_uuid").AsString(),
                SmConfig = Map(recorded, "driver_params")
            };
            database.VdiRecords[info.Vdi] = new SmVdi(
                recorded.Get("vdi_ref").AsString(), recorded.Get("vdi_on_boot").AsString(), recorded.Get("vdi_allow_caching").AsBool(),
                info);
        }

        Dictionary<string, int> capabilities = new[]
        {
            "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE", "VDI_CLONE", "VDI_SNAPSHOT",
            "VDI_RESIZE",
        }.ToDictionary(static c => c, static _ => 1);
        QueryResult query = new("fake", "", "", "", "", "", [], new Dictionary<string, string>(), "SMAPIv1");
        return new SmapiV1Backend(
            new SmDriver("fake", path, query, capabilities), database,
            new SmDriverSettings("/usr/bin", new Dictionary<string, string>(), TimeSpan.FromSeconds(20)));
    }

    private static Task RunAsync(SmapiV1Backend backend, RpcStruct recorded)
    {
        SrId sr = new(recorded.Get("sr_uuid").AsString());
        VdiId vdi = new(recorded.Find("vdi_location")?.AsString() ?? "");
        IReadOnlyList<string> arguments = recorded.Get("args").AsArray().Select(static a => a.AsString()).ToList();
        Dictionary<string, string> config = Map(recorded, "device_config");
        VdiAccess access = arguments is ["true"] ? VdiAccess.ReadWrite : VdiAccess.ReadOnly;
        VdiInfo source = new() { Vdi = vdi, SmConfig = Map(recorded, "driver_params") };
        CancellationToken none = CancellationToken.None;
        DatapathId dp = new("dp");
        return recorded.Get("command").AsString() switch
        {
            "sr_create" => backend.SrCreateAsync("t", sr, "", "", config, long.Parse(arguments[0]), none),
            "sr_attach" => backend.SrAttachAsync("t", sr, config, none),
            "sr_detach" => backend.SrDetachAsync("t", sr, none),
            "sr_delete" => backend.SrDestroyAsync("t", sr, none),
            "sr_scan" => backend.SrScanAsync("t", sr, none),
            "vdi_create" => backend.VdiCreateAsync("t", sr, Request(recorded, arguments), none),
            "vdi_delete" => backend.VdiDestroyAsync("t", sr, vdi, none),
            "vdi_attach" => backend.VdiAttachAsync("t", dp, sr, vdi, "0", access, none),
            "vdi_activate" => backend.VdiActivateAsync("t", dp, sr, vdi, "0", access, none),
            "vdi_deactivate" => backend.VdiDeactivateAsync("t", dp, sr, vdi, "0", none),
            "vdi_detach" => backend.VdiDetachAsync("t", dp, sr, vdi, "0", none),
            "vdi_snapshot" => backend.VdiSnapshotAsync("t", sr, source, none),
            "vdi_clone" => backend.VdiCloneAsync("t", sr, source, none),
            "vdi_resize" => backend.VdiResizeAsync("t", sr, vdi, long.Parse(arguments[0]), none),
            string other => throw new ArgumentException(other),
        };
    }

    private static VdiInfo Request(RpcStruct recorded, IReadOnlyList<string> arguments) => new()
    {
        Vdi = new VdiId(""),
        VirtualSizeBytes = long.Parse(arguments[0]),
        NameLabel = arguments[1],
        NameDescription = arguments[2],
        IsASnapshot = arguments[4] == "true",
        SnapshotTime = arguments[5],
        SnapshotOf = arguments[6],
        ReadOnly = arguments[7] == "true",
        Type = recorded.Get("vdi_type").AsString(),
        SmConfig = Map(recorded, "vdi_sm_config"),
    };

    private static Dictionary<string, string> Map(RpcStruct members, string name) => members.Find(name)?.AsMap() ?? [];

    /// <summary>Members by name, so that only the content counts.</summary>
    private static string Canonical(RpcValue value) => value switch
    {
        RpcStruct s => "{" + string.Join(",",
            s.Members.OrderBy(static m => m.Key, StringComparer.Ordinal).Select(static m => $"{m.Key}={Canonical(m.Value)}")) + "}",
        RpcArray a => "[" + string.Join(",", a.Items.Select(Canonical)) + "]",
        _ => $"'{value.AsString()}'",
    };

    private static string GoldenFile
    {
        get
        {
            string? found = AppContext.BaseDirectory;
            while (!File.Exists(Path.Combine(found, "Storage.sln")))
                found = Path.GetDirectoryName(found)!;
            return Path.Combine(found, "tests/Unit/SmapiV1Adapter/Golden/smapiv1.jsonl");
        }
    }
}
