// Runs the checks: a number of workers, each with a world that checks share and give back clean, and one of its own for a check that wants
// that. A plugin that hangs, dies or lies costs the check that met it and never the run.
using System.Diagnostics;
using System.Threading.Channels;
using Platform;
using SrCheck.Checks;
using SrCheck.Plugins;

namespace SrCheck;

internal sealed class Runner(RunOptions options, Action<Outcome, int> tell)
{
    /// <summary>So many calls may pass the deadline; after that the rest is not run.</summary>
    private const int HangLimit = 12;
    private static readonly TimeSpan CheckLimit = TimeSpan.FromMinutes(10);

    private readonly Lock gate = new();
    private readonly List<Outcome> outcomes = [];
    private int hangs;

    public async Task<RunResult> RunAsync(IReadOnlyList<Check> checks, CancellationToken cancellationToken)
    {
        long start = Stopwatch.GetTimestamp();
        using WorldMaker maker = new(options);
        string? silent = await WhySilentAsync(maker);
        Channel<Check> queue = Channel.CreateUnbounded<Check>();
        foreach (Check check in checks)
            queue.Writer.TryWrite(check);
        queue.Writer.Complete();
        int jobs = maker.HasManyPlaces ? options.Jobs : 1;
        await Task.WhenAll(Enumerable.Range(0, jobs).Select(_ => Task.Run(
            () => WorkAsync(maker, queue.Reader, checks.Count, silent, cancellationToken), CancellationToken.None)));
        cancellationToken.ThrowIfCancellationRequested();
        List<Outcome> inOrder = [.. checks.Select(c => outcomes.First(o => o.Check == c))];
        return new RunResult(options, maker.Info, inOrder, Stopwatch.GetElapsedTime(start));
    }

    private static async Task<string?> WhySilentAsync(WorldMaker maker)
    {
        try
        {
            await maker.QueryAsync();
            return null;
        }
        catch (Exception e) when (e is PluginBrokenException or PluginRefusalException or CheckFailedException)
        {
            return $"the plugin does not say what it is: {e.Message}";
        }
    }

    private async Task WorkAsync(
        WorldMaker maker, ChannelReader<Check> queue, int total, string? silent, CancellationToken cancellationToken)
    {
        await using WorkerWorlds worlds = new(maker);
        await foreach (Check check in queue.ReadAllAsync(CancellationToken.None))
        {
            if (cancellationToken.IsCancellationRequested)
                return;
            bool aboutQuery = check.Group is "query" or "plugin";
            Outcome outcome =
                silent is not null && !aboutQuery ? NotRun(check, silent)
                : Volatile.Read(ref hangs) >= HangLimit ? NotRun(check, $"the plugin passed the deadline {hangs} times")
                : await RunAsync(worlds, maker, check);
            lock (gate)
            {
                outcomes.Add(outcome);
                tell(outcome, total);
            }
        }
    }

    private async Task<Outcome> RunAsync(WorkerWorlds worlds, WorldMaker maker, Check check)
    {
        if (check.Needs.FirstOrDefault(f => maker.Info?.Has(f) == false) is { } lacking)
            return new Outcome(check, OutcomeKind.NotApplicable, $"{lacking} is not claimed", TimeSpan.Zero, []);
        long start = Stopwatch.GetTimestamp();
        World world;
        try
        {
            world = await worlds.TakeAsync(check.Stage);
        }
        catch (Exception e) when (IsPlugins(e))
        {
            return NotRun(check, $"there is no SR to try it on: {e.Message}");
        }

        (OutcomeKind kind, string seen) = await JudgeAsync(world, check);
        // Before tidying up, whose calls say nothing about the check.
        IReadOnlyList<PluginCall> calls = kind == OutcomeKind.Failed ? world.Plugin.Process.Calls : [];
        Interlocked.Add(ref hangs, world.Plugin.Process.TakeHangs());
        await worlds.GiveBackAsync(world, isTrusted: kind != OutcomeKind.Failed);
        return new Outcome(check, kind, seen, Stopwatch.GetElapsedTime(start), calls);
    }

    private static async Task<(OutcomeKind Kind, string Seen)> JudgeAsync(World world, Check check)
    {
        world.Begin(check.Id);
        try
        {
            await check.Body(world).WaitAsync(CheckLimit);
            return (OutcomeKind.Passed, "");
        }
        catch (NotApplicableException e)
        {
            return (OutcomeKind.NotApplicable, e.Message);
        }
        catch (TimeoutException)
        {
            return (OutcomeKind.Failed, $"the check did not end within {CheckLimit.TotalMinutes:0} minutes");
        }
        catch (Exception e) when (IsPlugins(e))
        {
            return (OutcomeKind.Failed, e.Message);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return (OutcomeKind.Failed, $"I/O: {e.Message}");
        }
        catch (Exception e)
        {
            // The kit's own fault is told as such: it must not end the other checks.
            return (OutcomeKind.Failed, $"sr-check itself failed: {e}");
        }
    }

    private static bool IsPlugins(Exception e) => e is PluginBrokenException or PluginRefusalException or CheckFailedException;

    private static Outcome NotRun(Check check, string why) => new(check, OutcomeKind.NotRun, why, TimeSpan.Zero, []);
}
