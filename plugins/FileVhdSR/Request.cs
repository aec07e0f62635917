using StorageAccess.Wire;
using VhdFolder;

namespace FileVhdSR;

/// <summary>The struct that the adapter sends (research/storage.md 3.1).</summary>
internal sealed class Request(RpcStruct members)
{
    public string Command => members.Get("command").AsString();

    public string SessionRef => Text("session_ref");

    public string SrRef => Text("sr_ref");

    public string SrUuid => Text("sr_uuid");

    public string VdiRef => Text("vdi_ref");

    /// <summary>The location is the uuid, and the file's name.</summary>
    public string VdiLocation => Text("vdi_location");

    public string VdiType => members.Find("vdi_type")?.AsString() ?? "user";

    public bool IsMaster => Config.GetValueOrDefault("SRmaster") == "true";

    public bool IsCollectorOff => Config.GetValueOrDefault("gc") == "off";

    public string Location => Config.TryGetValue("location", out string? location)
        ? location
        : throw new DriverException(DriverException.LocationMissing, "device_config has no location");

    private Dictionary<string, string> Config => members.Get("device_config").AsMap();

    public static Request Read(string xml)
    {
        XmlRpcCall call = XmlRpc.ReadCall(xml);
        return call.Parameters.Count == 1
            ? new Request(call.Parameters[0].AsStruct())
            : throw new RpcFormatException($"one parameter is expected, not {call.Parameters.Count}");
    }

    public string Argument(int index)
    {
        IReadOnlyList<RpcValue> arguments = members.Get("args").AsArray();
        return index < arguments.Count ? arguments[index].AsString() : throw new RpcFormatException($"argument {index} is missing");
    }

    public long SizeArgument(int index) =>
        long.TryParse(Argument(index), out long size) && size >= 0 ? size
            : throw new RpcFormatException($"\"{Argument(index)}\" is not a size");

    public bool FlagArgument(int index) => Argument(index) == "true";

    /// <summary>The uuid that the caller fixes for a new disk, or null.</summary>
    public string? FixedUuid => members.Find("vdi_uuid")?.AsString();

    public Dictionary<string, string> SmConfig => members.Find("vdi_sm_config")?.AsMap() ?? [];

    private string Text(string name) => members.Get(name).AsString();
}
