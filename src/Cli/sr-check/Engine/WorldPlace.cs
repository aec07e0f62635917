using SrCheck.Plugins;

namespace SrCheck;

/// <summary>Where a world is on disk: a short path, because a unix socket's ends at 107 bytes.</summary>
internal sealed class WorldPlace
{
    public const string Placeholder = "@DIR@";

    private readonly bool usesPlaceholder;

    public WorldPlace(string parent, int number, IReadOnlyDictionary<string, string> deviceConfig)
    {
        Folder = Path.Combine(parent, $"{number}");
        Mark = $"{Path.GetFileName(parent)}/{number}";
        Directory.CreateDirectory(ControlFolder);
        usesPlaceholder = deviceConfig.Values.Any(static v => v.Contains(Placeholder, StringComparison.Ordinal));
        DeviceConfig = deviceConfig.ToDictionary(
            static p => p.Key, p => p.Value.Replace(Placeholder, StoreFolder, StringComparison.Ordinal));
    }

    public string Folder { get; }

    /// <summary>In the environment of all that runs for this world.</summary>
    public string Mark { get; }

    public string ControlFolder => Path.Combine(Folder, "c");

    public string SocketPath => Path.Combine(Folder, "x");

    /// <summary>What <see cref="Placeholder"/> stands for: not there yet, in a folder that is.</summary>
    public string StoreFolder => Path.Combine(Folder, "s");

    public IReadOnlyDictionary<string, string> DeviceConfig { get; }

    /// <summary>The SR is in the folder alone: nothing is mounted there, so deleting it is enough.</summary>
    public bool IsDisposable => usesPlaceholder && Mounts().Count == 0;

    public bool HasStore => usesPlaceholder && Directory.Exists(StoreFolder);

    public IReadOnlyList<string> Mounts() =>
        [.. File.ReadLines("/proc/mounts").Select(static l => l.Split(' ')[1]).Where(m => m.StartsWith(Folder + "/",
            StringComparison.Ordinal))];

    public void Delete()
    {
        if (Mounts().Count != 0)
            return; // Somebody's file system: never to be deleted into.
        try
        {
            Directory.Delete(Folder, recursive: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // A process that is just ending may still write; the run's folder goes again at its end.
        }
    }

    public IReadOnlyDictionary<string, string> Environment() => new Dictionary<string, string>
    {
        ["BLKTAP_CONTROL_DIRECTORY"] = ControlFolder,
        ["XAPI_UNIX_SOCKET"] = SocketPath,
        ["ORIGINATOR"] = "SM",
    };
}
