// What each script does (research/storage.md 5.4). The SR string is the folder's path. A volume is <key>.vhd with <key>.json beside it; its
// URI names the image and the SR, so that the datapath needs nothing else and gets the same URI from attach to detach.
using System.Text.Json.Nodes;
using VhdFolder;

namespace VhdFile;

internal static class Scripts
{
    private const string Type = "vhdfile";

    public static async Task<JsonNode?> RunAsync(string script, Parameters p, CancellationToken cancellationToken) => script switch
    {
        "Plugin.Query" => Query(),
        "Plugin.diagnostics" => JsonValue.Create(""),
        "SR.probe" => Probe(p),
        "SR.create" => Create(p),
        "SR.attach" => await AttachAsync(p, cancellationToken),
        "SR.detach" => await StopCollectorAsync(p, cancellationToken),
        "SR.destroy" => await StopCollectorAsync(p, cancellationToken)
            ?? await ChangeAsync(p, static folder => folder.Destroy(), cancellationToken),
        "SR.stat" => Stat(DiskFolder.Open(p.Text("sr"))),
        "SR.ls" => List(DiskFolder.Open(p.Text("sr"))),
        "SR.set_name" => await ChangeAsync(p, folder => folder.Rename(p.Text("new_name"), folder.Record.Description), cancellationToken),
        "SR.set_description" =>
            await ChangeAsync(p, folder => folder.Rename(folder.Record.Name, p.Text("new_description")), cancellationToken),
        _ when script.StartsWith("Volume.", StringComparison.Ordinal) => await Volumes.RunAsync(script, p, cancellationToken),
        _ when script.StartsWith("Datapath.", StringComparison.Ordinal) => await Datapaths.RunAsync(script, p, cancellationToken),
        _ => throw new ScriptException("Unimplemented", script),
    };

    private static JsonObject Query() => new()
    {
        ["plugin"] = Type,
        ["name"] = "VHD files in a folder",
        ["description"] = "SR of VHD files in a local folder, each active volume served by its own tapdisk",
        ["vendor"] = "Storage",
        ["copyright"] = "",
        ["version"] = "1.0",
        ["required_api_version"] = "5.0",
        ["features"] = new JsonArray(
            "SR_CREATE", "SR_ATTACH", "SR_DETACH", "VDI_CREATE", "VDI_DESTROY", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE",
            "VDI_ACTIVATE_READONLY",
            "VDI_DEACTIVATE", "VDI_CLONE", "VDI_SNAPSHOT", "VDI_RESIZE", "VDI_MIRROR", "VDI_MIRROR_IN", "THIN_PROVISIONING"),
        ["configuration"] = new JsonObject
        {
            ["path"] = "the folder, an absolute path",
            ["size"] = "a quota in bytes; without it the whole filesystem",
            ["gc"] = "\"off\": no collector is started",
        },
        ["required_cluster_stack"] = new JsonArray(),
    };

    private static string PathOf(Parameters p) => p.Map("configuration").TryGetValue("path", out string? path)
        ? path
        : throw new DriverException(DriverException.LocationMissing, "the configuration has no path");

    private static JsonArray Probe(Parameters p)
    {
        IReadOnlyDictionary<string, string> configuration = p.Map("configuration");
        if (!File.Exists(Path.Combine(PathOf(p), ".sr.json")))
            return [];
        DiskFolder folder = DiskFolder.Open(PathOf(p));
        JsonObject found = [];
        foreach ((string name, string value) in configuration)
            found[name] = value;
        found["sr_uuid"] = folder.Record.Uuid;
        return new JsonArray(new JsonObject
        {
            ["configuration"] = found,
            ["complete"] = true,
            ["sr"] = Stat(folder),
            ["extra_info"] = new JsonObject(),
        });
    }

    private static JsonObject Create(Parameters p)
    {
        IReadOnlyDictionary<string, string> configuration = p.Map("configuration");
        long quota = 0;
        if (configuration.TryGetValue("size", out string? size) && (!long.TryParse(size, out quota) || quota < 0))
            throw new DriverException(DriverException.BadRequest, $"size \"{size}\" is not a number of bytes");
        DiskFolder.Create(PathOf(p), new FolderRecord(p.Text("uuid"), p.Text("name"), p.Text("description"), quota, MadeFolder: false));
        JsonObject answer = [];
        foreach ((string name, string value) in configuration)
            answer[name] = value;
        return answer;
    }

    private static JsonObject Stat(DiskFolder folder)
    {
        (long total, long free, long _) = folder.Space();
        return new JsonObject
        {
            ["sr"] = folder.Path,
            ["name"] = folder.Record.Name,
            ["uuid"] = folder.Record.Uuid,
            ["description"] = folder.Record.Description,
            ["free_space"] = free,
            ["total_space"] = total,
            ["datasources"] = new JsonArray(),
            ["clustered"] = false,
            ["health"] = new JsonArray("Healthy", ""),
        };
    }

    private static JsonArray List(DiskFolder folder)
    {
        (IReadOnlyList<Disk> disks, IReadOnlyList<string> damaged) = folder.List();
        foreach (string key in damaged)
            Console.Error.WriteLine($"{key}.vhd cannot be read and is not listed");
        CollectorProcess.StartFor(folder, folder.Record.IsCollectorOff);
        return new JsonArray(disks.Select(disk => (JsonNode)Volumes.Write(folder, disk)).ToArray());
    }

    /// <summary>The configuration is not given to later calls: what it says of the collector is kept in the SR.</summary>
    private static async Task<JsonNode?> AttachAsync(Parameters p, CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(PathOf(p));
        bool isOff = p.Map("configuration").GetValueOrDefault("gc") == "off";
        if (isOff != folder.Record.IsCollectorOff)
        {
            using IDisposable held = await folder.LockAsync(cancellationToken);
            folder.SetCollectorOff(isOff);
        }

        return JsonValue.Create(folder.Path);
    }

    /// <summary>A folder that is gone has no collector.</summary>
    private static async Task<JsonNode?> StopCollectorAsync(Parameters p, CancellationToken cancellationToken)
    {
        await CollectorProcess.StopAsync(p.Text("sr"), cancellationToken);
        return null;
    }

    private static async Task<JsonNode?> ChangeAsync(Parameters p, Action<DiskFolder> change, CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(p.Text("sr"));
        using IDisposable held = await folder.LockAsync(cancellationToken);
        change(folder);
        return null;
    }
}
