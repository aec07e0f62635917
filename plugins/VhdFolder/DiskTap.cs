// A disk that is activated: one tapdisk process serving its VHD, reached under a name that does not change with the process,
// <control>/nbd/<sr>/<vdi> (research/storage.md 3.8, 6.1). A tapdisk that died counts as closed.
using System.Globalization;
using Platform;
using StorageAccess.Tap;

namespace VhdFolder;

public sealed class DiskTap
{
    private readonly TapControl control;
    private readonly string toolsFolder;

    public DiskTap(string controlDirectory, string toolsFolder)
    {
        control = new TapControl(controlDirectory);
        this.toolsFolder = toolsFolder;
    }

    /// <summary>
    /// As the environment says: BLKTAP_CONTROL_DIRECTORY, and the first tapdisk in PATH (the toolstack puts its own tools first there)
    /// or else the one beside this program.
    /// </summary>
    public static DiskTap FromEnvironment()
    {
        string? directory = Environment.GetEnvironmentVariable("BLKTAP_CONTROL_DIRECTORY");
        IEnumerable<string> folders = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Append(AppContext.BaseDirectory);
        string tools = folders.FirstOrDefault(static f => f.Length != 0 && File.Exists(Path.Combine(f, "tapdisk")))
            ?? AppContext.BaseDirectory;
        return new DiskTap(string.IsNullOrEmpty(directory) ? TapControl.DefaultDirectory : directory, tools);
    }

    /// <summary>Where the disk's NBD server is once it is activated.</summary>
    public string NbdUri(string sr, string vdi) => $"nbd:unix:{LinkOf(sr, vdi)}:exportname={vdi}";

    /// <summary>Nothing to do when this very disk is activated; open under another name is 24.</summary>
    public async Task ActivateAsync(string sr, string vdi, string imagePath, bool isReadOnly, CancellationToken cancellationToken)
    {
        string link = LinkOf(sr, vdi);
        if (await FindAsync(imagePath, cancellationToken) is { } open)
        {
            if (TargetOf(link) == (open.ProcessId, open.Minor))
                return;
            throw new DriverException(DriverException.InUse, $"{imagePath} is open in tapdisk {open.ProcessId}, minor {open.Minor}");
        }

        await DeactivateAsync(sr, vdi, cancellationToken); // What a tapdisk that died has left.
        int processId = await control.SpawnAsync(toolsFolder, cancellationToken);
        int? minor = null;
        try
        {
            minor = await control.AllocateMinorAsync(cancellationToken);
            await control.AttachAsync(processId, minor.Value, cancellationToken);
            // Before the open: a crash in between leaves a name to clean up by, not a disk that nobody owns.
            Directory.CreateDirectory(Path.GetDirectoryName(link)!);
            File.CreateSymbolicLink(link, control.NbdSocketPath(processId, minor.Value));
            TapOpenFlags flags = isReadOnly ? TapOpenFlags.ReadOnly : TapOpenFlags.None;
            await control.OpenAsync(processId, minor.Value, ArgumentsOf(imagePath), flags, null, cancellationToken);
        }
        catch
        {
            RemoveLink(link);
            await EndAsync(processId, minor);
            throw;
        }
    }

    /// <summary>Closes what the disk's name points to. Nothing to do when it points to nothing, or to a tapdisk that died.</summary>
    public async Task DeactivateAsync(string sr, string vdi, CancellationToken cancellationToken)
    {
        string link = LinkOf(sr, vdi);
        if (TargetOf(link) is { } target)
        {
            IReadOnlyList<TapEntry> entries = await control.ListAsync(cancellationToken);
            if (entries.FirstOrDefault(e => e.ProcessId == target.ProcessId && e.Minor == target.Minor) is { } entry)
            {
                if (entry.Arguments is not null)
                    await control.CloseAsync(target.ProcessId, target.Minor, force: false, cancellationToken);
                await control.DetachAsync(target.ProcessId, target.Minor, cancellationToken);
            }

            await control.FreeMinorAsync(target.Minor, cancellationToken);
        }

        RemoveLink(link);
    }

