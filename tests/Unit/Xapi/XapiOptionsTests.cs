using Support;
using Xapi;

namespace Unit.XapiTests;

public sealed class XapiOptionsTests : IDisposable
{
    private readonly TemporaryDirectory folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public void Paths_are_relative_to_the_file_and_the_rest_has_defaults()
    {
        Password("pw\n", UnixFileMode.UserRead);
        XapiOptions options = Read("""{"state_directory":"s","runtime_directory":"/r","root_password_file":"password","pool_name":"A"}""");
        Assert.Equal(folder.File("s"), options.StateDirectory);
        Assert.Equal("/r", options.RuntimeDirectory);
        Assert.Equal("127.0.0.1:0", $"{options.Https}");
        Assert.Null(options.Http);
        Assert.Null(options.SmDirectory);
    }

    [Fact]
    public void Every_mistake_is_reported_at_once_with_its_key()
    {
        Password("", UnixFileMode.UserRead | UnixFileMode.OtherRead);
        XapiOptionsException e = Assert.Throws<XapiOptionsException>(() => Read(
            """
            {"stat_directory":"s","http":"0.0.0.0:80","https":"here","pool_name":7,"host_name":"a","host_name":"b",
             "root_password_file":"password"}
            """));
        string[] keys = [.. e.Mistakes.Select(static m => m[..m.IndexOf(':', StringComparison.Ordinal)]).Order()];
        Assert.Equal(
            ["host_name", "http", "https", "pool_name", "root_password_file", "runtime_directory", "stat_directory", "state_directory"],
            keys);
        Assert.Contains(e.Mistakes, static m => m.Contains("did you mean \"state_directory\"", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{")]
    [InlineData("null")]
    public void What_is_no_JSON_object_is_refused(string text) => Assert.Throws<XapiOptionsException>(() => Read(text));

    [Fact]
    public void An_empty_password_would_open_the_door()
    {
        Password(" \n", UnixFileMode.UserRead);
        XapiOptionsException e = Assert.Throws<XapiOptionsException>(() =>
            Read("""{"state_directory":"s","runtime_directory":"r","root_password_file":"password"}"""));
        Assert.EndsWith("is empty", Assert.Single(e.Mistakes), StringComparison.Ordinal);
    }

    private void Password(string text, UnixFileMode mode)
    {
        File.WriteAllText(folder.File("password"), text);
        File.SetUnixFileMode(folder.File("password"), mode);
    }

    private XapiOptions Read(string text)
    {
        File.WriteAllText(folder.File("config"), text);
        return XapiOptions.Read(folder.File("config"));
    }
}
