// No room: what does not fit is refused as 44 before anything is made,
// and what is there stays whole. An SR with a quota of its own where the
// plugin has one (SMAPIv1: sr_create's size; SMAPIv3: a key "size"), a small file system where the machine lets us mount one.
using Platform;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class CapacityChecks
{
    private const long QuotaBytes = 64L << 20;
    private const int FileSystemMiB = 24;
    private const string Fix = "compare with the free space before anything is made, and answer 44 (SRNoSpace)";

    public static IEnumerable<Check> All(bool isV1) => [.. Quota(isV1), .. Full(isV1)];

    private static IReadOnlyList<Check> Quota(bool isV1)
    {
        CheckList list = new("capacity", Level.Silver, isV1 ? "3.2, 3.5" : "5.4, 3.5");
        list.MustBare("quota.total", "the SR is as large as was asked", "count by the quota", static async w =>
        {
            await QuotaAsync(w);
            Seen.Equal(QuotaBytes, (await w.Plugin.StatSrAsync()).TotalBytes, "the total size");
        });
        list.MustBare("quota.too-large", "a disk that can never fit", Fix, static async w =>
        {
            await QuotaAsync(w);
            await World.RefusedAsync("a disk larger than the SR", () => w.Plugin.CreateAsync("x", "", 16 * QuotaBytes), 44);
        });
        list.MustBare("quota.leaves-nothing", "a refused create leaves nothing", "undo what was begun", static async w =>
        {
            await QuotaAsync(w);
            long before = (await w.Plugin.StatSrAsync()).FreeBytes;
            await World.RefusedAsync("a disk larger than the SR", () => w.Plugin.CreateAsync("x", "", 16 * QuotaBytes));
            Seen.Equal(0, (await w.Plugin.ScanAsync()).Count, "the number of disks");
            Seen.That((await w.Plugin.StatSrAsync()).FreeBytes >= before - 4096, "free space fell with a refused create");
        });
        list.MustBare("quota.exact-after-refusal", "what fits is made after what did not", Fix, static async w =>
        {
            await QuotaAsync(w);
            await World.RefusedAsync("a disk larger than the SR", () => w.Plugin.CreateAsync("x", "", 16 * QuotaBytes));
            await w.VolumeAsync();
        });
        list.MustBare("quota.filled", "at last no more fits, and those that fit are whole", Fix, static async w =>
        {
            await QuotaAsync(w);
            List<(Volume Volume, DiskContent Content)> made = [];
            PluginRefusalException? full = null;
            for (int i = 0; i < 40 && full is null; i++)
            {
                try
                {
                    made.Add(await w.FilledAsync(blocks: 128));
                }
                catch (PluginRefusalException e)
                {
                    full = e;
                }
            }

            Seen.That(full is not null, $"{made.Count} disks of 8 MiB with 8 MiB in each fit into {QuotaBytes >> 20} MiB");
            Seen.Equal(44, full!.Number ?? 0, "the refusal's number");
            foreach ((Volume volume, DiskContent content) in made)
                await w.VerifyAsync(volume, content, "a disk of a full SR");
            await w.Plugin.DestroyAsync(made[0].Volume);
            await w.VolumeAsync();
        });
        list.MustBare("quota.free-comes-back", "what was destroyed is free", "count what is there", static async w =>
        {
            await QuotaAsync(w);
            long before = (await w.Plugin.StatSrAsync()).FreeBytes;
            (Volume volume, _) = await w.FilledAsync(blocks: 64);
            await w.Plugin.DestroyAsync(volume);
            long after = (await w.Plugin.StatSrAsync()).FreeBytes;
            Seen.That(after >= before - 65536, $"free space was {before}, and is {after} after all disks went");
        });
        return list.All;
    }

    private static IReadOnlyList<Check> Full(bool isV1)
    {
        CheckList list = new("capacity", Level.Gold, isV1 ? "3.5, 10.4" : "10.4");
        list.MustBare("full.create", "a full file system is 44, not a crash", Fix, static w => OnFullAsync(w, async () =>
            await World.RefusedAsync("creating on a full file system", () => w.Plugin.CreateAsync("x", "", World.SmallBytes), 44, 78)));
        list.MustBare("full.snapshot", "a full file system is 44, and the source is untouched", Fix, static w => OnFullAsync(w, async () =>
        {
            Volume source = (await w.Plugin.ScanAsync())[0];
            await World.AnsweredAsync(() => w.SnapshotAsync(source));
        }), "VDI_SNAPSHOT");
        list.MustBare("full.scan", "a full SR can still be looked at", "a scan writes nothing", static w => OnFullAsync(w, async () =>
            Seen.Equal(1, (await w.Plugin.ScanAsync()).Count, "the number of disks on a full file system")));
        list.MustBare("full.destroy", "a full SR is emptied by deleting", "delete without writing", static w => OnFullAsync(w, async () =>
        {
            foreach (Volume volume in (await w.Plugin.ScanAsync()).Where(static v => v.Name == "spare"))
                await w.Plugin.DestroyAsync(volume);
        }));
        list.MustBare("full.guest", "a guest that fills the SR gets an error, and its other bytes stay", "pass ENOSPC on",
            static w => OnFullAsync(w, async () =>
        {
            Volume source = (await w.Plugin.ScanAsync())[0];
            await w.UseAsync(source, isWritable: true, static async device =>
            {
                byte[] block = new byte[DiskContent.BlockBytes];
                block.AsSpan().Fill(7);
                try
                {
                    for (long at = 5 * block.Length; at + block.Length < device.LengthBytes - block.Length; at += block.Length)
                        await device.WriteAsync(at, block, WriteFlags.None, CancellationToken.None);
                    await device.FlushAsync(CancellationToken.None);
                }
                catch (IOException)
                {
                    return; // What is expected where a block needs room.
                }
            });
        }));
        return list.All;
    }

    private static async Task QuotaAsync(World w)
    {
        if (!w.Plugin.IsV1 && !w.Plugin.Info.Configuration.ContainsKey("size"))
            throw new NotApplicableException("the plugin has no configuration key \"size\"");
        await w.SetUpAsync(QuotaBytes);
        if (w.Plugin.IsV1 && (await w.Plugin.StatSrAsync()).TotalBytes != QuotaBytes)
            throw new NotApplicableException("the driver takes sr_create's size for no limit");
    }

    /// <summary>An SR on a file system of its own with one disk that is written and no room left; afterwards that disk is whole.</summary>
    private static async Task OnFullAsync(World w, Func<Task> act)
    {
        string mountPoint = w.Place.StoreFolder + "m";
        if (!w.Plugin.Configuration.Values.Contains(w.Place.StoreFolder))
            throw new NotApplicableException($"the SR is not in a folder of the kit's ({WorldPlace.Placeholder} in --device-config)");
        await using SmallFileSystem small = await SmallFileSystem.MountAsync(mountPoint, FileSystemMiB);
        w.Plugin.Configuration = w.Plugin.Configuration.ToDictionary(
            static p => p.Key, p => p.Value == w.Place.StoreFolder ? Path.Combine(mountPoint, "s") : p.Value);
        await w.SetUpAsync();
        Volume volume = await w.Plugin.CreateAsync("full", "", World.SmallBytes);
        DiskContent content = new();
        await w.UseAsync(volume, isWritable: true, async device =>
        {
            for (long block = 0; block < 4; block++)
                await content.WriteAsync(device, block, w.Random.Next());
            await device.FlushAsync(CancellationToken.None);
        });
        small.Fill();
        await act();
        small.Relieve();
        Volume now = (await w.Plugin.ScanAsync()).First(v => v.Key == volume.Key);
        await w.UseAsync(now, isWritable: false, device => content.VerifyBlocksAsync(device, "a disk after its file system was full"));
        await w.Plugin.DestroyAsync(now);
    }
}
