// Who may reference whom (design section 3, ARCHITECTURE.md). Reads the project files, so that a reference cannot come in unseen.
using System.Xml.Linq;

namespace Unit.Tidy;

public class ReferenceRules
{
    /// <summary>Every project of src/ and plugins/, and all that it may reference.</summary>
    private static readonly Dictionary<string, string[]> Allowed = new()
    {
        ["Platform"] = [],
        ["Vhd"] = ["Platform"],
        ["Nbd"] = ["Platform"],
        ["Migration"] = ["Platform"],
        ["StorageAccess"] = ["Platform"],
        ["SmapiV1Adapter"] = ["StorageAccess", "Platform"],
        ["SmapiV3Bridge"] = ["StorageAccess", "Nbd", "Platform"],
        ["Replication"] = ["StorageAccess", "Vhd", "Nbd", "Platform"],
        ["Tapdisk"] = ["Replication", "StorageAccess", "Vhd", "Nbd", "Platform"],
        ["Xenops"] = ["StorageAccess", "Nbd", "Platform"], // Nbd: decision 0002.
        ["Xapi"] =
        [
            "Migration", "Replication", "SmapiV1Adapter", "SmapiV3Bridge", "Xenops", "StorageAccess", "Vhd", "Nbd", "Platform",
        ],
        ["Demo"] = ["Vhd", "Nbd", "StorageAccess", "Platform"], // StorageAccess: the XML-RPC and JSON-RPC codecs, no server code.
        ["xe"] = ["Platform"], // It talks XenAPI over the wire: no server code.
        ["vhd-util"] = ["Vhd", "Nbd", "Platform"],
        ["sr-gc"] = ["VhdFolder", "Vhd", "StorageAccess", "Platform"], // The collector that the drivers start.
        ["tap-ctl"] = ["StorageAccess", "Platform"],
        // SmapiV1Adapter: the calls in the form in which the daemon issues them.
        ["sr-check"] = ["SmapiV1Adapter", "StorageAccess", "Nbd", "Platform"],
        ["VhdFolder"] = ["Vhd", "StorageAccess", "Platform"],
        ["FileVhdSR"] = ["VhdFolder", "Vhd", "StorageAccess", "Platform"],
        ["vhdfile"] = ["VhdFolder", "Vhd", "StorageAccess", "Platform"],
    };

    [Fact]
    public void Every_project_references_only_what_the_house_allows()
    {
        List<string> wrong = [];
        foreach (string project in Projects())
        {
            string name = Path.GetFileNameWithoutExtension(project);
            if (!Allowed.TryGetValue(name, out string[]? allowed))
            {
                wrong.Add($"{name} is not in the rules");
                continue;
            }

            wrong.AddRange(References(project).Except(allowed).Select(reference => $"{name} references {reference}"));
        }

        Assert.Empty(wrong);
    }

    [Fact]
    public void The_rules_name_no_project_that_is_gone() =>
        Assert.Empty(Allowed.Keys.Except(Projects().Select(Path.GetFileNameWithoutExtension)));

    [Fact]
    public void Unsafe_code_lives_in_Platform_only() =>
        Assert.Equal(
            ["Platform"],
            Projects()
                .Where(static p => File.ReadAllText(p).Contains("AllowUnsafeBlocks", StringComparison.Ordinal))
                .Select(Path.GetFileNameWithoutExtension));

    private static IEnumerable<string> Projects() =>
        new[] { "src", "plugins" }
            .SelectMany(static folder => Directory.EnumerateFiles(Path.Combine(Root, folder), "*.csproj", SearchOption.AllDirectories));

    private static IEnumerable<string> References(string project) =>
        XDocument.Load(project).Descendants("ProjectReference")
            .Select(static e => Path.GetFileNameWithoutExtension(e.Attribute("Include")!.Value));

    private static string Root
    {
        get
        {
            string folder = AppContext.BaseDirectory;
            while (!File.Exists(Path.Combine(folder, "Storage.sln")))
                folder = Path.GetDirectoryName(folder)!;
            return folder;
        }
    }
}
