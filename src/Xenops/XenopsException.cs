using System.Text.Json.Nodes;
using StorageAccess;
using StorageAccess.Wire;

namespace Xenops;

/// <summary>
/// A call was refused or failed. Travels as the field's variant (research: xenopsd.md 1.5): a tag with one string, or with an array of
/// strings,
/// for example <c>["Bad_power_state",["Halted","Running"]]</c>.
/// </summary>
public sealed class XenopsException : Exception
{
    private XenopsException(string tag, bool isTuple, params IReadOnlyList<string> arguments)
        : base($"{tag}: {string.Join(", ", arguments)}")
    {
        Tag = tag;
        IsTuple = isTuple;
        Arguments = arguments;
    }

    public string Tag { get; }

    public IReadOnlyList<string> Arguments { get; }

    private bool IsTuple { get; }

    public static XenopsException DoesNotExist(string kind, string key) => new("Does_not_exist", true, kind, key);

    public static XenopsException AlreadyExists(string kind, string key) => new("Already_exists", true, kind, key);

    public static XenopsException BadPowerState(string found, string expected) => new("Bad_power_state", true, found, expected);

    public static XenopsException FailedToShutDown(string id, TimeSpan deadline) =>
        new("Failed_to_shutdown", true, id, $"{deadline.TotalSeconds:0.###}");

    public static XenopsException FailedToSuspend(string id, TimeSpan deadline) =>
        new("Failed_to_suspend", true, id, $"{deadline.TotalSeconds:0.###}");

    public static XenopsException RemoteService(string text) => new("Failed_to_contact_remote_service", false, text);

    public static XenopsException Cancelled(string what) => new("Cancelled", false, what);

    public static XenopsException Unimplemented(string what) => new("Unimplemented", false, what);

    public static XenopsException Internal(string text) => new("Internal_error", false, text);

    /// <summary>What any failure of a call looks like to the caller.</summary>
    public static JsonNode VariantOf(Exception failure) => failure switch
    {
        XenopsException e => e.ToVariant(),
        StorageException e => new JsonArray(
            "Storage_backend_error", new JsonArray(e.Code, new JsonArray(e.Parameters.Select(static p => (JsonNode)p).ToArray()))),
        OperationCanceledException => new JsonArray("Cancelled", "the call was cancelled: its caller left, or the daemon stops"),
        _ => new JsonArray("Internal_error", failure.Message),
    };

    /// <summary>Rebuilds what came over the socket.</summary>
    public static XenopsException FromWire(JsonRpcException answer) => answer.Payload switch
    {
        JsonArray tuple => new(answer.Tag, true, tuple.Select(static a => a?.ToString() ?? "").ToArray()),
        null => new(answer.Tag, false),
        JsonNode text => new(answer.Tag, false, text.ToString()),
    };

    private JsonArray ToVariant() =>
        IsTuple ? new JsonArray(Tag, new JsonArray(Arguments.Select(static a => (JsonNode)a).ToArray())) : new JsonArray(Tag, Arguments[0]);
}
