// The types of the data model and what each accepts from a wire (research: xapi.md 1.1, 1.5). A value that went through Accept is
// canonical: integers are RpcInt, null references are OpaqueRef:NULL, times are yyyyMMddTHH:mm:ssZ, map keys are checked.
using System.Globalization;
using System.Text;
using StorageAccess.Wire;

namespace Xapi.Database;

public abstract record FieldType
{
    /// <summary>What a field holds when nobody said otherwise.</summary>
    public abstract RpcValue Empty { get; }

    /// <summary>The value in its canonical form.</summary>
    /// <param name="field">Named in the error.</param>
    /// <exception cref="XapiException">FIELD_TYPE_ERROR [field] for another type, INVALID_VALUE [field, value] for another
    /// value.</exception>
    public abstract RpcValue Accept(RpcValue value, string field);

    /// <summary>Reads the model's notation: <c>map(string-&gt;ref SR)</c>, <c>enum on_boot{reset|persist}</c>.</summary>
    public static FieldType Parse(string text) => text switch
    {
        "void" => VoidType.Instance,
        "string" or "secretstring" => StringType.Instance,
        "int" => IntType.Instance,
        "float" => FloatType.Instance,
        "bool" => BoolType.Instance,
        "datetime" => DateTimeType.Instance,
        _ when text.StartsWith("ref ", StringComparison.Ordinal) => new RefType(text[4..]),
        _ when text.StartsWith("record ", StringComparison.Ordinal) => new RecordType(text[7..]),
        _ when text.StartsWith("option ", StringComparison.Ordinal) => new OptionType(Parse(text[7..])),
        _ when text.StartsWith("set(", StringComparison.Ordinal) => new SetType(Parse(text[4..^1])),
        _ when text.StartsWith("map(", StringComparison.Ordinal) => ParseMap(text[4..^1]),
        _ when text.StartsWith("enum ", StringComparison.Ordinal) =>
            new EnumType(text[(text.IndexOf('{', StringComparison.Ordinal) + 1)..^1].Split('|')),
        _ => throw new FormatException($"\"{text}\" is not a type of the data model"),
    };

    /// <summary>Reads the model's default; null when the model gives none ("-").</summary>
    public RpcValue? ParseDefault(string text) => (this, text) switch
    {
        (_, "-") => null,
        (OptionType, "None") or (RefType, "" or "\"\"") or (_, "{}" or "[]") => Empty,
        (FloatType, _) => Accept(text.TrimEnd('.'), "default"),
        (SetType set, _) => new RpcArray(text[1..^1].Split(',').Select(item => set.Element.Accept(item, "default")).ToList()),
        (MapType, _) => RpcValue.Map(System.Text.Json.JsonSerializer.Deserialize<Dictionary<string, string>>(text)!),
        _ => Accept(text.Trim('"'), "default"),
    };

    /// <summary>A value as the database's own text, which filters compare with (research: xapi.md 5.1).</summary>
    public static string ColumnText(RpcValue value) => value switch
    {
        RpcArray array => $"({string.Join(' ', array.Items.Select(Quote))})",
        RpcStruct map => $"({string.Join(' ', map.Members.Select(static m => $"({Quote(m.Key)} {Quote(m.Value)})"))})",
        _ => value.AsString(),
    };

    private static string Quote(RpcValue value) =>
        $"'{ColumnText(value).Replace("\\", "\\\\", StringComparison.Ordinal).Replace("'", "\\'", StringComparison.Ordinal)}'";

    private static MapType ParseMap(string text)
    {
        int arrow = text.IndexOf("->", StringComparison.Ordinal);
        return new MapType(Parse(text[..arrow]), Parse(text[(arrow + 2)..]));
    }

    private protected static XapiException WrongType(string field) => new("FIELD_TYPE_ERROR", field);
}

public sealed record VoidType : FieldType
{
    public static readonly VoidType Instance = new();

    public override RpcValue Empty => "";

    public override RpcValue Accept(RpcValue value, string field) => Empty;
}

public sealed record StringType : FieldType
{
    public static readonly StringType Instance = new();

    public override RpcValue Empty => "";

    public override RpcValue Accept(RpcValue value, string field)
    {
        if (value is not RpcString text)
            throw WrongType(field);
        Check(text.Value, field);
        return text;
    }

    /// <summary>Refuses what XML cannot carry: it would come back as another text, or not at all.</summary>
    internal static void Check(string text, string field)
    {
        for (int i = 0; i < text.Length; i++)
        {
            char c = text[i];
            bool isPair = char.IsHighSurrogate(c) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]);
            if (isPair)
                i++;
            else if (char.IsSurrogate(c) || c is '\uFFFE' or '\uFFFF' || (c < ' ' && c is not ('\t' or '\n' or '\r')))
                throw new XapiException("INVALID_VALUE", field, $"the character U+{(int)c:X4} cannot be stored");
        }
    }
}

public sealed record IntType : FieldType
{
    public static readonly IntType Instance = new();

    public override RpcValue Empty => new RpcInt(0);

    /// <summary>A 64-bit integer travels as bare text in XML, so text is accepted.</summary>
    public override RpcValue Accept(RpcValue value, string field) => value switch
    {
        RpcInt => value,
        RpcString text when long.TryParse(text.Value, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out long number) =>
            new RpcInt(number),
        _ => throw WrongType(field),
    };
}

