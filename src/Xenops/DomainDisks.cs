// A domain's disks: attached and activated through the storage access layer, for the guest to open, and given back. Before a datapath is made its name
// is noted as a file in STATE/datapaths, and the note is removed after the datapath: what a killed xenopsd left is destroyed by the
// next one, before anything else uses the name.
using Platform;
using StorageAccess;

namespace Xenops;

/// <summary>What domains need of storage.</summary>
/// <param name="NotesFolder">Where the names of datapaths in use are noted.</param>
public sealed record DiskSource(IDatapaths Datapaths, string NotesFolder)
{
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(30);

    /// <summary>Destroys the datapaths that an earlier process left.</summary>
    /// <param name="kept">Those of guests that are alive.</param>
    /// <returns>What could not be destroyed yet, and why; it is tried again when its VM is started.</returns>
    public async Task<IReadOnlyList<string>> DestroyLeftoversAsync(IReadOnlySet<DatapathId> kept, CancellationToken cancellationToken)
    {
        List<string> failures = [];
        foreach (string note in Directory.CreateDirectory(NotesFolder).GetFiles().Select(static f => f.FullName))
        {
            DatapathId datapath = new(Uri.UnescapeDataString(Path.GetFileName(note)));
            if (kept.Contains(datapath))
                continue;
            try
            {
                await DestroyLeftoverAsync("startup", datapath, cancellationToken);
            }
            catch (Exception e) when (e is StorageException or IOException)
            {
                failures.Add($"{Path.GetFileName(note)}: {e.Message}");
            }
        }

        return failures;
    }

    /// <summary>All of a VM's disks, ready for I/O; when one fails, those before it are given back.</summary>
    internal async Task<DomainDisks> AttachAsync(string dbg, Vm vm, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(Deadline);
        DomainDisks disks = new(this, vm);
        try
        {
            foreach (Vbd vbd in vm.Vbds.OrderBy(static v => v.Access == VdiAccess.ReadOnly)) // RW before RO, as the field does.
                await disks.AddAsync(dbg, vbd, limit.Token);
            return disks;
        }
        catch (Exception first)
        {
            IReadOnlyList<string> failures = await disks.ReleaseAsync(dbg);
            if (failures.Count > 0)
                throw XenopsException.Internal($"{first.Message}; and undoing it failed: {string.Join("; ", failures)}");
            if (first is OperationCanceledException && !cancellationToken.IsCancellationRequested)
                throw XenopsException.Internal($"the disks of VM {vm.Id} were not ready within {Deadline.TotalSeconds:0} s");
            throw;
        }
    }

    /// <summary>The disks of a guest that outlived an earlier process.</summary>
    internal DomainDisks Adopt(Vm vm, IReadOnlyList<GuestDisk> disks)
    {
        DomainDisks adopted = new(this, vm);
        foreach (GuestDisk disk in disks)
            adopted.Adopt(disk);
        return adopted;
    }

    internal async Task DestroyLeftoverAsync(string dbg, DatapathId datapath, CancellationToken cancellationToken)
    {
        if (!File.Exists(NoteOf(datapath)))
            return;
        await Datapaths.DestroyAsync(dbg, datapath, allowLeak: false, cancellationToken);
        File.Delete(NoteOf(datapath));
    }

    internal void Note(DatapathId datapath)
    {
        Directory.CreateDirectory(NotesFolder);
        using FileStream note = new(NoteOf(datapath), FileMode.Create);
        note.Flush(flushToDisk: true);
        Posix.SyncDirectory(NotesFolder);
    }

    internal void RemoveNote(DatapathId datapath) => File.Delete(NoteOf(datapath));

    private string NoteOf(DatapathId datapath) => Path.Combine(NotesFolder, Uri.EscapeDataString(datapath.Value));
}

/// <summary>Not thread-safe: its domain's lock is held.</summary>
internal sealed class DomainDisks(DiskSource source, Vm vm)
{
    private static readonly TimeSpan ReleaseDeadline = TimeSpan.FromSeconds(30);

    private readonly List<(string Name, Func<string, CancellationToken, Task> Undo)> undo = [];
    private readonly Dictionary<string, string> uris = [];

    /// <summary>In the order of the VM's record.</summary>
    public IReadOnlyList<GuestDisk> Served => vm.Vbds.Select(v => new GuestDisk(v, uris[v.Device])).ToArray();

    public async Task AddAsync(string dbg, Vbd vbd, CancellationToken cancellationToken)
    {
        (DatapathId datapath, SrId sr, VdiId vdi) = (vm.DatapathOf(vbd), new SrId(vbd.Sr), new VdiId(vbd.Vdi));
        await source.DestroyLeftoverAsync(dbg, datapath, cancellationToken);
        source.Note(datapath);
        AddDetach(vbd);
        Backend backend = await source.Datapaths.AttachAsync(dbg, datapath, sr, vdi, vm.Id, vbd.Access, cancellationToken);
        AddDeactivate(vbd);
        await source.Datapaths.ActivateAsync(dbg, datapath, sr, vdi, vm.Id, cancellationToken);
        uris[vbd.Device] = backend.Nbd?.Uri
            ?? throw XenopsException.Internal($"the storage behind {vbd.Device} ({vbd.Sr}/{vbd.Vdi}) offers no NBD");
    }

    public void Adopt(GuestDisk disk)
    {
        AddDetach(disk.Vbd);
        AddDeactivate(disk.Vbd);
        uris[disk.Vbd.Device] = disk.Uri;
    }

    /// <summary>
    /// Deactivates and detaches, in reverse, on a deadline of its own; goes on after a failure. What failed is tried again by
    /// the next call.
    /// </summary>
    /// <returns>The failures.</returns>
    public async Task<IReadOnlyList<string>> ReleaseAsync(string dbg)
    {
        using CancellationTokenSource deadline = new(ReleaseDeadline);
        List<string> failures = [];
        for (int i = undo.Count - 1; i >= 0; i--)
        {
            try
            {
                await undo[i].Undo(dbg, deadline.Token);
                undo.RemoveAt(i);
            }
            catch (Exception e)
            {
                failures.Add($"{undo[i].Name}: {e.Message}");
            }
        }

        return failures;
    }

    private void AddDetach(Vbd vbd)
    {
        DatapathId datapath = vm.DatapathOf(vbd);
        undo.Add(($"detach {datapath}", async (dbg, token) =>
        {
            await source.Datapaths.DetachAsync(dbg, datapath, new SrId(vbd.Sr), new VdiId(vbd.Vdi), vm.Id, token);
            source.RemoveNote(datapath);
        }
        ));
    }

    private void AddDeactivate(Vbd vbd)
    {
        DatapathId datapath = vm.DatapathOf(vbd);
        undo.Add(($"deactivate {datapath}", (dbg, token) =>
            source.Datapaths.DeactivateAsync(dbg, datapath, new SrId(vbd.Sr), new VdiId(vbd.Vdi), vm.Id, token)));
    }
}
