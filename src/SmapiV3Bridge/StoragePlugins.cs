// Finds the SMAPIv3 plugins under a root: volume/<queue name>/ and datapath/<uri scheme>/ (research/storage.md 5.1, 5.3, 5.5). A bad one is
// reported with its reason and does not stop the others.
using System.Text.Json.Nodes;
using Platform;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV3Bridge;

/// <summary>A folder that looks like a plugin and is not used.</summary>
public sealed record RejectedPlugin(string Path, string Reason);

/// <summary>A volume plugin that answered Plugin.Query with an API version that we speak.</summary>
public sealed class VolumePlugin
{
    internal VolumePlugin(string type, ScriptFolder scripts, QueryResult query)
    {
        Type = type;
        Scripts = scripts;
        Query = query;
    }

    /// <summary>The SR type.</summary>
    public string Type { get; }

    public QueryResult Query { get; }

    internal ScriptFolder Scripts { get; }

    /// <summary>The PVS compatible dialect.</summary>
    internal bool IsVersion3 => Query.RequiredApiVersion == "3.0";
}

/// <summary>What discovery found.</summary>
public sealed class StoragePlugins
{
    private const string QueuePrefix = "org.xen.xapi.storage.";
    private static readonly string[] AcceptedVersions = ["5.0", "3.0"];

    private static readonly (string Script, string Feature)[] FeatureOfScript =
    [
        ("SR.attach", "SR_ATTACH"), ("SR.create", "SR_CREATE"), ("SR.destroy", "SR_DELETE"), ("SR.detach", "SR_DETACH"),
        ("SR.ls", "SR_SCAN"),
        ("SR.stat", "SR_UPDATE"), ("SR.probe", "SR_PROBE"), ("Volume.create", "VDI_CREATE"), ("Volume.clone", "VDI_CLONE"),
        ("Volume.snapshot", "VDI_SNAPSHOT"), ("Volume.resize", "VDI_RESIZE"), ("Volume.destroy", "VDI_DELETE"),
        ("Volume.stat", "VDI_UPDATE"),
        ("Volume.clone", "VDI_RESET_ON_BOOT"),
    ];

    private static readonly string[] AlwaysThere = ["VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE", "VDI_INTRODUCE"];

    private readonly Dictionary<string, ScriptFolder> datapaths = new(StringComparer.OrdinalIgnoreCase);
    private readonly List<VolumePlugin> volumes = [];
    private readonly List<RejectedPlugin> rejected = [];

    private StoragePlugins()
    {
    }

    public IReadOnlyList<VolumePlugin> Volumes => volumes;

    public IReadOnlyList<RejectedPlugin> Rejected => rejected;

    /// <summary>The URI schemes that have a datapath plugin.</summary>
    public IReadOnlyCollection<string> DatapathSchemes => datapaths.Keys;

    public static async Task<StoragePlugins> DiscoverAsync(string root, ScriptSettings settings, CancellationToken cancellationToken)
    {
        StoragePlugins found = new();
        foreach (string folder in Folders(root, "datapath"))
        {
            if (await found.AskAsync(folder, settings, cancellationToken) is { } answer)
                found.datapaths[Path.GetFileName(folder)] = answer.Scripts;
        }

        foreach (string folder in Folders(root, "volume"))
        {
            if (await found.AskAsync(folder, settings, cancellationToken) is not { } answer)
                continue;
            string name = Path.GetFileName(folder);
            string type = name.StartsWith(QueuePrefix, StringComparison.Ordinal) ? name[QueuePrefix.Length..] : name;
            found.volumes.Add(new VolumePlugin(type.ToLowerInvariant(), answer.Scripts, answer.Query));
        }

        return found;
    }

    /// <summary>The datapath that serves a URI, or null.</summary>
    internal ScriptFolder? DatapathOf(string uri)
    {
        int colon = uri.IndexOf(':', StringComparison.Ordinal);
        return colon > 0 && datapaths.TryGetValue(uri[..colon], out ScriptFolder? datapath) ? datapath : null;
    }

    private static IEnumerable<string> Folders(string root, string kind)
    {
        string path = Path.Combine(root, kind);
        return Directory.Exists(path) ? Directory.GetDirectories(path).Order(StringComparer.Ordinal) : [];
    }

    private async Task<(ScriptFolder Scripts, QueryResult Query)?> AskAsync(
        string folder, ScriptSettings settings, CancellationToken cancellationToken)
    {
        if (WhyUnsafe(folder) is { } reason)
        {
            rejected.Add(new RejectedPlugin(folder, reason));
            return null;
        }

        try
        {
            ScriptFolder scripts = new(folder, settings);
            JsonNode? answer = await scripts.RunAsync("Plugin.Query", new JsonObject { ["dbg"] = "discovery" }, cancellationToken);
            QueryResult query = Read(scripts, answer);
            if (AcceptedVersions.Contains(query.RequiredApiVersion))
                return (scripts, query);
            rejected.Add(new RejectedPlugin(folder, $"it requires API version \"{query.RequiredApiVersion}\"; 5.0 and 3.0 are spoken"));
        }
        catch (Exception e) when (e is StorageException or IOException or UnauthorizedAccessException)
        {
            rejected.Add(new RejectedPlugin(folder, $"Plugin.Query failed: {e.Message}"));
        }

        return null;
    }

    /// <summary>The folder itself counts: who may write there may replace a script.</summary>
    private static string? WhyUnsafe(string folder)
    {
        const UnixFileMode sticky = UnixFileMode.StickyBit;
        foreach (string path in Directory.GetFiles(folder).Prepend(folder))
        {
            string target = File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path;
            if (!Path.Exists(target))
                continue; // A link to nothing fails when it is called, and says so.
            UnixFileMode mode = File.GetUnixFileMode(target);
            if ((mode & UnixFileMode.OtherWrite) != 0 && (mode & sticky) == 0)
                return $"everybody may write to {path}, and it would run as us";
            if (!Posix.IsOwnersTrusted(target))
                return $"{path} belongs neither to root nor to the user that would run it";
        }

        return null;
    }

    private static QueryResult Read(ScriptFolder scripts, JsonNode? answer)
    {
        try
        {
            JsonObject query = answer as JsonObject ?? throw new RpcFormatException("a dict was expected");
            IEnumerable<string> said = StorageWire.Items(StorageWire.Find(query, "features")).Select(StorageWire.TextOf)
                .Select(static f => f.Split('/')[0]).Select(static f => f == "VDI_DESTROY" ? "VDI_DELETE" : f);
            IEnumerable<string> shown = FeatureOfScript.Where(f => scripts.Has(f.Script)).Select(static f => f.Feature);
            return new QueryResult(
                StorageWire.Text(query, "plugin"), StorageWire.Text(query, "name", ""), StorageWire.Text(query, "description", ""),
                StorageWire.Text(query, "vendor", ""), StorageWire.Text(query, "version", ""),
                StorageWire.Text(query, "required_api_version"),
                said.Concat(shown).Concat(AlwaysThere).Distinct().ToList(), StorageWire.Map(StorageWire.Find(query, "configuration")),
                "SMAPIv3");
        }
        catch (RpcFormatException e)
        {
            throw scripts.Misshapen("Plugin.Query", answer, e.Message);
        }
    }
}
