// The form of the answers: every operation once, read strictly: one document of the right shape, and nothing else on stdout.
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class WireChecks
{
    private const string Fix = "print the answer alone, of the contract's shape, on stdout; log to stderr; exit 0 (v3: 1 for an error)";

    public static IEnumerable<Check> All(bool isV1) => [.. Answers(isV1), .. Refusals(isV1)];

    private static IReadOnlyList<Check> Answers(bool isV1)
    {
        CheckList list = new("wire", Level.Bronze, isV1 ? "3.2, 3.4" : "5.2, 5.4");
        foreach ((string name, string[] needs, Func<World, Task> body) in Operations())
            list.Must($"answer.{name}", $"the toolstack reads {name}'s answer as one document of a fixed shape", Fix, body, needs);
        list.MustBare("answer.sr-create", "the toolstack reads its answer as one document of a fixed shape", Fix,
            static w => w.Plugin.CreateSrAsync());
        list.MustAlone("answer.sr-detach", "the toolstack reads its answer as one document of a fixed shape", Fix,
            static w => w.Plugin.DetachSrAsync());
        list.MustAlone("answer.sr-destroy", "the toolstack reads its answer as one document of a fixed shape", Fix, async static w =>
        {
            await w.Plugin.DetachSrAsync();
            await w.Plugin.DestroySrAsync();
        });
        list.Must("stderr-is-free", "stderr is for people; it must not decide anything", "exit 0 for success whatever was logged",
            async static w =>
        {
            await w.Plugin.ScanAsync();
            Seen.That(w.Plugin.Process.Calls[^1].StandardError.Length < PluginProcess.OutputLimitBytes / 8, "a scan logs more than 1 MiB");
        });
        return list.All;
    }

    private static IEnumerable<(string Name, string[] Needs, Func<World, Task> Body)> Operations() =>
    [
        ("sr-attach", [], static w => w.Plugin.AttachSrAsync()),
        ("sr-stat", [], static w => w.Plugin.StatSrAsync()),
        ("sr-scan", [], static w => w.Plugin.ScanAsync()),
        ("sr-probe", ["SR_PROBE"], static w => w.Plugin.ProbeAsync()),
        ("vdi-create", [], static w => w.VolumeAsync()),
        ("vdi-stat", [], static async w => await w.Plugin.StatAsync(await w.VolumeAsync())),
        ("vdi-destroy", [], static async w => await w.Plugin.DestroyAsync(await w.VolumeAsync())),
        ("vdi-snapshot", ["VDI_SNAPSHOT"], static async w => await w.SnapshotAsync(await w.VolumeAsync())),
        ("vdi-clone", ["VDI_CLONE"], static async w => await w.CloneAsync(await w.VolumeAsync())),
        ("vdi-resize", ["VDI_RESIZE"], static async w => await w.Plugin.ResizeAsync(await w.VolumeAsync(), 2 * World.SmallBytes)),
        ("vdi-attach", [], static async w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.DetachAsync(volume);
        }),
        ("vdi-activate", [], static async w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.ActivateAsync(volume, isWritable: true);
            await w.LetGoAsync(volume);
        }),
        ("vdi-deactivate", [], static async w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.ActivateAsync(volume, isWritable: true);
            await w.Plugin.DeactivateAsync(volume);
            await w.Plugin.DetachAsync(volume);
        }),
        ("vdi-detach", [], static async w =>
        {
            Volume volume = await w.VolumeAsync();
            await w.Plugin.AttachAsync(volume, isWritable: false);
            await w.Plugin.DetachAsync(volume);
        }),
        ("vdi-set", ["VDI_SET"], static async w => await w.V3.SetKeyAsync(await w.VolumeAsync(), "vdi-type", "user")),
        ("vdi-unset", ["VDI_UNSET"], static async w => await w.V3.SetKeyAsync(await w.VolumeAsync(), "vdi-type", null)),
    ];

    /// <summary>A no must have the form of a no.</summary>
    private static IReadOnlyList<Check> Refusals(bool isV1)
    {
        CheckList list = new("wire", Level.Bronze, isV1 ? "3.4, 3.5" : "5.2");
        const string reason = "a refusal that is no well-formed error counts as a dead plugin, and the disk is repaired";
        string fix = isV1 ? "answer a fault with faultCode and faultString, and exit 0" : "print {\"code\",\"params\"} and exit 1";
        (string Name, string[] Needs, Func<World, Task> Call)[] refused =
        [
            ("vdi-destroy", [], static w => w.Plugin.DestroyAsync(w.Plugin.Unknown())),
            ("vdi-snapshot", ["VDI_SNAPSHOT"], static w => w.Plugin.SnapshotAsync(w.Plugin.Unknown())),
            ("vdi-clone", ["VDI_CLONE"], static w => w.Plugin.CloneAsync(w.Plugin.Unknown())),
            ("vdi-resize", ["VDI_RESIZE"], static w => w.Plugin.ResizeAsync(w.Plugin.Unknown(), World.SmallBytes)),
            ("vdi-create", [], static w => w.Plugin.CreateAsync("x", "", -5)),
        ];
        foreach ((string name, string[] needs, Func<World, Task> call) in refused)
            list.Must($"refusal.{name}", reason, fix, w => World.RefusedAsync($"{name} of what cannot be", () => call(w)), needs);
        if (isV1)
        {
            list.Must("refusal.vdi-attach", reason, fix, static w => World.RefusedAsync(
                "vdi_attach of a disk that is not there", () => w.Plugin.AttachAsync(w.Plugin.Unknown(), isWritable: false)));
            return list.All;
        }

        list.Must("refusal.vdi-stat", reason, fix, static w => World.RefusedAsync(
            "Volume.stat of a volume that is not there", () => w.Plugin.StatAsync(w.Plugin.Unknown())));
        list.Must("refusal.sr-stat", reason, fix, static w => World.RefusedAsync(
            "SR.stat of an SR that is not there", () => w.V3.VolumeScriptAsync("SR.stat", new() { ["sr"] = "/nowhere/at/all" })));
        list.Must("refusal.sr-ls", reason, fix, static w => World.RefusedAsync(
            "SR.ls of an SR that is not there", () => w.V3.VolumeScriptAsync("SR.ls", new() { ["sr"] = "/nowhere/at/all" })));
        return list.All;
    }
}
