using System.Diagnostics;
using System.Text.Json;
using Platform;
using StorageAccess.Wire;
using Support;

namespace Conformance.XapiTests;

/// <summary>The executable as a service manager sees it: ready, signals, exit codes, a kill at any time.</summary>
public sealed class ServeTests : IDisposable
{
    private const int Term = 15;
    private const int Kill = 9;

    /// <summary>Where it was built: a copy beside the tests lacks the native SQLite.</summary>
    private static readonly string Xapi = Path.GetFullPath(
        Path.Combine(AppContext.BaseDirectory, "../../Xapi", Path.GetFileName(AppContext.BaseDirectory.TrimEnd('/')), "xapi"));

    private readonly TemporaryDirectory folder = new();

    public ServeTests()
    {
        File.WriteAllText(folder.File("password"), "pw");
        File.SetUnixFileMode(folder.File("password"), UnixFileMode.UserRead);
        File.WriteAllText(
            folder.File("config"),
            """{"state_directory":"state","runtime_directory":"run","pool_name":"A","root_password_file":"password"}""");
    }

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task A_killed_daemon_starts_again_with_all_that_it_acknowledged_and_ends_on_SIGTERM_with_0()
    {
        using Process first = await StartAsync();
        string pool = (await CallAsync("pool.get_all")).AsArray()[0].AsString();
        await CallAsync("pool.set_name_description", pool, "acknowledged");
        string certificate = File.ReadAllText(folder.File("state/xapi-ssl.pem"));
        Assert.True(Posix.TryKill(first.Id, Kill));
        await first.WaitForExitAsync();
        Assert.True(File.Exists(folder.File("state/endpoints.json"))); // A kill leaves its file and its socket ...
        using Process second = await StartAsync(); // ... and they are in nobody's way.
        Assert.Equal(second.Id, Endpoints().GetProperty("pid").GetInt32());
        Assert.Equal("acknowledged", (await CallAsync("pool.get_name_description", pool)).AsString());
        Assert.Equal(certificate, File.ReadAllText(folder.File("state/xapi-ssl.pem")));
        Assert.True(Posix.TryKill(second.Id, Term));
        await second.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(10));
        Assert.Equal(0, second.ExitCode);
        Assert.False(File.Exists(folder.File("state/endpoints.json")));
        Assert.Empty(Directory.GetFiles(folder.File("run")));
    }

    [Fact]
    public async Task A_second_daemon_says_why_it_does_not_start()
    {
        using Process first = await StartAsync();
        ChildResult second = await Tool.RunAsync(Xapi, "serve", "--config", folder.File("config"));
        Assert.Equal(1, second.ExitCode);
        Assert.Contains("another daemon", second.StandardError, StringComparison.Ordinal);
        Posix.TryKill(first.Id, Term);
        await first.WaitForExitAsync();
    }

    [Fact]
    public async Task Every_mistake_of_the_configuration_is_on_standard_error()
    {
        File.WriteAllText(folder.File("config"), """{"state_directori":"state","http":"192.0.2.1:80"}""");
        ChildResult result = await Tool.RunAsync(Xapi, "serve", "--config", folder.File("config"));
        Assert.Equal(1, result.ExitCode);
        foreach (string key in (string[])["state_directori", "state_directory", "runtime_directory", "root_password_file", "http"])
            Assert.Contains($"{key}:", result.StandardError, StringComparison.Ordinal);
    }

    private async Task<Process> StartAsync()
    {
        Process process = Process.Start(new ProcessStartInfo(Xapi, ["serve", "--config", folder.File("config")])
        {
            RedirectStandardOutput = true,
        })!;
        string? line = await process.StandardOutput.ReadLineAsync().WaitAsync(TimeSpan.FromSeconds(20));
        Assert.StartsWith("xapi: ready on https://127.0.0.1:", line, StringComparison.Ordinal);
        return process;
    }

    /// <summary>One call in a session of its own.</summary>
    private async Task<RpcValue> CallAsync(string method, params RpcValue[] arguments)
    {
        using HttpClientHandler handler = new() { ServerCertificateCustomValidationCallback = static (_, _, _, _) => true };
        using HttpClient client = new(handler);
        RpcValue session = await PostAsync("session.login_with_password", ["root", "pw"]);
        return await PostAsync(method, [session, .. arguments]);

        async Task<RpcValue> PostAsync(string name, RpcValue[] parameters)
        {
            using StringContent body = new(XmlRpc.WriteCall(name, parameters));
            using HttpResponseMessage response = await client.PostAsync(new Uri(Endpoints().GetProperty("https").GetString()!), body);
            RpcStruct answer = XmlRpc.ReadResponse(await response.Content.ReadAsStringAsync()).AsStruct();
            Assert.Equal("Success", answer.Get("Status").AsString());
            return answer.Get("Value");
        }
    }

    private JsonElement Endpoints() => JsonDocument.Parse(File.ReadAllText(folder.File("state/endpoints.json"))).RootElement.Clone();
}
