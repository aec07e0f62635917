using StorageAccess.Wire;
using Xapi;

namespace Unit.XapiTests;

public sealed class RowFilterTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();
    private readonly string sr;

    public RowFilterTests()
    {
        sr = world.Database.Create("SR", ("name_label", "s"));
        world.Database.Create("VDI", ("uuid", "a"), ("SR", sr), ("virtual_size", new RpcInt(7)), ("name_label", "x and y"));
        world.Database.Create("VDI", ("uuid", "b"), ("SR", sr), ("managed", true), ("tags", RpcValue.Strings(["t"])));
        world.Database.Create("VDI", ("uuid", "c"), ("managed", true));
    }

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Theory]
    [InlineData("true", "a b c")]
    [InlineData("false", "")]
    [InlineData("field \"SR\" = \"$SR\"", "a b")]
    [InlineData("field 'SR' = '$SR' and field 'managed' = 'true'", "b")]
    [InlineData("field \"SR\" = \"$SR\" andfield \"managed\" = \"true\"", "b")]
    [InlineData("field\"SR\"=\"$SR\"andnot(field\"managed\"=\"true\")", "a")]
    [InlineData("field \"uuid\" = \"a\" or field \"uuid\" = \"b\" and false", "a")]
    [InlineData("(field \"uuid\" = \"a\" or field \"uuid\" = \"b\") and false", "")]
    [InlineData("not not true", "a b c")]
    [InlineData("field \"virtual_size\" = \"7\"", "a")]
    [InlineData("field \"name__label\" = \"x and y\"", "a")]
    [InlineData("field \"name_label\" = \"x \\and y\"", "a")]
    [InlineData("field \"tags\" = \"('t')\"", "b")]
    [InlineData("\"1\" = \"1\" and \"c\" = field \"uuid\"", "c")]
    [InlineData("field \"SR\" = \"OpaqueRef:NULL\"", "c")]
    public void An_expression_selects(string expression, string uuids)
    {
        IEnumerable<string> found = world.Database.Where("VDI", expression.Replace("$SR", sr, StringComparison.Ordinal))
            .Select(r => world.Database.GetString("VDI", r, "uuid"));
        Assert.Equal(uuids, string.Join(' ', found));
    }

    [Theory]
    [InlineData("")]
    [InlineData("and")]
    [InlineData("true true")]
    [InlineData("true and")]
    [InlineData("(true")]
    [InlineData("true)")]
    [InlineData("field")]
    [InlineData("field \"SR\"")]
    [InlineData("field \"SR\" =")]
    [InlineData("field \"SR\" = \"x")]
    [InlineData("field \"nope\" = \"x\"")]
    [InlineData("field SR = x")]
    [InlineData("\"and\" and true")]
    [InlineData("SELECT 1")]
    [InlineData("\u0000")]
    public void A_malformed_expression_is_an_invalid_value(string expression)
    {
        XapiException e = Assert.Throws<XapiException>(() => world.Database.Where("VDI", expression));
        Assert.Equal(("INVALID_VALUE", "expr"), (e.Code, e.Parameters[0]));
    }

    [Fact]
    public void Depth_and_length_are_bounded()
    {
        string nots = string.Concat(Enumerable.Repeat("not ", 10_000));
        foreach (string deep in (string[])[new string('(', 60_000), nots, new string(' ', 70_000)])
            Assert.Equal("INVALID_VALUE", Assert.Throws<XapiException>(() => world.Database.Where("VDI", deep)).Code);
    }
}
