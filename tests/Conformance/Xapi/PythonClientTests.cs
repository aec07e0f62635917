using System.Net;
using Microsoft.Extensions.Logging.Abstractions;
using Platform;
using StorageAccess.Wire;
using Support;
using Xapi;

namespace Conformance.XapiTests;

/// <summary>The daemon judged by Python's own XML-RPC client, on which the field's Python binding and its drivers stand.</summary>
public sealed class PythonClientTests : IAsyncLifetime
{
    private const string Client = """
        import http.client, socket, ssl, sys, time, xmlrpc.client

        class Unix(xmlrpc.client.Transport):
            def __init__(self, path):
                super().__init__()
                self.path = path
            def make_connection(self, host):
                connection = http.client.HTTPConnection(host)
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.connect(self.path)
                return connection

        url, password = sys.argv[1:]
        if url.startswith('/'):
            server = xmlrpc.client.ServerProxy('http://_var_lib_xcp_xapi/', transport=Unix(url), allow_none=True)
        else:
            context = ssl._create_unverified_context() if url.startswith('https') else None
            server = xmlrpc.client.ServerProxy(url, allow_none=True, context=context)

        def ok(answer):
            assert answer['Status'] == 'Success', answer
            return answer['Value']

        def error(answer):
            assert answer['Status'] == 'Failure', answer
            return answer['ErrorDescription']

        session = ok(server.session.login_with_password('root', password, '2.20', 'conformance'))
        """;

    private const string Calls = """
        methods = server.system.listMethods()
        for method in methods:
            if method.endswith('.get_all_records'):
                assert isinstance(ok(getattr(server, method)(session)), dict), method
        (host, record), = ok(server.host.get_all_records(session)).items()
        assert ok(server.Host.get_by_name_label(session, 'hostA')) == [host]
        assert ok(server.Host.get_by_uuid(session, record['uuid'])) == host
        assert record['API_version_major'] == '2' and record['enabled'] is True and record['PBDs'] == []
        assert isinstance(record['last_software_update'], xmlrpc.client.DateTime)
        (pool, pool_record), = ok(server.pool.get_all_records(session)).items()
        assert pool_record['master'] == host
        (vm, vm_record), = ok(server.VM.get_all_records_where(session, 'field "is_control_domain"="true"')).items()
        assert vm_record['resident_on'] == host and ok(server.host.get_resident_VMs(session, host)) == [vm]
        assert vm_record['HVM_shadow_multiplier'] == 1.0

        for text in ('', ' ', '<&>"\'', 'ü 漢 𝄞', 'a\nb\tc'):
            ok(server.pool.set_name_description(session, pool, text))
            assert ok(server.pool.get_name_description(session, pool)) == text, text
        ok(server.pool.set_other_config(session, pool, {}))
        ok(server.pool.add_to_other_config(session, pool, 'k', 'v'))
        assert error(server.pool.add_to_other_config(session, pool, 'k', 'w')) == ['MAP_DUPLICATE_KEY', 'pool', 'other_config', pool, 'k']
        assert ok(server.pool.get_other_config(session, pool)) == {'k': 'v'}
        ok(server.pool.remove_from_other_config(session, pool, 'k'))
        ok(server.pool.set_tags(session, pool, ['b', 'a']))
        assert ok(server.pool.get_tags(session, pool)) == ['b', 'a']
        ok(server.pool.set_wlb_enabled(session, pool, True))
        ok(server.pool.set_vm_console_idle_timeout(session, pool, '9007199254740993'))
        assert ok(server.pool.get_vm_console_idle_timeout(session, pool)) == '9007199254740993'

        assert error(server.VM.get_record(session, 'OpaqueRef:no')) == ['HANDLE_INVALID', 'VM', 'OpaqueRef:no']
        assert error(server.VM.get_record(session)) == ['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.get_record', '1', '0']
        assert error(server.VM.get_record(session, None)) == ['FIELD_TYPE_ERROR', 'self']
        assert error(server.VM.nothing(session)) == ['MESSAGE_METHOD_UNKNOWN', 'VM.nothing']
        assert error(server.VM.get_all()) == ['SESSION_INVALID', '']
        assert error(server.VMPP.get_all(session)) == ['MESSAGE_REMOVED']
        """;

