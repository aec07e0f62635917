using SrCheck.Checks;
using SrCheck.Plugins;

namespace SrCheck;

/// <summary>Makes worlds, each in a numbered folder of the run's own. Owns that folder.</summary>
internal sealed class WorldMaker : IDisposable
{
    private static readonly string[] FolderKeys = ["location", "path", "file-uri"];

    private readonly RunOptions options;
    private readonly string folder = Directory.CreateTempSubdirectory("sk-").FullName;
    private int count;

    public WorldMaker(RunOptions options)
    {
        this.options = options;
        DeviceConfig = options.DeviceConfig;
    }

    /// <summary>Set by the first query.</summary>
    public PluginInfo? Info { get; private set; }

    public IReadOnlyDictionary<string, string> DeviceConfig { get; private set; }

    /// <summary>Every SR has a place of its own, so several may live at once.</summary>
    public bool HasManyPlaces => DeviceConfig.Values.Any(static v => v.Contains(WorldPlace.Placeholder, StringComparison.Ordinal));

    public void Dispose()
    {
        MarkedProcesses.End(Path.GetFileName(folder) + "/");
        if (!File.ReadLines("/proc/mounts").Any(l => l.Contains($" {folder}/", StringComparison.Ordinal)))
            Directory.Delete(folder, recursive: true);
    }

    /// <summary>Asks the plugin who it is. Without a device_config of the caller's, a key that names a folder gets one.</summary>
    public async Task QueryAsync()
    {
        await using World world = Make();
        Info = await world.Plugin.QueryAsync();
        if (DeviceConfig.Count == 0)
            DeviceConfig = Info.Configuration.Keys.Where(FolderKeys.Contains).Take(1)
                .ToDictionary(static k => k, static _ => WorldPlace.Placeholder);
    }

    public World Make()
    {
        WorldPlace place = new(folder, Interlocked.Increment(ref count), DeviceConfig);
        CallSettings settings = new(options.ToolsFolder, options.Deadline);
        PluginProcess process = new(place.Mark, place.Environment(), settings);
        string uuid = Guid.NewGuid().ToString();
        IPluginUnderTest plugin = options.IsV1
            ? new V1Plugin(options.PluginPath, process, uuid, place, Info)
            : new V3Plugin(options.PluginPath, new DatapathFolder(options.DatapathPath), process, uuid, place.DeviceConfig, Info);
        return new World(plugin, place, options.Seed);
    }
}
