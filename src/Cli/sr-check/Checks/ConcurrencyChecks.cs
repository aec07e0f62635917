// Calls at the same time: the toolstack runs them so since 2024 unless the SR forbids it,
// and SMAPIv3 has no serialisation at all: the plugin does its own locking.
using Platform;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class ConcurrencyChecks
{
    private const string Fix = "take one lock of the SR around each change, and let the kernel drop it when the process dies";
    private const int Callers = 6;

    public static IEnumerable<Check> All(bool isV1)
    {
        CheckList list = new("concurrency", Level.Gold, isV1 ? "10.1, 3.8" : "5.6, 10.1");
        Volumes(list);
        Mixed(list);
        Datapaths(list);
        return list.All;
    }

    private static void Volumes(CheckList list)
    {
        list.MustAlone("creates", "VMs are made in batches", Fix, async static w =>
        {
            Volume[] made = await TogetherAsync(Callers, _ => w.VolumeAsync());
            Seen.Equal(Callers, made.Select(static v => v.Key).Distinct().Count(), "the number of different keys");
            string[] listed = [.. (await w.Plugin.ScanAsync()).Select(static v => v.Key)];
            Seen.That(made.All(v => listed.Contains(v.Key)),
                $"{made.Count(v => !listed.Contains(v.Key))} of {Callers} disks are not listed");
        });
        list.MustAlone("destroys", "and taken away in batches", Fix, async static w =>
        {
            Volume[] made = await TogetherAsync(Callers, _ => w.VolumeAsync());
            await TogetherAsync(Callers, async i =>
            {
                await w.Plugin.DestroyAsync(made[i]);
                return 0;
            });
            Seen.Equal(0, (await w.Plugin.ScanAsync()).Count, "the number of disks left");
        });
        list.MustAlone("destroy-of-one", "two callers destroy one disk", "the second finds it gone: success or 144", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            int done = 0;
            await TogetherAsync(3, async _ =>
            {
                try
                {
                    await w.Plugin.DestroyAsync(volume);
                    Interlocked.Increment(ref done);
                }
                catch (PluginRefusalException e)
                {
                    Seen.That(e.Number is 144 or 154, $"a destroy beside another is refused as {e.Code}");
                }

                return 0;
            });
            Seen.That(done >= 1, "none of the destroys succeeds");
            Seen.That(!await w.IsListedAsync(volume), "the disk is still listed");
        });
        foreach ((string kind, string need, Func<World, Volume, Task<Volume>> copy) in VdiChecks.CopyOperations())
        {
            list.MustAlone($"{kind}s-of-one", "a backup and a snapshot schedule meet", Fix, async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                Volume[] copies = await TogetherAsync(3, _ => copy(w, volume));
                Seen.Equal(3, copies.Select(static v => v.Key).Distinct().Count(), "the number of different keys");
                foreach (Volume made in copies)
                    await w.VerifyAsync(made, content, "a copy that was made beside others");
                await w.VerifyAsync(volume, content, "their source");
            }, need);
            list.MustAlone($"{kind}s-of-several", "a VM's disks are copied together", Fix, async w =>
            {
                (Volume Volume, DiskContent Content)[] sources = [await w.FilledAsync(), await w.FilledAsync(), await w.FilledAsync()];
                Volume[] copies = await TogetherAsync(sources.Length, i => copy(w, sources[i].Volume));
                for (int i = 0; i < copies.Length; i++)
                    await w.VerifyAsync(copies[i], sources[i].Content, "a copy that was made beside others");
            }, need);
        }
    }

    private static void Mixed(CheckList list)
    {
        list.MustAlone("scan-and-create", "scans come at any time", "list whole disks only", async static w =>
        {
            Volume standing = await w.VolumeAsync();
            Task<Volume[]> creating = TogetherAsync(4, _ => w.VolumeAsync());
            IReadOnlyList<Volume>[] scans = await TogetherAsync(4, _ => w.Plugin.ScanAsync());
            Volume[] made = await creating;
            Seen.That(scans.All(s => s.Any(v => v.Key == standing.Key)), "a scan beside creates misses a disk that was there all the time");
            Seen.That(scans.SelectMany(static s => s).All(static v => v.VirtualSizeBytes >= World.SmallBytes),
                "a scan lists a disk that is half made");
            string[] listed = [.. (await w.Plugin.ScanAsync()).Select(static v => v.Key)];
            Seen.That(made.All(v => listed.Contains(v.Key)), "a disk that was created beside scans is not listed");
        });
        list.MustAlone("scan-and-destroy", "scans come at any time", "do not fail for a disk that goes meanwhile", async static w =>
        {
            Volume stays = await w.VolumeAsync();
            Volume[] goes = await TogetherAsync(4, _ => w.VolumeAsync());
            Task<int[]> destroying = TogetherAsync(4, async i =>
            {
                await w.Plugin.DestroyAsync(goes[i]);
                return 0;
            });
            IReadOnlyList<Volume>[] scans = await TogetherAsync(4, _ => w.Plugin.ScanAsync());
            await destroying;
            Seen.That(scans.All(s => s.Any(v => v.Key == stays.Key)), "a scan beside destroys misses a disk that stays");
            Seen.Equal(1, (await w.Plugin.ScanAsync()).Count, "the number of disks left");
        });
        list.MustAlone("snapshot-and-destroy", "a snapshot schedule and its retention meet", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            Volume old = await w.SnapshotAsync(volume);
            Task<Volume> taking = w.SnapshotAsync(volume);
            await w.Plugin.DestroyAsync(old);
            await w.VerifyAsync(await taking, content, "the snapshot that was taken beside a destroy");
            await w.VerifyAsync(volume, content, "the source");
        }, "VDI_SNAPSHOT");
        list.MustAlone("stats", "every monitor asks", "answer without a long lock", static w => TogetherAsync(Callers,
            _ => w.Plugin.StatSrAsync()));
        list.MustAlone("two-attaches-of-the-sr", "two calls of one host meet", "attach may be repeated, also at once", static w =>
            TogetherAsync(3, async _ =>
            {
                await w.Plugin.AttachSrAsync();
                return 0;
            }));
    }

    private static void Datapaths(CheckList list)
    {
        list.MustAlone("activates-of-several", "a VM's disks are activated together",
            "one minor, port or name for each, taken under a lock", async static w =>
        {
            (Volume Volume, DiskContent Content)[] disks = [await w.FilledAsync(), await w.FilledAsync(), await w.FilledAsync(),
                await w.FilledAsync()];
            await TogetherAsync(disks.Length, async i =>
            {
                await w.UseAsync(disks[i].Volume, isWritable: true, async device =>
                {
                    await disks[i].Content.ScatterAsync(device, new Random(i), 6);
                    await disks[i].Content.VerifyAsync(device, "one of several disks that are used together");
                });
                return 0;
            });
            foreach ((Volume volume, DiskContent content) in disks)
                await w.VerifyAsync(volume, content, "a disk that was used beside others");
        });
        list.MustAlone("activates-of-one", "a retry overtakes its call", "two activations of one disk end in one server", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            IReadOnlyList<Access> ways = await w.Plugin.AttachAsync(volume, isWritable: true);
            await TogetherAsync(3, async _ =>
            {
                await World.AnsweredAsync(() => w.Plugin.ActivateAsync(volume, isWritable: true));
                return 0;
            });
            await using (IBlockDevice device = await AttachedDisk.OpenAsync(ways, isWritable: true))
                await content.VerifyAsync(device, "a disk that was activated three times at once");
            await w.Plugin.DeactivateAsync(volume);
            await w.Plugin.DetachAsync(volume);
            Seen.That((await w.ProcessesAsync()).Count == 0, "a server is left after deactivate");
        });
        list.MustAlone("io-while-others-live", "a guest works while disks come and go", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.UseAsync(volume, isWritable: true, async device =>
            {
                Task<int[]> others = TogetherAsync(3, async i =>
                {
                    Volume other = await w.VolumeAsync();
                    await w.UseAsync(other, isWritable: true, d => new DiskContent().ScatterAsync(d, new Random(i), 4));
                    await w.Plugin.DestroyAsync(other);
                    return 0;
                });
                while (!others.IsCompleted)
                {
                    await content.ScatterAsync(device, w.Random, 4);
                    await content.VerifyAsync(device, "a disk in use while others come and go");
                }

                await others;
            });
        });
        list.MustAlone("deactivate-and-scan", "a VM stops while the SR is scanned", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            Task<IReadOnlyList<Volume>[]> scanning = TogetherAsync(3, _ => w.Plugin.ScanAsync());
            await w.VerifyAsync(volume, content, "a disk that was used beside scans");
            Seen.That((await scanning).All(s => s.Any(v => v.Key == volume.Key)), "a scan beside a disk's use misses it");
        });
    }

    private static Task<T[]> TogetherAsync<T>(int count, Func<int, Task<T>> call) => Task.WhenAll(Enumerable.Range(0, count).Select(call));
}