    /// <summary>
    /// Runs a change of the image's files with the disk's I/O held, if it is open anywhere; the guest waits and sees nothing.
    /// </summary>
    public async Task<T> WhilePausedAsync<T>(string imagePath, Func<T> change, CancellationToken cancellationToken)
    {
        if (await FindAsync(imagePath, cancellationToken) is not { ProcessId: { } processId, Minor: { } minor })
            return change();
        await control.PauseAsync(processId, minor, cancellationToken);
        try
        {
            return change();
        }
        finally
        {
            await control.ResumeAsync(processId, minor, arguments: null, secondary: null, CancellationToken.None);
        }
    }

    /// <summary>Every tapdisk of the control folder.</summary>
    public Task<IReadOnlyList<TapEntry>> ListAsync(CancellationToken cancellationToken) => control.ListAsync(cancellationToken);

    /// <summary>
    /// Holds a disk's I/O and closes its image. When it fails the tapdisk may do so later all the same: a resume must follow.
    /// </summary>
    /// <returns>What ends the pause when it is disposed, or when this process dies; null where the tapdisk has no such pause.</returns>
    public async Task<IDisposable?> PauseAsync(int processId, int minor, TimeSpan timeLimit, CancellationToken cancellationToken)
    {
        TapExtensions extensions = new(control);
        if ((await extensions.CapabilitiesAsync(processId, cancellationToken)).Contains("pause"))
            return await extensions.PauseAsync(processId, minor, timeLimit, cancellationToken);

        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(timeLimit);
        try
        {
            await control.PauseAsync(processId, minor, limit.Token);
            return null;
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw new TapException(
                TapException.TimedOut, $"tapdisk {processId}, minor {minor}, was not paused within {timeLimit.TotalSeconds:0} s");
        }
    }

    /// <summary>Nothing to do for a disk that is not paused. Waits for a pause that is under way.</summary>
    public Task ResumeAsync(int processId, int minor) =>
        control.ResumeAsync(processId, minor, arguments: null, secondary: null, CancellationToken.None);

    /// <summary>24 when any tapdisk has the image open.</summary>
    public async Task CheckClosedAsync(string imagePath, CancellationToken cancellationToken)
    {
        if (await FindAsync(imagePath, cancellationToken) is { } open)
            throw new DriverException(DriverException.InUse, $"{imagePath} is open in tapdisk {open.ProcessId}, minor {open.Minor}");
    }

    private async Task<TapEntry?> FindAsync(string imagePath, CancellationToken cancellationToken) =>
        (await control.ListAsync(cancellationToken)).FirstOrDefault(e => e.ProcessId is not null && e.Arguments == ArgumentsOf(imagePath));

    private async Task EndAsync(int processId, int? minor)
    {
        try
        {
            if (minor is { } taken)
            {
                await control.DetachAsync(processId, taken, CancellationToken.None);
                await control.FreeMinorAsync(taken, CancellationToken.None);
            }
        }
        catch (TapException)
        {
            // The first error is the one to tell; the process goes below.
        }

        Posix.TryKill(processId, 15);
    }

    private static void RemoveLink(string link)
    {
        string folder = Path.GetDirectoryName(link)!;
        if (!Directory.Exists(folder))
            return;
        File.Delete(link);
        try
        {
            Directory.Delete(folder);
        }
        catch (IOException)
        {
            // Another disk of the SR is in it.
        }
    }

    private string LinkOf(string sr, string vdi) => Path.Combine(control.ControlDirectory, "nbd", sr, vdi);

    private static string ArgumentsOf(string imagePath) => "vhd:" + imagePath;

    private static (int ProcessId, int Minor)? TargetOf(string link)
    {
        if (new FileInfo(link).LinkTarget is not { } target || Path.GetFileName(target) is not ['n', 'b', 'd', ..] name)
            return null;
        string[] parts = name[3..].Split('.');
        return parts.Length == 2 && int.TryParse(parts[0], NumberStyles.None, null, out int processId)
            && int.TryParse(parts[1], NumberStyles.None, null, out int minor) ? (processId, minor) : null;
    }
}
