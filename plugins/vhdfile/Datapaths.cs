// Datapath.*: the volume's tapdisk. Each call is idempotent; the NBD server answers from activate to deactivate under the name that attach
// gave.
using System.Text.Json.Nodes;
using VhdFolder;

namespace VhdFile;

internal static class Datapaths
{
    private static readonly DiskTap Tap = DiskTap.FromEnvironment();

    public static string UriOf(DiskFolder folder, Disk disk) =>
        $"tapdisk://{folder.Record.Uuid}{Uri.EscapeDataString(disk.Path).Replace("%2F", "/")}";

    public static async Task<JsonNode?> RunAsync(string script, Parameters p, CancellationToken cancellationToken)
    {
        (string sr, string path) = Parse(p.Text("uri"));
        string key = Path.GetFileNameWithoutExtension(path);
        switch (script)
        {
            case "Datapath.attach":
                Image(path);
                return new JsonObject
                {
                    ["implementations"] =
                    new JsonArray(new JsonArray("Nbd", new JsonObject { ["uri"] = Tap.NbdUri(sr, key) }))
                };
            case "Datapath.activate" or "Datapath.activate_readonly":
                Disk disk = Image(path);
                using (await DiskFolder.Open(Path.GetDirectoryName(path)!).LockAsync(cancellationToken))
                    await Tap.ActivateAsync(sr, key, disk.Path, isReadOnly: script == "Datapath.activate_readonly", cancellationToken);
                return null;
            case "Datapath.deactivate" or "Datapath.detach":
                await Tap.DeactivateAsync(sr, key, cancellationToken);
                return null;
            default:
                throw new ScriptException("Unimplemented", script);
        }
    }

    private static Disk Image(string path) => DiskFolder.Open(Path.GetDirectoryName(path)!).Find(Path.GetFileNameWithoutExtension(path));

    private static (string Sr, string Path) Parse(string uri)
    {
        const string scheme = "tapdisk://";
        int slash = uri.StartsWith(scheme, StringComparison.Ordinal) ? uri.IndexOf('/', scheme.Length) : -1;
        string sr = slash < 0 ? "" : uri[scheme.Length..slash];
        string path = slash < 0 ? "" : Uri.UnescapeDataString(uri[slash..]);
        bool isGood = sr.Length != 0 && sr.All(static c => char.IsAsciiLetterOrDigit(c) || c == '-')
            && path.EndsWith(".vhd", StringComparison.Ordinal);
        return isGood ? (sr, path) : throw new DriverException(DriverException.BadRequest, $"\"{uri}\" is not a URI of this plugin");
    }
}
