// Finds the SMAPIv1 drivers of a folder (research/storage.md 3.6, 3.7). A bad one is reported with its reason and does not stop the others.
using System.Globalization;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

/// <summary>A file that looks like a driver and is not used.</summary>
public sealed record RejectedDriver(string Path, string Reason);

public static class SmDrivers
{
    private const string Suffix = "SR";

    /// <summary>Asks every executable of the folder whose name ends in SR for its driver info. Types are unique; the first by name wins.</summary>
    public static async Task<(IReadOnlyList<SmDriver> Drivers, IReadOnlyList<RejectedDriver> Rejected)> DiscoverAsync(
        string folder, string hostRef, SmDriverSettings settings, CancellationToken cancellationToken)
    {
        Dictionary<string, SmDriver> drivers = [];
        List<RejectedDriver> rejected = [];
        IEnumerable<string> files = Directory.Exists(folder) ? Directory.GetFiles(folder, "*" + Suffix) : [];
        foreach (string path in files.Where(static p => p.EndsWith(Suffix, StringComparison.Ordinal)).Order(StringComparer.Ordinal))
        {
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

    private static string? ReasonAgainst(string path)
    {
        const UnixFileMode execute = UnixFileMode.UserExecute | UnixFileMode.GroupExecute | UnixFileMode.OtherExecute;
        string target = File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path;
        if (!File.Exists(target))
            return "it is a link to nothing";
        UnixFileMode mode = File.GetUnixFileMode(target);
        if ((mode & execute) == 0)
            return "it is not executable";
        return (mode & UnixFileMode.OtherWrite) != 0 ? "everybody may write to it" : null;
    }

    private static async Task<SmDriver> AskAsync(string path, string hostRef, SmDriverSettings settings, CancellationToken cancellationToken)
    {
        string fileName = Path.GetFileName(path);
        SmCall call = new("sr_get_driver_info") { HostRef = hostRef };
        RpcValue answer = await SmProcess.CallAsync(path, call, settings, cancellationToken);
        try
        {
            RpcStruct info = answer.AsStruct();
            Dictionary<string, int> capabilities = Capabilities(info.Get("capabilities").AsArray().Select(static c => c.AsString()));
            Dictionary<string, string> configuration = [];
            foreach (RpcStruct entry in info.Get("configuration").AsArray().Select(static c => c.AsStruct()))
                configuration[entry.Get("key").AsString()] = entry.Get("description").AsString();
            string type = fileName[..^Suffix.Length].ToLowerInvariant();
            QueryResult query = new(
                type, info.Get("name").AsString(), info.Get("description").AsString(), info.Get("vendor").AsString(),
                info.Get("driver_version").AsString(), info.Get("required_api_version").AsString(), capabilities.Keys.ToList(), configuration, "SMAPIv1");
            return new SmDriver(type, path, query, capabilities);
        }
        catch (RpcFormatException e)
        {
            throw SmProcess.Misshapen(call, answer, e.Message);
        }
    }
}
