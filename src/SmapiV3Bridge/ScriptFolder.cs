// One folder of SMAPIv3 scripts and how one is run: `<folder>/<Script> --json`, one line of JSON with named parameters on stdin, the bare
// result on stdout, an error as {code, params, backtrace} with a non-zero exit (research/storage.md 5.2). stderr is noise unless there is
// no answer.
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV3Bridge;

/// <summary>How scripts are run.</summary>
/// <param name="ToolsFolder">First in the script's PATH.</param>
/// <param name="Environment">What a script gets beside PATH (PYTHONPATH, for instance).</param>
public sealed record ScriptSettings(string ToolsFolder, IReadOnlyDictionary<string, string> Environment, TimeSpan Deadline)
{
    public static readonly TimeSpan DefaultDeadline = TimeSpan.FromMinutes(5);
}

/// <summary>The scripts of one plugin; names are found without regard to case, a missing one means "not implemented".</summary>
internal sealed class ScriptFolder
{
    private const int OutputLimitBytes = 8 * 1024 * 1024;
    private const int ErrorTextLimit = 4096;
    private static readonly JsonDocumentOptions Limits = new() { MaxDepth = 64, AllowDuplicateProperties = false };
    private readonly Dictionary<string, string> scripts;
    private readonly ScriptSettings settings;

    public ScriptFolder(string folder, ScriptSettings settings)
    {
        Folder = folder;
        this.settings = settings;
        scripts = new Dictionary<string, string>(StringComparer.OrdinalIgnoreCase);
        foreach (string path in Directory.GetFiles(folder))
            scripts[Path.GetFileName(path)] = path;
    }

    public string Folder { get; }

    public bool Has(string script) => scripts.ContainsKey(script);

    /// <exception cref="StorageException">Unimplemented, the script's own error, or no answer.</exception>
    public async Task<JsonNode?> RunAsync(string script, JsonObject parameters, CancellationToken cancellationToken)
    {
        if (!scripts.TryGetValue(script, out string? path))
            throw StorageException.Unimplemented(script);
        ChildResult result;
        try
        {
            result = await ChildProcess.RunAsync(
                path, ["--json"], parameters.ToJsonString() + "\n", DriverEnvironment.Create(settings.ToolsFolder, settings.Environment),
                settings.Deadline, OutputLimitBytes, cancellationToken);
        }
        catch (ChildProcessException e)
        {
            bool isStarted = File.Exists(path) && (File.GetUnixFileMode(path) & UnixFileMode.UserExecute) != 0;
            throw isStarted ? Failed(path, Cut(e.Message), "", "") : new StorageException("SCRIPT_NOT_EXECUTABLE", path, Cut(e.Message));
        }

        JsonNode? answer;
        try
        {
            answer = JsonNode.Parse(result.StandardOutput, documentOptions: Limits);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException) // The second: half a surrogate pair.
        {
            throw Failed(path, $"exit {result.ExitCode}: {e.Message}", result.StandardOutput, result.StandardError);
        }

        return result.ExitCode == 0 ? answer : throw Refused(path, result, answer);
    }

    /// <summary>The script answered something of another shape than its contract's.</summary>
    public StorageException Misshapen(string script, JsonNode? answer, string why) =>
        Failed(Path.Combine(Folder, script), why, answer?.ToJsonString() ?? "null", "");

    private static StorageException Refused(string path, ChildResult result, JsonNode? answer)
    {
        try
        {
            JsonObject error = answer as JsonObject ?? throw new RpcFormatException("an error must be a dict");
            string code = StorageWire.Text(error, "code");
            List<string> parameters = StorageWire.Items(StorageWire.Find(error, "params")).Select(StorageWire.TextOf).ToList();
            return (code, parameters) switch
            {
                (_, ["Activated_on_another_host", string host]) =>
                    StorageException.FromWire("Activated_on_another_host", "VDI_IN_USE", [host, "activated on another host"]),
                ("Volume_does_not_exist", [string key, ..]) => StorageException.VdiDoesNotExist(new VdiId(key)),
                ("Unimplemented", [string call, ..]) => StorageException.Unimplemented(call),
                _ => new StorageException(code, parameters),
            };
        }
        catch (RpcFormatException e)
        {
            return Failed(path, $"exit {result.ExitCode}: {e.Message}", result.StandardOutput, result.StandardError);
        }
    }

    private static StorageException Failed(string path, string what, string standardOutput, string standardError) =>
        StorageException.NoAnswer("SCRIPT_FAILED", path, what, Cut(standardOutput), Cut(standardError));

    private static string Cut(string text) => text.Length <= ErrorTextLimit ? text : text[..ErrorTextLimit] + "…";
}
