// kill -9: an operation is ended in the middle, with all it started, at moments spread over its undisturbed duration. Then it is repeated,
// and nothing that was there before may be lost, and nothing may be left that cannot be taken away.
using Platform;
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class CrashChecks
{
    private const string Fix = "write what will be into a journal or a temporary name first, rename last, and tidy up at the next lock";
    private static readonly int[] Percents = [15, 45, 75];

    public static IEnumerable<Check> All(bool isV1) => [.. Killed(isV1), .. Repeated(isV1), .. (isV1 ? Callbacks() : [])];

    private static IReadOnlyList<Check> Killed(bool isV1)
    {
        CheckList list = new("crash", Level.Gold, isV1 ? "10.2, 4.5" : "10.2, 5.6");
        foreach ((string name, string[] needs, Func<World, Volume, Task> run) in Upset.Operations)
        {
            foreach (int percent in Percents)
            {
                list.MustAlone($"{name}.at-{percent}", $"a host dies during {name}, and it is repeated after the restart", Fix, async w =>
                {
                    (Volume keep, DiskContent kept) = await w.FilledAsync();
                    TimeSpan usual = await UsualAsync(w, run);
                    Volume victim = name == "create" ? keep : await w.VolumeAsync();
                    await KillAsync(w, usual * percent / 100, () => run(w, victim));
                    await Upset.AfterAsync(w, keep, kept, name, victim, run);
                }, needs);
            }
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Repeated(bool isV1)
    {
        CheckList list = new("crash", Level.Gold, isV1 ? "10.2" : "10.2, 5.6");
        list.MustAlone("many-creates", "a host that dies again and again fills nothing up", Fix, async static w =>
        {
            (Volume keep, DiskContent kept) = await w.FilledAsync();
            TimeSpan usual = await UsualAsync(w, static (w, _) => w.VolumeAsync());
            for (int i = 0; i < 6; i++)
                await KillAsync(w, usual * w.Random.NextDouble(), () => w.VolumeAsync());
            await Upset.AfterAsync(w, keep, kept, "create", keep, static (w, _) => w.VolumeAsync());
        });
        list.MustAlone("many-snapshots", "a host that dies again and again loses nothing", Fix, async static w =>
        {
            (Volume keep, DiskContent kept) = await w.FilledAsync();
            TimeSpan usual = await UsualAsync(w, static (w, v) => w.SnapshotAsync(v));
            for (int i = 0; i < 6; i++)
                await KillAsync(w, usual * w.Random.NextDouble(), () => w.SnapshotAsync(keep));
            await Upset.AfterAsync(w, keep, kept, "snapshot", keep, static (w, v) => w.SnapshotAsync(v));
        }, "VDI_SNAPSHOT");
        list.MustAlone("datapath-process", "the process that serves a disk is killed",
            "count a dead server as closed; start it again in activate", async static w =>
        {
            (Volume volume, DiskContent content) = await w.FilledAsync();
            IReadOnlyList<Access> ways = await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.ActivateAsync(volume, isWritable: true);
            IReadOnlyList<int> servers = MarkedProcesses.Find(w.Place.Mark);
            if (servers.Count == 0)
                throw new NotApplicableException("no process serves an active disk");
            foreach (int server in servers)
                Posix.TryKill(server, 9);
            await w.ProcessesAsync();
            await w.Plugin.DeactivateAsync(volume);
            await w.Plugin.DetachAsync(volume);
            await w.VerifyAsync(volume, content, "a disk after its server was killed");
            _ = ways;
        });
        list.MustAlone("sr-attach", "a host dies while it attaches", Fix, async static w =>
        {
            (Volume keep, DiskContent kept) = await w.FilledAsync();
            await w.Plugin.DetachSrAsync();
            await KillAsync(w, TimeSpan.FromMilliseconds(30), () => w.Plugin.AttachSrAsync());
            await w.Plugin.AttachSrAsync();
            await w.VerifyAsync(keep, kept, "a disk after an attach that was cut off");
        });
        return list.All;
    }

    /// <summary>SMAPIv1 has moments of its own: the driver waits for the toolstack in the middle of its work.</summary>
    private static IReadOnlyList<Check> Callbacks()
    {
        CheckList list = new("crash", Level.Gold, "4.1, 10.2");
        foreach ((string name, string[] needs, Func<World, Volume,
            Task> run) in Upset.Operations.Where(static o => o.Name is not "activate"))
        {
            list.MustAlone($"{name}.in-callback", $"a host dies while {name} tells the toolstack what it did", Fix, async w =>
            {
                (Volume keep, DiskContent kept) = await w.FilledAsync();
                Volume victim = name == "create" ? keep : await w.VolumeAsync();
                using CancellationTokenSource kill = new();
                bool wasCalled = false;
                w.V1.Toolstack.OnCall = _ =>
                {
                    wasCalled = true;
                    kill.Cancel();
                };
                await KillAsync(w, kill, () => run(w, victim));
                w.V1.Toolstack.OnCall = null;
                if (!wasCalled)
                    throw new NotApplicableException($"{name} makes no call-back");
                await Upset.AfterAsync(w, keep, kept, name, victim, run);
            }, needs);
        }

        return list.All;
    }

    private static async Task<TimeSpan> UsualAsync(World w, Func<World, Volume, Task> run)
    {
        Volume other = await w.VolumeAsync();
        long start = System.Diagnostics.Stopwatch.GetTimestamp();
        await run(w, other);
        TimeSpan took = System.Diagnostics.Stopwatch.GetElapsedTime(start);
        await w.LetGoAsync(other);
        return took;
    }

    private static async Task KillAsync(World w, TimeSpan after, Func<Task> call)
    {
        using CancellationTokenSource kill = new(after);
        await KillAsync(w, kill, call);
    }

    private static async Task KillAsync(World w, CancellationTokenSource kill, Func<Task> call)
    {
        CallSettings usual = w.Plugin.Process.Settings;
        w.Plugin.Process.Settings = usual with { Killed = kill.Token };
        try
        {
            await call();
        }
        catch (Exception e) when (e is PluginBrokenException or PluginRefusalException)
        {
            // Killed, or it met what the kill left.
        }
        finally
        {
            w.Plugin.Process.Settings = usual;
        }
    }
}
