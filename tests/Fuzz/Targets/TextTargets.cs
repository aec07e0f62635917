using System.Buffers.Text;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Migration;
using Platform;
using StorageAccess;
using StorageAccess.Tap;
using StorageAccess.Wire;
using Tapdisk;
using Xapi;
using Xapi.Database;
using Xapi.Migration;
using Xenops;

namespace Fuzz.Targets;

/// <summary>XML-RPC, JSON-RPC, JSON records, filters, tokens, and tapdisk's control messages.</summary>
internal static class TextTargets
{
    private static readonly byte[][] XmlWords = Words(
        "<value>", "</value>", "<array><data>", "</data></array>", "<struct>", "<member><name>a</name>", "</member>", "<i4>1</i4>", "<int>",
        "<double>1e308</double>", "<boolean>1</boolean>", "<nil/>", "<base64>", "<dateTime.iso8601>", "&lt;", "&#0;", "&#x10FFFF;", "<![CDATA[", "]]>",
        "<!DOCTYPE a [<!ENTITY b \"c\">]>", "&b;", "<?xml version=\"1.0\"?>", "<!--", "-->", "<string>", "</string>", "\ud800");

    private static readonly byte[][] JsonWords = Words(
        "{", "}", "[", "]", ",", ":", "null", "true", "\"\"", "\"\\ud800\"", "\"\\u0000\"", "1e400", "-0", "18446744073709551616", "[[[[[[[[", "{\"a\":", "//",
        "\"method\"", "\"params\"", "\"id\"", "\"minor\":0", "\"verb\"");

