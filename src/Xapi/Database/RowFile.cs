// STATE/xapi.db: the persistent rows. One table for all classes, a row's fields as one JSON object of canonical values, so that a model
// with more or fewer fields reads an older file: unknown fields are dropped, missing ones get their default. Format version 1.
using System.Text;
using System.Text.Json;
using Platform;
using StorageAccess.Wire;

namespace Xapi.Database;

internal sealed class RowFile : IDisposable
{
    private const long FormatVersion = 1;
    private const string Schema = """
        CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS row (class TEXT NOT NULL, ref TEXT NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
            fields TEXT NOT NULL, PRIMARY KEY (class, ref)) WITHOUT ROWID;
        INSERT OR IGNORE INTO state VALUES ('format_version', 1);
        """;

    private readonly SqliteFile file;

    private RowFile(SqliteFile file) => this.file = file;

    /// <exception cref="IOException">The file is damaged, in use, or of a newer version.</exception>
    public static RowFile Open(string path)
    {
        SqliteFile file = SqliteFile.Open(path, Schema);
        RowFile opened = new(file);
        long version = opened.ReadNumber("format_version");
        if (version == FormatVersion)
            return opened;
        file.Dispose();
        throw new IOException($"{path} has format version {version}; this program reads {FormatVersion}. It was left as it is.");
    }

    public long ReadNumber(string name) =>
        file.Query("SELECT value FROM state WHERE name = $name", static r => r.GetInt64(0), ("$name", name)).FirstOrDefault();

    public void WriteNumber(string name, long value) =>
        file.Execute("INSERT OR REPLACE INTO state VALUES ($name, $value)", ("$name", name), ("$value", value));

    /// <summary>All rows, oldest first.</summary>
    public IEnumerable<(string ClassName, Row Row)> ReadRows(DataModel model)
    {
        List<(string ClassName, string Ref, long Created, long Modified, string Fields)> stored = file.Query(
            "SELECT class, ref, created, modified, fields FROM row ORDER BY created",
            static r => (r.GetString(0), r.GetString(1), r.GetInt64(2), r.GetInt64(3), r.GetString(4)));
        foreach ((string className, string reference, long created, long modified, string fields) in stored)
        {
            if (model.Find(className) is { IsPersistent: true, IsInDatabase: true } known)
                yield return (className, new Row(reference, ReadFields(known, fields), created) { Modified = modified });
        }
    }

    /// <summary>Writes and deletes rows as one durable step.</summary>
    public void Write(IEnumerable<(ClassModel Model, string Ref, Row? Row)> rows) => file.Transaction(() =>
    {
        foreach ((ClassModel model, string reference, Row? row) in rows)
        {
            if (row is null)
                file.Execute("DELETE FROM row WHERE class = $class AND ref = $ref", ("$class", model.Name), ("$ref", reference));
            else
                file.Execute(
                    "INSERT OR REPLACE INTO row VALUES ($class, $ref, $created, $modified, $fields)",
                    ("$class", model.Name),
                    ("$ref", reference),
                    ("$created", row.Created),
                    ("$modified", row.Modified),
                    ("$fields", WriteFields(model, row)));
        }
    });

    public void Dispose() => file.Dispose();

    private static RpcValue[] ReadFields(ClassModel model, string text)
    {
        using JsonDocument document = JsonDocument.Parse(text);
        RpcValue[] values = new RpcValue[model.Fields.Count];
        foreach (FieldModel field in model.Fields)
        {
            values[field.Index] = document.RootElement.TryGetProperty(field.Name, out JsonElement stored) && field.ComputedFrom is null
                ? field.Type.Accept(Read(stored), $"{model.Name}.{field.Name}")
                : field.Default ?? field.Type.Empty;
        }

        return values;
    }

    private static string WriteFields(ClassModel model, Row row)
    {
        using MemoryStream text = new();
        using (Utf8JsonWriter writer = new(text))
        {
            writer.WriteStartObject();
            foreach (FieldModel field in model.Fields)
            {
                if (!field.IsPersistent || field.ComputedFrom is not null)
                    continue;
                writer.WritePropertyName(field.Name);
                Write(writer, row.Values[field.Index]);
            }

            writer.WriteEndObject();
        }

        return Encoding.UTF8.GetString(text.GetBuffer(), 0, (int)text.Length);
    }

    private static void Write(Utf8JsonWriter writer, RpcValue value)
    {
        switch (value)
        {
            case RpcBool b:
                writer.WriteBooleanValue(b.Value);
                break;
            case RpcInt i:
                writer.WriteNumberValue(i.Value);
                break;
            case RpcDouble d:
                writer.WriteNumberValue(d.Value);
                break;
            case RpcNil:
                writer.WriteNullValue();
                break;
            case RpcArray array:
                writer.WriteStartArray();
                foreach (RpcValue item in array.Items)
                    Write(writer, item);
                writer.WriteEndArray();
                break;
            case RpcStruct map:
                writer.WriteStartObject();
                foreach ((string name, RpcValue member) in map.Members)
                {
                    writer.WritePropertyName(name);
                    Write(writer, member);
                }

                writer.WriteEndObject();
                break;
            default:
                writer.WriteStringValue(value.AsString());
                break;
        }
    }

    private static RpcValue Read(JsonElement element) => element.ValueKind switch
    {
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        JsonValueKind.Number => element.TryGetInt64(out long number) ? new RpcInt(number) : new RpcDouble(element.GetDouble()),
        JsonValueKind.Array => RpcValue.Array(element.EnumerateArray().Select(Read)),
        JsonValueKind.Object =>
            new RpcStruct(element.EnumerateObject().Select(static p => KeyValuePair.Create(p.Name, Read(p.Value))).ToList()),
        JsonValueKind.Null => new RpcNil(),
        _ => element.GetString()!,
    };
}
