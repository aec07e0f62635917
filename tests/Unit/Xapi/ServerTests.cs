using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Microsoft.Extensions.Logging;
using StorageAccess.Wire;
using Support;
using Xapi;
using Xapi.Server;

namespace Unit.XapiTests;

/// <summary>The whole daemon in this process, spoken to over its sockets.</summary>
public sealed class ServerTests : IAsyncLifetime
{
    private const string Password = "s3cret-pässword";
    private readonly TemporaryDirectory folder = new();
    private readonly Lines log = new();
    private readonly HttpClient http = new();
    private Daemon daemon = null!;

    public async Task InitializeAsync()
    {
        File.WriteAllText(folder.File("password"), Password);
        File.SetUnixFileMode(folder.File("password"), UnixFileMode.UserRead);
        daemon = await StartAsync();
    }

    public async Task DisposeAsync()
    {
        http.Dispose();
        await daemon.DisposeAsync();
        log.Dispose();
        folder.Dispose();
    }

    [Fact]
    public async Task An_answer_is_byte_for_byte_what_the_field_sends()
    {
        daemon.Messages.Add("SR.get_supported_types", static (_, _) =>
            RpcValue.Array(["", "a<b", new RpcInt(7), new RpcDouble(0.5), true]));
        using HttpResponseMessage response = await PostAsync("/any/path", XmlRpc.WriteCall("SR.get_supported_types", await LoginAsync()));
        Assert.Equal("text/xml", response.Content.Headers.GetValues("Content-Type").Single());
        Assert.Equal("*", response.Headers.GetValues("Access-Control-Allow-Origin").Single());
        Assert.Equal(
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name>"
            + "<value>Success</value></member><member><name>Value</name><value><array><data>"
            + "<value/><value>a&lt;b</value><value>7</value><value><double>0.5</double></value><value><boolean>1</boolean></value></data>"
            + "</array></value></member></struct></value></param></params></methodResponse>",
            await response.Content.ReadAsStringAsync());
    }

    [Fact]
    public async Task A_refusal_is_HTTP_200_with_code_and_parameters()
    {
        using HttpResponseMessage response = await PostAsync("/", XmlRpc.WriteCall("VM.get_all", "OpaqueRef:x"));
        Assert.Equal(
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name>"
            + "<value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>"
            + "<value>SESSION_INVALID</value><value>OpaqueRef:x</value></data>"
            + "</array></value></member></struct></value></param></params></methodResponse>",
            await response.Content.ReadAsStringAsync());
    }

    [Theory]
    [InlineData("")]
    [InlineData("{\"method\":\"x\"}")]
    [InlineData("<methodCall/>")]
    [InlineData("<methodCall><methodName>VM.get_all</methodName><params><param><value>")]
    [InlineData("<!DOCTYPE a [<!ENTITY b \"c\">]><methodCall><methodName>&b;</methodName></methodCall>")]
    [InlineData("<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><methodCall><methodName>&b;</methodName></methodCall>")]
    [InlineData("<!DOCTYPE a SYSTEM \"http://127.0.0.1:1/a.dtd\"><methodCall><methodName>a</methodName></methodCall>")]
    [InlineData("<methodCall><methodName>a</methodName><params><param><value><int>1e400</int></value></param></params></methodCall>")]
    [InlineData("<methodCall><methodName>a</methodName><params><param><value><double>NaN</double></value></param></params></methodCall>")]
    [InlineData("<methodCall><methodName>a</methodName><params><param><value>&#xFFFE;</value></param></params></methodCall>")]
    public async Task What_is_no_call_gets_a_short_page(string body)
    {
        using HttpResponseMessage response = await PostAsync("/", body);
        Assert.Equal(HttpStatusCode.InternalServerError, response.StatusCode);
        Assert.InRange((await response.Content.ReadAsStringAsync()).Length, 1, 1000);
    }

    [Fact]
    public async Task Deep_nesting_is_refused_not_recursed_into()
    {
        string deep = string.Concat(Enumerable.Repeat("<value><array><data>", 100_000));
        using HttpResponseMessage response = await PostAsync("/", $"<methodCall><methodName>a</methodName><params><param>{deep}");
        Assert.Equal(HttpStatusCode.InternalServerError, response.StatusCode);
        using HttpResponseMessage elements = await PostAsync("/", string.Concat(Enumerable.Repeat("<a>", 100_000)));
        Assert.Equal(HttpStatusCode.InternalServerError, elements.StatusCode);
    }

