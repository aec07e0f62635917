// DATA.mirror and what asks about it (research/storage.md 5.5, 7.6, 7.8): a plugin's own data plane where it has one, else the tapdisk that
// serves the disk. The tapdisk is the only one that knows how its mirror stands, so nothing is recorded here, and a restart loses nothing.
using StorageAccess.Tap;

namespace StorageAccess;

internal sealed class LiveMirrors(StorageLayer layer)
{
    private const string TapdiskKey = "tapdisk:";
    private static readonly TimeSpan StallLimit = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan DrainLimit = TimeSpan.FromSeconds(150);
    private static readonly TimeSpan DrainPoll = TimeSpan.FromSeconds(1);

    /// <summary>Copies everything and mirrors each write from now on, onto a disk of zeros of the same size.</summary>
    /// <param name="url"><c>nbd+unix:///EXPORT?socket=PATH</c>.</param>
    public async Task<DataOperation> StartAsync(string dbg, SrId sr, VdiId vdi, string vm, string url, CancellationToken cancellationToken)
    {
        try
        {
            return await layer.DataMirrorAsync(dbg, sr, vdi, vm, url, cancellationToken);
        }
        catch (StorageException e) when (e.Tag == "Unimplemented" && layer.TapOf(sr, vdi) is not null)
        {
            (TapControl control, int processId, int minor) = layer.TapOf(sr, vdi)!.Value;
            TapExtensions extensions = new(control);
            if (!(await extensions.CapabilitiesAsync(processId, cancellationToken)).Contains("mirror"))
                throw; // The original tapdisk mirrors from a snapshot on, which is the sender's work (7.5).
            try
            {
                await extensions.MirrorStartAsync(processId, minor, MirrorTarget.OnSocket(url, StallLimit), cancellationToken);
            }
            catch (TapException refused)
            {
                throw StorageException.Migration("Migration_mirror_failure", refused.Message);
            }

            return new DataOperation("MirrorV1", $"{TapdiskKey}{sr}/{vdi}");
        }
    }

    /// <exception cref="StorageException">Does_not_exist: no such operation, or the mirror was stopped.</exception>
    public async Task<DataStatus> StatAsync(string dbg, SrId sr, VdiId vdi, string vm, DataOperation operation, CancellationToken cancellationToken)
    {
        if (!operation.Key.StartsWith(TapdiskKey, StringComparison.Ordinal))
            return await layer.DataStatAsync(dbg, sr, vdi, vm, operation, cancellationToken);
        if (operation.Kind != "MirrorV1" || operation.Key != $"{TapdiskKey}{sr}/{vdi}")
            throw StorageException.DoesNotExist("operation", operation.Key);
        MirrorStatus? status = layer.TapOf(sr, vdi) is { } tap
            ? await AskAsync(() => new TapExtensions(tap.Control).MirrorStatusAsync(tap.ProcessId, tap.Minor, cancellationToken))
            : null;
        if (status is null or { Phase: MirrorPhase.None })
            throw StorageException.DoesNotExist("operation", operation.Key);
        return new DataStatus(
            status.Phase == MirrorPhase.Failed, status.Phase is MirrorPhase.Synced or MirrorPhase.Finished,
            status.TotalBytes == 0 ? 1 : (double)status.CopiedBytes / status.TotalBytes);
    }

    /// <param name="id">A mirror's id, <c>SR/VDI</c> of its source.</param>
    /// <exception cref="StorageException">Does_not_exist: no tapdisk serves that disk, so that nobody can tell.</exception>
    public async Task<bool> HasFailedAsync(SrId sr, string id, CancellationToken cancellationToken)
    {
        string prefix = sr.Value + "/";
        if (!id.StartsWith(prefix, StringComparison.Ordinal) || layer.TapOf(sr, new VdiId(id[prefix.Length..])) is not { } tap)
            throw StorageException.DoesNotExist("mirror", id);
        return await AskAsync(async () => (await tap.Control.StatsAsync(tap.ProcessId, tap.Minor, cancellationToken)).MirrorFailed);
    }

    /// <summary>
    /// Before the source's last deactivate: waits until no request is under way. Nothing to do for a disk that no tapdisk serves: its plugin
    /// is asked by has_mirror_failed.
    /// </summary>
    public async Task DrainAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        if (layer.TapOf(sr, vdi) is not { } tap)
            return;
        DateTimeOffset end = layer.Time.GetUtcNow() + DrainLimit;
        while (await AskAsync(() => tap.Control.StatsAsync(tap.ProcessId, tap.Minor, cancellationToken)) is { OutstandingRequests: > 0 } stats)
        {
            if (layer.Time.GetUtcNow() >= end)
                throw StorageException.Migration(
                    "Migration_mirror_failure",
                    $"VDI {vdi} still has {stats.OutstandingRequests} requests after {DrainLimit.TotalSeconds:0} s ({dbg})");
            await Task.Delay(DrainPoll, layer.Time, cancellationToken);
        }
    }

    private static async Task<T> AskAsync<T>(Func<Task<T>> ask)
    {
        try
        {
            return await ask();
        }
        catch (TapException e)
        {
            throw StorageException.Migration("Migration_mirror_failure", e.Message);
        }
    }
}
