// XML-RPC as the field writes it: no white space, strings and 64-bit integers bare in <value>, "" as <value/>, no <fault> for API errors.
// Reading accepts every spelling of research/xapi.md 1.1 and storage.md 3.4; no DTD, no entities, bounded depth.
using System.Globalization;
using System.Text;
using System.Xml;

namespace StorageAccess.Wire;

public sealed record XmlRpcCall(string Method, IReadOnlyList<RpcValue> Parameters);

public static class XmlRpc
{
    private const int DepthLimit = 64;
    private const int ValueLimit = 1_000_000;

    private static readonly XmlReaderSettings Settings = new()
    {
        DtdProcessing = DtdProcessing.Prohibit,
        XmlResolver = null,
        IgnoreComments = true,
        IgnoreProcessingInstructions = true,
        MaxCharactersInDocument = 64 * 1024 * 1024,
    };

    public static string WriteCall(string method, params IReadOnlyList<RpcValue> parameters)
    {
        StringBuilder text = new("<methodCall><methodName>");
        Escape(text, method);
        text.Append("</methodName><params>");
        foreach (RpcValue parameter in parameters)
        {
            text.Append("<param>");
            Write(text, parameter);
            text.Append("</param>");
        }

        return text.Append("</params></methodCall>").ToString();
    }

    /// <summary>A response whose only parameter is the value itself (what an SM driver prints).</summary>
    public static string WriteResponse(RpcValue value)
    {
        StringBuilder text = new("<?xml version=\"1.0\"?><methodResponse><params><param>");
        Write(text, value);
        return text.Append("</param></params></methodResponse>").ToString();
    }

    /// <summary>An SM driver's fault.</summary>
    public static string WriteFault(int code, string message)
    {
        StringBuilder text = new("<?xml version=\"1.0\"?><methodResponse><fault><value><struct><member><name>faultCode</name><value><int>");
        text.Append(code).Append("</int></value></member><member><name>faultString</name>");
        Write(text, message);
        return text.Append("</member></struct></value></fault></methodResponse>").ToString();
    }

    /// <summary>The value alone, as it stands in a task's result field.</summary>
    public static string WriteValue(RpcValue value)
    {
        StringBuilder text = new();
        Write(text, value);
        return text.ToString();
    }

    public static XmlRpcCall ReadCall(string text) => Read(text, static reader =>
    {
        Start(reader, "methodCall");
        Start(reader, "methodName");
        string method = ReadText(reader).Trim();
        End(reader, "methodName");
        List<RpcValue> parameters = [];
        int count = 0;
        if (TryStart(reader, "params", out bool empty) && !empty)
        {
            while (TryStart(reader, "param", out bool none))
            {
                if (none)
                    throw new RpcFormatException("a <param> has no value");
                parameters.Add(ReadValue(reader, 0, ref count));
                End(reader, "param");
            }

            End(reader, "params");
        }

        End(reader, "methodCall");
        return new XmlRpcCall(method, parameters);
    });

    /// <summary>The single value of a response.</summary>
    /// <exception cref="XmlRpcFaultException">The response is a fault.</exception>
    public static RpcValue ReadResponse(string text) => Read(text, static reader =>
    {
        Start(reader, "methodResponse");
        int count = 0;
        RpcValue value;
        if (TryStart(reader, "fault", out bool empty) && !empty)
        {
            RpcStruct fault = ReadValue(reader, 0, ref count).AsStruct();
            throw new XmlRpcFaultException(checked((int)fault.Get("faultCode").AsLong()), fault.Get("faultString").AsString());
        }

        Start(reader, "params");
        Start(reader, "param");
        value = ReadValue(reader, 0, ref count);
        End(reader, "param");
        End(reader, "params");
        End(reader, "methodResponse");
        return value;
    });

