using StorageAccess.Wire;
using Xapi;
using Xapi.Database;

namespace Unit.XapiTests;

public sealed class FieldTypeTests
{
    public static TheoryData<string, RpcValue, RpcValue> Accepted => new()
    {
        { "string", "a", "a" },
        { "int", "9223372036854775807", new RpcInt(long.MaxValue) },
        { "int", "-1", new RpcInt(-1) },
        { "int", new RpcInt(3), new RpcInt(3) },
        { "float", new RpcInt(3), new RpcDouble(3) },
        { "float", "0.5", new RpcDouble(0.5) },
        { "bool", "true", true },
        { "bool", "0", false },
        { "datetime", new RpcDateTime("20250319T04:16:24Z"), new RpcDateTime("20250319T04:16:24Z") },
        { "datetime", new RpcDateTime("20250319T04:16:24"), new RpcDateTime("20250319T04:16:24Z") },
        { "datetime", "2025-03-19T04:16:24.123+02:00", new RpcDateTime("20250319T02:16:24Z") },
        { "ref SR", "", "OpaqueRef:NULL" },
        { "ref SR", "OpaqueRef:x", "OpaqueRef:x" },
        { "enum vbd_mode{RO|RW}", "RW", "RW" },
        { "set(string)", RpcValue.Strings(["b", "", ""]), RpcValue.Strings(["b", "", ""]) },
        { "set(int)", RpcValue.Strings(["1"]), RpcValue.Array([new RpcInt(1)]) },
        { "map(int->set(string))", RpcValue.Struct(("01", RpcValue.Strings(["a"]))), RpcValue.Struct(("1", RpcValue.Strings(["a"]))) },
        { "map(string->string)", RpcValue.Struct(("k", "1"), ("k", "2")), RpcValue.Struct(("k", "2")) },
        { "option string", new RpcNil(), new RpcNil() },
        { "option string", "x", "x" },
    };

    public static TheoryData<string, RpcValue, string> Refused => new()
    {
        { "string", new RpcNil(), "FIELD_TYPE_ERROR f" },
        { "string", new RpcInt(1), "FIELD_TYPE_ERROR f" },
        { "string", RpcValue.Strings([]), "FIELD_TYPE_ERROR f" },
        { "string", "\0", "INVALID_VALUE f" },
        { "string", "\uFFFE", "INVALID_VALUE f" },
        { "string", "\uD800", "INVALID_VALUE f" },
        { "string", "\uDC00\uD800", "INVALID_VALUE f" },
        { "int", "9223372036854775808", "FIELD_TYPE_ERROR f" },
        { "int", "1e3", "FIELD_TYPE_ERROR f" },
        { "int", "", "FIELD_TYPE_ERROR f" },
        { "int", true, "FIELD_TYPE_ERROR f" },
        { "float", "1e400", "FIELD_TYPE_ERROR f" },
        { "float", "NaN", "FIELD_TYPE_ERROR f" },
        { "float", new RpcDouble(double.PositiveInfinity), "FIELD_TYPE_ERROR f" },
        { "bool", "yes", "FIELD_TYPE_ERROR f" },
        { "datetime", "yesterday", "FIELD_TYPE_ERROR f" },
        { "datetime", new RpcInt(0), "FIELD_TYPE_ERROR f" },
        { "ref SR", new RpcNil(), "FIELD_TYPE_ERROR f" },
        { "ref SR", new string('x', 256), "INVALID_VALUE f" },
        { "enum vbd_mode{RO|RW}", "rw", "INVALID_VALUE f rw" },
        { "set(enum vbd_mode{RO|RW})", RpcValue.Strings(["RW", "WR"]), "INVALID_VALUE f WR" },
        { "set(string)", "a", "FIELD_TYPE_ERROR f" },
        { "map(string->string)", RpcValue.Strings(["a"]), "FIELD_TYPE_ERROR f" },
        { "map(int->string)", RpcValue.Struct(("x", "y")), "FIELD_TYPE_ERROR f" },
        { "map(string->string)", RpcValue.Struct(("\0", "y")), "INVALID_VALUE f" },
    };

    [Theory]
    [MemberData(nameof(Accepted))]
    public void A_value_becomes_canonical(string type, RpcValue given, RpcValue canonical)
    {
        RpcValue accepted = FieldType.Parse(type).Accept(given, "f");
        Assert.Equal(canonical, accepted);
        Assert.Equal(canonical, FieldType.Parse(type).Accept(accepted, "f"));
    }

    [Theory]
    [MemberData(nameof(Refused))]
    public void Another_type_or_value_is_refused_by_the_fields_name(string type, RpcValue given, string error)
    {
        XapiException e = Assert.Throws<XapiException>(() => FieldType.Parse(type).Accept(given, "f"));
        Assert.StartsWith(error, string.Join(' ', e.Description), StringComparison.Ordinal);
    }

    [Fact]
    public void Column_text_is_the_databases_own()
    {
        Assert.Equal("('a' 'it\\'s')", FieldType.ColumnText(RpcValue.Strings(["a", "it's"])));
        Assert.Equal("(('k' 'v\\\\'))", FieldType.ColumnText(RpcValue.Struct(("k", "v\\"))));
        Assert.Equal("true", FieldType.ColumnText(true));
        Assert.Equal("-1", FieldType.ColumnText(new RpcInt(-1)));
    }

    [Fact]
    public void Every_default_of_the_model_is_a_value_of_its_type()
    {
        int count = 0;
        foreach (ClassModel c in ApiWorld.Model.Classes)
        {
            foreach (FieldModel field in c.Fields)
            {
                RpcValue value = field.Default ?? field.Type.Empty;
                Assert.Equal(value, field.Type.Accept(value, field.Name));
                count++;
            }
        }

        Assert.Equal(950, count);
        Assert.Equal(2258, ApiWorld.Model.Classes.Sum(static c => c.Messages.Count));
    }

    [Fact]
    public void Parameters_with_defaults_that_hold_commas_and_brackets_are_read()
    {
        ClassModel host = ApiWorld.Model["host"];
        MessageModel create = host.Messages.Single(static m => m.Name == "create");
        ParameterModel license = create.Parameters.Single(static p => p.Name == "license_server");
        Assert.Equal("27000", license.Default!.AsMap()["port"]);
        Assert.Equal(5, create.Parameters.Count(static p => p.Default is null));
    }
}
