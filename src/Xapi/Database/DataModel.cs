// The data model as data: every class, field, relation and message of the XenAPI, from the embedded datamodel.tsv (columns:
// research/xapi.md, head). Lines: OBJ class, F field, M message, REL owner reverse. ERR, WL, EMERG and NOTASK lines are documentation here.
using System.Collections.Frozen;
using System.Reflection;
using Platform;
using StorageAccess.Wire;

namespace Xapi.Database;

public sealed class DataModel
{
    private readonly FrozenDictionary<string, ClassModel> classes;

    private DataModel(IEnumerable<ClassModel> all) =>
        classes = all.ToFrozenDictionary(static c => c.Name, StringComparer.OrdinalIgnoreCase);

    public IEnumerable<ClassModel> Classes => classes.Values;

    /// <summary>The class of that name, in any case; null when there is none.</summary>
    public ClassModel? Find(string name) => classes.GetValueOrDefault(name);

    public ClassModel this[string name] =>
        Find(name) ?? throw new InvariantException($"our own code names the class {name}, which the model does not have");

    /// <summary>Reads the embedded model.</summary>
    public static DataModel Load()
    {
        using Stream stream = Assembly.GetExecutingAssembly().GetManifestResourceStream("datamodel.tsv")
            ?? throw new InvariantException("the data model is embedded in this assembly");
        using StreamReader reader = new(stream);
        OrderedDictionary<string, ClassModel> classes = [];
        List<(string Owner, string Reverse)> relations = [];
        while (reader.ReadLine() is { } line)
        {
            string[] columns = line.Split('\t');
            switch (columns[0])
            {
                case "OBJ":
                    classes.Add(columns[1], ClassModel.Read(columns));
                    break;
                case "F":
                    classes[columns[1]].Add(FieldModel.Read(columns, classes[columns[1]].Fields.Count));
                    break;
                case "M":
                    classes[columns[1]].Messages.Add(MessageModel.Read(columns));
                    break;
                case "REL" when columns[1] != columns[2]: // subject.roles and role.subroles relate to themselves: plain fields.
                    relations.Add((columns[1], columns[2]));
                    break;
            }
        }

        foreach ((string owner, string reverse) in relations)
            Relate(Field(owner), Field(reverse));
        return new DataModel(classes.Values);

        FieldModel Field(string name)
        {
            string[] parts = name.Split('.');
            return classes[parts[0]].Field(parts[1]);
        }
    }

    private static void Relate(FieldModel owner, FieldModel reverse)
    {
        Invariant.Holds(reverse.Type is SetType { Element: RefType }, "the computed side of a relation is a set of references");
        owner.Reverse = reverse;
        reverse.ComputedFrom = owner;
    }
}

/// <summary>A class; its table exists when <see cref="IsInDatabase"/>, and survives a restart when <see cref="IsPersistent"/>.</summary>
public sealed class ClassModel
{
    private readonly OrderedDictionary<string, FieldModel> fields = [];

    public required string Name { get; init; }

    public required bool IsPersistent { get; init; }

    public required bool HasEvents { get; init; }

    public required bool IsInDatabase { get; init; }

    public IList<FieldModel> Fields => fields.Values;

    public List<MessageModel> Messages { get; } = [];

    public FieldModel? Find(string field) => fields.GetValueOrDefault(field);

    public FieldModel Field(string name) =>
        Find(name) ?? throw new InvariantException($"our own code names the field {Name}.{name}, which the model does not have");

    internal static ClassModel Read(string[] columns) => new()
    {
        Name = columns[1],
        // The field keeps its messages as files beside the database, we keep them in it.
        IsPersistent = columns[2] == "persist=true" || columns[1] == "message",
        HasEvents = columns[3] == "events=true",
        IsInDatabase = columns[4] == "indb=true" || columns[1] == "message",
    };

    internal void Add(FieldModel field) => fields.Add(field.Name, field);
}

public enum FieldQualifier
{
    /// <summary>A client sets it at any time.</summary>
    RW,

