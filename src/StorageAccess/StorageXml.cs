// The other wire form of SMAPIv2: XML-RPC with one struct of named parameters, and an answer that is a struct of Status, never a fault
// (research/storage.md 1.2). The same calls, the same handlers: the text is turned into JSON and back.
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using StorageAccess.Wire;

namespace StorageAccess;

public static class StorageXml
{
    /// <summary>Whether a request's body is this form and not JSON.</summary>
    public static bool IsXml(string body) => body.AsSpan().TrimStart().StartsWith("<");

    /// <summary>Always answers, as <see cref="JsonRpcDispatcher.HandleAsync"/> does.</summary>
    public static async Task<string> HandleAsync(JsonRpcDispatcher dispatcher, string body, CancellationToken cancellationToken)
    {
        try
        {
            XmlRpcCall call = XmlRpc.ReadCall(body);
            RpcStruct named = call.Parameters switch
            {
                [] => new RpcStruct([]),
                [RpcStruct parameters] => parameters,
                _ => throw new RpcFormatException("the parameters must be one struct of named parameters"),
            };
            JsonObject request = new() { ["method"] = call.Method, ["params"] = new JsonArray(ToJson(named)), ["id"] = 0 };
            JsonObject answer = JsonNode.Parse(await dispatcher.HandleAsync(request.ToJsonString(), cancellationToken))!.AsObject();
            return answer["error"] is { } error ? Failure(error) : Answer("Success", "Value", answer["result"]);
        }
        catch (RpcFormatException e)
        {
            return Failure(new JsonArray("Internal_error", $"malformed XML-RPC: {e.Message}"));
        }
    }

    private static string Failure(JsonNode error) => Answer("Failure", "ErrorDescription", error);

    private static string Answer(string status, string name, JsonNode? value) =>
        XmlRpc.WriteResponse(RpcValue.Struct(("Status", status), (name, FromJson(value))));

    internal static JsonNode? ToJson(RpcValue value) => value switch
    {
        RpcNil => null,
        RpcBool flag => JsonValue.Create(flag.Value),
        RpcInt number => JsonValue.Create(number.Value),
        RpcDouble number => JsonValue.Create(number.Value),
        RpcArray array => new JsonArray([.. array.Items.Select(ToJson)]),
        RpcStruct members => Object(members),
        _ => JsonValue.Create(value.AsString()),
    };

    private static JsonObject Object(RpcStruct members)
    {
        JsonObject json = [];
        foreach ((string name, RpcValue value) in members.Members)
        {
            if (!json.TryAdd(name, ToJson(value)))
                throw new RpcFormatException($"the member \"{name}\" comes twice");
        }

        return json;
    }

    internal static RpcValue FromJson(JsonNode? node) => node switch
    {
        null => new RpcNil(),
        JsonArray array => RpcValue.Array(array.Select(FromJson)),
        JsonObject json => new RpcStruct([.. json.Select(static member => KeyValuePair.Create(member.Key, FromJson(member.Value)))]),
        _ => node.GetValueKind() switch
        {
            JsonValueKind.True => true,
            JsonValueKind.False => false,
            // A 64-bit integer is bare text.
            JsonValueKind.Number when node.AsValue().TryGetValue(out long whole) => whole.ToString(CultureInfo.InvariantCulture),
            JsonValueKind.Number => new RpcDouble(node.GetValue<double>()),
            _ => node.GetValue<string>(),
        },
    };
}
