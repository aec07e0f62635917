// Who else uses a folder on a simulated disk: tapdisks that only know whether they are paused. They outlive the collector's process, and
// die with the power.
using Vhd.Collect;

namespace Support;

internal sealed class SimulatedUsers(SimulatedDisk disk) : IFolderUsers, IDisposable
{
    private readonly HashSet<TapReference> paused = [];

    public List<TapReference> Taps { get; } = [];

    public HashSet<string> LeasedKeys { get; } = [];

    public IReadOnlyCollection<TapReference> Paused => paused;

    public Task<IDisposable> LockAsync(CancellationToken cancellationToken) => Task.FromResult<IDisposable>(this);

    public Task<FolderUse> LookAsync(CancellationToken cancellationToken) =>
        Task.FromResult(new FolderUse(Taps, new Dictionary<string, string>(), LeasedKeys));

    public IReadOnlySet<string> Leased() => LeasedKeys;

    public IDisposable? TryHold(IReadOnlyCollection<string> keys) => LeasedKeys.Overlaps(keys) ? null : this;

    public Task PauseAsync(TapReference tap, CancellationToken cancellationToken)
    {
        if (!disk.IsDead)
            paused.Add(tap);
        return Task.CompletedTask;
    }

    /// <summary>What a dead process would still do is not done.</summary>
    public Task ResumeAsync(TapReference tap)
    {
        if (!disk.IsDead)
            paused.Remove(tap);
        return Task.CompletedTask;
    }

    public void LosePower()
    {
        Taps.Clear();
        paused.Clear();
    }

    public void Dispose()
    {
    }
}
