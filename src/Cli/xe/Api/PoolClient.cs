// A session with one pool. Calls are bounded in time and in size; what goes wrong is told apart: nobody there, the wrong one there,
// refused, refused to log in.
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Json.Nodes;
using Platform;
using Xe.Grammar;

namespace Xe.Api;

internal sealed class PoolClient : IAsyncDisposable
{
    private static readonly TimeSpan ConnectLimit = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan CallLimit = TimeSpan.FromMinutes(10);
    private static readonly TimeSpan LogoutLimit = TimeSpan.FromSeconds(5);

    private readonly PoolAddress address;
    private readonly PoolTrust trust;
    private readonly HttpClient http;
    private string? whyNotTrusted;
    private string session = "";
    private HashSet<string>? messages;

    private PoolClient(PoolAddress address, PoolTrust trust)
    {
        this.address = address;
        this.trust = trust;
        SocketsHttpHandler handler = new()
        {
            ConnectTimeout = ConnectLimit,
            UseProxy = false,
            AllowAutoRedirect = false,
            SslOptions = new SslClientAuthenticationOptions { RemoteCertificateValidationCallback = IsTrusted },
        };
        if (address.UnixPath is { } path)
            handler.ConnectCallback = (_, cancellationToken) => SocketFile.ConnectAsync(path, cancellationToken);
        http = new HttpClient(handler) { BaseAddress = address.Url, Timeout = CallLimit };
    }

    public string Name => address.Name;

    /// <exception cref="XeException">3: nobody answers, or it is not the pool that was meant; 4: user or password is wrong.</exception>
    public static async Task<PoolClient> LoginAsync(
        PoolAddress address, PoolTrust trust, string user, Secret password, CancellationToken cancellationToken)
    {
        PoolClient client = new(address, trust);
        try
        {
            client.session = Text(await client.InvokeAsync(
                "session.login_with_password", [user, password.Reveal(), "2.20", "xe"], CallLimit, cancellationToken));
            return client;
        }
        catch
        {
            client.http.Dispose();
            throw;
        }
    }

    /// <summary>Calls a message with the session in front.</summary>
    /// <exception cref="XeException">1: refused, with the pool's own code; 3: nobody answers any more.</exception>
    public Task<JsonNode?> CallAsync(string method, CancellationToken cancellationToken, params JsonNode?[] arguments) =>
        InvokeAsync(method, [session, .. arguments], CallLimit, cancellationToken);

    public async Task<string> TextAsync(string method, CancellationToken cancellationToken, params JsonNode?[] arguments) =>
        Text(await CallAsync(method, cancellationToken, arguments));

    public async Task<JsonObject> RecordAsync(string wireClass, string reference, CancellationToken cancellationToken) =>
        await CallAsync($"{wireClass}.get_record", cancellationToken, reference) as JsonObject ?? throw NoSense($"{wireClass}.get_record");

    /// <summary>Every object of a class, by reference.</summary>
    public async Task<JsonObject> RecordsAsync(string wireClass, CancellationToken cancellationToken) =>
        await CallAsync($"{wireClass}.get_all_records", cancellationToken) as JsonObject ?? throw NoSense($"{wireClass}.get_all_records");

    /// <summary>The messages that this pool answers.</summary>
    public async Task<IReadOnlySet<string>> MessagesAsync(CancellationToken cancellationToken)
    {
        if (messages is null)
        {
            JsonNode? answer = await InvokeAsync("system.listMethods", [], CallLimit, cancellationToken);
            messages = answer is JsonArray names ? [.. names.Select(Text)] : throw NoSense("system.listMethods");
        }

        return messages;
    }

    public async ValueTask DisposeAsync()
    {
        try
        {
            if (session.Length != 0)
                await InvokeAsync("session.logout", [session], LogoutLimit, CancellationToken.None);
        }
        catch (XeException)
        {
            // It ends by itself a day after its last use.
        }

        http.Dispose();
    }

