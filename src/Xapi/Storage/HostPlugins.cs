// Programs of a folder that clients and SM drivers run on this host by name (host.call_plugin): one process for each call, its argument an
// XML-RPC methodCall of the function with the caller's session and a map, its answer a Status on stdout (research: storage.md 4.2). Calls
// come while a driver runs that waits for them, so nothing here waits for a driver.
using Platform;
using StorageAccess;
using StorageAccess.Wire;

namespace Xapi.Storage;

/// <param name="folder">Null: there are no plugins.</param>
/// <param name="environment">What a plugin gets beside PATH.</param>
public sealed class HostPlugins(string? folder, string toolsFolder, IReadOnlyDictionary<string, string> environment, TimeSpan deadline)
    : IDisposable
{
    public static readonly TimeSpan DefaultDeadline = TimeSpan.FromMinutes(10);

    private const int OutputLimitBytes = 1024 * 1024;
    private const int ErrorTextLimit = 4096;

    /// <summary>How many run at once; a plugin may call another one, so that the others wait for a time only.</summary>
    private const int CallLimit = 32;

    private readonly SemaphoreSlim turns = new(CallLimit);

    /// <returns>What the function answered.</returns>
    /// <exception cref="XapiException">XENAPI_MISSING_PLUGIN, XENAPI_PLUGIN_FAILURE, or the plugin's own error.</exception>
    public async Task<string> CallAsync(
        string plugin, string function, string session, RpcValue arguments, CancellationToken cancellationToken)
    {
        string program = Find(plugin);
        if (!await turns.WaitAsync(deadline, cancellationToken))
            throw Failure("too many plugins run", $"{CallLimit} calls have not ended within {deadline.TotalSeconds:0} s", "");
        try
        {
            string call = XmlRpc.WriteCall(function, session, arguments);
            ChildResult result = await ChildProcess.RunAsync(
                program, [call], "", DriverEnvironment.Create(toolsFolder, environment), deadline, OutputLimitBytes, cancellationToken);
            return result.ExitCode switch
            {
                0 => Read(result, session),
                > 128 => throw Failure($"signal: {result.ExitCode - 128}", result.StandardOutput, result.StandardError, session),
                _ => throw Failure("non-zero exit", result.StandardOutput, result.StandardError, session),
            };
        }
        catch (ChildProcessException e)
        {
            throw Failure("no answer", e.Message, "", session);
        }
        finally
        {
            turns.Release();
        }
    }

    public void Dispose() => turns.Dispose();

    private string Find(string plugin)
    {
        bool isName = plugin.Length is > 0 and < 256 && !plugin.StartsWith('.')
            && plugin.All(static c => char.IsAsciiLetterOrDigit(c) || c is '-' or '_' or '.');
        string path = isName && folder is not null ? Path.Combine(folder, plugin) : "";
        if (!File.Exists(path))
            throw new XapiException("XENAPI_MISSING_PLUGIN", plugin);
        UnixFileMode mode = File.GetUnixFileMode(File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path);
        if ((mode & UnixFileMode.UserExecute) == 0)
            throw Failure("not executable", path, "");
        if ((mode & UnixFileMode.OtherWrite) != 0)
            throw Failure("everybody may write to it", path, "");
        return path;
    }

    private static string Read(ChildResult result, string session)
    {
        try
        {
            RpcStruct answer = XmlRpc.ReadResponse(result.StandardOutput.Trim()).AsStruct();
            if (answer.Get("Status").AsString() == "Success")
                return answer.Get("Value").AsString();
            List<string> error = answer.Get("ErrorDescription").AsArray().Select(static p => p.AsString()).ToList();
            throw error.Count == 0 ? Failure("no error code", result.StandardOutput, "", session) : new XapiException(error[0], error[1..]);
        }
        catch (XmlRpcFaultException e)
        {
            throw Failure("fault", e.Message, result.StandardError, session);
        }
        catch (Exception e) when (e is RpcFormatException or OverflowException)
        {
            throw Failure(e.Message, result.StandardOutput, result.StandardError, session);
        }
    }

    /// <param name="session">A secret: a plugin that prints its argument prints it.</param>
    private static XapiException Failure(string what, string standardOutput, string standardError, string session = "") =>
        new("XENAPI_PLUGIN_FAILURE", what, Safe(standardOutput, session), Safe(standardError, session));

    private static string Safe(string text, string session)
    {
        if (session.Length != 0)
            text = text.Replace(session, "***", StringComparison.Ordinal);
        return text.Length <= ErrorTextLimit ? text : text[..ErrorTextLimit] + "…";
    }
}
