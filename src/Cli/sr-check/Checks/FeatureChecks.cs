// What is claimed works, what is not claimed is refused as not implemented: the toolstack chooses its way by that.
using System.Text.Json.Nodes;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class FeatureChecks
{
    private const string Fix = "implement it, or do not claim it";

    public static IEnumerable<Check> All(bool isV1) => [.. Claimed(isV1), .. Unclaimed(isV1)];

    private static IReadOnlyList<Check> Claimed(bool isV1)
    {
        CheckList list = new("features", Level.Bronze, isV1 ? "3.6" : "5.5");
        const string reason = "a claimed feature that does not work fails in the middle of somebody's migration";
        list.Must("claimed.snapshot", reason, Fix, static async w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.VerifyAsync(await w.SnapshotAsync(volume), content, "the snapshot");
        }, "VDI_SNAPSHOT");
        list.Must("claimed.clone", reason, Fix, static async w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            await w.VerifyAsync(await w.CloneAsync(volume), content, "the clone");
        }, "VDI_CLONE");
        list.Must("claimed.resize", reason, Fix, static async w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.ResizeAsync(volume, 2 * World.SmallBytes);
            Seen.That((await VdiChecks.NowAsync(w, volume)).VirtualSizeBytes >= 2 * World.SmallBytes, "the size is what it was");
        }, "VDI_RESIZE");
        list.Must("claimed.probe", reason, Fix, static w => w.Plugin.ProbeAsync(), "SR_PROBE");
        list.Must("claimed.update", reason, Fix, static w => w.Plugin.StatSrAsync(), "SR_UPDATE");
        list.Must("claimed.activate-readonly", reason, Fix, static async w =>
        {
            (Volume volume, DiskContent content) = await w.StandingAsync();
            await w.VerifyAsync(volume, content, "the disk, activated read-only");
        }, "VDI_ACTIVATE_READONLY");
        list.Must("claimed.thin", reason, "allocate when it is written", static async w =>
        {
            Volume volume = await w.VolumeAsync(64 << 20);
            Seen.That(volume.PhysicalSizeBytes < volume.VirtualSizeBytes / 2,
                $"an empty disk of {volume.VirtualSizeBytes} bytes takes {volume.PhysicalSizeBytes}");
        }, "THIN_PROVISIONING");
        list.Must("claimed.large", reason, Fix, static async w =>
            Seen.That((await w.VolumeAsync(3L << 40)).VirtualSizeBytes >= 3L << 40, "a disk of 3 TiB is smaller than that"), "LARGE_VDI");
        list.Must("claimed.mirror", "a mirror needs a disk that an NBD client can write", "serve the active disk by NBD", static async w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            IReadOnlyList<Access> ways = await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.DetachAsync(volume);
            Seen.That(ways.Any(static a => a.Kind == AccessKind.Nbd), "attach answers no NBD address");
        }, "VDI_MIRROR");
        return list.All;
    }

    private static IReadOnlyList<Check> Unclaimed(bool isV1)
    {
        CheckList list = new("features", Level.Bronze, isV1 ? "3.5 (38), 3.6" : "5.1, 5.4 (Unimplemented)");
        const string reason = "what you do not have must say so, and do nothing";
        string fix = isV1 ? "answer fault 38 for every command that you do not have" : "leave the script out, or answer Unimplemented";
        (string Name, string Feature, string V1, string V3)[] rows =
        [
            ("snapshot", "VDI_SNAPSHOT", "vdi_snapshot", "Volume.snapshot"), ("clone", "VDI_CLONE", "vdi_clone", "Volume.clone"),
            ("resize", "VDI_RESIZE", "vdi_resize", "Volume.resize"), ("compose", "VDI_COMPOSE", "vdi_compose", "Volume.compose"),
            ("revert", "VDI_REVERT", "vdi_revert", "Volume.revert"), ("cbt", "VDI_CONFIG_CBT", "vdi_enable_cbt", "Volume.enable_cbt"),
            ("cbt-off", "VDI_CONFIG_CBT", "vdi_disable_cbt", "Volume.disable_cbt"),
            ("data-destroy", "VDI_CONFIG_CBT", "vdi_data_destroy", "Volume.data_destroy"),
            ("changed-blocks", "VDI_CONFIG_CBT", "vdi_list_changed_blocks", "Volume.list_changed_blocks"),
            ("generate-config", "VDI_GENERATE_CONFIG", "vdi_generate_config", ""),
            ("probe", "SR_PROBE", "sr_probe", "SR.probe"),
        ];
        foreach ((string name, string feature, string v1, string v3) in rows)
        {
            string operation = isV1 ? v1 : v3;
            if (operation.Length == 0)
                continue;
            list.Must($"unclaimed.{name}", reason, fix, async w =>
            {
                if (w.Plugin.Info.Has(feature))
                    throw new NotApplicableException($"{feature} is claimed");
                Volume volume = (await w.StandingAsync()).Volume;
                await World.RefusedAsync($"{operation}, which is not claimed,", () => w.Plugin.RawAsync(new RawCall(operation, volume,
                    WithSecond)), 38, 143);
            });
        }

        if (isV1)
        {
            list.Must("unclaimed.unknown-command", "tomorrow's toolstack has more commands", fix, static w => World.RefusedAsync(
                "an unknown command", () => w.Plugin.RawAsync(new RawCall("vdi_frobnicate", w.Plugin.Unknown(), static _ => { })), 38,
                    143));
        }

        return list.All;

        static void WithSecond(JsonObject parameters)
        {
            parameters["key2"] = parameters["key"]?.DeepClone();
            parameters["snapshot"] = parameters["key"]?.DeepClone();
        }
    }
}