    public static string Text(JsonNode? node) => node is JsonValue value && value.TryGetValue(out string? text)
        ? text
        : throw new XeException(ExitCodes.Unreachable, "CANNOT_REACH", [], $"the answer is no text: {node?.ToJsonString()}");

    private XeException NoSense(string method) => XeException.Unreachable(Name, $"the answer to {method} is not what a pool answers");

    private async Task<JsonNode?> InvokeAsync(
        string method, IReadOnlyList<JsonNode?> arguments, TimeSpan timeLimit, CancellationToken cancellationToken)
    {
        using StringContent body = new(XmlRpc.WriteCall(method, arguments), Encoding.UTF8, "text/xml");
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(timeLimit);
        whyNotTrusted = null;
        JsonNode? answer;
        try
        {
            using HttpRequestMessage request = new(HttpMethod.Post, "/") { Content = body };
            using HttpResponseMessage response = await http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, limit.Token);
            if (response.StatusCode != HttpStatusCode.OK)
                throw XeException.Unreachable(Name, $"it answers {(int)response.StatusCode} to {method}: this is no pool, or not its API");
            using MemoryStream bytes = await ReadAsync(response, limit.Token);
            answer = XmlRpc.ReadResponse(bytes);
        }
        catch (FormatException e)
        {
            throw XeException.Unreachable(Name, $"the answer to {method} is not XML-RPC ({e.Message})");
        }
        catch (Exception e) when (e is HttpRequestException or IOException && whyNotTrusted is not null)
        {
            throw new XeException(ExitCodes.Unreachable, "UNTRUSTED_CERTIFICATE", [Name], whyNotTrusted!);
        }
        catch (Exception e) when (e is HttpRequestException or IOException or SocketException)
        {
            throw XeException.Unreachable(Name, e.InnerException is { } inner && e is HttpRequestException ? inner.Message : e.Message);
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw XeException.Unreachable(Name, $"no answer to {method} within {timeLimit.TotalSeconds:0} s; it may still be working on it");
        }

        return method == "system.listMethods" ? answer : Unwrap(method, answer);
    }

    private static async Task<MemoryStream> ReadAsync(HttpResponseMessage response, CancellationToken cancellationToken)
    {
        using Stream stream = await response.Content.ReadAsStreamAsync(cancellationToken);
        MemoryStream bytes = new();
        byte[] part = new byte[64 << 10];
        while (await stream.ReadAsync(part, cancellationToken) is > 0 and var count)
        {
            if (bytes.Length + count > XmlRpc.AnswerLimitBytes)
                throw new FormatException($"it is larger than {XmlRpc.AnswerLimitBytes >> 20} MiB");
            bytes.Write(part, 0, count);
        }

        bytes.Position = 0;
        return bytes;
    }

    private JsonNode? Unwrap(string method, JsonNode? answer)
    {
        if (answer is not JsonObject envelope)
            throw NoSense(method);
        if (envelope["Status"] is JsonValue status && status.TryGetValue(out string? text) && text == "Success")
        {
            JsonNode? value = envelope["Value"];
            envelope.Remove("Value");
            return value;
        }

        IReadOnlyList<string> description = envelope["ErrorDescription"] is JsonArray array ? [.. array.Select(Text)] : throw NoSense(method);
        if (description is ["MESSAGE_METHOD_UNKNOWN" or "NOT_IMPLEMENTED", ..])
            throw XeException.Refused(description, $"this pool's daemon does not have {method.Replace("Async.", "", StringComparison.Ordinal)}");
        throw XeException.Refused(description);
    }

    private bool IsTrusted(object sender, X509Certificate? certificate, X509Chain? chain, SslPolicyErrors errors)
    {
        if (certificate is null)
        {
            whyNotTrusted = $"{Name} shows no certificate";
            return false;
        }

        string shown = string.Join(':', SHA256.HashData(certificate.GetRawCertData()).Select(static b => $"{b:X2}"));
        whyNotTrusted = trust.WhyNot(Name, shown, errors == SslPolicyErrors.None);
        return whyNotTrusted is null;
    }
}
