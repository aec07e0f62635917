using StorageAccess;

namespace Support;

/// <summary>A copy that moves no bytes: it counts, and a test may make it wait or fail.</summary>
public sealed class FakeCopier : IDiskCopier
{
    public int Copies { get; private set; }

    public Func<CancellationToken, Task> Work { get; set; } = static _ => Task.CompletedTask;

    public async Task CopyAsync(Backend from, Backend to, IProgress<double> progress, CancellationToken cancellationToken)
    {
        Copies++;
        progress.Report(0.5);
        await Work(cancellationToken);
    }
}
