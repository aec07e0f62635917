// Who else uses an SR folder, on a real machine: drivers (the folder's flock), tapdisks (their control sockets), copies and mirrors
// (leases), and any process that has an image open (/proc).
using Microsoft.Win32.SafeHandles;
using Platform;
using StorageAccess.Tap;
using Vhd.Collect;

namespace VhdFolder;

public sealed class FolderUsers(string folder, DiskTap taps) : IFolderUsers
{
    private const string LeasePrefix = ".lease-";
    private static readonly TimeSpan LockWait = TimeSpan.FromSeconds(60);
    private static readonly TimeSpan LockPoll = TimeSpan.FromMilliseconds(20);
    private static readonly TimeSpan PauseLimit = TimeSpan.FromSeconds(10);
    private readonly Dictionary<TapReference, IDisposable> holds = [];

    public async Task<IDisposable> LockAsync(CancellationToken cancellationToken)
    {
        long end = Environment.TickCount64 + (long)LockWait.TotalMilliseconds;
        SafeFileHandle? held;
        while ((held = Posix.TryLockDirectory(folder)) is null)
        {
            if (Environment.TickCount64 > end)
                throw new DriverException(
                    DriverException.SrUnavailable, $"another process has held {folder} for {LockWait.TotalSeconds:0} s");
            await Task.Delay(LockPoll, cancellationToken);
        }

        DropLeasesOfNothing();
        return held;
    }

    /// <summary>A collector that was killed leaves the files of its leases, and their images may be gone: nobody would take them again.</summary>
    private void DropLeasesOfNothing()
    {
        foreach (string path in Directory.EnumerateFiles(folder, LeasePrefix + "*"))
        {
            if (!File.Exists(Path.Combine(folder, Path.GetFileName(path)[LeasePrefix.Length..] + ".vhd")))
                FileLock.TryTake(path, isExclusive: true)?.Dispose();
        }
    }

    /// <summary>
    /// A process that is no tapdisk of the control folder counts as one that cannot be asked to wait: a control folder given wrongly is
    /// no way to a disk's being changed under its guest.
    /// </summary>
    public async Task<FolderUse> LookAsync(CancellationToken cancellationToken)
    {
        IReadOnlyList<TapEntry> entries = await taps.ListAsync(cancellationToken);
        List<TapReference> ours = [];
        foreach (TapEntry entry in entries)
        {
            if (entry is { ProcessId: { } processId, Minor: { } minor, Arguments: { } arguments } && KeyOf(arguments) is { } key)
                ours.Add(new TapReference(processId, minor, key));
        }

        HashSet<int?> tapdisks = [.. entries.Select(static entry => entry.ProcessId)];
        Dictionary<string, string> elsewhere = [];
        foreach ((string path, int processId, string name) in OpenFiles.Under(folder))
        {
            if (!tapdisks.Contains(processId) && processId != Environment.ProcessId && path.EndsWith(".vhd", StringComparison.Ordinal))
                elsewhere[Path.GetFileNameWithoutExtension(path)] = $"{name} {processId}";
        }

        return new FolderUse(ours, elsewhere, Leased());
    }

    public IReadOnlySet<string> Leased() => Directory.EnumerateFiles(folder, LeasePrefix + "*").Where(FileLock.IsHeld)
        .Select(static path => Path.GetFileName(path)[LeasePrefix.Length..]).ToHashSet();

    public IDisposable? TryHold(IReadOnlyCollection<string> keys)
    {
        HeldLeases held = new();
        foreach (string key in keys)
        {
            if (FileLock.TryTake(Path.Combine(folder, LeasePrefix + key), isExclusive: true) is { } lease)
            {
                held.Add(lease);
                continue;
            }

            held.Dispose();
            return null;
        }

        return held;
    }

    /// <summary>A guest does not wait longer than this process lives.</summary>
    public async Task PauseAsync(TapReference tap, CancellationToken cancellationToken)
    {
        if (await IsThereAsync(tap, cancellationToken) && await taps.PauseAsync(tap.ProcessId, tap.Minor, PauseLimit, cancellationToken) is { } hold)
            LetGo(tap, hold);
    }

    public async Task ResumeAsync(TapReference tap)
    {
        if (await IsThereAsync(tap, CancellationToken.None))
            await taps.ResumeAsync(tap.ProcessId, tap.Minor);
        LetGo(tap, next: null);
    }

    /// <summary>Whether the tapdisk has this very image: another one may have its numbers by now.</summary>
    private async Task<bool> IsThereAsync(TapReference tap, CancellationToken cancellationToken) =>
        (await taps.ListAsync(cancellationToken)).Any(entry => entry.ProcessId == tap.ProcessId && entry.Minor == tap.Minor
            && entry.Arguments is { } arguments && KeyOf(arguments) == tap.Key);

    private void LetGo(TapReference tap, IDisposable? next)
    {
        if (holds.Remove(tap, out IDisposable? before))
            before.Dispose();
        if (next is not null)
            holds.Add(tap, next);
    }

    private string? KeyOf(string arguments)
    {
        const string type = "vhd:";
        if (!arguments.StartsWith(type, StringComparison.Ordinal) || Path.GetDirectoryName(arguments[type.Length..]) is not { } itsFolder)
            return null;
        bool isHere = itsFolder == folder || (Directory.Exists(itsFolder) && Posix.CanonicalFolder(itsFolder) == folder);
        return isHere ? Path.GetFileNameWithoutExtension(arguments) : null;
    }

    private sealed class HeldLeases : IDisposable
    {
        private readonly List<FileLock> leases = [];

        public void Add(FileLock lease) => leases.Add(lease);

        public void Dispose() => leases.ForEach(static lease => lease.Dispose());
    }
}
