using SrCheck.Plugins;

namespace SrCheck.Checks;

/// <summary>Operations that something goes wrong in, and what must hold afterwards whatever it was.</summary>
internal static class Upset
{
    /// <summary>What is done with a disk. <c>create</c> leaves it alone and makes another.</summary>
    public static readonly (string Name, string[] Needs, Func<World, Volume, Task> Run)[] Operations =
    [
        ("create", [], static (w, _) => w.VolumeAsync()),
        ("destroy", [], static (w, v) => w.Plugin.DestroyAsync(v)),
        ("snapshot", ["VDI_SNAPSHOT"], static (w, v) => w.SnapshotAsync(v)),
        ("clone", ["VDI_CLONE"], static (w, v) => w.CloneAsync(v)),
        ("resize", ["VDI_RESIZE"], static (w, v) => w.Plugin.ResizeAsync(v, 2 * World.SmallBytes)),
        ("activate", [], static async (w, v) =>
        {
            await w.Plugin.AttachAsync(v, isWritable: true);
            await w.Plugin.ActivateAsync(v, isWritable: true);
        }),
    ];

    /// <summary>It is repeated; what was there is whole; all can be taken away, to the SR itself.</summary>
    public static async Task AfterAsync(World w, Volume keep, DiskContent kept, string name, Volume victim, Func<World, Volume, Task> run)
    {
        try
        {
            await run(w, victim);
        }
        catch (PluginRefusalException e) when (name == "destroy" && e.Number == 144)
        {
            // The first call had done it.
        }

        await w.LetGoAsync(victim);
        Volume now = (await w.Plugin.ScanAsync()).FirstOrDefault(v => v.Key == keep.Key)
            ?? throw new CheckFailedException($"a disk that was there is not listed after {name} was cut off");
        await w.VerifyAsync(now, kept, $"a disk after {name} was cut off and repeated");
        foreach (Volume volume in await w.Plugin.ScanAsync())
            await w.Plugin.DestroyAsync(volume);
        Seen.Equal(0, (await w.Plugin.ScanAsync()).Count, "the number of disks after all were destroyed");
        await w.Plugin.DetachSrAsync();
        await w.Plugin.DestroySrAsync();
    }
}
