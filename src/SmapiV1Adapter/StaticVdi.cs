// A VDI that is attached with no toolstack to ask, early in a host's boot: the driver made the text of that call itself, while there was one
// (vdi_generate_config), and gets it back as its argument (research/storage.md 3.2, 3.9).
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

/// <param name="driverPath">The driver that made the text.</param>
/// <param name="config">What vdi_generate_config answered.</param>
public sealed class StaticVdi(string driverPath, string config, SmDriverSettings settings)
{
    private const string Attach = "vdi_attach_from_config";
    private const string Detach = "vdi_detach_from_config";

    /// <exception cref="StorageException">The driver's fault, no answer, or a text that is no such call.</exception>
    public async Task<Backend> AttachAsync(CancellationToken cancellationToken)
    {
        SmCall call = Call(Attach, ReadConfig());
        RpcValue answer = await SmProcess.RunAsync(driverPath, call, config, settings, cancellationToken);
        return SmAnswers.Read(call, answer, SmAnswers.Backend);
    }

    public async Task DetachAsync(CancellationToken cancellationToken)
    {
        RpcStruct members = ReadConfig();
        string text = XmlRpc.WriteCall(Detach, new RpcStruct(members.Members
            .Select(static m => m.Key == "command" ? KeyValuePair.Create(m.Key, (RpcValue)Detach) : m).ToList()));
        SmCall call = Call(Detach, members);
        SmAnswers.CheckNil(call, await SmProcess.RunAsync(driverPath, call, text, settings, cancellationToken));
    }

    /// <summary>For errors only: what the driver is given is the text.</summary>
    private static SmCall Call(string command, RpcStruct members) =>
        new(command) { HostRef = "", DeviceConfig = members.Find("device_config")?.AsMap() };

    private RpcStruct ReadConfig()
    {
        try
        {
            XmlRpcCall call = XmlRpc.ReadCall(config);
            if (call is { Method: Attach, Parameters: [RpcStruct members] } && members.Find("device_config") is RpcStruct or null)
                return members;
            throw new RpcFormatException($"it is a call of {call.Method} with {call.Parameters.Count} parameters");
        }
        catch (RpcFormatException e)
        {
            throw new StorageException("SR_BACKEND_FAILURE", "", $"the VDI's static configuration is no {Attach}: {e.Message}", "");
        }
    }
}
