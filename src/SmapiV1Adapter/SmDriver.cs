// Runs a SMAPIv1 driver: one process per call, one argument, the answer on stdout, bounded in time and output. Agrees with research/storage.md 3.1, 3.4
// and 3.5. The argument and the secrets in it are never part of an error.
using Platform;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

/// <summary>How drivers are run.</summary>
/// <param name="ToolsFolder">First in the driver's PATH.</param>
/// <param name="Environment">What a driver gets beside PATH and ORIGINATOR.</param>
public sealed record SmDriverSettings(string ToolsFolder, IReadOnlyDictionary<string, string> Environment, TimeSpan Deadline)
{
    public static readonly TimeSpan DefaultDeadline = TimeSpan.FromMinutes(5);
}

/// <summary>A driver that answered sr_get_driver_info.</summary>
/// <param name="Type">The SR type: the file's name in lower case without its <c>SR</c>.</param>
/// <param name="Capabilities">Name to version.</param>
public sealed record SmDriver(string Type, string Path, QueryResult Info, IReadOnlyDictionary<string, int> Capabilities);

internal static class SmProcess
{
    private const int OutputLimitBytes = 8 * 1024 * 1024;
    private const int ErrorTextLimit = 4096;

    /// <exception cref="StorageException">The driver's fault, or no answer.</exception>
    public static async Task<RpcValue> CallAsync(string driverPath, SmCall call, SmDriverSettings settings, CancellationToken cancellationToken)
    {
        Dictionary<string, string?> environment = DriverEnvironment.Create(settings.ToolsFolder, settings.Environment);
        environment["ORIGINATOR"] = "SM";
        ChildResult result;
        try
        {
            result = await ChildProcess.RunAsync(
                driverPath, [call.ToXml()], "", environment, settings.Deadline, OutputLimitBytes, cancellationToken);
        }
        catch (ChildProcessException e)
        {
            throw NoAnswer(call, e.Message, "", "");
        }

        if (result.ExitCode > 128)
            throw NoAnswer(call, $"received signal: {result.ExitCode - 128}", result.StandardOutput, result.StandardError);
        if (result.ExitCode != 0)
            throw NoAnswer(call, "non-zero exit", result.StandardOutput, result.StandardError);
        return Read(call, result);
    }

    private static RpcValue Read(SmCall call, ChildResult result)
    {
        try
        {
            return XmlRpc.ReadResponse(result.StandardOutput.Trim());
        }
        catch (XmlRpcFaultException fault)
        {
            throw Fault(call, fault, result.StandardError);
        }
        catch (Exception e) when (e is RpcFormatException or OverflowException)
        {
            throw NoAnswer(call, e.Message, result.StandardOutput, result.StandardError);
        }
    }

    /// <summary>The driver's answer has another shape than the command's.</summary>
    public static StorageException Misshapen(SmCall call, RpcValue answer, string why) =>
        NoAnswer(call, "", $"XML parse failure: {XmlRpc.WriteValue(answer)}", why);

    private static StorageException Fault(SmCall call, XmlRpcFaultException fault, string standardError) => fault.Code switch
    {
        38 => StorageException.Unimplemented(call.Command),
        39 => new StorageException("SR_NOT_EMPTY"),
        24 => new StorageException("VDI_IN_USE"),
        16 => new StorageException("SR_DEVICE_IN_USE"),
        144 => new StorageException("VDI_MISSING", call.Sr?.Ref ?? "", call.Vdi?.Ref ?? ""),
        _ => new StorageException($"SR_BACKEND_FAILURE_{fault.Code}", "", Safe(call, fault.Message), Safe(call, standardError)),
    };

    private static StorageException NoAnswer(SmCall call, string what, string standardOutput, string standardError) =>
        StorageException.NoAnswer("SR_BACKEND_FAILURE", Safe(call, what), Safe(call, standardOutput), Safe(call, standardError));

    /// <summary>Cut to a size that an error may have, and without the values of device_config that are secrets.</summary>
    private static string Safe(SmCall call, string text)
    {
        foreach ((string name, string value) in call.DeviceConfig ?? call.Sr?.DeviceConfig ?? new Dictionary<string, string>())
        {
            bool isSecret = name.Contains("password", StringComparison.OrdinalIgnoreCase) || name.Contains("secret", StringComparison.OrdinalIgnoreCase);
            if (isSecret && value.Length != 0)
                text = text.Replace(value, "***", StringComparison.Ordinal);
        }

        return text.Length <= ErrorTextLimit ? text : text[..ErrorTextLimit] + "…";
    }
}
