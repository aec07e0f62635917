// The field's JSON-RPC between daemons: HTTP POST / on a unix socket, one dict of named parameters, an error that is a variant
// (research: storage.md 1.1, 1.2).
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;

namespace StorageAccess.Wire;

/// <summary>The peer answered with an error: a variant, for example <c>["Sr_not_attached","…"]</c>.</summary>
public sealed class JsonRpcException(JsonNode error) : Exception($"the call was refused: {error.ToJsonString()}")
{
    public JsonNode Error { get; } = error;

    /// <summary>The variant's tag; empty when it has none.</summary>
    public string Tag => Error is JsonArray { Count: > 0 } array ? array[0]?.ToString() ?? "" : Error.ToString();

    /// <summary>The variant's payload, or null for a bare tag.</summary>
    public JsonNode? Payload => Error is JsonArray { Count: > 1 } array ? array[1] : null;

    public static JsonRpcException Of(string tag, JsonNode? payload) =>
        new(payload is null ? JsonValue.Create(tag) : new JsonArray(tag, payload.DeepClone()));
}

public delegate Task<JsonNode?> JsonRpcHandler(JsonObject parameters, CancellationToken cancellationToken);

/// <summary>Text in, text out; whoever owns the socket calls it.</summary>
public sealed class JsonRpcDispatcher(IReadOnlyDictionary<string, JsonRpcHandler> handlers, Func<Exception, JsonNode> errorOf)
{
    /// <summary>A name that comes twice is malformed: two readers would take different ones.</summary>
    internal static readonly JsonDocumentOptions Limits = new() { MaxDepth = 64, AllowDuplicateProperties = false };

    /// <summary>Always answers: what is malformed or unknown gets an error too.</summary>
    public async Task<string> HandleAsync(string request, CancellationToken cancellationToken)
    {
        JsonNode? id = null;
        try
        {
            if (JsonNode.Parse(request, documentOptions: Limits) is not JsonObject call || call["method"] is not JsonValue method)
                return Answer(null, new JsonArray("Internal_error", "the body is not a JSON-RPC request"), null);
            JsonNode? asked = call["id"]?.DeepClone();
            _ = asked?.ToJsonString(); // Throws when it is text that is no text (half a surrogate pair): that cannot be sent back.
            id = asked;
            JsonObject parameters = call["params"] switch
            {
                JsonArray { Count: 1 } array when array[0] is JsonObject named => named,
                JsonObject named => named,
                null or JsonArray { Count: 0 } => [],
                _ => throw new RpcFormatException("params must be one dict of named parameters"),
            };
            if (!handlers.TryGetValue(method.ToString(), out JsonRpcHandler? handler))
                return Answer(null, new JsonArray("Unimplemented", method.ToString()), id);
            return Answer(await handler(parameters, cancellationToken), null, id);
        }
        catch (JsonException e)
        {
            return Answer(null, new JsonArray("Internal_error", $"malformed JSON: {e.Message}"), id);
        }
        catch (JsonRpcException e)
        {
            return Answer(null, e.Error.DeepClone(), id);
        }
        catch (Exception e) when (e is not Platform.InvariantException)
        {
            return Answer(null, errorOf(e), id);
        }
    }

    private static string Answer(JsonNode? result, JsonNode? error, JsonNode? id) =>
        new JsonObject { ["result"] = result, ["error"] = error, ["id"] = id?.DeepClone() ?? JsonValue.Create(0) }.ToJsonString();
}

/// <summary>Calls a daemon on its unix socket. Thread-safe; a call ends with its token or its deadline.</summary>
public sealed class JsonRpcClient : IDisposable
{
    private readonly HttpClient http;
    private long lastId;

    public JsonRpcClient(string socketPath, TimeSpan deadline)
    {
        SocketPath = socketPath;
        http = new HttpClient(new SocketsHttpHandler
        {
            ConnectCallback = (_, cancellationToken) => SocketFile.ConnectAsync(socketPath, cancellationToken),
        })
        {
            BaseAddress = new Uri("http://localhost/"),
            Timeout = deadline,
        };
    }

    public string SocketPath { get; }

    /// <exception cref="JsonRpcException">The daemon refused.</exception>
    /// <exception cref="IOException">The daemon is not there, went away, or did not answer in time.</exception>
    public async Task<JsonNode?> CallAsync(string method, JsonObject parameters, CancellationToken cancellationToken)
    {
        JsonObject call = new()
        {
            ["method"] = method,
            ["params"] = new JsonArray(parameters),
            ["id"] = Interlocked.Increment(ref lastId),
        };
        try
        {
            using StringContent body = new(call.ToJsonString(), Encoding.UTF8, "application/json");
            using HttpResponseMessage response = await http.PostAsync(new Uri("/", UriKind.Relative), body, cancellationToken);
            string text = await response.Content.ReadAsStringAsync(cancellationToken);
            JsonObject answer = JsonNode.Parse(text, documentOptions: JsonRpcDispatcher.Limits)?.AsObject() ?? throw new IOException($"{SocketPath} answered null to {method}");
            if (answer["error"] is { } error)
                throw new JsonRpcException(error.DeepClone());
            return answer["result"]?.DeepClone();
        }
        catch (HttpRequestException e)
        {
            throw new IOException($"no answer from {SocketPath} to {method}: {e.Message}", e);
        }
        catch (TaskCanceledException e) when (!cancellationToken.IsCancellationRequested)
        {
            throw new IOException($"{SocketPath} did not answer {method} within {http.Timeout.TotalSeconds:0} s", e);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new IOException($"{SocketPath} answered {method} with something that is not JSON: {e.Message}", e);
        }
    }

    public void Dispose() => http.Dispose();
}