    private static void Write(StringBuilder text, RpcValue value)
    {
        switch (value)
        {
            case RpcString { Value.Length: 0 }:
                text.Append("<value/>");
                return;
            case RpcArray { Items.Count: 0 }:
                text.Append("<value><array><data/></array></value>");
                return;
            case RpcStruct { Members.Count: 0 }:
                text.Append("<value><struct/></value>");
                return;
        }

        text.Append("<value>");
        switch (value)
        {
            case RpcString s:
                Escape(text, s.Value);
                break;
            case RpcInt i:
                text.Append(i.Value);
                break;
            case RpcBool b:
                text.Append(b.Value ? "<boolean>1</boolean>" : "<boolean>0</boolean>");
                break;
            case RpcDouble d:
                text.Append("<double>").Append(d.Value.ToString("R", CultureInfo.InvariantCulture)).Append("</double>");
                break;
            case RpcDateTime t:
                text.Append("<dateTime.iso8601>").Append(t.Value).Append("</dateTime.iso8601>");
                break;
            case RpcNil:
                text.Append("<nil/>");
                break;
            case RpcArray array:
                text.Append("<array><data>");
                foreach (RpcValue item in array.Items)
                    Write(text, item);
                text.Append("</data></array>");
                break;
            case RpcStruct structure:
                text.Append("<struct>");
                foreach ((string name, RpcValue member) in structure.Members)
                {
                    text.Append("<member><name>");
                    Escape(text, name);
                    text.Append("</name>");
                    Write(text, member);
                    text.Append("</member>");
                }

                text.Append("</struct>");
                break;
        }

        text.Append("</value>");
    }

    private static void Escape(StringBuilder text, string value)
    {
        foreach (char c in value)
        {
            switch (c)
            {
                case '<': text.Append("&lt;"); break;
                case '>': text.Append("&gt;"); break;
                case '&': text.Append("&amp;"); break;
                case '"': text.Append("&quot;"); break;
                case '\t' or '\n' or '\r': text.Append(c); break;
                case < ' ' or '\uFFFE' or '\uFFFF': break; // Not XML; the field drops them too.
                default: text.Append(c); break;
            }
        }
    }

    private static T Read<T>(string text, Func<XmlReader, T> read)
    {
        try
        {
            using XmlReader reader = XmlReader.Create(new StringReader(text), Settings);
            T result = read(reader);
            // A second document behind the first is malformed too, and is not met before it is read.
            while (reader.Read())
                continue;
            return result;
        }
        catch (XmlException e)
        {
            throw new RpcFormatException($"malformed XML: {e.Message}");
        }
    }

    private static RpcValue ReadValue(XmlReader reader, int depth, ref int count)
    {
        if (depth > DepthLimit)
            throw new RpcFormatException($"values nest deeper than {DepthLimit}");
        if (++count > ValueLimit)
            throw new RpcFormatException($"more than {ValueLimit} values");
        Start(reader, "value", out bool empty);
        if (empty)
            return new RpcString("");

        StringBuilder bare = new();
        while (reader.NodeType is XmlNodeType.Text or XmlNodeType.CDATA or XmlNodeType.Whitespace or XmlNodeType.SignificantWhitespace)
        {
            bare.Append(reader.Value);
            reader.Read();
        }

        if (reader.NodeType == XmlNodeType.EndElement)
        {
            End(reader, "value");
            return new RpcString(bare.ToString());
        }

        if (bare.ToString().AsSpan().Trim().Length != 0)
            throw new RpcFormatException("text beside an element in <value>");
        RpcValue value = ReadTyped(reader, depth, ref count);
        End(reader, "value");
        return value;
    }

