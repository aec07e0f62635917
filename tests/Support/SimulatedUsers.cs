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

    /// <summary>Runs when a merge that is under way looks at the leases.</summary>
    public Action Leasing { get; set; } = static () => { };

    public IReadOnlySet<string> Leased()
    {
        Leasing();
        return LeasedKeys;
    }

    public IDisposable? TryHold(IReadOnlyCollection<string> keys) => LeasedKeys.Overlaps(keys) ? null : this;

    /// <summary>What a tapdisk does before it answers a pause: it closes its image.</summary>
    public Dictionary<TapReference, Action> Closing { get; } = [];

    /// <summary>Runs while a pause is asked for; it may take as long as it likes.</summary>
    public Func<CancellationToken, Task> Pausing { get; set; } = static _ => Task.CompletedTask;

    /// <summary>The pauses of a process that died end with it: the guests go on.</summary>
    public IReadOnlyList<TapReference> EndPauses()
    {
        TapReference[] ended = [.. paused];
        paused.Clear();
        return ended;
    }

    public async Task PauseAsync(TapReference tap, CancellationToken cancellationToken)
    {
        await Pausing(cancellationToken);
        if (Closing.Remove(tap, out Action? close))
            close();
        if (!disk.IsDead)
            paused.Add(tap);
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
