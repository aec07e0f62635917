// A pool of a few lines behind a real socket: HTTP and the server's own XML-RPC codec, so that the two ends' spellings meet.
using System.Net;
using System.Text;
using StorageAccess.Wire;
using Xe;
using Xe.Output;

namespace Unit.XeTests;

/// <summary>What a handler says no with.</summary>
internal sealed class PoolSaysNo(params string[] description) : Exception
{
    public IReadOnlyList<string> Description { get; } = description;
}

internal sealed class FakePool : IDisposable
{
    public const string Session = "OpaqueRef:the-session-is-a-secret";
    private readonly HttpListener listener = new();
    private readonly Task serving;

    public FakePool()
    {
        listener.IgnoreWriteExceptions = true; // A caller that was interrupted is gone when its answer comes.
        for (int port = 20000 + Random.Shared.Next(20000); ; port++)
        {
            Url = $"http://127.0.0.1:{port}";
            listener.Prefixes.Clear();
            listener.Prefixes.Add(Url + "/");
            try
            {
                listener.Start();
                break;
            }
            catch (HttpListenerException) when (port < 60000)
            {
                // Taken by another test.
            }
        }

        Answers["session.login_with_password"] = a => a[1].AsString() == "right" ? Session : throw new PoolSaysNo("SESSION_AUTHENTICATION_FAILED", a[0].AsString());
        Answers["session.logout"] = static _ => "";
        serving = Task.Run(ServeAsync); // Not on the test's own context, which Dispose below holds.
    }

    public string Url { get; }

    /// <summary>By message; given the arguments, without the session.</summary>
    public Dictionary<string, Func<IReadOnlyList<RpcValue>, RpcValue>> Answers { get; } = [];

    public List<string> Calls { get; } = [];

    /// <summary>Sent as it is, when it is there.</summary>
    public Func<string, (int Status, string Body)?> Raw { get; set; } = static _ => null;

    /// <summary>Runs xe on this pool with the right password.</summary>
    public Task<Ran> XeAsync(params string[] words) => RunAsync([.. words, "-s", Url, "-pw", "right"]);

    public static Task<Ran> RunAsync(params string[] words) => RunAsync(null, words);

    public static async Task<Ran> RunAsync(Interrupts? interrupts, params string[] words)
    {
        using StringWriter output = new();
        using StringWriter error = new();
        using Interrupts own = new();
        int exitCode = await new Shell(static _ => null, output, error, interrupts ?? own).RunAsync(words).WaitAsync(TimeSpan.FromSeconds(20));
        return new Ran(exitCode, output.ToString(), error.ToString());
    }

    public void Dispose()
    {
        listener.Close();
        Assert.True(serving.Wait(TimeSpan.FromSeconds(10)), "the fake pool does not end");
    }

    private async Task ServeAsync()
    {
        while (true)
        {
            try
            {
                await AnswerAsync(await listener.GetContextAsync());
            }
            catch (Exception e) when (e is HttpListenerException or ObjectDisposedException or InvalidOperationException)
            {
                return;
            }
        }
    }

    private async Task AnswerAsync(HttpListenerContext http)
    {
        using StreamReader reader = new(http.Request.InputStream);
        XmlRpcCall call = XmlRpc.ReadCall(await reader.ReadToEndAsync());
        Calls.Add(call.Method);
        (int status, string body) = Raw(call.Method) ?? (200, Answer(call));
        http.Response.StatusCode = status;
        http.Response.ContentType = "text/xml";
        await http.Response.OutputStream.WriteAsync(Encoding.UTF8.GetBytes(body));
        http.Response.Close();
    }

    private string Answer(XmlRpcCall call)
    {
        bool isBare = call.Method is "session.login_with_password" or "system.listMethods";
        try
        {
            if (call.Method == "system.listMethods")
                return XmlRpc.WriteResponse(RpcValue.Strings([.. Answers.Keys]));
            if (!Answers.TryGetValue(call.Method, out Func<IReadOnlyList<RpcValue>, RpcValue>? answer))
                throw new PoolSaysNo("MESSAGE_METHOD_UNKNOWN", call.Method);
            if (!isBare)
                Assert.Equal(Session, call.Parameters[0].AsString());
            return XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Success"), ("Value", answer(isBare ? call.Parameters : [.. call.Parameters.Skip(1)]))));
        }
        catch (PoolSaysNo no)
        {
            return XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Failure"), ("ErrorDescription", RpcValue.Strings(no.Description))));
        }
    }
}

internal sealed record Ran(int ExitCode, string Output, string Error);
