// Runs a SMAPIv1 driver: one process per call, one argument, the answer on stdout, bounded in time and output. Agrees with
// research/storage.md 3.1, 3.4 and 3.5. The argument and the secrets in it are never part of an error.
using System.Security;
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

    /// <summary>
    /// sr_attach, sr_detach and sr_probe of all drivers of a host run one at a time: the field's drivers rely on it (they mount, log in to
    /// targets and rescan buses).
    /// </summary>
    internal SemaphoreSlim HostWideTurn { get; } = new(1, 1);
}

/// <summary>A driver that answered sr_get_driver_info.</summary>
/// <param name="Type">The SR type: the file's name in lower case without its <c>SR</c>.</param>
/// <param name="Capabilities">Name to version, of those that the layer knows.</param>
public sealed record SmDriver(string Type, string Path, QueryResult Info, IReadOnlyDictionary<string, int> Capabilities)
{
    public string Copyright { get; init; } = "";

    /// <summary>Those that the driver claims and the layer does not know.</summary>
    public IReadOnlyList<string> UnknownCapabilities { get; init; } = [];

    /// <summary><c>raw</c>, <c>vhd</c>, <c>qcow2</c>; empty when the driver does not say.</summary>
    public IReadOnlyList<string> ImageFormats { get; init; } = [];
}

internal static class SmProcess
{
    private const int OutputLimitBytes = 8 * 1024 * 1024;
    private const int ErrorTextLimit = 4096;

    private static readonly string[] HostWide = ["sr_attach", "sr_detach", "sr_probe"];

    /// <exception cref="StorageException">The driver's fault, or no answer.</exception>
    public static async Task<RpcValue> CallAsync(string driverPath, SmCall call, SmDriverSettings settings,
        CancellationToken cancellationToken)
    {
        if (!HostWide.Contains(call.Command))
            return await RunAsync(driverPath, call, call.ToXml(), settings, cancellationToken);
        if (!await settings.HostWideTurn.WaitAsync(settings.Deadline, cancellationToken))
            throw new StorageException("OTHER_OPERATION_IN_PROGRESS", "SR", call.SrUuid.Value,
                $"{call.Command} has waited {settings.Deadline.TotalSeconds:0} s for another attach, detach or probe of this host");
        try
        {
            return await RunAsync(driverPath, call, call.ToXml(), settings, cancellationToken);
        }
        finally
        {
            settings.HostWideTurn.Release();
        }
    }

    /// <param name="argument">The call's text, which need not be the call's own.</param>
    public static async Task<RpcValue> RunAsync(
        string driverPath, SmCall call, string argument, SmDriverSettings settings, CancellationToken cancellationToken)
    {
        Dictionary<string, string?> environment = DriverEnvironment.Create(settings.ToolsFolder, settings.Environment);
        environment["ORIGINATOR"] = "SM";
        ChildResult result;
        try
        {
            result = await ChildProcess.RunAsync(
                driverPath, [argument], "", environment, settings.Deadline, OutputLimitBytes, cancellationToken);
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

    /// <summary>
    /// Cut to a size that an error may have, and without what is secret: the session, and every setting that is called a password or secret,
    /// as it is and as XML has it.
    /// </summary>
    private static string Safe(SmCall call, string text)
    {
        IEnumerable<string> secrets = call.Settings().Where(static s => IsSecret(s.Key)).Select(static s => s.Value)
            .Append(call.Sr?.SessionRef ?? "")
            .SelectMany(static s => new[] { s, SecurityElement.Escape(s), Inner(s) })
            .Where(static s => s.Length != 0)
            .Distinct()
            .OrderByDescending(static s => s.Length);
        foreach (string secret in secrets)
            text = text.Replace(secret, "***", StringComparison.Ordinal);
        return text.Length <= ErrorTextLimit ? text : text[..ErrorTextLimit] + "…";
    }

    private static bool IsSecret(string name) =>
        name.Contains("password", StringComparison.OrdinalIgnoreCase) || name.Contains("secret", StringComparison.OrdinalIgnoreCase)
        || name.Contains("passwd", StringComparison.OrdinalIgnoreCase);

    /// <summary>As our own argument has it, which differs from other writers' XML in what it escapes.</summary>
    private static string Inner(string text) => XmlRpc.WriteValue(text) is ['<', 'v', 'a', 'l', 'u', 'e', '>', .. var rest]
        ? rest[..rest.IndexOf('<', StringComparison.Ordinal)]
        : "";
}
