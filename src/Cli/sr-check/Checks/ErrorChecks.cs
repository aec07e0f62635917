// A no that a person or a toolstack can act on: the field's number, a text, nothing secret (research/users-and-trust.md 3.1).
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class ErrorChecks
{
    public static IEnumerable<Check> All(bool isV1)
    {
        CheckList list = new("errors", Level.Bronze, isV1 ? "3.5" : "5.2, 3.5");
        foreach ((string name, int[] numbers, string[] needs, Func<World, Task> call) in Cases())
            Case(list, isV1, name, numbers, needs, call);
        list.MustAlone("sr-not-empty.number", "39 is told to the user as SR_NOT_EMPTY", "answer 39", async static w =>
        {
            await w.VolumeAsync();
            await World.RefusedAsync("destroying an SR with a disk", () => w.Plugin.DestroySrAsync(), 39);
        });
        list.MustBare("sr-unknown.number", "47 says that the SR is away, which is what operators look for",
            "answer 47 (or 40, 46, 52, 73: why it is away)",
            static w => World.RefusedAsync("attaching an SR that was never created", () => w.Plugin.AttachSrAsync(), 47, 40, 46, 48, 52,
                73, 90, 91, 202));
        list.Must("in-use.number", "24 becomes VDI_IN_USE, on which the layer names the holder", "answer 24", async static w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            await w.UseAsync(volume, isWritable: true, async _ =>
                await World.RefusedAsync("destroying an active disk", () => w.Plugin.DestroyAsync(volume), 24));
        });
        list.MustAlone("no-secrets", "an error ends in logs and in bug reports", "never print device_config", async static w =>
        {
            const string secret = "hunter2-sr-check";
            w.Plugin.Configuration = new Dictionary<string, string>(w.Plugin.Configuration)
            {
                ["cifspassword"] = secret,
                ["chapPassword"] = secret
            };
            await World.AnsweredAsync(() => w.Plugin.DestroyAsync(w.Plugin.Unknown()));
            await World.AnsweredAsync(() => w.Plugin.AttachSrAsync());
            await World.AnsweredAsync(() => w.Plugin.CreateSrAsync());
            PluginCall? loose = w.Plugin.Process.Calls.FirstOrDefault(static c =>
                c.StandardError.Contains(secret, StringComparison.Ordinal)
                || (c.StandardOutput.Contains(secret, StringComparison.Ordinal) && c.Name != "SR.create"));
            Seen.That(loose is null, $"{loose?.Name} printed a password of device_config");
        });
        return list.All;
    }

    private static void Case(CheckList list, bool isV1, string name, int[] numbers, string[] needs, Func<World, Task> call)
    {
        string fix = $"answer {string.Join(" or ", numbers.Select(ErrorNumbers.Describe))}";
        list.Must($"{name}.number", "the toolstack and its clients act on the number", fix, async w =>
        {
            PluginRefusalException refusal = await w.RefusalOnceAsync(name, () => call(w));
            Seen.That(refusal.Number is { } number && numbers.Contains(number), $"it is refused as {refusal.Code}: {refusal.Text}");
        }, needs);
        list.Must($"{name}.text", "a number alone says nothing about this disk", "say what was refused and why", async w =>
        {
            PluginRefusalException refusal = await w.RefusalOnceAsync(name, () => call(w));
            Seen.That(refusal.Text.Trim().Length >= 4, $"the text is \"{refusal.Text}\"");
            Seen.That(!refusal.Text.Contains("Traceback", StringComparison.Ordinal) && !refusal.Text.Contains("   at ",
                StringComparison.Ordinal),
                "the text is a traceback");
        }, needs);
        list.Must($"{name}.known", "an unknown number has no meaning to anybody",
            "use a number of section 3.5, and 1200 for what you did not foresee", async w =>
        {
            PluginRefusalException refusal = await w.RefusalOnceAsync(name, () => call(w));
            bool isKnown = refusal.Number is { } number
                ? ErrorNumbers.IsKnown(number) && number != 1200
                : !isV1 && refusal.Code.StartsWith("SR_BACKEND_FAILURE", StringComparison.Ordinal);
            Seen.That(isKnown, refusal.Number == 1200 ? "1200: the plugin met an error that it did not foresee"
                : $"{refusal.Code} is not one of the field's");
        }, needs);
    }

    private static IEnumerable<(string Name, int[] Numbers, string[] Needs, Func<World, Task> Call)> Cases()
    {
        int[] missing = [144];
        return
        [
            ("destroy-missing", missing, [], static w => w.Plugin.DestroyAsync(w.Plugin.Unknown())),
            ("snapshot-missing", missing, ["VDI_SNAPSHOT"], static w => w.Plugin.SnapshotAsync(w.Plugin.Unknown())),
            ("clone-missing", missing, ["VDI_CLONE"], static w => w.Plugin.CloneAsync(w.Plugin.Unknown())),
            ("resize-missing", missing, ["VDI_RESIZE"], static w => w.Plugin.ResizeAsync(w.Plugin.Unknown(), World.SmallBytes)),
            ("attach-missing", [144, 46, 65], [], AttachMissingAsync),
            ("create-too-large", [79, 44, 78, 143, 1], [], static w => w.Plugin.CreateAsync("x", "", long.MaxValue / 2)),
            ("create-negative", [79, 78, 143, 1], [], static w => w.Plugin.CreateAsync("x", "", -4096)),
        ];
    }

    /// <summary>v3: a disk that was there, by its own address.</summary>
    private static async Task AttachMissingAsync(World w)
    {
        if (w.Plugin.IsV1)
        {
            await w.Plugin.AttachAsync(w.Plugin.Unknown(), isWritable: false);
            return;
        }

        Volume volume = await w.VolumeAsync();
        await w.Plugin.DestroyAsync(volume);
        await w.Plugin.AttachAsync(volume, isWritable: false);
    }
}
