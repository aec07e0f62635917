// XML-RPC as the field's pools speak it (research: xapi.md 1.1): integers are bare text, so that an answer has texts, booleans, doubles,
// arrays and structs, which are JSON's own kinds. An answer comes from a machine that may be the wrong one: it has bounds.
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using System.Xml;
using System.Xml.Linq;
using Xe.Grammar;

namespace Xe.Api;

internal static class XmlRpc
{
    public const int AnswerLimitBytes = 64 << 20;
    private const int DepthLimit = 64;

    /// <summary>The levels of XML that one level of values has: value, struct, member, or value, array, data.</summary>
    private const int XmlLevels = 4;

    /// <summary>A call; texts, integers and null go as strings, which every pool accepts for integers and references too.</summary>
    public static string WriteCall(string method, IReadOnlyList<JsonNode?> arguments)
    {
        XElement call = new("methodCall",
            new XElement("methodName", method),
            new XElement("params", arguments.Select(static a => new XElement("param", Write(a)))));
        try
        {
            return $"<?xml version=\"1.0\"?>{call.ToString(SaveOptions.DisableFormatting)}";
        }
        catch (ArgumentException e)
        {
            throw XeException.BadCommandLine($"a value holds a character that cannot be sent: {e.Message}");
        }
    }

    /// <summary>The value of a methodResponse.</summary>
    /// <param name="answer">Read twice, from its beginning.</param>
    /// <exception cref="FormatException">It is none, or is larger or deeper than the bounds.</exception>
    public static JsonNode? ReadResponse(MemoryStream answer)
    {
        XElement root = Load(() =>
        {
            answer.Position = 0;
            return XmlReader.Create(answer, Settings());
        });
        if (root.Name.LocalName == "methodResponse" && root.Element("fault")?.Element("value") is { } fault)
            throw new FormatException($"the answer is a fault: {Read(fault, 0)?.ToJsonString()}");
        XElement? value = root.Name.LocalName == "methodResponse" ? root.Element("params")?.Element("param")?.Element("value") : null;
        return Read(value ?? throw new FormatException("the answer is no methodResponse"), 0);
    }

    /// <summary>A task's result: one value as XML, or "" for none.</summary>
    public static JsonNode? ReadValue(string text)
    {
        if (text.Length == 0)
            return null;
        XElement root = Load(() => XmlReader.Create(new StringReader(text), Settings()));
        return root.Name.LocalName == "value" ? Read(root, 0) : throw new FormatException("a task's result is no value");
    }

    private static XmlReaderSettings Settings() => new()
    {
        DtdProcessing = DtdProcessing.Prohibit,
        XmlResolver = null,
        MaxCharactersInDocument = AnswerLimitBytes,
        CheckCharacters = true,
        IgnoreComments = true,
    };

    /// <summary>Looked through for its depth first: the time to build a tree grows with the square of that.</summary>
    private static XElement Load(Func<XmlReader> open)
    {
        try
        {
            using (XmlReader first = open())
            {
                while (first.Read())
                {
                    if (first.Depth > DepthLimit * XmlLevels)
                        throw new FormatException($"the answer is nested deeper than {DepthLimit}");
                }
            }

            using XmlReader reader = open();
            return XElement.Load(reader, LoadOptions.PreserveWhitespace);
        }
        catch (XmlException e)
        {
            throw new FormatException(e.Message, e);
        }
    }

    private static XElement Write(JsonNode? node) => new("value", node switch
    {
        null => new XElement("string", ""),
        JsonArray array => new XElement("array", new XElement("data", array.Select(Write))),
        JsonObject members => new XElement("struct", members.Select(static m =>
            new XElement("member", new XElement("name", m.Key), Write(m.Value)))),
        JsonValue value when value.TryGetValue(out bool flag) => new XElement("boolean", flag ? "1" : "0"),
        JsonValue value when value.TryGetValue(out double number) => new XElement("double", number.ToString("R", CultureInfo.InvariantCulture)),
        _ => new XElement("string", (string)node!),
    });

    private static JsonNode? Read(XElement value, int depth)
    {
        if (depth > DepthLimit)
            throw new FormatException($"the answer is nested deeper than {DepthLimit}");
        if (value.Elements().FirstOrDefault() is not { } typed)
            return value.Value;
        switch (typed.Name.LocalName)
        {
            case "boolean":
                return typed.Value.Trim() is "1" or "true";
            case "double":
                return double.TryParse(typed.Value, NumberStyles.Float, CultureInfo.InvariantCulture, out double number)
                    ? number
                    : throw new FormatException($"\"{typed.Value}\" is no double");
            case "array":
                return new JsonArray([.. (typed.Element("data") ?? typed).Elements("value").Select(v => Read(v, depth + 1))]);
            case "struct":
                JsonObject members = [];
                foreach (XElement member in typed.Elements("member"))
                {
                    string name = member.Element("name")?.Value ?? throw new FormatException("a member has no name");
                    members[name] = Read(member.Element("value") ?? throw new FormatException($"the member {name} has no value"), depth + 1);
                }

                return members;
            case "nil":
                return null;
            default:
                return typed.Value; // string, int, i4, i8, dateTime.iso8601, base64: texts.
        }
    }
}
