using Microsoft.Win32.SafeHandles;
using Platform;
using StorageAccess.Tap;
using Vhd;

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
                throw new TapException((int)Errno.EEXIST, $"minor {minor} is attached already");
        }
    }

    /// <summary>
    /// "Stack it on that minor": the field reads the parent through the minor's tapdisk. Ours opens the parent's file itself, which is
    /// the same content if the minor serves that file, and a mistake to be told if not.
    /// </summary>
    /// <exception cref="TapException">ENODEV: nothing is open there. EINVAL: it is not the image's parent.</exception>
    public async Task RequireParentAsync(string arguments, int parentMinor, CancellationToken cancellationToken)
    {
        string? served = All.FirstOrDefault(disk => disk.Minor == parentMinor)?.Arguments;
        if (served is null)
        {
            IReadOnlyList<TapEntry> others = await new TapControl(controlDirectory).ListAsync(cancellationToken);
            served = others.FirstOrDefault(entry => entry.Minor == parentMinor)?.Arguments;
        }

        if (string.IsNullOrEmpty(served))
            throw new TapException(TapException.NoSuchDevice, $"minor {parentMinor}, the parent's, has no open image; nothing was opened");
        string? parent = arguments.StartsWith("vhd:", StringComparison.Ordinal) ? VhdImage.ReadInfo(arguments[4..]).ParentPath : null;
        using SafeFileHandle file = Posix.OpenRegularFile(served[(served.IndexOf(':', StringComparison.Ordinal) + 1)..], isWritable: false);
        if (parent is null || parent != Posix.CanonicalPathOf(file))
            throw new TapException(
                (int)Errno.EINVAL,
                $"minor {parentMinor} serves {served}, the parent of {arguments} is {parent ?? "none"}; nothing was opened");
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
