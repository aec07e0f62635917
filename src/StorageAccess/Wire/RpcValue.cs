// The values that XML-RPC and the field's JSON forms carry, before anyone gives them a meaning (research: storage.md 1.2, xapi.md 1.1).
namespace StorageAccess.Wire;

public abstract record RpcValue
{
    /// <summary>Member order is the order of the text; names are compared exactly.</summary>
    public static RpcStruct Struct(params (string Name, RpcValue Value)[] members) =>
        new(members.Select(static m => KeyValuePair.Create(m.Name, m.Value)).ToList());

    public static RpcArray Array(IEnumerable<RpcValue> items) => new(items.ToList());

    public static RpcArray Strings(IEnumerable<string> items) => new(items.Select(static s => (RpcValue)new RpcString(s)).ToList());

    public static RpcStruct Map(IEnumerable<KeyValuePair<string, string>> entries) =>
        new(entries.Select(static e => KeyValuePair.Create(e.Key, (RpcValue)new RpcString(e.Value))).ToList());

    public static implicit operator RpcValue(string text) => new RpcString(text);

    public static implicit operator RpcValue(bool value) => new RpcBool(value);

    /// <summary>The text of a scalar: a 64-bit integer travels as bare text, so a reader cannot tell it from a string.</summary>
    /// <exception cref="RpcFormatException">Not a scalar.</exception>
    public string AsString() => this switch
    {
        RpcString s => s.Value,
        RpcInt i => i.Value.ToString(),
        RpcDouble d => d.Value.ToString("R"),
        RpcBool b => b.Value ? "true" : "false",
        RpcDateTime t => t.Value,
        RpcNil => "",
        _ => throw new RpcFormatException($"a scalar was expected, not {GetType().Name}"),
    };

    public long AsLong() =>
        this is RpcInt i ? i.Value
        : long.TryParse(AsString(), out long value) ? value
        : throw new RpcFormatException($"an integer was expected, not \"{AsString()}\"");

    public bool AsBool() => this switch
    {
        RpcBool b => b.Value,
        RpcString { Value: "true" or "1" } => true,
        RpcString { Value: "false" or "0" } => false,
        RpcInt { Value: 0 } => false,
        RpcInt { Value: 1 } => true,
        _ => throw new RpcFormatException("a boolean was expected"),
    };

    public IReadOnlyList<RpcValue> AsArray() =>
        this is RpcArray array ? array.Items : throw new RpcFormatException($"an array was expected, not {GetType().Name}");

    public RpcStruct AsStruct() =>
        this as RpcStruct ?? throw new RpcFormatException($"a struct was expected, not {GetType().Name}");

    /// <summary>A struct of strings.</summary>
    public Dictionary<string, string> AsMap() =>
        AsStruct().Members.GroupBy(static m => m.Key).ToDictionary(static g => g.Key, static g => g.Last().Value.AsString());
}

public sealed record RpcString(string Value) : RpcValue;

public sealed record RpcInt(long Value) : RpcValue;

public sealed record RpcDouble(double Value) : RpcValue;

public sealed record RpcBool(bool Value) : RpcValue;

/// <summary>Kept as the text that came: <c>20250319T04:16:24Z</c>.</summary>
public sealed record RpcDateTime(string Value) : RpcValue;

public sealed record RpcNil : RpcValue;

public sealed record RpcArray(IReadOnlyList<RpcValue> Items) : RpcValue
{
    public bool Equals(RpcArray? other) => other is not null && Items.SequenceEqual(other.Items);

    public override int GetHashCode() => Items.Count;
}

public sealed record RpcStruct(IReadOnlyList<KeyValuePair<string, RpcValue>> Members) : RpcValue
{
    public RpcValue? Find(string name)
    {
        foreach (KeyValuePair<string, RpcValue> member in Members)
        {
            if (member.Key == name)
                return member.Value;
        }

        return null;
    }

    /// <exception cref="RpcFormatException">There is no such member.</exception>
    public RpcValue Get(string name) => Find(name) ?? throw new RpcFormatException($"the member \"{name}\" is missing");

    public bool Equals(RpcStruct? other) => other is not null && Members.SequenceEqual(other.Members);

    public override int GetHashCode() => Members.Count;
}

/// <summary>The text is not what the format allows. Says what and, where known, where.</summary>
public sealed class RpcFormatException(string message) : FormatException(message);
