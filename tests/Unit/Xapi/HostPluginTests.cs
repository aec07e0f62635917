using StorageAccess.Wire;
using Support;
using Xapi;
using Xapi.Storage;

namespace Unit.XapiTests;

/// <summary>host.call_plugin: the field's protocol, and every way in which a program does not keep to it (research: storage.md 4.2).</summary>
public sealed class HostPluginTests : IDisposable
{
    private const string Session = "OpaqueRef:5e55";
    private readonly TemporaryDirectory folder = new();
    private readonly HostPlugins plugins;

    public HostPluginTests() =>
        plugins = new HostPlugins(folder.Path, "/usr/bin", new Dictionary<string, string> { ["X"] = "y" }, TimeSpan.FromSeconds(1));

    public void Dispose()
    {
        plugins.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task A_plugin_gets_the_function_the_session_and_the_map_and_answers_a_text()
    {
        Write("p", $"printf %s \"$1\" > {folder.File("argument")}; {Print("<member><name>Status</name><value>Success</value></member>"
            + "<member><name>Value</name><value>True</value></member>")}");
        Assert.Equal("True", await CallAsync("p"));
        XmlRpcCall call = XmlRpc.ReadCall(await File.ReadAllTextAsync(folder.File("argument")));
        Assert.Equal(("f", Session, "v"), (call.Method, call.Parameters[0].AsString(), call.Parameters[1].AsMap()["k"]));
    }

    [Fact]
    public async Task A_plugins_own_error_is_the_calls()
    {
        Write("p", Print("<member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>"
            + "<value>MY_CODE</value><value>why</value></data></array></value></member>"));
        XapiException e = await Assert.ThrowsAsync<XapiException>(() => CallAsync("p"));
        Assert.Equal("MY_CODE why", string.Join(' ', e.Description));
    }

    [Theory]
    [InlineData("nosuch")]
    [InlineData("")]
    [InlineData("../p")]
    [InlineData(".hidden")]
    [InlineData("a/b")]
    public async Task What_is_no_plugin_is_missing(string name)
    {
        Write("p", "exit 0");
        Write(".hidden", "exit 0");
        Assert.Equal("XENAPI_MISSING_PLUGIN", (await Assert.ThrowsAsync<XapiException>(() => CallAsync(name))).Code);
    }

    [Theory]
    [InlineData("echo \"$1\"; exit 3", "non-zero exit")]
    [InlineData("echo \"$1\" >&2; kill -9 $$", "signal: 9")]
    [InlineData("echo \"$1\"", "an array or struct")]
    [InlineData("sleep 60", "no answer")]
    [InlineData("head -c 2000000 /dev/zero", "no answer")]
    public async Task A_plugin_that_breaks_the_protocol_fails_and_tells_no_secret(string script, string why)
    {
        Write("p", script);
        XapiException e = await Assert.ThrowsAsync<XapiException>(() => CallAsync("p"));
        Assert.Equal("XENAPI_PLUGIN_FAILURE", e.Code);
        if (!why.StartsWith("an array", StringComparison.Ordinal))
            Assert.Equal(why, e.Parameters[0]);
        Assert.DoesNotContain("5e55", e.Message);
    }

    [Fact]
    public async Task A_program_that_everybody_may_change_is_not_run()
    {
        File.SetUnixFileMode(Write("p", "exit 0"), UnixFileMode.UserExecute | UnixFileMode.UserRead | UnixFileMode.OtherWrite);
        Assert.Equal("everybody may write to it", (await Assert.ThrowsAsync<XapiException>(() => CallAsync("p"))).Parameters[0]);
    }

    private string Write(string name, string script) => FakeProgram.Write(folder.File(name), script);

    private static string Print(string members) =>
        $"echo '<methodResponse><params><param><value><struct>{members}</struct></value></param></params></methodResponse>'";

    private Task<string> CallAsync(string name) =>
        plugins.CallAsync(name, "f", Session, RpcValue.Map(new Dictionary<string, string> { ["k"] = "v" }), CancellationToken.None);
}
