// What is left when all is let go: processes, sockets, files, mounts, links.
using Platform;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class LeakChecks
{
    public static IEnumerable<Check> All(bool isV1)
    {
        CheckList list = new("leaks", Level.Silver, isV1 ? "3.8, 10.1" : "5.7, 10.1");
        list.MustAlone("processes", "a server that nobody stops holds the disk for ever", "end in deactivate and detach what you started",
            static async w =>
        {
            await LiveAsync(w);
            IReadOnlyList<int> left = await w.ProcessesAsync();
            Seen.That(left.Count == 0, $"still running: {string.Join(", ", left.Select(MarkedProcesses.NameOf))}");
        });
        list.MustAlone("control-folder", "sockets and minors are used up", "free what you allocated", static async w =>
        {
            await LiveAsync(w);
            await w.ProcessesAsync();
            string[] left = [.. Directory.EnumerateFileSystemEntries(w.Place.ControlFolder, "*", SearchOption.AllDirectories)
                .Where(static f => Posix.IsSocket(f) || Path.GetFileName(f).StartsWith("tapdisk-", StringComparison.Ordinal)
                    || new FileInfo(f).LinkTarget is not null)];
            Seen.That(left.Length == 0, $"left in the control folder: {string.Join(", ", left.Select(Path.GetFileName))}");
        });
        list.MustAlone("mounts", "a mount that stays keeps the store busy", "unmount in detach", static async w =>
        {
            await LiveAsync(w);
            Seen.That(w.Place.Mounts().Count == 0, $"still mounted: {string.Join(", ", w.Place.Mounts())}");
        });
        Files(list);
        return list.All;
    }

    private static void Files(CheckList list)
    {
        list.MustAlone("store-files", "a file that nobody knows is space that nobody gets back",
            "remove temporary files, records and journals", static async w =>
        {
            w.NeedsStore();
            string[] before = FilesOf(w);
            await LiveAsync(w, leave: false);
            string[] left = [.. FilesOf(w).Except(before)];
            Seen.That(left.Length == 0, $"left in the store: {string.Join(", ", left.Select(Path.GetFileName))}");
        });
        list.MustAlone("store-folder", "destroy takes away what create made", "remove it all", static async w =>
        {
            w.NeedsStore();
            await LiveAsync(w);
            await w.Plugin.DestroySrAsync();
            string[] left = Directory.Exists(w.Place.StoreFolder) ? Directory.GetFileSystemEntries(w.Place.StoreFolder) : [];
            Seen.That(left.Length == 0, $"left after destroy: {string.Join(", ", left.Select(Path.GetFileName))}");
        });
        list.MustAlone("temporary-folder", "/tmp is not yours", "use the SR's folder, and remove what you make", static async w =>
        {
            string tmp = Path.Combine(w.Place.Folder, "tmp");
            Directory.CreateDirectory(tmp);
            w.Plugin.Process.Settings = w.Plugin.Process.Settings with
            {
                ExtraEnvironment = new Dictionary<string,
                string>
                { ["TMPDIR"] = tmp }
            };
            await LiveAsync(w);
            string[] left =
                [.. Directory.GetFileSystemEntries(tmp).Select(static f => Path.GetFileName(f)!).Where(static f => !IsRuntimes(f))];
            Seen.That(left.Length == 0, $"left in TMPDIR: {string.Join(", ", left)}");
        });
        list.MustAlone("descriptors-of-servers", "a server that holds files of another disk keeps them from being freed",
            "close what a child need not have", static async w =>
        {
            (Volume gone, _) = await w.FilledAsync();
            (Volume used, _) = await w.FilledAsync();
            await w.UseAsync(used, isWritable: true, async _ =>
            {
                await w.Plugin.DestroyAsync(gone);
                string[] held = [.. MarkedProcesses.Find(w.Place.Mark).SelectMany(DescriptorsOf)
                    .Where(t => t.StartsWith(w.Place.Folder, StringComparison.Ordinal) && t.EndsWith(" (deleted)",
                        StringComparison.Ordinal))];
                Seen.That(held.Length == 0, $"a server holds {string.Join(", ", held)}");
            });
        });
    }

    /// <summary>What the .NET runtime keeps there for its diagnostics; it goes with the process.</summary>
    private static bool IsRuntimes(string name) =>
        name.StartsWith("clr-debug", StringComparison.Ordinal) || name.StartsWith("dotnet-diagnostic", StringComparison.Ordinal)
        || name == ".dotnet";

    private static async Task LiveAsync(World w, bool leave = true)
    {
        (Volume volume, _) = await w.FilledAsync();
        if (w.Plugin.Info.Has("VDI_SNAPSHOT"))
            await w.Plugin.DestroyAsync(await w.SnapshotAsync(volume));
        await World.AnsweredAsync(() => w.Plugin.DestroyAsync(w.Plugin.Unknown()));
        await w.Plugin.DestroyAsync(volume);
        if (leave)
            await w.Plugin.DetachSrAsync();
    }

    private static string[] FilesOf(World w) =>
        Directory.GetFileSystemEntries(w.Place.StoreFolder, "*", new EnumerationOptions
        {
            RecurseSubdirectories = true,
            AttributesToSkip = 0
        });

    private static IEnumerable<string> DescriptorsOf(int processId)
    {
        string[] links;
        try
        {
            links = Directory.GetFileSystemEntries($"/proc/{processId}/fd");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            yield break;
        }

        foreach (string link in links)
            yield return new FileInfo(link).LinkTarget ?? "";
    }
}
