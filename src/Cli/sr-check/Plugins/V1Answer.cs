// The shapes of a SMAPIv1 driver's answers (research/storage.md 3.4, 3.5), read without mercy.
using System.Text.RegularExpressions;
using System.Xml;
using StorageAccess.Wire;

namespace SrCheck.Plugins;

internal static partial class V1Answer
{
    private static readonly XmlReaderSettings OneDocument = new() { DtdProcessing = DtdProcessing.Prohibit };

    /// <summary>The value of a call that succeeded. A fault is an answer too, and comes with exit code 0.</summary>
    public static RpcValue Read(string command, PluginCall call)
    {
        if (call.NoAnswer is { } why)
            throw new PluginBrokenException(command, why);
        string said = call.StandardError.Length == 0 ? "" : $"; stderr: {PluginCall.Cut(call.StandardError.ReplaceLineEndings(" "))}";
        if (call.ExitCode > 128)
            throw new PluginBrokenException(command, $"it was ended by signal {call.ExitCode - 128}{said}");
        if (call.ExitCode != 0)
            throw new PluginBrokenException(command, $"exit {call.ExitCode}, which counts as no answer: \"{call.Shown}\"{said}");
        try
        {
            string text = call.StandardOutput.Trim();
            using (XmlReader whole = XmlReader.Create(new StringReader(text), OneDocument))
            {
                while (whole.Read())
                {
                    // To its end: a second document, or text around the one, is an error.
                }
            }

            return XmlRpc.ReadResponse(text);
        }
        catch (XmlRpcFaultException fault)
        {
            throw new PluginRefusalException(command, $"{fault.Code}", fault.Code, fault.Message);
        }
        catch (Exception e) when (e is RpcFormatException or XmlException or OverflowException)
        {
            throw new PluginBrokenException(command, $"stdout is not one methodResponse ({e.Message}): \"{call.Shown}\"{said}");
        }
    }

    public static void Nil(string command, RpcValue answer)
    {
        if (answer is not RpcNil)
            throw new PluginBrokenException(command, $"the answer must be <nil/>, not {PluginCall.Cut(XmlRpc.WriteValue(answer))}");
    }

    public static string Text(string command, RpcValue answer) => answer is RpcString text
        ? text.Value
        : throw new PluginBrokenException(command, $"the answer must be a string, not {PluginCall.Cut(XmlRpc.WriteValue(answer))}");

    public static (string Uuid, string Location) Location(string command, RpcValue answer)
    {
        try
        {
            RpcStruct made = answer.AsStruct();
            return (made.Get("uuid").AsString(), made.Get("location").AsString());
        }
        catch (RpcFormatException e)
        {
            throw new PluginBrokenException(command, $"the answer must be {{uuid, location}}: {e.Message}");
        }
    }

    public static IReadOnlyList<Access> Attached(RpcValue answer)
    {
        const string command = "vdi_attach";
        try
        {
            RpcStruct members = answer.AsStruct();
            List<Access> ways = [];
            if (members.Get("params_nbd").AsString() is { Length: > 0 } uri)
                ways.Add(new Access(AccessKind.Nbd, uri));
            if (members.Find("params")?.AsString() is { Length: > 0 } path)
                ways.Add(new Access(path.StartsWith("/dev/", StringComparison.Ordinal) ? AccessKind.BlockDevice : AccessKind.File, path));
            members.Find("xenstore_data")?.AsMap();
            members.Find("o_direct")?.AsBool();
            return ways;
        }
        catch (RpcFormatException e)
        {
            throw new PluginBrokenException(command, $"{e.Message}: {PluginCall.Cut(XmlRpc.WriteValue(answer))}");
        }
    }

    public static IReadOnlyList<string> ProbedUuids(string xml)
    {
        try
        {
            using XmlReader whole = XmlReader.Create(new StringReader(xml.Trim()), OneDocument);
            while (whole.Read())
            {
            }
        }
        catch (XmlException e)
        {
            throw new PluginBrokenException("sr_probe", $"the answer must be an XML document ({e.Message}): {PluginCall.Cut(xml)}");
        }

        return [.. Uuids().Matches(xml).Select(static m => m.Groups[1].Value.Trim())];
    }

    [GeneratedRegex("<UUID>([^<]*)</UUID>")]
    private static partial Regex Uuids();
}
