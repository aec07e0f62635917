// The world of a plugin fails: its tools are slow, hang, die, answer errors or nonsense; the toolstack refuses its call-backs, or does not
// answer them properly. The call is answered all the same, nothing is claimed that was not done, and when the fault is over all is well.
using SrCheck.Plugins;

namespace SrCheck.Checks;

internal static class FaultChecks
{
    private static readonly TimeSpan HangDeadline = TimeSpan.FromSeconds(4);

    public static IEnumerable<Check> All(bool isV1) => [.. Tools(isV1), .. (isV1 ? Toolstacks() : [])];

    private static IReadOnlyList<Check> Tools(bool isV1)
    {
        CheckList list = new("faults", Level.Gold, isV1 ? "3.4, 10.1" : "5.2, 10.1");
        foreach ((string name, string[] needs, Func<World, Volume, Task> run) in Upset.Operations)
        {
            foreach (ToolFault fault in Enum.GetValues<ToolFault>())
            {
                list.MustAlone($"tool-{Name(fault)}.{name}", $"{Reason(fault)} during {name}",
                    "look at exit code and output of every tool, undo what was begun, answer a number with the tool's words", async w =>
                    {
                        (Volume keep, DiskContent kept) = await w.FilledAsync();
                        Volume victim = name == "create" ? keep : await w.VolumeAsync();
                        string shims = ToolShims.Make(w.Place.Folder, w.Plugin.Process.Settings.ToolsFolder, fault);
                        bool isDone = await DuringAsync(w, shims, fault, () => run(w, victim));
                        if (!ToolShims.HasStruck(shims))
                            throw new NotApplicableException($"{name} runs none of the tools that can be made to fail");
                        Seen.That(isDone || fault != ToolFault.Slow, $"{name} with a slow tool is refused");
                        bool isHollow = name == "activate" && isDone && fault != ToolFault.Slow
                            && MarkedProcesses.Find(w.Place.Mark).Count == 0;
                        Seen.That(!isHollow, $"{name} is answered as done, and nothing serves the disk: {Reason(fault)}");
                        await w.LetGoAsync(victim);
                        await Upset.AfterAsync(w, keep, kept, name, victim, run);
                    }, needs);
            }
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Toolstacks()
    {
        CheckList list = new("faults", Level.Gold, "4.1, 3.5 (154)");
        foreach ((string name, string[] needs, Func<World, Volume, Task> run) in Upset.Operations.Where(static o => o.Name != "activate"))
        {
            foreach (ToolstackFault fault in Enum.GetValues<ToolstackFault>().Where(static f => f != ToolstackFault.None))
            {
                list.MustAlone($"callback-{Name(fault)}.{name}", $"the toolstack {Reason(fault)} during {name}",
                    "undo what was begun and answer 154 (APIProtocolError) with the method's name", async w =>
                    {
                        (Volume keep, DiskContent kept) = await w.FilledAsync();
                        Volume victim = name == "create" ? keep : await w.VolumeAsync();
                        w.V1.Toolstack.Fault = fault;
                        bool isDone = await IsDoneAsync(() => run(w, victim));
                        w.V1.Toolstack.Fault = ToolstackFault.None;
                        if (w.V1.Toolstack.Struck == 0)
                            throw new NotApplicableException($"{name} makes no call-back");
                        Seen.That(isDone == (fault == ToolstackFault.Slow), isDone ? $"{name} is answered as done"
                            : $"{name} is refused though the toolstack is only slow");
                        await Upset.AfterAsync(w, keep, kept, name, victim, run);
                    }, needs);
            }
        }

        list.MustAlone("callback-refuses.scan", "a scan that cannot tell what it found has failed", "answer 40 or 154", async static w =>
        {
            await w.VolumeAsync();
            w.V1.Toolstack.Fault = ToolstackFault.Refuses;
            bool isDone = await IsDoneAsync(() => w.V1.ScanSrAsync());
            w.V1.Toolstack.Fault = ToolstackFault.None;
            Seen.That(!isDone, "the scan is answered as done");
            Seen.Equal(1, (await w.Plugin.ScanAsync()).Count, "the number of disks after the fault");
        });
        return list.All;
    }

    /// <summary>False when it was refused, or (for a hang alone) when the kit had to end it.</summary>
    private static async Task<bool> DuringAsync(World w, string shims, ToolFault fault, Func<Task> call)
    {
        CallSettings usual = w.Plugin.Process.Settings;
        w.Plugin.Process.Settings = usual with { ToolsFolder = shims, Deadline = fault == ToolFault.Hang ? HangDeadline : usual.Deadline };
        try
        {
            return await IsDoneAsync(call);
        }
        catch (PluginBrokenException) when (fault == ToolFault.Hang)
        {
            return false; // The toolstack's deadline ends it, as ours did.
        }
        finally
        {
            w.Plugin.Process.Settings = usual;
            if (fault == ToolFault.Hang)
                w.Plugin.Process.TakeHangs();
        }
    }

    private static async Task<bool> IsDoneAsync(Func<Task> call)
    {
        try
        {
            await call();
            return true;
        }
        catch (PluginRefusalException)
        {
            return false;
        }
    }

    private static string Name<T>(T fault) where T : Enum =>
        string.Concat($"{fault}".Select(static (c, i) => char.IsUpper(c) && i > 0 ? $"-{char.ToLowerInvariant(c)}"
            : $"{char.ToLowerInvariant(c)}"));

    private static string Reason(ToolFault fault) => fault switch
    {
        ToolFault.Slow => "a tool takes its time",
        ToolFault.Hang => "a tool hangs",
        ToolFault.Killed => "a tool is killed",
        ToolFault.Eio => "a tool fails with EIO",
        ToolFault.NoSpace => "a tool fails with ENOSPC",
        ToolFault.CutOutput => "a tool's output is cut",
        ToolFault.GarbageOutput => "a tool succeeds without doing anything, and prints nonsense",
        _ => "a tool is missing",
    };

    private static string Reason(ToolstackFault fault) => fault switch
    {
        ToolstackFault.Refuses => "refuses the call-backs",
        ToolstackFault.Garbage => "answers no XML",
        ToolstackFault.CutsOff => "ends the connection in the middle of its answer",
        _ => "takes its time",
    };
}
