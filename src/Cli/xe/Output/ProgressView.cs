// What somebody sees of a task that takes its time: bars on a terminal, a line for each step in a log, nothing for a script. Always on
// standard error: standard output belongs to the answer.
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Spectre.Console;

namespace Xe.Output;

/// <summary>One disk of a migration.</summary>
internal sealed record DiskProgress(string Device, long TotalBytes, long CopiedBytes, bool IsSynced, bool IsStalled);

/// <param name="Fraction">0 to 1.</param>
/// <param name="Step">The phase, and what else can be said of it in a line.</param>
internal sealed record TaskProgress(double Fraction, string Phase, string Step, IReadOnlyList<DiskProgress> Disks)
{
    /// <summary>From a task's record: other_config's migration:progress when the daemon writes it, or else its phase and detail.</summary>
    public static TaskProgress Of(JsonObject task)
    {
        double fraction = task["progress"] is JsonValue value && value.TryGetValue(out double progress) ? Math.Clamp(progress, 0, 1) : 0;
        JsonObject config = task["other_config"] as JsonObject ?? [];
        string phase = Objects.RecordView.Text(config["phase"]);
        try
        {
            if (config["migration:progress"] is JsonValue text && JsonNode.Parse((string)text!) is JsonObject told)
                return OfMigration(told, fraction);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException or OverflowException)
        {
            // A daemon that writes it in another way: the old keys still say enough.
        }

        return new TaskProgress(fraction, phase, $"{phase} {Objects.RecordView.Text(config["detail"])}".Trim(), []);
    }

    private static TaskProgress OfMigration(JsonObject told, double fraction)
    {
        string phase = (string?)told["phase"] ?? "";
        string step = phase;
        if ((double?)told["rate_bytes_per_second"] is > 0 and var rate)
            step += string.Create(CultureInfo.InvariantCulture, $", {rate / (1 << 20):0.#} MiB/s");
        if (told["eta_seconds"] is JsonArray { Count: 2 } eta)
            step += string.Create(CultureInfo.InvariantCulture, $", {(double)eta[0]!:0} to {(double)eta[1]!:0} s left");
        if ((bool?)told["cancellable"] == false)
            step += ", past the point where it can be cancelled";
        List<DiskProgress> disks =
        [
            .. (told["disks"] as JsonArray ?? []).OfType<JsonObject>().Select(static d => new DiskProgress(
                (string?)d["device"] ?? "", (long?)d["total_bytes"] ?? 0, (long?)d["copied_bytes"] ?? 0, (bool?)d["is_synced"] ?? false,
                (bool?)d["is_stalled"] ?? false)),
        ];
        return new TaskProgress(Math.Clamp((double?)told["fraction"] ?? fraction, 0, 1), phase, step, disks);
    }
}

internal abstract class ProgressView
{
    public static ProgressView For(bool isSilent, string what) =>
        isSilent ? new Silent() : Console.IsErrorRedirected ? new LogLines(what) : new Bars(what);

    /// <summary>Shows what <paramref name="work"/> reports, as long as it runs.</summary>
    public abstract Task<T> RunAsync<T>(Func<Action<TaskProgress>, Task<T>> work);

    private sealed class Silent : ProgressView
    {
        public override Task<T> RunAsync<T>(Func<Action<TaskProgress>, Task<T>> work) => work(static _ => { });
    }

    /// <summary>A line when the phase changes, and one for each tenth.</summary>
    private sealed class LogLines(string what) : ProgressView
    {
        private (string Phase, int Tenths) last = ("", 0);

        public override Task<T> RunAsync<T>(Func<Action<TaskProgress>, Task<T>> work) => work(progress =>
        {
            (string Phase, int Tenths) now = (progress.Phase, (int)(progress.Fraction * 10));
            if (now == last || progress.Step.Length == 0)
                return;
            last = now;
            Console.Error.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{what}: {progress.Step}: {progress.Fraction:P0}"));
        });
    }

    private sealed class Bars(string what) : ProgressView
    {
        public override async Task<T> RunAsync<T>(Func<Action<TaskProgress>, Task<T>> work)
        {
            IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Error) });
            return await console.Progress().AutoClear(true)
                .Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new PercentageColumn())
                .StartAsync(async context =>
                {
                    ProgressTask whole = context.AddTask(Markup.Escape(what));
                    Dictionary<string, ProgressTask> disks = [];
                    return await work(progress =>
                    {
                        whole.Description = Markup.Escape(progress.Step.Length == 0 ? what : $"{what}: {progress.Step}");
                        whole.Value = progress.Fraction * 100;
                        foreach (DiskProgress disk in progress.Disks)
                        {
                            if (!disks.TryGetValue(disk.Device, out ProgressTask? bar))
                                disks[disk.Device] = bar = context.AddTask(Markup.Escape(disk.Device));
                            string state = disk.IsStalled ? "STALLED" : disk.IsSynced ? "in sync" : "copying";
                            bar.Description = Markup.Escape($"  {disk.Device} {disk.CopiedBytes >> 20}/{disk.TotalBytes >> 20} MiB {state}");
                            bar.Value = disk.TotalBytes == 0 ? 100 : 100.0 * disk.CopiedBytes / disk.TotalBytes;
                        }
                    });
                });
        }
    }
}
