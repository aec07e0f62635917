// The daemon's configuration: one JSON file of the keys below. Every mistake is reported at once, with the key's name; an unknown key is a
// mistake.
using System.Net;
using System.Text.Json;
using Platform;

namespace Xapi;

/// <summary>The configuration cannot be used; one line for each mistake.</summary>
public sealed class XapiOptionsException(IReadOnlyList<string> mistakes) : Exception(string.Join(Environment.NewLine, mistakes))
{
    public IReadOnlyList<string> Mistakes { get; } = mistakes;
}

public sealed record XapiOptions
{
    private static readonly string[] Keys =
    [
        "state_directory", "runtime_directory", "pool_name", "host_name", "https", "http", "root_password_file", "tools_directory",
        "sm_directory", "sm_plugins", "storage_scripts_directory", "plugins_directory",
        "witness_key_file", "witnesses_file",
    ];

    /// <summary>Database, certificate, journals. Belongs to one daemon.</summary>
    public required string StateDirectory { get; init; }

    /// <summary>Sockets.</summary>
    public required string RuntimeDirectory { get; init; }

    /// <summary>Counts at the first start; later the API renames.</summary>
    public required string PoolName { get; init; }

    /// <summary>Counts at the first start; later the API renames.</summary>
    public required string HostName { get; init; }

    /// <summary>Port 0 takes any that is free.</summary>
    public required IPEndPoint Https { get; init; }

    /// <summary>Null: no plain HTTP.</summary>
    public required IPEndPoint? Http { get; init; }

    /// <summary>A file that holds root's password alone.</summary>
    public required string RootPasswordFile { get; init; }

    /// <summary>Where tapdisk, tap-ctl and the other executables are.</summary>
    public required string ToolsDirectory { get; init; }

    /// <summary>tapdisk's control sockets. A unix socket's path is short (107 bytes): so is this name.</summary>
    public string TapControlDirectory => Path.Combine(RuntimeDirectory, "blktap");

    /// <summary>SMAPIv1 drivers; null: none.</summary>
    public required string? SmDirectory { get; init; }

    /// <summary>The SR types whose SMAPIv1 drivers are wanted, with blanks between them in the file; <c>*</c>, the default: all.</summary>
    public IReadOnlyList<string> SmPlugins { get; init; } = ["*"];

    /// <summary>What host.call_plugin runs (the field's /etc/xapi.d/plugins); null: none.</summary>
    public string? PluginsDirectory { get; init; }

    /// <summary>The key of the witness that this daemon serves (16 characters or more); null: it serves none.</summary>
    public string? WitnessKeyFile { get; init; }

    /// <summary>The witnesses that migrations may name, one a line: <c>https://host:port#FINGERPRINT KEY</c>; null: none.</summary>
    public string? WitnessesFile { get; init; }

    /// <summary>SMAPIv3 scripts; null: none.</summary>
    public required string? StorageScriptsDirectory { get; init; }

