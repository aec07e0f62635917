// What a migration's task tells while it runs: the field's progress, one line for a person, and migration:progress, JSON for a program.
using System.Globalization;
using System.Text.Json;
using Migration;
using Xapi.Tasks;

namespace Xapi.Migration;

public sealed class TaskProgress(TaskRun task, TimeProvider time)
{
    public const string Key = "migration:progress";

    /// <summary>Each write is an event for every watcher.</summary>
    private static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(500);

    private long toldAt;
    private string toldPhase = "";

    public void Report(MigrationProgress progress)
    {
        bool isNew = progress.Phase != toldPhase;
        if (isNew || time.GetElapsedTime(toldAt) >= Interval)
        {
            (toldAt, toldPhase) = (time.GetTimestamp(), progress.Phase);
            task.SetProgress(progress.Fraction * 0.99); // 1 belongs to the task's end.
            task.SetOtherConfig("phase", progress.Phase);
            task.SetOtherConfig(Key, Json(progress));
            if (progress.Disks.Count > 0)
            {
                task.SetOtherConfig("detail", string.Join(", ", progress.Disks.Select(static d => string.Create(
                    CultureInfo.InvariantCulture,
                    $"{d.Device} {d.CopiedBytes >> 20}/{d.TotalBytes >> 20} MiB{(d.IsStalled ? " STALLED" : d.IsSynced ? " in sync" : "")}"))));
            }
        }

        if (!progress.IsCancellable)
        {
            try
            {
                task.ForbidCancel();
            }
            catch (OperationCanceledException)
            {
                // Asked for too late: the hand-over decides now.
            }
        }
    }

    public static string Json(MigrationProgress p) => JsonSerializer.Serialize(
        new
        {
            p.Phase,
            p.Fraction,
            Cancellable = p.IsCancellable,
            RateBytesPerSecond = p.BytesPerSecond,
            p.EtaSeconds,
            p.Waiting,
            p.Disks,
        },
        MigrationJson.Options);
}
