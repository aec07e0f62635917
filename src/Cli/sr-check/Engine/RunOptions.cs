using SrCheck.Checks;

namespace SrCheck;

/// <summary>What a run is about: everything that decides which checks run and what they find.</summary>
/// <param name="PluginPath">v1: the driver's executable; v3: the folder of volume scripts.</param>
/// <param name="DatapathPath">v3: a folder of datapath scripts, or one with a folder for each URI scheme.</param>
internal sealed record RunOptions(bool IsV1, string PluginPath, string DatapathPath, string ToolsFolder)
{
    public IReadOnlyDictionary<string, string> DeviceConfig { get; init; } = new Dictionary<string, string>();

    public Level Level { get; init; }

    /// <summary>Prefixes of check ids; empty for all of the level.</summary>
    public IReadOnlyList<string> Only { get; init; } = [];

    public int Seed { get; init; } = 1;

    public int Jobs { get; init; } = 2;

    public TimeSpan Deadline { get; init; } = TimeSpan.FromSeconds(30);

    public bool WithFaults { get; init; }
}
