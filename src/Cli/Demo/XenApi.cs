// A XenAPI client in one page: XML-RPC over HTTP, as any other client of the field would do it.
using System.Text;
using StorageAccess.Wire;

namespace Demo;

/// <summary>The server's ErrorDescription.</summary>
internal sealed class XenApiException(IReadOnlyList<string> description) : Exception(string.Join(": ", description.Where(static d => d.Length != 0)))
{
    public IReadOnlyList<string> Description { get; } = description;
}

internal sealed class XenApi : IDisposable
{
    private readonly HttpClient http;
    private string session = "";

    /// <param name="handler">For a pool over TLS: who checks its certificate. Owned.</param>
    public XenApi(Uri url, HttpMessageHandler? handler = null) =>
        http = new HttpClient(handler ?? new SocketsHttpHandler()) { BaseAddress = url, Timeout = TimeSpan.FromMinutes(5) };

    public string Session => session;

    public async Task LoginAsync(string user, string password, CancellationToken cancellationToken) =>
        session = (await InvokeAsync("session.login_with_password", [user, password, "2.20", "demo"], cancellationToken)).AsString();

    /// <summary>Calls a message with the session in front.</summary>
    public Task<RpcValue> CallAsync(string method, CancellationToken cancellationToken, params RpcValue[] arguments) =>
        InvokeAsync(method, [session, .. arguments], cancellationToken);

    public async Task<string> RefAsync(string method, CancellationToken cancellationToken, params RpcValue[] arguments) =>
        (await CallAsync(method, cancellationToken, arguments)).AsString();

    /// <summary>The one object of that name.</summary>
    public async Task<string> ByNameAsync(string type, string name, CancellationToken cancellationToken)
    {
        IReadOnlyList<RpcValue> found = (await CallAsync($"{type}.get_by_name_label", cancellationToken, name)).AsArray();
        return found.Count == 1 ? found[0].AsString() : throw new InvalidOperationException($"{found.Count} objects of {type} are named \"{name}\"");
    }

    public async Task LogoutAsync()
    {
        if (session.Length != 0)
            await CallAsync("session.logout", CancellationToken.None);
        session = "";
    }

    public void Dispose() => http.Dispose();

    private async Task<RpcValue> InvokeAsync(string method, IReadOnlyList<RpcValue> arguments, CancellationToken cancellationToken)
    {
        using StringContent body = new(XmlRpc.WriteCall(method, arguments), Encoding.UTF8, "text/xml");
        using HttpResponseMessage response = await http.PostAsync(new Uri("/", UriKind.Relative), body, cancellationToken);
        string text = await response.Content.ReadAsStringAsync(cancellationToken);
        if (!response.IsSuccessStatusCode)
            throw new HttpRequestException($"{http.BaseAddress} answered {(int)response.StatusCode} to {method}");
        RpcStruct answer = XmlRpc.ReadResponse(text).AsStruct();
        return answer.Get("Status").AsString() == "Success"
            ? answer.Get("Value")
            : throw new XenApiException([.. answer.Get("ErrorDescription").AsArray().Select(static v => v.AsString())]);
    }
}