public sealed record FloatType : FieldType
{
    public static readonly FloatType Instance = new();

    public override RpcValue Empty => new RpcDouble(0);

    public override RpcValue Accept(RpcValue value, string field) => value switch
    {
        RpcDouble number when double.IsFinite(number.Value) => value,
        RpcInt number => new RpcDouble(number.Value),
        RpcString text when double.TryParse(text.Value, NumberStyles.Float, CultureInfo.InvariantCulture, out double number)
            && double.IsFinite(number) => new RpcDouble(number),
        _ => throw WrongType(field),
    };
}

public sealed record BoolType : FieldType
{
    public static readonly BoolType Instance = new();

    public override RpcValue Empty => false;

    public override RpcValue Accept(RpcValue value, string field) => value switch
    {
        RpcBool => value,
        RpcString { Value: "true" or "1" } => true,
        RpcString { Value: "false" or "0" } => false,
        _ => throw WrongType(field),
    };
}

public sealed record DateTimeType : FieldType
{
    public const string Format = "yyyyMMdd'T'HH:mm:ss'Z'";
    public const string Epoch = "19700101T00:00:00Z";
    public static readonly DateTimeType Instance = new();

    private static readonly string[] Spellings =
    [
        "yyyyMMdd'T'HH:mm:ss", "yyyyMMdd'T'HH:mm:ssK", "yyyyMMdd'T'HH:mm:ss.FFFFFFFK", "yyyyMMdd'T'HHmmssK",
        "yyyy-MM-dd'T'HH:mm:ss", "yyyy-MM-dd'T'HH:mm:ssK", "yyyy-MM-dd'T'HH:mm:ss.FFFFFFFK",
    ];

    public override RpcValue Empty => new RpcDateTime(Epoch);

    /// <summary>A missing zone is UTC; fractions of a second are dropped.</summary>
    public override RpcValue Accept(RpcValue value, string field)
    {
        string text = value is RpcDateTime or RpcString ? value.AsString() : throw WrongType(field);
        return DateTimeOffset.TryParseExact(
            text, Spellings, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out DateTimeOffset time)
            ? Of(time)
            : throw WrongType(field);
    }

    public static RpcDateTime Of(DateTimeOffset time) => new(time.UtcDateTime.ToString(Format, CultureInfo.InvariantCulture));
}

public sealed record RefType(string ClassName) : FieldType
{
    public override RpcValue Empty => Ref.Null;

    /// <summary>Any text is a reference, known or not; old clients send "" for null.</summary>
    public override RpcValue Accept(RpcValue value, string field)
    {
        if (value is not RpcString text)
            throw WrongType(field);
        if (text.Value.Length > 255)
            throw new XapiException("INVALID_VALUE", field, $"a reference of {text.Value.Length} characters");
        StringType.Check(text.Value, field);
        return text.Value.Length == 0 ? Empty : text;
    }
}

public sealed record EnumType(IReadOnlyList<string> Values) : FieldType
{
    public override RpcValue Empty => Values[0];

    public override RpcValue Accept(RpcValue value, string field)
    {
        if (value is not RpcString text)
            throw WrongType(field);
        return Values.Contains(text.Value) ? text : throw new XapiException("INVALID_VALUE", field, text.Value);
    }
}

public sealed record SetType(FieldType Element) : FieldType
{
    public override RpcValue Empty => new RpcArray([]);

    /// <summary>Order and repetition stay: task.error_info is called a set and is a list.</summary>
    public override RpcValue Accept(RpcValue value, string field) => value is RpcArray array
        ? new RpcArray(array.Items.Select(item => Element.Accept(item, field)).ToList())
        : throw WrongType(field);
}

public sealed record MapType(FieldType Key, FieldType Value) : FieldType
{
    public override RpcValue Empty => new RpcStruct([]);

    /// <summary>Of a key that comes twice the last value counts.</summary>
    public override RpcValue Accept(RpcValue value, string field)
    {
        if (value is not RpcStruct map)
            throw WrongType(field);
        OrderedDictionary<string, RpcValue> members = [];
        foreach ((string key, RpcValue item) in map.Members)
            members[AcceptKey(key, field)] = Value.Accept(item, field);
        return new RpcStruct(members.ToList());
    }

    public string AcceptKey(RpcValue key, string field) => Key.Accept(key, field).AsString();
}

/// <summary>A whole object as a constructor's argument; the members are checked one by one when the row is made.</summary>
public sealed record RecordType(string ClassName) : FieldType
{
    public override RpcValue Empty => new RpcStruct([]);

    public override RpcValue Accept(RpcValue value, string field) => value as RpcStruct ?? throw WrongType(field);
}

public sealed record OptionType(FieldType Inner) : FieldType
{
    public override RpcValue Empty => new RpcNil();

    public override RpcValue Accept(RpcValue value, string field) => value is RpcNil ? value : Inner.Accept(value, field);
}

/// <summary>References: <c>OpaqueRef:</c> and a lower-case uuid that is not the object's own uuid.</summary>
public static class Ref
{
    public const string Null = "OpaqueRef:NULL";

    public static bool IsNull(string reference) => reference is "" or Null;
}
