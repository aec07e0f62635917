// The life of an SR: created once, attached and detached at will, scanned truthfully, destroyed only when empty.
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class SrChecks
{
    private static readonly string[] StorageTools =
    [
        "tapdisk", "tap-ctl", "vhd-util", "td-util", "cbt-util", "qemu-img", "qemu-nbd", "qemu-io", "lvs", "vgs", "pvs", "lvcreate",
            "lvremove",
        "zfs", "zpool", "rbd", "iscsiadm", "mount", "umount", "losetup", "dmsetup", "du", "stat", "ls",
    ];

    public static IEnumerable<Check> All(bool isV1) => [.. Life(isV1), .. Space(isV1), .. Scan(isV1), .. Side(isV1)];

    private static IReadOnlyList<Check> Life(bool isV1)
    {
        CheckList list = new("sr", Level.Bronze, isV1 ? "3.2" : "5.4, 5.5");
        list.MustBare("create.attaches", "an SR that was created can be attached", "let create make all that attach needs",
            static w => w.SetUpAsync());
        list.MustBare("create.does-not-attach", "create only makes it; an attach follows on every host", "do not leave anything running",
            async static w =>
        {
            await w.Plugin.CreateSrAsync();
            Seen.That((await w.ProcessesAsync()).Count == 0, "create left a process");
        });
        list.MustAlone("create.twice", "creating over an SR would lose it", "refuse with 42 (SRExists) or your own code", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await World.RefusedAsync("creating an SR where one is", () => w.Plugin.CreateSrAsync());
            Seen.That(await w.IsListedAsync(volume), "a disk is gone after the refused create");
        });
        list.MustBare("attach.unknown", "attaching what was never created must not make up an empty SR", "refuse with 47 (SRUnavailable)",
            static w =>
            World.RefusedAsync("attaching an SR that was never created", () => w.Plugin.AttachSrAsync()));
        list.MustAlone("attach.answer-stays", "the SR's name from attach is kept across restarts", "answer the same string each time",
            async static w =>
        {
            string before = NameOf(w);
            await w.Plugin.AttachSrAsync();
            Seen.Equal(before, NameOf(w), "what attach answers the second time");
        });
        list.MustAlone("detach.keeps-disks", "a detached SR is only put aside", "never delete in detach", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.DetachSrAsync();
            await w.Plugin.AttachSrAsync();
            Seen.That(await w.IsListedAsync(volume), "the disk is gone after detach and attach");
        });
        list.MustAlone("detach.ends-processes", "a detached SR has nothing running", "end your daemons in detach", async static w =>
        {
            await w.Plugin.DetachSrAsync();
            IReadOnlyList<int> left = await w.ProcessesAsync();
            Seen.That(left.Count == 0, $"still running: {string.Join(", ", left.Select(MarkedProcesses.NameOf))}");
        });
        Destroyed(list);
        return list.All;
    }

    private static void Destroyed(CheckList list)
    {
        list.MustAlone("destroy.not-empty", "an SR with disks must not be destroyed", "refuse with 39 (SRNotEmpty)", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await World.RefusedAsync("destroying an SR with a disk", () => w.Plugin.DestroySrAsync());
            Seen.That(await w.IsListedAsync(volume), "the disk is gone after the refused destroy");
        });
        list.MustAlone("destroy.empty", "an empty SR can be destroyed", "remove all that create made", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.DestroyAsync(volume);
            await w.Plugin.DestroySrAsync();
        });
        list.MustAlone("destroy.is-final", "what was destroyed does not come back", "refuse the attach with 47", async static w =>
        {
            await w.Plugin.DestroySrAsync();
            await World.RefusedAsync("attaching a destroyed SR", () => w.Plugin.AttachSrAsync());
        });
        list.MustAlone("destroy.can-be-created-again", "its place is free again", "remove your marks in destroy", async static w =>
        {
            await w.Plugin.DestroySrAsync();
            await w.SetUpAsync();
            Seen.Equal(0, (await w.Plugin.ScanAsync()).Count, "the number of disks in the new SR");
        });
        list.MustAlone("reattach.same-disks", "names, sizes and descriptions survive", "keep them on the SR (SMAPIv1: in the database)",
            async static w =>
        {
            Volume before = await w.VolumeAsync(name: "a name", description: "a description");
            await w.Plugin.DetachSrAsync();
            await w.Plugin.AttachSrAsync();
            Volume after = (await w.Plugin.ScanAsync()).Single(v => v.Key == before.Key);
            Seen.Equal((before.Name, before.Description, before.VirtualSizeBytes), (after.Name, after.Description, after.VirtualSizeBytes),
                "the disk");
        });
    }

    private static IReadOnlyList<Check> Space(bool isV1)
    {
        CheckList list = new("sr", Level.Bronze, isV1 ? "2.8, 3.8" : "5.4");
        list.Must("stat.sane", "the toolstack decides by it whether a disk fits", "0 <= free <= total", async static w =>
        {
            SrSpace space = await w.Plugin.StatSrAsync();
            Seen.That(space.TotalBytes > 0 && space.FreeBytes >= 0 && space.FreeBytes <= space.TotalBytes,
                $"total {space.TotalBytes}, free {space.FreeBytes}");
        });
        list.Must("stat.healthy", "an SR that is not Healthy is not scanned", "say Healthy when it is", async static w =>
            Seen.Equal("Healthy", (await w.Plugin.StatSrAsync()).Health, "the health"));
        list.Must("stat.name", "operators know it by its name", "keep the name given to create", async static w =>
            Seen.Equal(World.SrName, (await w.Plugin.StatSrAsync()).Name, "the name"));
        list.MustAlone("stat.free-falls", "space that is used is not free", "count what the disks take", async static w =>
        {
            const int tries = 4; // Somebody else may free space on the same filesystem meanwhile, but not every time.
            long before = 0, after = 1;
            for (int attempt = 0; attempt < tries && after > before; attempt++)
            {
                before = (await w.Plugin.StatSrAsync()).FreeBytes;
                await w.FilledAsync(blocks: 100);
                after = (await w.Plugin.StatSrAsync()).FreeBytes;
            }

            Seen.That(after <= before, $"free space grew from {before} to {after} while data was written");
        });
        list.Must("stat.repeats", "it is asked every half minute", "change nothing in it", async static w =>
        {
            SrSpace first = await w.Plugin.StatSrAsync();
            Seen.Equal(first.TotalBytes, (await w.Plugin.StatSrAsync()).TotalBytes, "the total size");
        });
        return list.All;
    }

    private static IReadOnlyList<Check> Scan(bool isV1)
    {
        CheckList list = new("sr", Level.Bronze, isV1 ? "3.8" : "5.5");
        list.MustAlone("scan.new-is-empty", "a new SR has no disks", "list nothing but disks", async static w =>
            Seen.Equal(0, (await w.Plugin.ScanAsync()).Count, "the number of disks in a new SR"));
        list.Must("scan.lists-created", "a disk that is not listed is lost to its owner", "list every disk", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            Seen.That(await w.IsListedAsync(volume), $"{volume.Key} is not listed");
        });
        list.Must("scan.drops-destroyed", "a disk that is gone must not be listed", "list what is there", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.DestroyAsync(volume);
            Seen.That(!await w.IsListedAsync(volume), $"{volume.Key} is still listed");
        });
        list.Must("scan.no-duplicates", "two records of one disk are two owners of it", "list each once", async static w =>
        {
            await w.VolumeAsync();
            await w.VolumeAsync();
            IReadOnlyList<Volume> volumes = await w.Plugin.ScanAsync();
            string[] twice = [.. volumes.GroupBy(static v => v.Key).Where(static g => g.Count() > 1).Select(static g => g.Key)];
            Seen.That(twice.Length == 0, $"listed more than once: {string.Join(", ", twice)}");
            Seen.Equal(volumes.Count, volumes.Select(static v => v.Uuid).Distinct().Count(), "the number of different uuids");
        });
        list.Must("scan.repeats", "scans come again and again", "change nothing that need not change", async static w =>
        {
            await w.VolumeAsync();
            string[] first = [.. (await w.Plugin.ScanAsync()).Select(static v => v.Key).Order()];
            string[] second = [.. (await w.Plugin.ScanAsync()).Select(static v => v.Key).Order()];
            Seen.That(first.SequenceEqual(second), "two scans list different disks");
        });
        list.Must("scan.agrees-with-create", "a scan corrects the database by what it says", "say the same as create did", async static w =>
        {
            Volume made = await w.VolumeAsync(name: "agreed", description: "upon");
            Volume listed = (await w.Plugin.ScanAsync()).Single(v => v.Key == made.Key);
            Seen.Equal((made.Uuid, made.Name, made.Description, made.VirtualSizeBytes, made.Reference),
                (listed.Uuid, listed.Name, listed.Description, listed.VirtualSizeBytes, listed.Reference), "the listed disk");
        });
        Unwell(list);
        return list.All;
    }

    private static void Unwell(CheckList list)
    {
        list.MustAlone("scan.foreign-file", "a file that is not yours is not an error", "ignore what is not a disk of yours",
            async static w =>
        {
            w.NeedsStore();
            Volume volume = await w.VolumeAsync();
            await File.WriteAllTextAsync(Path.Combine(w.Place.StoreFolder, "README"), "not a disk");
            Seen.That(await w.IsListedAsync(volume), "a foreign file hides the disks");
        });
        list.MustAlone("scan.store-gone", "an empty answer because the store is away deletes every record (xcp#411)",
            "fail with 40 (SRScan) or 47 when the store cannot be read", async static w =>
        {
            w.NeedsStore();
            await w.VolumeAsync();
            Directory.Move(w.Place.StoreFolder, w.Place.StoreFolder + "-away");
            try
            {
                await World.RefusedAsync("a scan without the store", () => w.Plugin.ScanAsync());
            }
            finally
            {
                Directory.Move(w.Place.StoreFolder + "-away", w.Place.StoreFolder);
            }
        });
        list.MustAlone("scan.tool-missing", "a missing program must not look like an empty SR (xcp#411)", "check what your tools answer",
            async static w =>
        {
            Volume volume = await w.VolumeAsync();
            w.Plugin.Process.Settings = w.Plugin.Process.Settings with { SearchPath = ToolShims.PathWithout(w.Place.Folder, StorageTools) };
            try
            {
                Seen.That(await w.IsListedAsync(volume), "without the storage tools in PATH the scan succeeds and the disk is not listed");
            }
            catch (PluginRefusalException)
            {
                // To refuse is right too.
            }
        });
    }

    private static IReadOnlyList<Check> Side(bool isV1)
    {
        CheckList list = new("sr", Level.Bronze, isV1 ? "3.2, 3.8" : "5.4");
        list.MustAlone("probe.finds", "an operator finds a lost SR by it", "name the uuid given to create", async static w =>
            Seen.That((await w.Plugin.ProbeAsync()).Contains(w.Plugin.SrUuid), $"{w.Plugin.SrUuid} is not found"), "SR_PROBE");
        list.MustBare("probe.nothing", "where no SR is, none is found", "answer an empty list", async static w =>
        {
            try
            {
                Seen.Equal(0, (await w.Plugin.ProbeAsync()).Count, "the number of SRs found where none is");
            }
            catch (PluginRefusalException)
            {
                // A store that cannot be asked is refused.
            }
        }, "SR_PROBE");
        list.MustAlone("probe.changes-nothing", "it is a question", "open read-only", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.ProbeAsync();
            Seen.That(await w.IsListedAsync(volume), "the disk is gone after a probe");
        }, "SR_PROBE");
        list.MustBare("configuration-missing", "an operator's most frequent mistake needs a clear answer",
            "name the key that is missing, as 90 to 103 or 115", static w =>
        {
            if (w.Plugin.Configuration.Count == 0)
                throw new NotApplicableException("the plugin needs no configuration");
            w.Plugin.Configuration = new Dictionary<string, string>();
            return World.RefusedAsync("creating an SR without its configuration", () => w.Plugin.CreateSrAsync());
        });
        list.MustBare("configuration-absurd", "a path that cannot be is an error, not a crash", "refuse it", static w =>
        {
            if (w.Plugin.Configuration.Count == 0)
                throw new NotApplicableException("the plugin needs no configuration");
            w.Plugin.Configuration = w.Plugin.Configuration.ToDictionary(static p => p.Key, static _ => "/proc/no/such\u00e9/place");
            return World.RefusedAsync("creating an SR in an impossible place", () => w.Plugin.CreateSrAsync());
        });
        if (isV1)
        {
            Database(list);
            return list.All;
        }

        list.MustAlone("set-name", "an operator renames it", "keep the new name", async static w =>
        {
            await w.V3.SetSrTextAsync("SR.set_name", "new_name", "renamed");
            Seen.Equal("renamed", (await w.Plugin.StatSrAsync()).Name, "the name");
        }, "SR_SET_NAME");
        list.MustAlone("set-description", "an operator describes it", "keep the new text", static w =>
            w.V3.SetSrTextAsync("SR.set_description", "new_description", "described"), "SR_SET_DESCRIPTION");
        return list.All;
    }

    private static void Database(CheckList list)
    {
        list.MustAlone("database.numbers", "xapi knows an SR's size only by your call-backs",
            "SR.set_physical_size and the other two in scan", async static w =>
        {
            await w.V1.ScanSrAsync();
            string[] missing = [.. new[] { "SR.set_virtual_allocation", "SR.set_physical_size",
                "SR.set_physical_utilisation" }.Except(w.V1.Toolstack.Log)];
            Seen.That(missing.Length == 0, $"a scan does not call {string.Join(", ", missing)}");
        });
        list.MustAlone("database.reintroduces", "a disk whose record was lost comes back by a scan", "VDI.db_introduce what is new",
            async static w =>
        {
            Volume volume = await w.VolumeAsync();
            w.V1.Tables.ForgetVolumes();
            Volume? back = (await w.Plugin.ScanAsync()).FirstOrDefault(v => v.Key == volume.Key);
            Seen.That(back is not null, "the scan does not introduce a disk that the database does not know");
            Seen.Equal((volume.Uuid, volume.VirtualSizeBytes), (back!.Uuid, back.VirtualSizeBytes),
                "the disk that was introduced again");
        });
        list.MustAlone("database.forgets", "a record without a disk is a disk that cannot be started", "VDI.db_forget what is gone",
            async static w =>
        {
            w.NeedsStore();
            Volume volume = await w.VolumeAsync();
            foreach (string file in Directory.GetFiles(w.Place.StoreFolder, $"*{volume.Key}*"))
                File.Delete(file);
            Seen.That(!await w.IsListedAsync(volume), "the scan keeps the record of a disk whose file is gone");
        });
    }

    private static string NameOf(World w) => w.Plugin.IsV1 ? w.Plugin.SrUuid : w.V3.Sr;
}
