// Finds the SMAPIv1 drivers of a folder (research/storage.md 3.6, 3.7). A bad one is reported with its reason and does not stop the others.
using System.Globalization;
using Platform;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

/// <summary>A file that looks like a driver and is not used.</summary>
public sealed record RejectedDriver(string Path, string Reason);

public static class SmDrivers
{
    /// <summary>In a white list: every type.</summary>
    public const string AnyType = "*";

    private const string Suffix = "SR";

    private static readonly HashSet<string> KnownCapabilities =
    [
        "SR_CREATE", "SR_DELETE", "SR_ATTACH", "SR_DETACH", "SR_SCAN", "SR_PROBE", "SR_UPDATE", "SR_SUPPORTS_LOCAL_CACHING", "SR_METADATA",
        "SR_TRIM", "SR_MULTIPATH", "SR_CACHING", "SR_STATS", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_MIRROR",
        "VDI_MIRROR_IN", "VDI_RESIZE", "VDI_RESIZE_ONLINE", "VDI_CLONE", "VDI_SNAPSHOT", "VDI_ACTIVATE", "VDI_ACTIVATE_READONLY",
        "VDI_DEACTIVATE", "VDI_UPDATE", "VDI_INTRODUCE", "VDI_GENERATE_CONFIG", "VDI_ATTACH_OFFLINE", "VDI_RESET_ON_BOOT", "VDI_CONFIG_CBT",
        "VDI_COMPOSE", "LARGE_VDI", "THIN_PROVISIONING", "VDI_READ_CACHING", "VDI_REVERT",
    ];

    /// <summary>
    /// Asks every executable of the folder whose name ends in SR for its driver info. Types are unique; the first by name wins.
    /// </summary>
    /// <param name="types">The SR types that are wanted, in any case; those of others are not even started.</param>
    public static async Task<(IReadOnlyList<SmDriver> Drivers, IReadOnlyList<RejectedDriver> Rejected)> DiscoverAsync(
        string folder, IReadOnlyList<string> types, string hostRef, SmDriverSettings settings, CancellationToken cancellationToken)
    {
        bool isAnyWanted = types.Contains(AnyType);
        HashSet<string> wanted = new(types, StringComparer.OrdinalIgnoreCase);
        Dictionary<string, SmDriver> drivers = [];
        List<RejectedDriver> rejected = [];
        IEnumerable<string> files = Directory.Exists(folder) ? Directory.GetFiles(folder, "*" + Suffix) : [];
        foreach (string path in files.Where(static p => p.EndsWith(Suffix, StringComparison.Ordinal)).Order(StringComparer.Ordinal))
        {
            if (!isAnyWanted && !wanted.Contains(TypeOf(path)))
                continue;
            if (ReasonAgainst(path) is { } reason)
            {
                rejected.Add(new RejectedDriver(path, reason));
                continue;
            }

            try
            {
                SmDriver driver = await AskAsync(path, hostRef, settings, cancellationToken);
                if (!drivers.TryAdd(driver.Type, driver))
                    rejected.Add(new RejectedDriver(path, $"{drivers[driver.Type].Path} serves type {driver.Type} already"));
            }
            catch (StorageException e)
            {
                rejected.Add(new RejectedDriver(path, $"sr_get_driver_info failed: {e.Message}"));
            }
        }

        return (drivers.Values.ToList(), rejected);
    }

    /// <summary>Names to versions; what is not NAME or NAME/version counts as version 1.</summary>
    internal static Dictionary<string, int> Capabilities(IEnumerable<string> texts)
    {
        Dictionary<string, int> capabilities = [];
        foreach (string text in texts)
        {
            string[] parts = text.Split('/', 2);
            bool hasVersion = parts.Length == 2 && int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out _);
            int version = hasVersion ? int.Parse(parts[1], CultureInfo.InvariantCulture) : 1;
            capabilities[parts[0]] = Math.Max(version, capabilities.GetValueOrDefault(parts[0]));
        }

        return capabilities;
    }

    private static string TypeOf(string path) => Path.GetFileName(path)[..^Suffix.Length].ToLowerInvariant();

    private static string? ReasonAgainst(string path)
    {
        const UnixFileMode execute = UnixFileMode.UserExecute | UnixFileMode.GroupExecute | UnixFileMode.OtherExecute;
        string target = File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path;
        if (!File.Exists(target))
            return "it is a link to nothing";
        UnixFileMode mode = File.GetUnixFileMode(target);
        if ((mode & execute) == 0)
            return "it is not executable";
        if ((mode & UnixFileMode.OtherWrite) != 0)
            return "everybody may write to it";
        return Posix.IsOwnersTrusted(target) ? null : "it belongs neither to root nor to the user that would run it";
    }

    private static async Task<SmDriver> AskAsync(string path, string hostRef, SmDriverSettings settings,
        CancellationToken cancellationToken)
    {
        SmCall call = new("sr_get_driver_info") { HostRef = hostRef };
        RpcValue answer = await SmProcess.CallAsync(path, call, settings, cancellationToken);
        try
        {
            return Read(path, answer.AsStruct());
        }
        catch (RpcFormatException e)
        {
            throw SmProcess.Misshapen(call, answer, e.Message);
        }
    }

    private static SmDriver Read(string path, RpcStruct info)
    {
        Dictionary<string, int> claimed = Capabilities(Texts("capabilities"));
        Dictionary<string, int> capabilities = claimed.Where(static c => KnownCapabilities.Contains(c.Key)).ToDictionary();
        Dictionary<string, string> configuration = [];
        foreach (RpcStruct entry in info.Get("configuration").AsArray().Select(static c => c.AsStruct()))
            configuration[entry.Get("key").AsString()] = entry.Get("description").AsString();
        string type = TypeOf(path);
        QueryResult query = new(
            type, info.Get("name").AsString(), info.Get("description").AsString(), info.Get("vendor").AsString(),
            info.Get("driver_version").AsString(), info.Get("required_api_version").AsString(), capabilities.Keys.ToList(), configuration,
            "SMAPIv1");
        return new SmDriver(type, path, query, capabilities)
        {
            Copyright = info.Get("copyright").AsString(),
            UnknownCapabilities = claimed.Keys.Except(capabilities.Keys).ToList(),
            ImageFormats = info.Find("supported_image_formats") is null ? [] : Texts("supported_image_formats").ToList(),
        };

        IEnumerable<string> Texts(string name) => info.Get(name).AsArray().Select(static c => c.AsString());
    }
}
