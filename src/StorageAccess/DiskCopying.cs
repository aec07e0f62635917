// DATA.copy: a VDI of one SR becomes a new VDI of another SR of this host, whatever serves the two (research/storage.md 1.5, 7.7). Between
// pools it is the migration saga that copies, with a mirror and digests (VM.migrate_send); this is the call of clients that copy a disk at rest.
using System.Text.Json.Nodes;
using Platform;

namespace StorageAccess;

/// <summary>Copies everything that one attached and activated disk holds onto another, which is zeros and not smaller.</summary>
public interface IDiskCopier
{
    Task CopyAsync(Backend from, Backend to, IProgress<double> progress, CancellationToken cancellationToken);
}

public sealed class DiskCopying(StorageLayer layer, IDiskCopier copier)
{
    private const string ControlDomain = "0";

    /// <returns>The id of a task whose result is <c>["Vdi_info", vdi_info]</c>.</returns>
    /// <exception cref="StorageException">Migration_preparation_failure: <paramref name="url"/> is another host's.</exception>
    internal string Start(StorageTasks tasks, string dbg, SrId sr, VdiId vdi, string url, SrId destination)
    {
        if (url.Length != 0 && !IsLocal(url))
            throw StorageException.Migration("Migration_preparation_failure", "DATA.copy goes to this host only; VM.migrate_send moves disks to another");
        return tasks.Start(dbg, async (progress, cancellationToken) =>
            new JsonArray("Vdi_info", StorageWire.Write(await CopyAsync(dbg, sr, vdi, destination, progress, cancellationToken))));
    }

    private static bool IsLocal(string url) =>
        Uri.TryCreate(url, UriKind.Absolute, out Uri? parsed) && (parsed.IsLoopback || parsed.IsFile);

    /// <summary>A failure or a cancel leaves neither the new disk nor a datapath.</summary>
    public async Task<VdiInfo> CopyAsync(
        string dbg, SrId sr, VdiId vdi, SrId destination, IProgress<double> progress, CancellationToken cancellationToken)
    {
        VdiInfo source = await layer.VdiStatAsync(dbg, sr, vdi, cancellationToken);
        VdiInfo made = await layer.VdiCreateAsync(
            dbg, destination, source with { Vdi = new VdiId(""), Uuid = "", IsASnapshot = false, SnapshotOf = "", SmConfig = new Dictionary<string, string>() },
            cancellationToken);
        DatapathId from = new($"copy_from_{made.Vdi}"), to = new($"copy_to_{made.Vdi}");
        try
        {
            Backend reading = await UpAsync(dbg, from, sr, vdi, VdiAccess.ReadOnly, cancellationToken);
            Backend writing = await UpAsync(dbg, to, destination, made.Vdi, VdiAccess.ReadWrite, cancellationToken);
            await copier.CopyAsync(reading, writing, progress, cancellationToken);
            await DownAsync(dbg, from, to);
            return await layer.VdiStatAsync(dbg, destination, made.Vdi, cancellationToken);
        }
        catch (Exception e) when (e is not InvariantException)
        {
            await UndoAsync(dbg, destination, made.Vdi, e, from, to);
            throw;
        }
    }

    /// <summary>What could not be undone is told with what went wrong first.</summary>
    private async Task UndoAsync(string dbg, SrId destination, VdiId made, Exception why, params DatapathId[] datapaths)
    {
        try
        {
            await DownAsync(dbg, datapaths);
            await layer.VdiDestroyAsync(dbg, destination, made, CancellationToken.None);
        }
        catch (StorageException left)
        {
            throw StorageException.Migration(
                "Migration_mirror_copy_failure", $"{why.Message}; and the new VDI {made} of SR {destination} is still there: {left.Message}");
        }
    }

    private async Task<Backend> UpAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, VdiAccess access, CancellationToken cancellationToken)
    {
        Backend backend = await layer.AttachAsync(dbg, datapath, sr, vdi, ControlDomain, access, cancellationToken);
        await layer.ActivateAsync(dbg, datapath, sr, vdi, ControlDomain, cancellationToken);
        return backend;
    }

    /// <summary>Also after a cancel: nothing may stay attached.</summary>
    private async Task DownAsync(string dbg, params DatapathId[] datapaths)
    {
        foreach (DatapathId datapath in datapaths)
            await layer.DestroyAsync(dbg, datapath, allowLeak: false, CancellationToken.None);
    }
}