    /// <summary>A client sets it in the constructor.</summary>
    StaticRO,

    /// <summary>The server's own.</summary>
    DynamicRO,
}

public sealed class FieldModel
{
    public required string ClassName { get; init; }

    public required string Name { get; init; }

    public required int Index { get; init; }

    public required FieldType Type { get; init; }

    public required FieldQualifier Qualifier { get; init; }

    /// <summary>Null when the model gives none: a constructor must be told.</summary>
    public required RpcValue? Default { get; init; }

    public required bool IsPersistent { get; init; }

    /// <summary>Never sent to clients.</summary>
    public required bool IsInternal { get; init; }

    /// <summary>The set on the other side that follows this reference; null when there is none.</summary>
    public FieldModel? Reverse { get; internal set; }

    /// <summary>Where this set comes from; such a field is not stored.</summary>
    public FieldModel? ComputedFrom { get; internal set; }

    internal static FieldModel Read(string[] columns, int index)
    {
        FieldType type = FieldType.Parse(columns[3]);
        return new FieldModel
        {
            ClassName = columns[1],
            Name = columns[2],
            Index = index,
            Type = type,
            Qualifier = Enum.Parse<FieldQualifier>(columns[4]),
            Default = type.ParseDefault(columns[5]),
            IsPersistent = columns[6] == "persist=true",
            IsInternal = columns[7] == "internal=true",
        };
    }
}

public enum MessageKind
{
    /// <summary>Written by hand.</summary>
    Custom,

    /// <summary>A getter or setter of one field.</summary>
    Field,

    /// <summary>get_record, get_all, create and the like.</summary>
    Object,
}

/// <param name="Default">Null when the caller must give it.</param>
public sealed record ParameterModel(string Name, FieldType Type, RpcValue? Default);

public sealed record MessageModel(
    string ClassName,
    string Name,
    IReadOnlyList<ParameterModel> Parameters,
    FieldType Result,
    bool IsAsync,
    bool NeedsSession,
    bool IsInternal,
    bool IsHidden,
    MessageKind Kind,
    bool IsRemoved)
{
    public string WireName => $"{ClassName}.{Name}";

    internal static MessageModel Read(string[] columns) => new(
        columns[1],
        columns[2],
        ReadParameters(columns[3]),
        FieldType.Parse(columns[4]),
        columns[5] == "async=true",
        columns[6] == "session=true",
        columns[7] == "internal=true",
        columns[8] == "hidden=true",
        columns[11] switch { "custom" => MessageKind.Custom, "field" => MessageKind.Field, _ => MessageKind.Object },
        columns[12] == "REMOVED");

    /// <summary>Reads the model's notation: <c>(host:ref host, options:map(string-&gt;string)={})</c>.</summary>
    public static IReadOnlyList<ParameterModel> ReadParameters(string text)
    {
        List<ParameterModel> parameters = [];
        int start = 1;
        int depth = 0;
        bool isQuoted = false;
        for (int i = 1; i < text.Length; i++)
        {
            isQuoted ^= text[i] == '"';
            bool isEnd = depth == 0 && !isQuoted && (text[i] == ',' || i == text.Length - 1);
            if (isEnd && i > start)
                parameters.Add(ReadParameter(text[start..i].Trim()));
            if (isEnd)
                start = i + 1;
            else if (!isQuoted)
                depth += text[i] is '(' or '{' or '[' ? 1 : text[i] is ')' or '}' or ']' ? -1 : 0;
        }

        return parameters;
    }

    private static ParameterModel ReadParameter(string text)
    {
        int colon = text.IndexOf(':', StringComparison.Ordinal);
        int equals = text.IndexOf('=', StringComparison.Ordinal);
        FieldType type = FieldType.Parse(equals < 0 ? text[(colon + 1)..] : text[(colon + 1)..equals]);
        return new ParameterModel(text[..colon], type, equals < 0 ? null : type.ParseDefault(text[(equals + 1)..]));
    }
}
