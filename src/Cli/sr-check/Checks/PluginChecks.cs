// The plugin as the toolstack finds it: its files, and what it says of itself before there is any SR.
using System.Text.Json.Nodes;
using Platform;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class PluginChecks
{
    private const UnixFileMode WritableByAll = UnixFileMode.OtherWrite;

    private static readonly string[] KnownFeatures =
    [
        "SR_CREATE", "SR_DELETE", "SR_ATTACH", "SR_DETACH", "SR_SCAN", "SR_PROBE", "SR_UPDATE", "SR_SUPPORTS_LOCAL_CACHING", "SR_METADATA",
        "SR_TRIM", "SR_MULTIPATH", "SR_CACHING", "SR_STATS", "VDI_CREATE", "VDI_DELETE", "VDI_DESTROY", "VDI_ATTACH", "VDI_DETACH",
        "VDI_MIRROR", "VDI_MIRROR_IN", "VDI_RESIZE", "VDI_RESIZE_ONLINE", "VDI_CLONE", "VDI_SNAPSHOT", "VDI_ACTIVATE",
        "VDI_ACTIVATE_READONLY", "VDI_DEACTIVATE", "VDI_UPDATE", "VDI_INTRODUCE", "VDI_GENERATE_CONFIG", "VDI_ATTACH_OFFLINE",
        "VDI_RESET_ON_BOOT", "VDI_CONFIG_CBT", "VDI_COMPOSE", "LARGE_VDI", "THIN_PROVISIONING", "VDI_READ_CACHING", "VDI_REVERT",
        "ATOMIC_PAUSE", "NONPERSISTENT", "VDI_SET_ON_BOOT", "VDI_SET", "VDI_UNSET", "VDI_SET_NAME", "VDI_SET_DESCRIPTION", "SR_SET_NAME",
        "SR_SET_DESCRIPTION",
    ];

    private static readonly string[] RequiredScripts =
    [
        "Plugin.Query", "SR.create", "SR.attach", "SR.detach", "SR.destroy", "SR.stat", "SR.ls", "Volume.create", "Volume.destroy",
        "Volume.stat",
    ];

    public static IEnumerable<Check> All(bool isV1, RunOptions options) => [.. Files(isV1, options), .. Query(isV1, options)];

    private static IReadOnlyList<Check> Files(bool isV1, RunOptions options)
    {
        CheckList list = new("plugin", Level.Bronze, isV1 ? "3.7" : "5.1, 5.2");
        list.MustBare("executable", "a program without the execute bit is rejected at discovery", "chmod 0755 each of them", _ =>
        {
            foreach (string path in Programs(options))
                Seen.That((File.GetUnixFileMode(path) & UnixFileMode.UserExecute) != 0, $"{path} has no execute bit");
            return Task.CompletedTask;
        });
        list.MustBare("not-world-writable", "a program that everybody may change runs as root", "chmod o-w it and its folder", _ =>
        {
            foreach (string path in Programs(options).Append(FolderOf(options)))
                Seen.That((File.GetUnixFileMode(path) & WritableByAll) == 0, $"{path} may be written by everybody");
            return Task.CompletedTask;
        });
        list.MustBare("owner", "a program of another user than root's or one's own is somebody else's code", "chown root it", async _ =>
        {
            string me = $"{await StatAsync("/proc/self")}";
            foreach (string path in Programs(options))
            {
                string owner = await StatAsync(path);
                Seen.That(owner == "0" || owner == me, $"{path} belongs to user {owner}");
            }
        });
        if (!isV1)
        {
            list.MustBare("scripts", "without these an SR cannot live", "add the missing scripts", _ =>
            {
                string[] missing = [.. RequiredScripts.Where(s => !File.Exists(Path.Combine(options.PluginPath, s)))];
                Seen.That(missing.Length == 0, $"missing: {string.Join(", ", missing)}");
                return Task.CompletedTask;
            });
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Query(bool isV1, RunOptions options)
    {
        CheckList list = new("query", Level.Bronze, isV1 ? "3.4, 3.6" : "5.3, 5.4");
        string call = isV1 ? "sr_get_driver_info" : "Plugin.Query";
        list.MustBare("answers", "without it the plugin does not exist", $"make {call} print its answer and exit 0",
            w => w.Plugin.QueryAsync());
        list.MustBare("repeats", "it is asked again at each start of the toolstack", "answer from constants", async w =>
        {
            PluginInfo first = await w.Plugin.QueryAsync();
            PluginInfo second = await w.Plugin.QueryAsync();
            Seen.That(first.Features.SetEquals(second.Features) && first.Name == second.Name, "two answers differ");
        });
        list.MustBare("api-version", "another version than the toolstack's is not registered",
            isV1 ? "required_api_version \"1.0\" or later, below 5" : "required_api_version \"5.0\"", async w =>
        {
            string version = (await w.Plugin.QueryAsync()).RequiredApiVersion;
            bool isGood = isV1 ? Version.TryParse(version, out Version? v) && v.Major is >= 1 and < 5 : version is "5.0" or "3.0";
            Seen.That(isGood, $"required_api_version is \"{version}\"");
        });
        Claims(list);
        list.MustBare("configuration-described", "it is all the help that an operator has", "describe each key", async w =>
        {
            PluginInfo info = await w.Plugin.QueryAsync();
            string[] bare = [.. info.Configuration.Where(static c => c.Value.Trim().Length == 0).Select(static c => c.Key)];
            Seen.That(bare.Length == 0, $"without a description: {string.Join(", ", bare)}");
        });
        list.MustBare("leaves-nothing", "it is a question", "do nothing before the command is known", async w =>
        {
            await w.Plugin.QueryAsync();
            string[] left = [.. Directory.GetFileSystemEntries(w.Place.ControlFolder), .. Directory.GetFileSystemEntries(w.Place.Folder,
                "s*")];
            Seen.That(left.Length == 0, $"it left {string.Join(", ", left)}");
            Seen.That((await w.ProcessesAsync()).Count == 0, "it left a process");
        });
        list.MustBare("unknown-parameters", "a newer toolstack sends more than you know", "ignore what you do not know", w =>
            w.Plugin.RawAsync(new RawCall(call, null, static p => p["from_the_future"] = "yes")));
        if (!isV1)
        {
            list.MustBare("name-of-folder", "the SR's type is the end of the folder's name", "let \"plugin\" be that end", async w =>
            {
                JsonObject answer = V3Answer.Dict(call, await w.V3.VolumeScriptAsync(call, []));
                string folder = Path.GetFileName(options.PluginPath.TrimEnd('/'));
                string plugin = V3Answer.Text(call, answer, "plugin");
                Seen.That(folder.Split('.')[^1] == plugin, $"the plugin calls itself \"{plugin}\" in the folder {folder}");
            });
        }
        else
        {
            list.MustBare("no-session", "it is asked before there is a session", "open the session in the commands that need one",
                async w =>
            {
                await w.Plugin.QueryAsync();
                Seen.That(w.V1.Toolstack.Log.Count == 0, $"it called {string.Join(", ", w.V1.Toolstack.Log)}");
            });
        }

        return list.All;
    }

    private static void Claims(CheckList list)
    {
        list.MustBare("features-known", "an unknown feature is dropped, and with it what you meant", "use the names of section 3.6",
            async w =>
        {
            string[] unknown = [.. (await w.Plugin.QueryAsync()).Features.Except(KnownFeatures)];
            Seen.That(unknown.Length == 0, $"unknown: {string.Join(", ", unknown)}");
        });
        list.MustBare("features-needed", "a disk that cannot be made, used and taken away is none", "claim what you have", async w =>
        {
            PluginInfo info = await w.Plugin.QueryAsync();
            string[] needed = ["VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH"];
            Seen.That(needed.All(info.Has), $"not claimed: {string.Join(", ", needed.Where(f => !info.Has(f)))}");
        });
        list.MustBare("activate-pairs", "what can be activated must be deactivated", "claim both", async w =>
        {
            PluginInfo info = await w.Plugin.QueryAsync();
            Seen.That(info.Has("VDI_ACTIVATE") == info.Has("VDI_DEACTIVATE"), "only one of VDI_ACTIVATE and VDI_DEACTIVATE is claimed");
        });
        list.MustBare("name", "operators see it", "give it a name", async w =>
            Seen.That((await w.Plugin.QueryAsync()).Name.Trim().Length != 0, "the name is empty"));
    }

    private static IEnumerable<string> Programs(RunOptions options) => options.IsV1
        ? [options.PluginPath]
        : Directory.EnumerateFiles(options.PluginPath).Where(static f => Path.GetFileName(f).Contains('.', StringComparison.Ordinal))
            .Select(static f => File.ResolveLinkTarget(f, returnFinalTarget: true)?.FullName ?? f).Distinct();

    private static string FolderOf(RunOptions options) =>
        options.IsV1 ? Path.GetDirectoryName(Path.GetFullPath(options.PluginPath))! : options.PluginPath;

    private static async Task<string> StatAsync(string path)
    {
        ChildResult result = await ChildProcess.RunAsync(
            "stat", ["-L", "-c", "%u", path], "", new Dictionary<string, string?>(), TimeSpan.FromSeconds(10), 4096,
                CancellationToken.None);
        return result.StandardOutput.Trim();
    }
}
