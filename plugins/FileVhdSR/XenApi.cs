// The driver's call-backs: XML-RPC over HTTP on the toolstack's unix socket, in the session it was given (research/storage.md 3.3, 4.1).
using System.Text;
using Platform;
using StorageAccess.Wire;
using VhdFolder;

namespace FileVhdSR;

internal sealed class XenApi : IDisposable
{
    private const string DefaultSocket = "/var/lib/xcp/xapi";
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(60);
    private readonly string sessionRef;
    private readonly HttpClient http;

    public XenApi(string sessionRef)
    {
        this.sessionRef = sessionRef;
        string? path = Environment.GetEnvironmentVariable("XAPI_UNIX_SOCKET");
        http = new HttpClient(new SocketsHttpHandler
        {
            ConnectCallback = (_, c) => SocketFile.ConnectAsync(string.IsNullOrEmpty(path) ? DefaultSocket : path, c)
        })
        {
            Timeout = Deadline,
        };
    }

    /// <exception cref="DriverException">154: there is no answer, or the answer is a failure.</exception>
    public async Task<RpcValue> CallAsync(string method, params RpcValue[] parameters)
    {
        try
        {
            string body = XmlRpc.WriteCall(method, [sessionRef, .. parameters]);
            using StringContent content = new(body, Encoding.UTF8, "text/xml");
            using HttpResponseMessage response = await http.PostAsync(new Uri("http://localhost/"), content);
            RpcStruct answer = XmlRpc.ReadResponse(await response.Content.ReadAsStringAsync()).AsStruct();
            if (answer.Get("Status").AsString() == "Success")
                return answer.Get("Value");
            throw Refused($"{method}: {string.Join(", ", answer.Get("ErrorDescription").AsArray().Select(static e => e.AsString()))}");
        }
        catch (Exception e) when (e is HttpRequestException or TaskCanceledException or RpcFormatException or XmlRpcFaultException)
        {
            throw Refused($"{method}: {e.Message}");
        }
    }

    public void Dispose() => http.Dispose();

    private static DriverException Refused(string why) => new(154, $"the toolstack did not do {why}");
}