    /// <summary>Reads and checks the file. Relative paths are relative to its folder.</summary>
    /// <exception cref="XapiOptionsException">It cannot be read, or has mistakes: all of them are named.</exception>
    public static XapiOptions Read(string path)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(
                File.ReadAllText(path), new JsonDocumentOptions { CommentHandling = JsonCommentHandling.Skip, AllowTrailingCommas = true });
            return new Reader(document.RootElement, Path.GetDirectoryName(Path.GetFullPath(path))!).Read();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or JsonException)
        {
            throw new XapiOptionsException([$"{path}: {e.Message}"]);
        }
    }

    private sealed class Reader(JsonElement root, string folder)
    {
        private readonly List<string> mistakes = [];

        public XapiOptions Read()
        {
            if (root.ValueKind != JsonValueKind.Object)
                throw new XapiOptionsException(["the configuration is not a JSON object"]);
            foreach (JsonProperty property in root.EnumerateObject().Where(static p => !Keys.Contains(p.Name)))
                mistakes.Add($"{property.Name}: unknown key; did you mean \"{Nearest(property.Name)}\"?");
            foreach (IGrouping<string, JsonProperty> given in root.EnumerateObject().GroupBy(static p => p.Name))
            {
                if (given.Count() > 1)
                    mistakes.Add($"{given.Key}: given {given.Count()} times");
            }

            string state = Folder("state_directory") ?? "";
            XapiOptions options = new()
            {
                StateDirectory = state,
                RuntimeDirectory = Folder("runtime_directory") ?? "",
                PoolName = Text("pool_name") ?? "",
                HostName = Text("host_name") ?? Environment.MachineName,
                Https = Endpoint("https") ?? new IPEndPoint(IPAddress.Loopback, 0),
                Http = Endpoint("http"),
                RootPasswordFile = Folder("root_password_file") ?? "",
                ToolsDirectory = Folder("tools_directory") ?? AppContext.BaseDirectory,
                SmDirectory = Folder("sm_directory"),
                SmPlugins = (Text("sm_plugins") ?? "*").Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries),
                StorageScriptsDirectory = Folder("storage_scripts_directory"),
                PluginsDirectory = Folder("plugins_directory"),
                WitnessKeyFile = Folder("witness_key_file"),
                WitnessesFile = Folder("witnesses_file"),
            };
            foreach (string key in (string[])["state_directory", "runtime_directory", "root_password_file"])
            {
                if (!root.TryGetProperty(key, out _))
                    mistakes.Add($"{key}: missing");
            }

            if (options.Http is { } http && !IPAddress.IsLoopback(http.Address))
                mistakes.Add($"http: {http} is not a loopback address; passwords would travel in clear text");
            CheckSecretFile("root_password_file", options.RootPasswordFile, leastLength: 1);
            CheckSecretFile("witness_key_file", options.WitnessKeyFile ?? "", leastLength: 16);
            CheckSecretFile("witnesses_file", options.WitnessesFile ?? "", leastLength: 1);
            return mistakes.Count == 0 ? options : throw new XapiOptionsException(mistakes);
        }

        private void CheckSecretFile(string key, string path, int leastLength)
        {
            if (path.Length == 0)
                return;
            if (!File.Exists(path))
                mistakes.Add($"{key}: {path} is not there");
            else if ((File.GetUnixFileMode(path) & (UnixFileMode.OtherRead | UnixFileMode.OtherWrite | UnixFileMode.GroupWrite)) != 0)
                mistakes.Add($"{key}: {path} can be read or changed by others; chmod 600 it");
            else if (File.ReadAllText(path).Trim() is { } text && text.Length < leastLength)
                mistakes.Add(text.Length == 0 ? $"{key}: {path} is empty" : $"{key}: what is in {path} is shorter than {leastLength} characters");
        }

        private string? Text(string key)
        {
            if (!root.TryGetProperty(key, out JsonElement value) || value.ValueKind == JsonValueKind.Null)
                return null;
            if (value.ValueKind == JsonValueKind.String && value.GetString() is { Length: > 0 and < 4096 } text)
                return text;
            mistakes.Add($"{key}: a text that is not empty was expected, not {value.GetRawText()}");
            return null;
        }

        private string? Folder(string key) => Text(key) is { } text ? Path.GetFullPath(text, folder) : null;

        private IPEndPoint? Endpoint(string key)
        {
            if (Text(key) is not { } text)
                return null;
            if (text.Contains(':', StringComparison.Ordinal) && IPEndPoint.TryParse(text, out IPEndPoint? endpoint))
                return endpoint;
            mistakes.Add($"{key}: an address and a port were expected (\"127.0.0.1:0\"), not \"{text}\"");
            return null;
        }

        private static string Nearest(string key) => Keys.MinBy(known => Spelling.Distance(key, known))!;
    }
}
