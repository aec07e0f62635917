using StorageAccess.Tap;

namespace Tapdisk;

/// <summary>The minors of this process.</summary>
internal sealed class DiskTable(string controlDirectory, TimeProvider time) : IAsyncDisposable
{
    private readonly Lock gate = new();
    private readonly PassedConnections passed = new(controlDirectory, time);
    private readonly SortedDictionary<int, Disk> disks = [];
    private readonly TaskCompletionSource lastDetached = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Completes when a detach leaves none.</summary>
    public Task LastDetached => lastDetached.Task;

    public IReadOnlyList<Disk> All
    {
        get
        {
            lock (gate)
                return [.. disks.Values];
        }
    }

    /// <exception cref="TapException">ENODEV: not attached here.</exception>
    public Disk Find(int minor)
    {
        lock (gate)
        {
            return disks.TryGetValue(minor, out Disk? disk)
                ? disk
                : throw new TapException(TapException.NoSuchDevice, $"minor {minor} is not attached to tapdisk {Environment.ProcessId}");
        }
    }

    public void Attach(int minor)
    {
        lock (gate)
        {
            if (!disks.TryAdd(minor, new Disk(minor, controlDirectory, passed, time)))
                throw new TapException((int)Platform.Errno.EEXIST, $"minor {minor} is attached already");
        }
    }

    public async Task DetachAsync(int minor)
    {
        Disk disk = Find(minor);
        if (disk.IsOpen)
            throw new TapException(TapException.Busy, $"minor {minor} is open; close it first");
        lock (gate)
            disks.Remove(minor);
        await disk.DisposeAsync();
    }

    /// <summary>Told after the answer is on its way: the process may end.</summary>
    public void EndWhenEmpty()
    {
        lock (gate)
        {
            if (disks.Count == 0)
                lastDetached.TrySetResult();
        }
    }

    public async ValueTask DisposeAsync()
    {
        foreach (Disk disk in All)
        {
            try
            {
                await disk.DisposeAsync();
            }
            catch (IOException e)
            {
                Log.Write($"minor {disk.Minor} did not close in order: {e.Message}");
            }
        }

        await passed.DisposeAsync();
    }
}