    private const string Tasks = """
        def watch(task):
            end = time.time() + 10
            while ok(server.task.get_status(session, task)) == 'pending' and time.time() < end:
                time.sleep(0.01)
            return ok(server.task.get_record(session, task))

        task = ok(getattr(server, 'Async.SR.probe')(session, 'OpaqueRef:h', {'a': 'b'}, 'dummy'))
        record = watch(task)
        assert record['status'] == 'success' and record['progress'] == 1.0, record
        assert record['result'] == '<value>a=b dummy</value>', record
        ok(server.task.destroy(session, task))
        task = ok(getattr(server, 'Async.SR.probe')(session, 'OpaqueRef:h', {}, 'full'))
        record = watch(task)
        assert record['status'] == 'failure' and record['error_info'] == ['SR_BACKEND_FAILURE_44', '', 'no space', ''], record
        task = ok(getattr(server, 'Async.SR.probe')(session, 'OpaqueRef:h', {}, 'slow'))
        ok(server.task.cancel(session, task))
        record = watch(task)
        assert record['status'] == 'cancelled' and record['error_info'] == ['TASK_CANCELLED', task], record
        assert ok(server.SR.probe(session, 'OpaqueRef:h', {'a': 'b'}, 'dummy')) == 'a=b dummy'
        assert error(server.SR.probe(session, 'OpaqueRef:h', {}, 'full'))[0] == 'SR_BACKEND_FAILURE_44'
        assert isinstance(record['created'], xmlrpc.client.DateTime)
        """;

    private const string Farewell = """
        ok(server.session.logout(session))
        assert error(server.VM.get_all(session)) == ['SESSION_INVALID', session]
        print('done')
        """;

    private readonly TemporaryDirectory folder = new();
    private Daemon daemon = null!;

    public async Task InitializeAsync()
    {
        File.WriteAllText(folder.File("password"), "p\u00E4ss<w>\n");
        File.SetUnixFileMode(folder.File("password"), UnixFileMode.UserRead);
        File.WriteAllText(
            folder.File("config"),
            """
            {"state_directory":"state","runtime_directory":"run","pool_name":"A","host_name":"hostA","http":"127.0.0.1:0",
             "root_password_file":"password"}
            """);
        daemon = await Daemon.StartAsync(
            XapiOptions.Read(folder.File("config")), NullLoggerFactory.Instance, TimeProvider.System, CancellationToken.None);
        daemon.Messages.Add("SR.probe", async (context, a) =>
        {
            string type = a[2].AsString();
            if (type == "full")
                throw new StorageAccess.StorageException("SR_BACKEND_FAILURE_44", "", "no space", "");
            if (type == "slow")
                await Task.Delay(Timeout.Infinite, context.CancellationToken);
            return string.Join(',', a[1].AsMap().Select(static p => $"{p.Key}={p.Value}")) + $" {type}";
        });
    }

    public async Task DisposeAsync()
    {
        await daemon.DisposeAsync();
        folder.Dispose();
    }

    [SkippableTheory]
    [InlineData("https")]
    [InlineData("http")]
    [InlineData("unix")]
    public async Task The_python_client_sees_what_the_field_would_show_it(string transport)
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        (string url, string password) = transport switch
        {
            "https" => (daemon.Server.HttpsUrl, "p\u00E4ss<w>"),
            "http" => (daemon.Server.HttpUrl!, "p\u00E4ss<w>"),
            _ => (daemon.Server.UnixPath, ""),
        };
        ChildResult result = await Tool.RunAsync("python3", "-c", string.Join('\n', Client, Calls, Tasks, Farewell), url, password);
        Assert.True(result.StandardOutput == "done\n", result.StandardError);
    }

    [SkippableFact]
    public async Task Openssl_sees_the_published_fingerprint_and_nothing_older_than_TLS_1_2()
    {
        Skip.IfNot(Tool.Exists("openssl"), Tool.Missing("openssl"));
        string address = new Uri(daemon.Server.HttpsUrl).Authority;
        ChildResult shown = await Tool.RunAsync(
            "sh", "-c", $"openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256");
        Assert.EndsWith($"={daemon.Server.Fingerprint}\n", shown.StandardOutput, StringComparison.Ordinal);
        ChildResult old = await Tool.RunAsync("sh", "-c", $"openssl s_client -connect {address} -tls1_1 </dev/null 2>&1");
        Assert.NotEqual(0, old.ExitCode);
    }
}
