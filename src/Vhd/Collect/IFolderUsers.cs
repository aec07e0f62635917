namespace Vhd.Collect;

/// <summary>A tapdisk's disk whose leaf is an image of the folder.</summary>
public sealed record TapReference(int ProcessId, int Minor, string Key);

/// <summary>Who uses a folder's images, at one moment.</summary>
/// <param name="OpenElsewhere">Keys of images that a process has open which is no tapdisk, and what it is.</param>
/// <param name="Leased">Keys.</param>
public sealed record FolderUse(
    IReadOnlyList<TapReference> Taps, IReadOnlyDictionary<string, string> OpenElsewhere, IReadOnlySet<string> Leased)
{
    public static readonly FolderUse None = new([], new Dictionary<string, string>(), new HashSet<string>());
}

/// <summary>The others who use a folder: what the collector asks of them. Every wait is bounded.</summary>
public interface IFolderUsers
{
    /// <summary>The folder's lock, under which drivers change it.</summary>
    Task<IDisposable> LockAsync(CancellationToken cancellationToken);

    Task<FolderUse> LookAsync(CancellationToken cancellationToken);

    IReadOnlySet<string> Leased();

    /// <summary>Keeps leases from being taken until it is disposed; null when one of them is held.</summary>
    IDisposable? TryHold(IReadOnlyCollection<string> keys);

    /// <summary>The guest waits and the image is closed at return.</summary>
    /// <exception cref="IOException">It could not be had in time; <see cref="ResumeAsync"/> must follow all the same.</exception>
    Task PauseAsync(TapReference tap, CancellationToken cancellationToken);

    /// <summary>The image is opened again, under its name. Nothing to do for a disk that is not paused, and for a dead tapdisk.</summary>
    Task ResumeAsync(TapReference tap);
}