    [Fact]
    public async Task Text_that_is_not_UTF8_is_an_invalid_value()
    {
        byte[] body = [.. "<methodCall><methodName>a"u8, 0xC0, 0xAF, .. "</methodName></methodCall>"u8];
        using HttpResponseMessage response = await http.PostAsync(new Uri(daemon.Server.HttpUrl!), new ByteArrayContent(body));
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
        Assert.Contains("<value>INVALID_VALUE</value>", await response.Content.ReadAsStringAsync(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_body_beyond_16_MiB_is_refused_and_one_below_is_read()
    {
        using HttpResponseMessage small = await PostAsync("/", XmlRpc.WriteCall("a", new string('x', 4 * 1024 * 1024)));
        Assert.Contains("MESSAGE_METHOD_UNKNOWN", await small.Content.ReadAsStringAsync(), StringComparison.Ordinal);
        using HttpRequestMessage request = new(HttpMethod.Post, daemon.Server.HttpUrl);
        request.Content = new ByteArrayContent(new byte[RpcEndpoint.BodyLimitBytes + 1]);
        request.Headers.ExpectContinue = true; // The answer comes before the body is sent.
        using HttpResponseMessage large = await http.SendAsync(request);
        Assert.Equal(HttpStatusCode.RequestEntityTooLarge, large.StatusCode);
    }

    [Theory]
    [InlineData("GET", "/", HttpStatusCode.Forbidden)]
    [InlineData("PUT", "/nothing/../%2e%2e/%00x", HttpStatusCode.Forbidden)]
    [InlineData("DELETE", "/", HttpStatusCode.NotImplemented)]
    [InlineData("OPTIONS", "/jsonrpc", HttpStatusCode.OK)]
    public async Task Other_methods_are_answered_without_work(string method, string path, HttpStatusCode status)
    {
        using HttpRequestMessage request = new(new HttpMethod(method), daemon.Server.HttpUrl + path);
        using HttpResponseMessage response = await http.SendAsync(request);
        Assert.Contains(response.StatusCode, new[] { status, HttpStatusCode.BadRequest });
    }

    [Fact]
    public async Task The_unix_socket_is_its_owners_and_takes_an_empty_password_TCP_does_not()
    {
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(daemon.Server.UnixPath));
        using HttpClient local = new(new SocketsHttpHandler
        {
            ConnectCallback = async (_, cancellationToken) =>
            {
                Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                await socket.ConnectAsync(new UnixDomainSocketEndPoint(daemon.Server.UnixPath), cancellationToken);
                return new NetworkStream(socket, ownsSocket: true);
            },
        });
        string login = XmlRpc.WriteCall("session.login_with_password", "root", "", "", "SM");
        using HttpResponseMessage accepted = await local.PostAsync(new Uri("http://_var_lib_xcp_xapi/"), new StringContent(login));
        Assert.Contains("Success", await accepted.Content.ReadAsStringAsync(), StringComparison.Ordinal);
        using HttpResponseMessage refused = await PostAsync("/", login);
        Assert.Contains("SESSION_AUTHENTICATION_FAILED", await refused.Content.ReadAsStringAsync(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Endpoints_and_certificate_are_published_and_stay_and_the_rest_goes_with_the_daemon()
    {
        using JsonDocument endpoints = JsonDocument.Parse(File.ReadAllText(folder.File("state/endpoints.json")));
        Assert.Equal(daemon.Server.HttpsUrl, endpoints.RootElement.GetProperty("https").GetString());
        Assert.Equal(daemon.Server.Fingerprint, endpoints.RootElement.GetProperty("fingerprint").GetString());
        Assert.Equal(Environment.ProcessId, endpoints.RootElement.GetProperty("pid").GetInt32());
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(folder.File("state/xapi-ssl.pem")));
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(folder.File("state/xapi.db")));
        string fingerprint = daemon.Server.Fingerprint;
        string[] uuids = Uuids();
        await daemon.DisposeAsync();
        Assert.False(File.Exists(folder.File("state/endpoints.json")));
        Assert.Empty(Directory.GetFiles(folder.File("run")));
        daemon = await StartAsync();
        Assert.Equal(fingerprint, daemon.Server.Fingerprint);
        Assert.Equal(uuids, Uuids());

        string[] Uuids() => new[] { "pool", "host", "VM", "host_metrics" }
            .Select(c => daemon.Database.GetString(c, Assert.Single(daemon.Database.All(c)), "uuid")).ToArray();
    }

    [Fact]
    public async Task A_second_daemon_on_one_state_folder_or_one_socket_is_refused_and_disturbs_nothing()
    {
        IOException e = await Assert.ThrowsAsync<IOException>(StartAsync);
        Assert.Contains("another daemon", e.Message, StringComparison.Ordinal);
        e = await Assert.ThrowsAsync<IOException>(() => StartAsync(state: "other"));
        Assert.Contains("another daemon answers on", e.Message, StringComparison.Ordinal);
        Assert.True(File.Exists(folder.File("run/storage")));
        await LoginAsync();
        Assert.True(File.Exists(folder.File("state/endpoints.json")));
    }

    [Fact]
    public async Task A_long_poll_does_not_hold_up_the_daemons_end()
    {
        TaskCompletionSource waiting = new();
        daemon.Messages.Add("event.get_current_id", async (context, _) =>
        {
            waiting.SetResult();
            await Task.Delay(Timeout.Infinite, context.CancellationToken);
            return "";
        });
        Task<HttpResponseMessage> poll = PostAsync("/", XmlRpc.WriteCall("event.get_current_id", await LoginAsync()));
        await waiting.Task;
        await daemon.DisposeAsync().AsTask().WaitAsync(TimeSpan.FromSeconds(5));
        await Assert.ThrowsAsync<HttpRequestException>(() => poll);
        daemon = await StartAsync();
    }

    [Fact]
    public async Task No_password_and_no_session_is_in_the_log()
    {
        daemon.Messages.Add("SR.get_supported_types", Fail);
        string session = await LoginAsync();
        using HttpResponseMessage failed = await PostAsync("/", XmlRpc.WriteCall("SR.get_supported_types", session));
        using HttpResponseMessage refused = await PostAsync("/", XmlRpc.WriteCall("session.login_with_password", "root", "guess-4711"));
        Assert.Contains(log.All, static l => l.Contains("planned", StringComparison.Ordinal));
        foreach (string secret in (string[])[Password, session, "guess-4711"])
            Assert.DoesNotContain(log.All, l => l.Contains(secret, StringComparison.Ordinal));

        static RpcValue Fail(Xapi.Rpc.CallContext context, IReadOnlyList<RpcValue> arguments) =>
            throw new InvalidOperationException("planned");
    }

    private Task<Daemon> StartAsync() => StartAsync("state");

    private Task<Daemon> StartAsync(string state)
    {
        XapiOptions options = new()
        {
            StateDirectory = folder.File(state),
            RuntimeDirectory = folder.File("run"),
            PoolName = "A",
            HostName = "hostA",
            Https = new IPEndPoint(IPAddress.Loopback, 0),
            Http = new IPEndPoint(IPAddress.Loopback, 0),
            RootPasswordFile = folder.File("password"),
            ToolsDirectory = AppContext.BaseDirectory,
            SmDirectory = null,
            StorageScriptsDirectory = null,
        };
        return Daemon.StartAsync(options, log, TimeProvider.System, CancellationToken.None);
    }

    private async Task<string> LoginAsync()
    {
        using HttpResponseMessage response = await PostAsync("/RPC2", XmlRpc.WriteCall("session.login_with_password", "root", Password));
        RpcStruct answer = XmlRpc.ReadResponse(await response.Content.ReadAsStringAsync()).AsStruct();
        Assert.Equal("Success", answer.Get("Status"));
        return answer.Get("Value").AsString();
    }

    private Task<HttpResponseMessage> PostAsync(string path, string body) =>
        http.PostAsync(new Uri(daemon.Server.HttpUrl + path), new StringContent(body, Encoding.UTF8, "text/xml"));

    private sealed class Lines : ILoggerFactory, ILogger
    {
        public ConcurrentQueue<string> All { get; } = [];

        public ILogger CreateLogger(string categoryName) => this;

        public void AddProvider(ILoggerProvider provider) => throw new NotSupportedException();

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(
            LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            All.Enqueue($"{formatter(state, exception)} {exception}");

        public void Dispose()
        {
        }
    }
}
