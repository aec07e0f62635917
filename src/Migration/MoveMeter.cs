// What is told of a migration while it runs: how far, how fast, how long yet; and the parts of the guest's pause.
namespace Migration;

internal sealed class MoveMeter(TimeProvider time)
{
    /// <summary>Rates are averaged over this long; an estimate from less would jump.</summary>
    private static readonly TimeSpan Window = TimeSpan.FromSeconds(10);

    private const int SamplesLimit = 256;
    private readonly Queue<(long At, long DoneBytes)> samples = new();
    private readonly List<(string Part, double Ms)> blackout = [];
    private long stopOrderedAt;
    private double blackoutMs;

    /// <summary>How much of the disks was equal on both sides when last looked at.</summary>
    public long DoneBytes { get; private set; }

    public void StopOrdered()
    {
        blackout.Clear();
        stopOrderedAt = time.GetTimestamp();
    }

    public void Runs() => blackoutMs = time.GetElapsedTime(stopOrderedAt).TotalMilliseconds;

    public async Task<T> TimedAsync<T>(string part, Task<T> work)
    {
        long start = time.GetTimestamp();
        T result = await work;
        blackout.Add((part, time.GetElapsedTime(start).TotalMilliseconds));
        return result;
    }

    public Task TimedAsync(string part, Task work) => TimedAsync(part, Void(work));

    public Blackout Blackout()
    {
        double Ms(string part) => Math.Round(blackout.Where(b => b.Part == part).Sum(static b => b.Ms), 2);
        return new Blackout(Math.Round(blackoutMs, 2), Ms("stop"), Ms("mirror"), Ms("digest"), Ms("memory"), Ms("hand-over"));
    }

    public MigrationProgress Progress(SourceState state, MirrorProgress[]? mirrors, string? waiting)
    {
        DiskProgress[] disks = mirrors is null
            ? []
            : [.. state.Plan.Disks.Zip(mirrors, static (d, m) =>
                new DiskProgress(d.Device, m.TotalBytes, m.CopiedBytes, m.DirtyBytes, m.SentBytes, m.IsSynced, m.IsStalled))];
        long totalBytes = disks.Sum(static d => d.TotalBytes);
        if (mirrors is not null)
            Sample(disks.Sum(static d => d.CopiedBytes));
        double copied = totalBytes == 0 ? 0 : Math.Min(1, (double)DoneBytes / totalBytes);
        double fraction = state.Phase switch
        {
            "prepare" => 0.02,
            "mirror" => 0.05 + (0.75 * copied),
            "memory" => 0.85,
            "switch-over" => 0.92,
            "hand-over" => 0.95,
            "confirm" => 0.97,
            "reconnect" => 0.05,
            _ => 1.0,
        };
        (double slow, double fast) = Rates();
        long left = Math.Max(0, totalBytes - DoneBytes);
        double[]? eta = slow <= 0 || mirrors is null ? null : [Math.Round(left / fast, 1), Math.Round(left / slow, 1)];
        return new MigrationProgress(
            state.Phase, fraction, !state.IsPastCancel && !state.IsAborting && !state.IsOwnedByDestination, disks, Math.Round((slow + fast) / 2), eta, waiting);
    }

    private static async Task<bool> Void(Task work)
    {
        await work;
        return true;
    }

    private void Sample(long doneBytes)
    {
        if (doneBytes < DoneBytes)
            samples.Clear(); // A mirror was lost: what it had not flushed counts as not copied again.
        DoneBytes = doneBytes;
        samples.Enqueue((time.GetTimestamp(), doneBytes));
        while (samples.Count > SamplesLimit || (samples.Count > 2 && time.GetElapsedTime(samples.Peek().At) > Window))
            samples.Dequeue();
    }

    /// <summary>The slower and the faster half of the window, in bytes per second.</summary>
    private (double Slow, double Fast) Rates()
    {
        if (samples.Count < 3)
            return (0, 0);
        (long At, long DoneBytes)[] all = [.. samples];
        double first = Rate(all[0], all[all.Length / 2]), second = Rate(all[all.Length / 2], all[^1]);
        return (Math.Min(first, second), Math.Max(first, second));
    }

    private double Rate((long At, long DoneBytes) from, (long At, long DoneBytes) to) =>
        (to.DoneBytes - from.DoneBytes) / Math.Max(1e-3, time.GetElapsedTime(from.At, to.At).TotalSeconds);
}