    public static IEnumerable<FuzzTarget> All()
    {
        string call = XmlRpc.WriteCall("VDI.create", RpcValue.Struct(("a", "text"), ("b", new RpcInt(7)), ("c", RpcValue.Strings(["x", "y"]))), true, new RpcDouble(1.5));
        yield return Xml("xml-rpc-call", [call], static text =>
        {
            XmlRpcCall read = XmlRpc.ReadCall(text);
            XmlRpcCall again = XmlRpc.ReadCall(XmlRpc.WriteCall(read.Method, read.Parameters));
            return Same(read.Method.Trim() == again.Method && read.Parameters.SequenceEqual(again.Parameters), $"parameters={read.Parameters.Count}");
        });
        yield return Xml(
            "xml-rpc-response",
            [XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Success"), ("Value", new RpcNil()))), XmlRpc.WriteFault(38, "not implemented")],
            static text =>
            {
                RpcValue read = XmlRpc.ReadResponse(text);
                return Same(read.Equals(XmlRpc.ReadResponse(XmlRpc.WriteResponse(read))), read.GetType().Name);
            });
        yield return JsonRpcTarget();
        yield return Json("storage-wire", StorageWireSeeds(), typeof(FormatException), static text =>
        {
            if (!TryParse(text, out JsonNode? node))
                return "half a surrogate pair in a name";
            return $"{Try(() => StorageWire.ReadVdiInfo(node))} {Try(() => StorageWire.ReadSrInfo(node))} {Try(() => StorageWire.ReadQuery(node))} "
                + $"{Try(() => StorageWire.ReadBackend(node))} {Try(() => StorageWire.ReadState(node))} "
                + (ErrorOf(node) is { } error ? Try(() => StorageWire.ReadError(error)) : "");
        });
        yield return Json("xenops-vm", [StreamTargets.VmText], typeof(XenopsException), static text =>
        {
            Vm vm = Vm.Parse(JsonNode.Parse(text));
            return Same(Vm.Parse(vm.ToJson()).Vbds.SequenceEqual(vm.Vbds), $"vbds={vm.Vbds.Count} platform={vm.Platform.Count}");
        });
        foreach (FuzzTarget target in MigrationTargets().Concat(TapTargets()))
            yield return target;
    }

    private static IEnumerable<FuzzTarget> MigrationTargets()
    {
        string[] records =
        [
            .. new SourceRecord[] { new SourceRecord.MirrorStarting("xvda"), new SourceRecord.Stopped(DateTimeOffset.UnixEpoch), new SourceRecord.Granting(3), new SourceRecord.Refused("no") }
                .Select(MigrationJson.Write),
        ];
        yield return Json("migration-record", records, typeof(JsonException), static text =>
        {
            SourceRecord record = MigrationJson.Read<SourceRecord>(text);
            string written = MigrationJson.Write(record);
            return Same(MigrationJson.Write(MigrationJson.Read<SourceRecord>(written)) == written, record.GetType().Name);
        });
        MigrationToken token = new("0af1", new PeerAddress("https://b:443", new string('a', 64), "OpaqueRef:h"), DateTimeOffset.UnixEpoch.AddYears(60), new Secret("0123456789abcdef0123"));
        yield return new FuzzTarget("migration-token", [Base64Url.DecodeFromChars(token.ToMap("b:443")[MigrationToken.Key].Split('.')[0])], ReadToken)
        {
            Expected = [typeof(FormatException)],
            Tokens = JsonWords,
        };
        ClassModel model = DataModel.Load()["VM"];
        yield return new FuzzTarget("xapi-filter", Words("field \"name__label\" = \"x\" andfield \"is_a_template\" = \"false\"", "not (true or false)"), bytes =>
        {
            RowFilter.Parse(Encoding.UTF8.GetString(bytes), model);
            return ValueTask.FromResult("filter");
        })
        {
            Expected = [typeof(XapiException)],
            Tokens = Words("field", "true", "false", "and", "or", "not", "(", ")", "=", "\"name__label\"", "\\\"", "((((((((", "not not not "),
        };
    }

    private static IEnumerable<FuzzTarget> TapTargets()
    {
        byte[] open = new TapMessage(TapMessageType.Open, 3) { Path = "vhd:/srv/a.vhd", Secondary = "nbd:x", Flags = TapOpenFlags.Secondary }.Bytes.ToArray();
        byte[] list = new TapMessage(TapMessageType.ListResponse, 3) { ListCount = 1, ListMinor = 3, Path = "vhd:/srv/a.vhd" }.Bytes.ToArray();
        yield return new FuzzTarget("tap-message", [open, list], ReadMessage) { Expected = [typeof(TapException)] };

        string folder = Directory.CreateTempSubdirectory("storage-fuzz-").FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Directory.Delete(folder, recursive: true);
        DiskTable disks = new(folder, TimeProvider.System);
        disks.Attach(0);
        string[] verbs =
        [
            """{"verb":"export","minor":0,"listen":"127.0.0.1:0","certificate":"/c","key":"/k","name":"0123456789abcdef"}""",
            """{"verb":"mirror-start","minor":0,"uri":"nbds://h:1","name":"0123456789abcdef","fingerprint":"00","stall_limit_ms":5000,"rate_limit":0}""",
            """{"verb":"mirror-rate","minor":0,"rate_limit":1}""", """{"verb":"capabilities"}""", """{"verb":"digest","minor":0}""",
        ];
        yield return new FuzzTarget("tap-extension", Words(verbs), async bytes =>
        {
            JsonObject answer = await ExtensionVerbs.RunAsync(disks, bytes, new object(), CancellationToken.None);
            return $"answer {answer.Count}";
        })
        {
            Expected = [typeof(TapException)],
            Tokens = [.. JsonWords, .. Words("mirror-resume", "mirror-stop", "mirror-finish", "mirror-status", "unexport", "65536", "-1", "0.5")],
        };
    }

    private static ValueTask<string> ReadMessage(byte[] bytes)
    {
        TapMessage message = TapMessage.Decode(bytes);
        string text = $"{message.Path}{message.Secondary}{message.ErrorText}";
        if (message.Path.Contains('\0') || message.Secondary.Contains('\0') || message.ErrorText.Contains('\0'))
            throw new FuzzFindingException("a text goes on behind its end");
        if (!message.Bytes.Span.SequenceEqual(bytes))
            throw new FuzzFindingException("a message is not what was received");
        return ValueTask.FromResult($"{message.Type} {message.Flags} {message.ListState} {text.Length > 0} {message.Minor < 0} {message.FollowingBytes > 0}");
    }

    // The checksum is no secret: whoever alters a token can make it right.
    private static ValueTask<string> ReadToken(byte[] bytes)
    {
        string text = Base64Url.EncodeToString(bytes);
        string check = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)))[..32];
        MigrationToken token = MigrationToken.Parse(new Dictionary<string, string> { [MigrationToken.Key] = $"{text}.{check}" });
        return ValueTask.FromResult($"token {token.Migration is not null} {token.Destination.Url is not null}");
    }

    private static FuzzTarget JsonRpcTarget()
    {
        JsonRpcDispatcher dispatcher = new(
            new Dictionary<string, JsonRpcHandler> { ["echo"] = static (parameters, _) => Task.FromResult<JsonNode?>(parameters.DeepClone()) },
            static e => new JsonArray("Internal_error", e.GetType().Name));
        return new FuzzTarget("json-rpc", Words("""{"method":"echo","params":[{"a":1,"b":[null,"x"]}],"id":4}""", """{"method":"x","params":{},"id":"i"}"""), async bytes =>
        {
            string answer = await dispatcher.HandleAsync(Encoding.UTF8.GetString(bytes), CancellationToken.None);
            if (JsonNode.Parse(answer) is not JsonObject { Count: 3 } members)
                throw new FuzzFindingException($"the answer is none: {answer}");
            return members["error"] is JsonArray { Count: > 1 } error ? $"{error[0]}" : "result";
        })
        {
            Tokens = JsonWords,
        };
    }

    private static FuzzTarget Xml(string name, string[] seeds, Func<string, string> run) =>
        new(name, Words(seeds), bytes => ValueTask.FromResult(run(Encoding.UTF8.GetString(bytes))))
        {
            Expected = [typeof(RpcFormatException), typeof(XmlRpcFaultException)],
            Tokens = XmlWords,
        };

    private static FuzzTarget Json(string name, string[] seeds, Type expected, Func<string, string> run) =>
        new(name, Words(seeds), bytes => ValueTask.FromResult(run(Encoding.UTF8.GetString(bytes))))
        {
            Expected = [expected, typeof(JsonException)],
            Tokens = JsonWords,
        };

    private static string[] StorageWireSeeds() =>
    [
        StorageWire.Write(new Dictionary<string, string> { ["a"] = "b" }).ToJsonString(),
        """{"vdi":"v","uuid":"u","content_id":"c","name_label":"n","name_description":"","ty":"user","metadata_of_pool":"","is_a_snapshot":false,"snapshot_time":"19700101T00:00:00Z","snapshot_of":"","read_only":false,"virtual_size":4194304,"physical_utilisation":0,"persistent":true,"sharable":false,"sm_config":{},"cbt_enabled":false}""",
        """{"sr_uuid":null,"name_label":"n","name_description":"","total_space":1,"free_space":1,"clustered":false,"health":["Healthy"]}""",
        """{"driver":"d","name":"n","description":"","vendor":"","copyright":"","version":"","required_api_version":"","features":["VDI_CREATE"],"configuration":{},"required_cluster_stack":[]}""",
        """["Backend_error",["SR_BACKEND_FAILURE_38",["","x"]]]""", """["Activated","RO"]""", """{"implementations":[["Nbd",{"uri":"nbd:unix:/s:exportname=x"}]]}""",
    ];

    // The clients take this one for malformed JSON, which it is.
    private static bool TryParse(string text, out JsonNode? node)
    {
        node = null;
        try
        {
            node = JsonNode.Parse(text, documentOptions: JsonRpcDispatcher.Limits);
            return true;
        }
        catch (InvalidOperationException)
        {
            return false;
        }
    }

    // As the client makes it: text that is no text is refused there.
    private static JsonRpcException? ErrorOf(JsonNode? node)
    {
        try
        {
            return node is null ? null : new JsonRpcException(node);
        }
        catch (InvalidOperationException)
        {
            return null;
        }
    }

    private static string Try(Func<object> read)
    {
        try
        {
            return read().GetType().Name;
        }
        catch (FormatException e)
        {
            return e.Message;
        }
    }

    private static string Same(bool isSame, string kind) =>
        isSame ? kind : throw new FuzzFindingException($"what was accepted is written as something else ({kind})");

    private static byte[][] Words(params string[] words) => [.. words.Select(Encoding.UTF8.GetBytes)];
}
