// The life of a disk.
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class VdiChecks
{
    private const long Odd = World.SmallBytes + 1;

    public static IEnumerable<Check> All(bool isV1) => [.. Create(isV1), .. Names(isV1), .. Destroy(isV1), .. Copies(isV1),
        .. Resize(isV1)];

    private static IReadOnlyList<Check> Create(bool isV1)
    {
        CheckList list = new("vdi", Level.Bronze, isV1 ? "3.2" : "5.4");
        list.Must("create.size", "a disk smaller than asked loses what is written to its end", "round up, never down", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            Seen.That(volume.VirtualSizeBytes >= World.SmallBytes,
                $"{World.SmallBytes} bytes were asked, {volume.VirtualSizeBytes} were made");
        });
        list.Must("create.rounds-up", "a size that does not fit your granularity is rounded up", "round up, never down", async static w =>
        {
            Volume volume = await w.VolumeAsync(Odd);
            Seen.That(volume.VirtualSizeBytes >= Odd, $"{Odd} bytes were asked, {volume.VirtualSizeBytes} were made");
            Seen.That(volume.VirtualSizeBytes % 512 == 0, $"{volume.VirtualSizeBytes} is no multiple of 512");
        });
        list.Must("create.not-far-up", "an operator pays for what he asked", "round up by your granularity only", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            Seen.That(volume.VirtualSizeBytes <= World.SmallBytes + (64 << 20),
                $"{World.SmallBytes} bytes became {volume.VirtualSizeBytes}");
        });
        list.Must("create.device-size", "the guest sees the device, the operator the record", "let them agree", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.UseAsync(volume, isWritable: false, device =>
            {
                Seen.Equal(volume.VirtualSizeBytes, device.LengthBytes, "the device's size");
                return Task.CompletedTask;
            });
        });
        list.Must("create.zeros", "what somebody else wrote before is none of the guest's business", "make it read as zeros",
            async static w =>
            await w.VerifyAsync(await w.VolumeAsync(), new DiskContent(), "a new disk"));
        list.Must("create.writable", "a new disk can be written", "activate it for writing", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.VerifyAsync(volume, content, "after a re-attach");
        });
        Identity(list);
        return list.All;
    }

    private static void Identity(CheckList list)
    {
        list.Must("create.keys-differ", "a key names one disk for ever", "use a uuid", async static w =>
        {
            Volume a = await w.VolumeAsync();
            Volume b = await w.VolumeAsync();
            Seen.That(a.Key != b.Key && (a.Uuid.Length == 0 || a.Uuid != b.Uuid), $"two disks are both {a.Key}");
        });
        list.Must("create.same-name", "names are labels; two disks may have the same", "never use the name as the key", async static w =>
        {
            Volume a = await w.VolumeAsync(name: "twin");
            Volume b = await w.VolumeAsync(name: "twin");
            Seen.That(a.Key != b.Key, "two disks of one name have one key");
        });
        list.Must("create.uuid", "the toolstack's database keys by uuid", "answer a uuid", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            Seen.That(volume.Uuid.Length == 0 || Guid.TryParse(volume.Uuid, out _), $"\"{volume.Uuid}\" is no uuid");
        });
        list.Must("create.stat-agrees", "stat is asked before each attach", "answer what create did", async static w =>
        {
            Volume made = await w.VolumeAsync(name: "stated", description: "once");
            Volume now = await w.Plugin.StatAsync(made);
            Seen.Equal((made.Key, made.Name, made.Description, made.VirtualSizeBytes, made.Reference),
                (now.Key, now.Name, now.Description, now.VirtualSizeBytes, now.Reference), "the disk");
        });
        list.Must("create.utilisation", "an operator sees by it what a disk costs", "between 0 and the size with its tables",
            async static w =>
        {
            Volume volume = await w.VolumeAsync();
            Seen.That(volume.PhysicalSizeBytes <= volume.VirtualSizeBytes + (16 << 20),
                $"an empty disk of {volume.VirtualSizeBytes} bytes takes {volume.PhysicalSizeBytes}");
        });
        foreach (long size in new[] { 512, 4096, 1L << 20, (1L << 30) + 512, 100L << 30 })
        {
            list.Must($"create.size-{size}", "sizes are whatever people ask", "round up, or refuse with 79 (VDISize) or 44 (SRNoSpace)",
                async w =>
            {
                try
                {
                    Volume volume = await w.VolumeAsync(size);
                    Seen.That(volume.VirtualSizeBytes >= size, $"{size} bytes were asked, {volume.VirtualSizeBytes} were made");
                }
                catch (PluginRefusalException e) when (e.Number is 79 or 44)
                {
                    // A size that this SR cannot have.
                }
            });
        }
    }

    private static IReadOnlyList<Check> Names(bool isV1)
    {
        CheckList list = new("vdi", Level.Bronze, isV1 ? "3.1, 3.8" : "5.4");
        (string Name, string Text)[] names =
        [
            ("empty", ""), ("markup", "<vdi>&amp; \"quoted\" 'too'</vdi>"), ("unicode", "Größe 数据 диск 💾"),
            ("long", new string('n', 4000)), ("path", "../../../etc/passwd"), ("lines", "first\nsecond\ttabbed"), ("percent",
                "100%s %n %d"),
        ];
        foreach ((string name, string text) in names)
        {
            list.Must($"name.{name}", "a name is text and nothing else", "store it as it came, never run it or build a path of it",
                async w =>
            {
                Volume volume = await w.VolumeAsync(name: text, description: text);
                Volume listed = (await w.Plugin.ScanAsync()).Single(v => v.Key == volume.Key);
                Seen.Equal(text, listed.Name, "the name");
                Seen.Equal(text, listed.Description, "the description");
            });
        }

        list.Must("name.shell", "a name is text and nothing else", "store it as it came, never run it or build a path of it",
            async static w =>
        {
            string witness = Path.Combine(w.Place.Folder, "injected");
            string text = $"$(touch {witness}) ; touch {witness} ; `touch {witness}` | cat && touch {witness}";
            Volume volume = await w.VolumeAsync(name: text, description: text);
            Seen.That(!File.Exists(witness), "a command in the name was run");
            Seen.Equal(text, (await w.Plugin.StatAsync(volume)).Name, "the name");
        });
        if (!isV1)
            Keys(list);
        return list.All;
    }

    private static void Keys(CheckList list)
    {
        list.Must("set.keeps", "the toolstack keeps vdi-type, content_id and more in keys (xapi#6596)", "store them durably",
            async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetKeyAsync(volume, "vdi-type", "system");
            Seen.Equal("system", (await w.Plugin.StatAsync(volume)).Keys.GetValueOrDefault("vdi-type", "(none)"), "the key vdi-type");
        }, "VDI_SET");
        list.Must("set.replaces", "a key has one value", "replace it", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetKeyAsync(volume, "content_id", "a");
            await w.V3.SetKeyAsync(volume, "content_id", "b");
            Seen.Equal("b", (await w.Plugin.StatAsync(volume)).Keys.GetValueOrDefault("content_id", "(none)"), "the key content_id");
        }, "VDI_SET");
        list.Must("unset.removes", "a key that is unset is gone", "remove it", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetKeyAsync(volume, "content_id", "a");
            await w.V3.SetKeyAsync(volume, "content_id", null);
            Seen.That(!(await w.Plugin.StatAsync(volume)).Keys.ContainsKey("content_id"), "the key is still there");
        }, "VDI_SET", "VDI_UNSET");
        list.Must("set-name", "an operator renames a disk", "keep the new name", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetVolumeTextAsync("Volume.set_name", volume, "new_name", "renamed");
            Seen.Equal("renamed", (await w.Plugin.StatAsync(volume)).Name, "the name");
        }, "VDI_SET_NAME");
        list.Must("set-description", "an operator describes a disk", "keep the new text", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.V3.SetVolumeTextAsync("Volume.set_description", volume, "new_description", "described");
            Seen.Equal("described", (await w.Plugin.StatAsync(volume)).Description, "the description");
        }, "VDI_SET_DESCRIPTION");
    }

    private static IReadOnlyList<Check> Destroy(bool isV1)
    {
        CheckList list = new("vdi", Level.Bronze, isV1 ? "3.2" : "5.4");
        list.Must("destroy.one-only", "only the one that was named", "destroy by the key", async static w =>
        {
            Volume stays = await w.VolumeAsync();
            Volume goes = await w.VolumeAsync();
            await w.Plugin.DestroyAsync(goes);
            string[] keys = [.. (await w.Plugin.ScanAsync()).Select(static v => v.Key)];
            Seen.That(keys.Contains(stays.Key) && !keys.Contains(goes.Key), "another disk went, or the one stayed");
        });
        list.Must("destroy.in-use", "a disk that a guest uses must not go", "refuse with 24 (VDIInUse)", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.UseAsync(volume, isWritable: true, async device =>
            {
                await World.RefusedAsync("destroying an active disk", () => w.Plugin.DestroyAsync(volume));
                await content.VerifyAsync(device, "the active disk after the refused destroy");
            });
        });
        list.Must("destroy.after-use", "a disk that was let go can be destroyed", "forget the use in deactivate and detach",
            async static w =>
        {
            (Volume volume, _) = await w.FilledAsync();
            await w.Plugin.DestroyAsync(volume);
        });
        list.MustAlone("destroy.frees", "the space comes back", "delete the data", async static w =>
        {
            w.NeedsStore();
            long before = SizeOf(w.Place.StoreFolder);
            (Volume volume, _) = await w.FilledAsync(blocks: 100);
            await w.Plugin.DestroyAsync(volume);
            long after = SizeOf(w.Place.StoreFolder);
            Seen.That(after <= before + (1 << 20), $"{after - before} bytes are left behind");
        });
        if (isV1)
        {
            list.Must("destroy.forgets", "the record of a destroyed disk goes with it", "VDI.db_forget it", async static w =>
            {
                Volume volume = await w.VolumeAsync();
                await w.Plugin.DestroyAsync(volume);
                Seen.That(w.V1.Tables.Find(volume.Key) is null, "the record is still there");
            });
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Copies(bool isV1)
    {
        CheckList list = new("vdi", Level.Bronze, isV1 ? "3.2" : "5.4, 5.5");
        foreach ((string kind, string need, Func<World, Volume, Task<Volume>> copy) in CopyOperations())
        {
            list.Must($"{kind}.new-key", "a copy is another disk", "give it a key of its own", async w =>
            {
                Volume volume = await w.VolumeAsync();
                Volume made = await copy(w, volume);
                Seen.That(made.Key != volume.Key, "the copy has the key of its source");
                string[] keys = [.. (await w.Plugin.ScanAsync()).Select(static v => v.Key)];
                Seen.That(keys.Contains(made.Key) && keys.Contains(volume.Key), "source or copy is not listed");
            }, need);
            list.Must($"{kind}.size", "a copy has its source's size", "copy the size", async w =>
            {
                Volume volume = await w.VolumeAsync();
                Seen.Equal(volume.VirtualSizeBytes, (await copy(w, volume)).VirtualSizeBytes, "the copy's size");
            }, need);
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Resize(bool isV1)
    {
        CheckList list = new("vdi", Level.Bronze, isV1 ? "3.2" : "5.4");
        list.Must("resize.grows", "a larger disk was asked", "grow the device too", async static w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.ResizeAsync(volume, 2 * World.SmallBytes);
            await w.UseAsync(await NowAsync(w, volume), isWritable: false, static device =>
            {
                Seen.That(device.LengthBytes >= 2 * World.SmallBytes, $"the device has {device.LengthBytes} bytes");
                return Task.CompletedTask;
            });
        }, "VDI_RESIZE");
        list.Must("resize.keeps-data", "what was written stays, and the new part is zeros", "grow in place", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.Plugin.ResizeAsync(volume, 2 * World.SmallBytes);
            await w.VerifyAsync(await NowAsync(w, volume), content, "after growing");
        }, "VDI_RESIZE");
        list.Must("resize.never-shrinks", "a smaller disk has lost its end", "refuse with 79 or 110, or leave it as it is",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            try
            {
                await w.Plugin.ResizeAsync(volume, World.SmallBytes / 2);
            }
            catch (PluginRefusalException)
            {
                // Right.
            }

            await w.VerifyAsync(await NowAsync(w, volume), content, "after asking for half");
        }, "VDI_RESIZE");
        return list.All;
    }

    /// <summary>Snapshot and clone, each with the feature that it needs.</summary>
    public static IEnumerable<(string Kind, string Need, Func<World, Volume, Task<Volume>> Copy)> CopyOperations() =>
    [
        ("snapshot", "VDI_SNAPSHOT", static (w, v) => w.SnapshotAsync(v)),
        ("clone", "VDI_CLONE", static (w, v) => w.CloneAsync(v)),
    ];

    public static async Task<Volume> NowAsync(World w, Volume volume) => (await w.Plugin.ScanAsync()).Single(v => v.Key == volume.Key);

    private static long SizeOf(string folder) =>
        Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories).Sum(static f => new FileInfo(f).Length);
}