    private static RpcValue ReadTyped(XmlReader reader, int depth, ref int count)
    {
        string type = reader.LocalName;
        if (type is "array")
            return ReadArray(reader, depth, ref count);
        if (type is "struct")
            return ReadStruct(reader, depth, ref count);
        Start(reader, type, out bool empty);
        string text = empty ? "" : ReadText(reader);
        if (!empty)
            End(reader, type);
        return type switch
        {
            "string" => new RpcString(text),
            "i4" or "int" or "i8" =>
                long.TryParse(text.Trim(), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out long i)
                    ? new RpcInt(i)
                    : throw new RpcFormatException($"<{type}> holds \"{text}\""),
            "boolean" => text.Trim() switch
            {
                "0" => new RpcBool(false),
                "1" => new RpcBool(true),
                _ => throw new RpcFormatException($"<boolean> holds \"{text}\""),
            },
            "double" =>
                double.TryParse(text.Trim(), NumberStyles.Float, CultureInfo.InvariantCulture, out double d) && double.IsFinite(d)
                    ? new RpcDouble(d)
                    : throw new RpcFormatException($"<double> holds \"{text}\""),
            "dateTime.iso8601" => new RpcDateTime(text.Trim()),
            "nil" => new RpcNil(),
            _ => throw new RpcFormatException($"<{type}> is not a type of XML-RPC"),
        };
    }

    private static RpcArray ReadArray(XmlReader reader, int depth, ref int count)
    {
        List<RpcValue> items = [];
        Start(reader, "array", out bool bare);
        if (bare)
            throw new RpcFormatException("an <array> has no <data>");
        Start(reader, "data", out bool empty);
        if (!empty)
        {
            while (IsAt(reader, "value"))
                items.Add(ReadValue(reader, depth + 1, ref count));
            End(reader, "data");
        }

        End(reader, "array");
        return new RpcArray(items);
    }

    private static RpcStruct ReadStruct(XmlReader reader, int depth, ref int count)
    {
        List<KeyValuePair<string, RpcValue>> members = [];
        Start(reader, "struct", out bool empty);
        if (empty)
            return new RpcStruct(members);
        while (TryStart(reader, "member", out _))
        {
            Start(reader, "name", out bool nameless);
            string name = nameless ? "" : ReadText(reader);
            if (!nameless)
                End(reader, "name");
            members.Add(KeyValuePair.Create(name, ReadValue(reader, depth + 1, ref count)));
            End(reader, "member");
        }

        End(reader, "struct");
        return new RpcStruct(members);
    }

    private static string ReadText(XmlReader reader)
    {
        StringBuilder text = new();
        while (reader.NodeType is XmlNodeType.Text or XmlNodeType.CDATA or XmlNodeType.Whitespace or XmlNodeType.SignificantWhitespace)
        {
            text.Append(reader.Value);
            reader.Read();
        }

        return text.ToString();
    }

    private static bool IsAt(XmlReader reader, string name)
    {
        reader.MoveToContent();
        return reader.NodeType == XmlNodeType.Element && reader.LocalName == name;
    }

    private static bool TryStart(XmlReader reader, string name, out bool isEmpty)
    {
        isEmpty = false;
        if (!IsAt(reader, name))
            return false;
        isEmpty = reader.IsEmptyElement;
        reader.Read();
        return true;
    }

    private static void Start(XmlReader reader, string name, out bool isEmpty)
    {
        if (!TryStart(reader, name, out isEmpty))
            throw new RpcFormatException($"<{name}> was expected, not {reader.NodeType} \"{reader.Name}\"");
    }

    private static void Start(XmlReader reader, string name)
    {
        Start(reader, name, out bool isEmpty);
        if (isEmpty)
            throw new RpcFormatException($"<{name}> is empty");
    }

    private static void End(XmlReader reader, string name)
    {
        reader.MoveToContent();
        if (reader.NodeType != XmlNodeType.EndElement || reader.LocalName != name)
            throw new RpcFormatException($"</{name}> was expected, not {reader.NodeType} \"{reader.Name}\"");
        reader.Read();
    }
}

/// <summary>A <c>&lt;fault&gt;</c>: how an SM driver says no (storage.md 3.5).</summary>
public sealed class XmlRpcFaultException(int code, string message) : Exception(message)
{
    public int Code { get; } = code;
}
