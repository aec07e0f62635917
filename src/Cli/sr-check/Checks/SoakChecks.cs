// Endurance: a thousand cycles in four parts, and the sizes that people have. At the end everything is as it was at the beginning.
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class SoakChecks
{
    private const int Cycles = 250;
    private const int ManyDisks = 60;
    private const int ChainLength = 20;
    private const string Fix = "free in each cycle what the cycle took";

    public static IEnumerable<Check> All()
    {
        CheckList list = new("soak", Level.Platinum, "10.1, 10.2; users-and-trust.md 3.4");
        Thousand(list);
        Sizes(list);
        return list.All;
    }

    private static void Thousand(CheckList list)
    {
        Cycle(list, "create-destroy", [], static async (w, _, _, _) => await w.Plugin.DestroyAsync(await w.Plugin.CreateAsync("cycle", "",
            World.SmallBytes)));
        Cycle(list, "use", [], static (w, volume, content, _) => w.UseAsync(volume, isWritable: true, async device =>
        {
            await content.WriteAsync(device, w.Random.Next((int)(device.LengthBytes / DiskContent.BlockBytes)), w.Random.Next());
            await device.FlushAsync(CancellationToken.None);
        }));
        Cycle(list, "attach-detach", [], static async (w, volume, _, i) =>
        {
            await w.Plugin.AttachAsync(volume, isWritable: i % 2 == 0);
            await w.Plugin.DetachAsync(volume);
        });
        Cycle(list, "snapshot-destroy", ["VDI_SNAPSHOT"], SnapshotAsync);
    }

    /// <summary>
    /// Coalescing is somebody else's work and may lag behind: a chain that is too long for one more (109) is made short by starting anew.
    /// </summary>
    private static async Task SnapshotAsync(World w, Volume standing, DiskContent content, int i)
    {
        try
        {
            Volume snapshot = await w.Plugin.SnapshotAsync(standing);
            if (i % 50 == 0)
                await w.VerifyAsync(snapshot, content, $"the snapshot of cycle {i}");
            await w.Plugin.DestroyAsync(snapshot);
        }
        catch (PluginRefusalException e) when (e.Number == 109)
        {
            (Volume other, DiskContent otherContent) = await w.FilledAsync();
            await w.VerifyAsync(await w.SnapshotAsync(other), otherContent, $"the snapshot of a new disk in cycle {i}");
            await w.TidyAsync(keep: standing);
        }
    }

    private static void Cycle(CheckList list, string name, string[] needs, Func<World, Volume, DiskContent, int, Task> cycle) =>
        list.MustAlone($"{Cycles}-times-{name}", $"{Cycles} cycles of {name} are a week of a busy pool", Fix, async w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await cycle(w, volume, content, 0); // What stays after the first time is not a leak.
            int files = CountFiles(w);
            for (int i = 1; i <= Cycles; i++)
                await cycle(w, volume, content, i);
            Seen.That(CountFiles(w) <= files + 64, $"{files} files became {CountFiles(w)} in {Cycles} cycles");
            Seen.Equal(0, (await w.ProcessesAsync()).Count, "the number of processes left");
            await w.VerifyAsync((await w.Plugin.ScanAsync()).Single(), content, $"the disk after {Cycles} cycles");
        }, needs);

    private static void Sizes(CheckList list)
    {
        list.MustAlone("large-disk", "disks of two terabytes are common", "64-bit sizes and offsets throughout", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(2000L << 30, blocks: 30);
            await w.VerifyAsync(volume, content, "a disk of 2000 GiB");
            if (w.Plugin.Info.Has("VDI_SNAPSHOT"))
                await w.VerifyAsync(await w.SnapshotAsync(volume), content, "its snapshot");
        }, "THIN_PROVISIONING");
        list.MustAlone("many-disks", "an SR has hundreds of disks", "list them in one pass", async static w =>
        {
            List<string> keys = [];
            for (int i = 0; i < ManyDisks; i++)
                keys.Add((await w.VolumeAsync(name: $"disk {i}")).Key);
            IReadOnlyList<Volume> listed = await w.Plugin.ScanAsync();
            Seen.That(keys.Order().SequenceEqual(listed.Select(static v => v.Key).Order()),
                $"{ManyDisks} disks were made, {listed.Count} are listed, or others");
        });
        list.MustAlone("long-chain", "a month of daily backups", "keep order, or refuse with 109 before anything is linked",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(blocks: 3);
            Volume? first = null;
            DiskContent then = content.Copy();
            for (int i = 0; i < ChainLength; i++)
            {
                Volume snapshot = await w.SnapshotAsync(volume);
                first ??= snapshot;
                await w.WriteAsync(volume, content, blocks: 3);
            }

            await w.VerifyAsync(volume, content, $"the leaf of {ChainLength} snapshots");
            await w.VerifyAsync(first!, then, "the first of them");
        }, "VDI_SNAPSHOT");
        list.MustAlone("large-write", "an installation writes gigabytes", "bound what you hold in memory", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(512L << 20, blocks: 2000);
            await w.VerifyAsync(volume, content, "a disk with 125 MiB written all over");
        });
    }

    private static int CountFiles(World w) => w.Place.HasStore
        ? Directory.GetFileSystemEntries(w.Place.StoreFolder, "*", new EnumerationOptions
        {
            RecurseSubdirectories = true,
            AttributesToSkip = 0
        }).Length
        : 0;
}
