// The bytes: what a guest wrote is what it reads, through every path, and a copy is what its source was at that moment,
// whoever writes later.
using Platform;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class DataChecks
{
    private const string Fix = "flush and close before the image is changed or opened elsewhere; never share what may still be written";

    public static IEnumerable<Check> All(bool isV1) => [.. Disk(isV1), .. Copies(isV1), .. Chains(isV1), .. Sparse(isV1)];

    private static IReadOnlyList<Check> Disk(bool isV1)
    {
        CheckList list = new("data", Level.Silver, isV1 ? "3.8, 4.5" : "5.4");
        list.Must("survives-reattach", "a disk keeps what was written", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(blocks: 40);
            await w.VerifyAsync(volume, content, "after detach and attach");
        });
        list.MustAlone("survives-sr-reattach", "so it does over an SR's detach", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.Plugin.DetachSrAsync();
            await w.Plugin.AttachSrAsync();
            await w.VerifyAsync(await VdiChecks.NowAsync(w, volume), content, "after the SR's detach and attach");
        });
        list.Must("overwrite", "the last write wins", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.WriteAsync(volume, content, blocks: 30);
            await w.VerifyAsync(volume, content, "after overwriting");
        });
        list.Must("zeros-are-zeros", "a written zero is as good as any byte", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.UseAsync(volume, isWritable: true, async device =>
            {
                await content.ZeroAsync(device, 0);
                await content.ZeroAsync(device, device.LengthBytes / DiskContent.BlockBytes - 1);
            });
            await w.VerifyAsync(volume, content, "after writing zeros");
        });
        Edges(list);
        return list.All;
    }

    private static void Edges(CheckList list)
    {
        list.Must("last-block", "the end of the disk belongs to it", Fix, async static w =>
        {
            Volume volume = await w.VolumeAsync(World.SmallBytes + 512);
            byte[] written = new byte[512];
            w.Random.NextBytes(written);
            await w.UseAsync(volume, isWritable: true, async device =>
            {
                await device.WriteAsync(device.LengthBytes - 512, written, WriteFlags.None, CancellationToken.None);
                await device.FlushAsync(CancellationToken.None);
            });
            await w.UseAsync(volume, isWritable: false, async device =>
            {
                byte[] read = new byte[512];
                await device.ReadAsync(device.LengthBytes - 512, read, CancellationToken.None);
                Seen.That(read.AsSpan().SequenceEqual(written), "the last sector reads as something else");
            });
        });
        list.Must("beyond-end", "past the end is an error", "check the range", static async w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            await w.UseAsync(volume, isWritable: true, static async device =>
            {
                try
                {
                    await device.WriteAsync(device.LengthBytes, new byte[512], WriteFlags.None, CancellationToken.None);
                }
                catch (IOException)
                {
                    return;
                }

                throw new CheckFailedException("a write past the end succeeds");
            });
        });
        list.Must("two-disks-apart", "disks do not share bytes", Fix, async static w =>
        {
            (Volume a, DiskContent first) = await w.FilledAsync();
            (Volume b, DiskContent second) = await w.FilledAsync();
            await w.WriteAsync(a, first);
            await w.VerifyAsync(b, second, "a disk after its neighbour was written");
            await w.VerifyAsync(a, first, "the neighbour");
        });
        list.Must("new-disk-after-old", "a new disk never shows an old one's bytes", "allocate zeros", async static w =>
        {
            (Volume old, _) = await w.FilledAsync(blocks: 60);
            await w.Plugin.DestroyAsync(old);
            await w.VerifyAsync(await w.VolumeAsync(), new DiskContent(), "a new disk where an old one was");
        });
    }

    private static IReadOnlyList<Check> Copies(bool isV1)
    {
        CheckList list = new("data", Level.Silver, isV1 ? "3.8, 4.5" : "5.5");
        foreach ((string kind, string need, Func<World, Volume, Task<Volume>> copy) in VdiChecks.CopyOperations())
        {
            list.Must($"{kind}.identical", "a copy is what its source is", Fix, async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync(blocks: 40);
                await w.VerifyAsync(await copy(w, volume), content, "the copy");
                await w.VerifyAsync(volume, content, "the source");
            }, need);
            list.Must($"{kind}.stays-when-source-goes", "a copy outlives its source", "keep shared data while anybody needs it", async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                Volume made = await copy(w, volume);
                await w.Plugin.DestroyAsync(volume);
                await w.VerifyAsync(made, content, "the copy after its source was destroyed");
            }, need);
            list.Must($"{kind}.goes-alone", "destroying a copy leaves its source", "destroy what only the copy has", async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                await w.Plugin.DestroyAsync(await copy(w, volume));
                await w.VerifyAsync(volume, content, "the source after its copy was destroyed");
            }, need);
            list.Must($"{kind}.of-active", "a copy of a running VM's disk has what was flushed", "hold the I/O while the image is changed",
                async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                Volume? made = null;
                DiskContent then = content;
                await w.UseAsync(volume, isWritable: true, async device =>
                {
                    await content.ScatterAsync(device, w.Random, 6);
                    then = content.Copy();
                    made = await copy(w, volume);
                    await content.VerifyAsync(device, "the active source after the copy");
                    await content.ScatterAsync(device, w.Random, 6);
                });
                await w.VerifyAsync(made!, then, "the copy of an active disk");
                await w.VerifyAsync(volume, content, "the source");
            }, need);
            list.Must($"{kind}.source-written-later", "a copy does not change with its source", Fix, async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                Volume made = await copy(w, volume);
                DiskContent then = content.Copy();
                await w.WriteAsync(volume, content, blocks: 20);
                await w.VerifyAsync(made, then, "the copy after its source was written");
                await w.VerifyAsync(volume, content, "the source");
            }, need);
            list.Must($"{kind}.written-later", "the source does not change with a copy", Fix, async w =>
            {
                (Volume volume, DiskContent content) = await w.FilledAsync();
                Volume made = await copy(w, volume);
                DiskContent own = content.Copy();
                await w.WriteAsync(made, own, blocks: 20);
                await w.VerifyAsync(volume, content, "the source after its copy was written");
                await w.VerifyAsync(made, own, "the copy");
            }, need);
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Chains(bool isV1)
    {
        CheckList list = new("data", Level.Silver, isV1 ? "4.5" : "5.7");
        list.Must("chain.deep", "backups make chains", "keep order in the chain, or refuse with 109 before anything is linked",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(blocks: 4);
            List<(Volume Snapshot, DiskContent Then)> snapshots = [];
            for (int i = 0; i < 6; i++)
            {
                snapshots.Add((await w.SnapshotAsync(volume), content.Copy()));
                await w.WriteAsync(volume, content, blocks: 4);
            }

            foreach ((Volume snapshot, DiskContent then) in snapshots)
                await w.VerifyAsync(snapshot, then, "a snapshot in the chain");
            await w.VerifyAsync(volume, content, "the leaf of the chain");
        }, "VDI_SNAPSHOT");
        list.Must("chain.middle-goes", "deleting an old backup leaves the others", "keep shared data while anybody needs it",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(blocks: 4);
            Volume first = await w.SnapshotAsync(volume);
            DiskContent atFirst = content.Copy();
            await w.WriteAsync(volume, content, blocks: 4);
            Volume second = await w.SnapshotAsync(volume);
            await w.WriteAsync(volume, content, blocks: 4);
            await w.Plugin.DestroyAsync(second);
            await w.VerifyAsync(first, atFirst, "the older snapshot");
            await w.VerifyAsync(volume, content, "the leaf");
        }, "VDI_SNAPSHOT");
        list.Must("chain.clone-of-snapshot", "a VM is restored from a snapshot", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            Volume snapshot = await w.SnapshotAsync(volume);
            DiskContent then = content.Copy();
            await w.WriteAsync(volume, content);
            Volume clone = await w.CloneAsync(snapshot);
            await w.VerifyAsync(clone, then, "the clone of the snapshot");
            await w.WriteAsync(clone, then.Copy());
            await w.VerifyAsync(snapshot, then, "the snapshot after its clone was written");
        }, "VDI_SNAPSHOT", "VDI_CLONE");
        list.Must("chain.resize-after-snapshot", "a disk grows also with a snapshot", Fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            Volume snapshot = await w.SnapshotAsync(volume);
            await w.Plugin.ResizeAsync(volume, 2 * World.SmallBytes);
            await w.VerifyAsync(await VdiChecks.NowAsync(w, volume), content, "the grown disk");
            await w.VerifyAsync(snapshot, content, "its snapshot");
        }, "VDI_SNAPSHOT", "VDI_RESIZE");
        list.MustAlone("chain.all-go", "when all copies are gone, nothing is left", "collect shared data with its last user",
            async static w =>
        {
            (Volume volume, _) = await w.FilledAsync();
            Volume snapshot = await w.SnapshotAsync(volume);
            Volume clone = await w.CloneAsync(snapshot);
            foreach (Volume each in new[] { volume, clone, snapshot })
                await w.Plugin.DestroyAsync(each);
            await w.Plugin.DetachSrAsync();
            await w.Plugin.DestroySrAsync();
        }, "VDI_SNAPSHOT", "VDI_CLONE");
        return list.All;
    }

    private static IReadOnlyList<Check> Sparse(bool isV1)
    {
        CheckList list = new("sparse", Level.Silver, isV1 ? "3.6, 4.5" : "5.4");
        const string fix = "allocate by what is written, not by what is asked";
        const string thin = "THIN_PROVISIONING";
        list.Must("empty-is-small", "a thin disk costs what is in it", fix, async static w =>
        {
            Volume volume = await w.VolumeAsync(256 << 20);
            Seen.That(volume.PhysicalSizeBytes < 8 << 20, $"an empty disk of 256 MiB takes {volume.PhysicalSizeBytes} bytes");
        }, thin);
        list.Must("large-is-quick", "a terabyte of nothing is nothing", fix, async static w =>
        {
            Volume volume = await w.VolumeAsync(1L << 40);
            Seen.That(volume.PhysicalSizeBytes < 64 << 20, $"an empty disk of 1 TiB takes {volume.PhysicalSizeBytes} bytes");
        }, thin);
        list.Must("grows-by-what-is-written", "a thin disk costs what is in it", fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(64 << 20, blocks: 8);
            long now = (await VdiChecks.NowAsync(w, volume)).PhysicalSizeBytes;
            Seen.That(now < content.WrittenBytes + (40L << 20), $"{content.WrittenBytes} bytes were written, the disk takes {now}");
        }, thin);
        list.Must("far-apart", "blocks far apart read as written, and zeros between", fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync(10L << 30);
            await w.VerifyAsync(volume, content, "a large disk");
        }, thin);
        list.Must("utilisation-is-told", "an operator plans by it", "let stat say what is used", async static w =>
        {
            Volume volume = await w.VolumeAsync(64 << 20);
            DiskContent content = new();
            await w.WriteAsync(volume, content, blocks: 200);
            long now = (await VdiChecks.NowAsync(w, volume)).PhysicalSizeBytes;
            Seen.That(now >= content.WrittenBytes / 2, $"{content.WrittenBytes} bytes were written, the disk says {now}");
        }, thin);
        foreach ((string kind, string need, Func<World, Volume, Task<Volume>> copy) in VdiChecks.CopyOperations())
        {
            list.Must($"{kind}-is-small", "a copy shares what it can", "share, do not copy", async w =>
            {
                Volume volume = await w.VolumeAsync(64 << 20);
                await w.WriteAsync(volume, new DiskContent(), blocks: 200);
                Volume made = await copy(w, volume);
                Seen.That(made.PhysicalSizeBytes < 40 << 20, $"a copy of 12 MiB takes {made.PhysicalSizeBytes} bytes");
            }, need, thin);
        }

        list.Should("discard-frees", "a guest's discard gives the space back", "punch holes", async static w =>
        {
            Volume volume = await w.VolumeAsync(64 << 20);
            await w.UseAsync(volume, isWritable: true, static device => device.TrimAsync(0, 1 << 20, WriteFlags.None,
                CancellationToken.None).AsTask());
        }, thin);
        list.Must("extents-agree", "a copy skips what is told as a hole, so that must read as zeros", "tell holes truthfully",
            async static w =>
        {
            (Volume volume, _) = await w.FilledAsync(64 << 20, blocks: 20);
            await w.UseAsync(volume, isWritable: false, async device => await HolesAreZerosAsync(device));
        });
        return list.All;
    }

    private static async Task HolesAreZerosAsync(IBlockDevice device)
    {
        byte[] buffer = new byte[DiskContent.BlockBytes];
        for (long at = 0; at < device.LengthBytes;)
        {
            foreach (BlockExtent extent in await device.ExtentsAsync(at, device.LengthBytes - at, CancellationToken.None))
            {
                at = extent.EndBytes;
                for (long read = extent.OffsetBytes; extent.Kind != ExtentKind.Data && read < extent.EndBytes; read += buffer.Length)
                {
                    Memory<byte> part = buffer.AsMemory(0, (int)Math.Min(buffer.Length, extent.EndBytes - read));
                    await device.ReadAsync(read, part, CancellationToken.None);
                    Seen.That(part.Span.IndexOfAnyExcept((byte)0) < 0, $"the hole at byte {read} reads as data");
                }
            }
        }
    }
}
