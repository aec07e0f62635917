// Called twice: after a lost answer or a crash the toolstack repeats the call, so the second must find the work done and say so.
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class IdempotencyChecks
{
    public static IEnumerable<Check> All(bool isV1)
    {
        CheckList list = new("idempotency", Level.Silver, isV1 ? "2.5, 3.8, 10.1" : "5.6, 10.1");
        Sr(list);
        Volumes(list, isV1);
        Datapaths(list);
        return list.All;
    }

    private static void Sr(CheckList list)
    {
        const string fix = "look whether it is done before doing it";
        list.MustAlone("sr-attach", "every host start attaches again", fix, async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.AttachSrAsync();
            Seen.That(await w.IsListedAsync(volume), "the disk is gone after a second attach");
        });
        list.MustAlone("sr-detach", "a detach that got no answer is repeated", fix, async static w =>
        {
            await w.Plugin.DetachSrAsync();
            await w.Plugin.DetachSrAsync();
            await w.Plugin.AttachSrAsync();
        });
        list.MustAlone("sr-attach-in-use", "a daemon that is started again attaches while disks are in use", "leave what is active alone",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.UseAsync(volume, isWritable: true, async device =>
            {
                await w.Plugin.AttachSrAsync();
                await content.VerifyAsync(device, "an active disk after a second SR attach");
            });
        });
        list.MustAlone("sr-scan-in-use", "scans come while disks are in use", "read images without locking their users out",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.UseAsync(volume, isWritable: true, async device =>
            {
                Seen.That(await w.IsListedAsync(volume), "an active disk is not listed");
                await content.VerifyAsync(device, "an active disk after a scan");
            });
        });
        list.MustAlone("sr-destroy", "a destroy that got no answer is repeated", "a second destroy succeeds or is refused as 47",
            async static w =>
        {
            await w.Plugin.DestroySrAsync();
            await World.AnsweredAsync(() => w.Plugin.DestroySrAsync());
        });
        list.MustAlone("sr-create-after-destroy", "tests and people do this all day", "leave nothing behind in destroy", async static w =>
        {
            for (int i = 0; i < 3; i++)
            {
                await w.Plugin.DestroySrAsync();
                await w.SetUpAsync();
            }
        });
    }

    private static void Volumes(CheckList list, bool isV1)
    {
        list.Must("destroy-twice", "a destroy that got no answer is repeated", "succeed, or refuse with 144: both say that it is gone",
            async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.DestroyAsync(volume);
            try
            {
                await w.Plugin.DestroyAsync(volume);
            }
            catch (PluginRefusalException e)
            {
                Seen.That(e.Number == 144, $"the second destroy is refused as {e.Code}, not as 144");
            }
        });
        list.Must("create-twice", "two creates make two disks", "never take the name for the identity", async static w =>
        {
            Volume a = await w.VolumeAsync();
            Volume b = await w.VolumeAsync();
            Seen.That(a.Key != b.Key && await w.IsListedAsync(a) && await w.IsListedAsync(b),
                "the second create took the first one's place");
        });
        foreach ((string kind, string need, Func<World, Volume, Task<Volume>> copy) in VdiChecks.CopyOperations())
        {
            list.Must($"{kind}-twice", "two copies of one disk are independent", "give each its own key", async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                Volume a = await copy(w, volume);
                Volume b = await copy(w, volume);
                Seen.That(a.Key != b.Key, "two copies have one key");
                await w.Plugin.DestroyAsync(a);
                await w.VerifyAsync(b, content, "the second copy after the first was destroyed");
            }, need);
        }

        list.Must("resize-twice", "a resize that got no answer is repeated", "the same size again is success", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.ResizeAsync(volume, 2 * World.SmallBytes);
            await w.Plugin.ResizeAsync(volume, 2 * World.SmallBytes);
        }, "VDI_RESIZE");
        if (isV1)
            return;
        list.Must("set-twice", "a set that got no answer is repeated", "the same value again is success", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetKeyAsync(volume, "k", "v");
            await w.V3.SetKeyAsync(volume, "k", "v");
        }, "VDI_SET");
        list.Must("unset-twice", "an unset that got no answer is repeated", "a key that is not there is success", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetKeyAsync(volume, "k", null);
            await w.V3.SetKeyAsync(volume, "k", null);
        }, "VDI_UNSET");
    }

    private static void Datapaths(CheckList list)
    {
        const string fix = "look at what really runs, not at a flag; do nothing when the state is right";
        (string Name, string[] Calls)[] rows =
        [
            ("attach-twice", ["attach", "attach", "activate", "io"]), ("activate-twice", ["attach", "activate", "activate", "io"]),
            ("activate-while-used", ["attach", "activate", "io", "activate", "io"]),
            ("deactivate-twice", ["attach", "activate", "io", "deactivate", "deactivate"]),
            ("detach-twice", ["attach", "detach", "detach"]), ("deactivate-never-active", ["attach", "deactivate"]),
            ("detach-never-attached", ["detach"]), ("deactivate-never-attached", ["deactivate", "detach"]),
            ("detach-without-deactivate", ["attach", "activate", "io", "detach", "deactivate", "detach"]),
            ("whole-life-twice", ["attach", "activate", "io", "deactivate", "detach", "attach", "activate", "io"]),
            ("reactivate", ["attach", "activate", "io", "deactivate", "activate", "io"]),
        ];
        foreach ((string name, string[] calls) in rows)
        {
            list.Must(name, $"{string.Join(", ", calls)}: the toolstack may come this way after a crash", fix, async w =>
            {
                (Volume volume, DiskContent content) = await w.StandingAsync();
                IReadOnlyList<Access> ways = [];
                foreach (string call in calls)
                {
                    switch (call)
                    {
                        case "attach":
                            ways = await w.Plugin.AttachAsync(volume, isWritable: true);
                            break;
                        case "activate":
                            await w.Plugin.ActivateAsync(volume, isWritable: true);
                            break;
                        case "deactivate":
                            await w.Plugin.DeactivateAsync(volume);
                            break;
                        case "detach":
                            await w.Plugin.DetachAsync(volume);
                            break;
                        default:
                            await using (Platform.IBlockDevice device = await AttachedDisk.OpenAsync(ways, isWritable: true))
                                await content.VerifyAsync(device, $"the disk during {name}");
                            break;
                    }
                }

                await w.Plugin.DeactivateAsync(volume);
                await w.Plugin.DetachAsync(volume);
            });
        }
    }
}
