// The seam between the checks and the two plugin APIs: one plugin, with one SR of its own, spoken to in the words of SMAPIv2. A call throws
// PluginRefusalException for the plugin's own no and PluginBrokenException when there is no answer, or one of the wrong form.
using System.Text.Json.Nodes;

namespace SrCheck.Plugins;

/// <summary>What a plugin says of itself.</summary>
/// <param name="Features">SMAPIv2 names without versions.</param>
/// <param name="Configuration">The keys that it takes, with their descriptions.</param>
internal sealed record PluginInfo(
    string Type, string Name, string Version, string RequiredApiVersion, IReadOnlySet<string> Features,
    IReadOnlyDictionary<string, string> Configuration)
{
    public bool Has(string feature) => Features.Contains(feature);
}

/// <param name="Key">v3: the key; v1: the location.</param>
/// <param name="Reference">v1: the record's reference; v3: the first URI.</param>
internal sealed record Volume(
    string Key, string Uuid, string Name, string Description, long VirtualSizeBytes, long PhysicalSizeBytes, string Reference,
    IReadOnlyDictionary<string, string> Keys);

internal sealed record SrSpace(long TotalBytes, long FreeBytes, string Name, string Health);

/// <summary>One way to reach an attached volume's bytes.</summary>
internal enum AccessKind
{
    Nbd,
    File,
    BlockDevice,
}

internal sealed record Access(AccessKind Kind, string Address);

internal interface IPluginUnderTest : IAsyncDisposable
{
    bool IsV1 { get; }

    PluginInfo Info { get; }

    PluginProcess Process { get; }

    string SrUuid { get; }

    /// <summary>The device_config of this SR. May be replaced before it is created.</summary>
    IReadOnlyDictionary<string, string> Configuration { get; set; }

    Task<PluginInfo> QueryAsync();

    /// <param name="sizeBytes">0: as large as it may be.</param>
    Task CreateSrAsync(long sizeBytes = 0);

    Task AttachSrAsync();

    Task DetachSrAsync();

    Task DestroySrAsync();

    Task<SrSpace> StatSrAsync();

    Task<IReadOnlyList<Volume>> ScanAsync();

    /// <summary>The uuids of the SRs that are found, and whether each says that it is complete.</summary>
    Task<IReadOnlyList<string>> ProbeAsync();

    Task<Volume> CreateAsync(string name, string description, long sizeBytes);

    Task<Volume> StatAsync(Volume volume);

    Task DestroyAsync(Volume volume);

    Task<Volume> SnapshotAsync(Volume volume);

    Task<Volume> CloneAsync(Volume volume);

    Task ResizeAsync(Volume volume, long sizeBytes);

    Task<IReadOnlyList<Access>> AttachAsync(Volume volume, bool isWritable);

    Task ActivateAsync(Volume volume, bool isWritable);

    Task DeactivateAsync(Volume volume);

    Task DetachAsync(Volume volume);

    /// <summary>A volume that the plugin has never had, in the form of its own.</summary>
    Volume Unknown();

    /// <summary>Runs an operation with arguments that are not its own. See <see cref="RawCall"/>.</summary>
    Task RawAsync(RawCall call);
}

/// <summary>
/// An operation as one side's wire has it (<c>vdi_create</c>, <c>Volume.create</c>), its proper parameters first changed by
/// <paramref name="Change"/>. For v1 the object is the struct: strings, arrays of strings, and objects.
/// </summary>
internal sealed record RawCall(string Operation, Volume? Volume, Action<JsonObject> Change);
