// DATA.MIRROR.receive_*: the destination of a live copy whose sender leaves the records with us (research/storage.md 7.4, 7.6). The guest's new
// writes arrive in a leaf, all that was there before is copied into a parent beside it, and finalising lays the leaf over the parent. Each disk
// is made with the mirror's id in its sm_config and its record saved before and after, so that a restart can still cancel, at any step.
using System.Text.Json.Nodes;
using Platform;

namespace StorageAccess;

internal enum ReceiveStage
{
    /// <summary>The disks are being made: what carries the mirror's id and is not recorded is ours too.</summary>
    Preparing,

    Receiving,

    /// <summary>The sender has switched over: from here there is only one way, forward.</summary>
    Finalizing,

    /// <summary>The leaf lies on the parent.</summary>
    Composed,
}

/// <param name="RemoteVdi">What the sender calls its disk.</param>
internal sealed record ReceivedMirror(string Id, SrId Sr, VdiId RemoteVdi, DatapathId LeafDatapath, string Vm, ReceiveStage Stage)
{
    public VdiId? Leaf { get; init; }

    /// <summary>A snapshot of the empty leaf: it makes the leaf a differencing disk, which can be given another parent.</summary>
    public VdiId? Dummy { get; init; }

    public VdiId? Parent { get; init; }
}

internal sealed class MirrorReceiver(StorageLayer layer)
{
    private const string MirrorKey = "base_mirror";
    private readonly Exclusion ids = new("mirror", layer.Time, StorageLayer.DefaultLockWait);

    private StorageState State => layer.State;

    /// <summary>
    /// Makes leaf, dummy and parent, and activates the leaf. The parent is a clone of the nearest disk that the sender's disk has in common with
    /// this SR, or empty. What an earlier start under this id made is destroyed first.
    /// </summary>
    /// <param name="similar">Content ids, nearest first.</param>
    public async Task<JsonNode> StartAsync(
        string dbg, SrId sr, VdiInfo source, string id, IReadOnlyList<string> similar, string vm, CancellationToken cancellationToken)
    {
        using IDisposable held = await ids.TakeAsync(id, $"DATA.MIRROR.receive_start ({dbg})", cancellationToken);
        await CancelHeldAsync(dbg, id, cancellationToken);
        ReceivedMirror mirror = new(id, sr, source.Vdi, new DatapathId(Guid.NewGuid().ToString()), vm, ReceiveStage.Preparing);
        State.Save(mirror);
        try
        {
            return await PrepareAsync(dbg, mirror, source, similar, cancellationToken);
        }
        catch (Exception e) when (e is not InvariantException)
        {
            await UndoAsync(dbg, State.FindMirror(id) ?? mirror, e);
            throw;
        }
    }

    /// <summary>The oldest form: the leaf is let go of, and the sender does the rest. Nothing to do for an id that is not known.</summary>
    public async Task EndAsync(string dbg, string id, CancellationToken cancellationToken)
    {
        using IDisposable held = await ids.TakeAsync(id, $"DATA.MIRROR.receive_finalize ({dbg})", cancellationToken);
        if (State.FindMirror(id) is not { } mirror)
            return;
        await layer.DestroyAsync(dbg, mirror.LeafDatapath, allowLeak: false, cancellationToken);
        Forget(id);
    }

    /// <summary>The leaf is laid over the parent and is the disk from now on. Asked again after a failure it goes on where it stopped.</summary>
    public async Task FinalizeAsync(string dbg, string id, CancellationToken cancellationToken)
    {
        using IDisposable held = await ids.TakeAsync(id, $"DATA.MIRROR.receive_finalize2 ({dbg})", cancellationToken);
        if (State.FindMirror(id) is not { } mirror)
            return;
        if (mirror is not { Stage: not ReceiveStage.Preparing, Leaf: { } leaf, Dummy: { } dummy, Parent: { } parent })
            throw StorageException.Migration("Migration_mirror_failure", $"mirror {id} was never ready; cancel it");
        if (mirror.Stage != ReceiveStage.Composed)
        {
            State.Save(mirror = mirror with { Stage = ReceiveStage.Finalizing });
            await layer.DestroyAsync(dbg, mirror.LeafDatapath, allowLeak: false, cancellationToken);
            await layer.VdiComposeAsync(dbg, mirror.Sr, parent, leaf, cancellationToken);
            State.Save(mirror with { Stage = ReceiveStage.Composed });
        }

        await DestroyAsync(dbg, mirror.Sr, dummy, cancellationToken);
        try
        {
            await layer.VdiSetSmConfigAsync(dbg, mirror.Sr, leaf, MirrorKey, null, cancellationToken);
        }
        catch (StorageException e) when (e.Tag == "Unimplemented")
        {
            // A driver that keeps no such keys has none to take away.
        }

        Forget(id);
    }

    /// <summary>Destroys what was made. Nothing to do for an id that is not known.</summary>
    /// <exception cref="StorageException">The sender has switched over already; or what could not be destroyed, and is tried again by the next
    /// cancel.</exception>
    public async Task CancelAsync(string dbg, string id, CancellationToken cancellationToken)
    {
        using IDisposable held = await ids.TakeAsync(id, $"DATA.MIRROR.receive_cancel ({dbg})", cancellationToken);
        await CancelHeldAsync(dbg, id, cancellationToken);
    }

    public JsonObject List()
    {
        JsonObject list = [];
        foreach (ReceivedMirror mirror in State.Mirrors())
            list[mirror.Id] = Write(mirror);
        return list;
    }

    public JsonNode Stat(string id) => Write(State.FindMirror(id) ?? throw StorageException.DoesNotExist("mirror", id));

    private async Task<JsonNode> PrepareAsync(
        string dbg, ReceivedMirror mirror, VdiInfo source, IReadOnlyList<string> similar, CancellationToken cancellationToken)
    {
        Dictionary<string, string> mark = new() { [MirrorKey] = mirror.Id };
        VdiInfo blank = source with
        {
            Vdi = new VdiId(""),
            Uuid = "",
            ContentId = "",
            IsASnapshot = false,
            SnapshotOf = "",
            ReadOnly = false,
            SmConfig = mark,
        };
        IReadOnlyList<VdiInfo> there = (await layer.SrScanAsync(dbg, mirror.Sr, cancellationToken)).Vdis;
        VdiInfo leaf = await layer.VdiCreateAsync(dbg, mirror.Sr, blank, cancellationToken);
        State.Save(mirror = mirror with { Leaf = leaf.Vdi });
        VdiInfo dummy = await layer.VdiSnapshotAsync(dbg, mirror.Sr, leaf with { SmConfig = mark }, cancellationToken);
        State.Save(mirror = mirror with { Dummy = dummy.Vdi });
        await layer.AttachAsync(dbg, mirror.LeafDatapath, mirror.Sr, leaf.Vdi, mirror.Vm, VdiAccess.ReadWrite, cancellationToken);
        await layer.ActivateAsync(dbg, mirror.LeafDatapath, mirror.Sr, leaf.Vdi, mirror.Vm, cancellationToken);
        VdiInfo? nearest = Nearest(there, similar, source.VirtualSizeBytes);
        VdiInfo parent = nearest is null
            ? await layer.VdiCreateAsync(dbg, mirror.Sr, blank, cancellationToken)
            : await layer.VdiCloneAsync(dbg, mirror.Sr, nearest with { SmConfig = mark }, cancellationToken);
        State.Save(mirror = mirror with { Parent = parent.Vdi });
        if (parent.VirtualSizeBytes < source.VirtualSizeBytes)
            await layer.VdiResizeAsync(dbg, mirror.Sr, parent.Vdi, source.VirtualSizeBytes, cancellationToken);
        State.Save(mirror with { Stage = ReceiveStage.Receiving });
        layer.Updates.Add(Changed.Mirror(mirror.Id));
        JsonObject made = new()
        {
            ["mirror_vdi"] = StorageWire.Write(leaf),
            ["mirror_datapath"] = mirror.LeafDatapath.Value,
            ["copy_diffs_to"] = parent.Vdi.Value,
            ["dummy_vdi"] = dummy.Vdi.Value,
        };
        if (nearest is not null)
            made["copy_diffs_from"] = nearest.ContentId;
        return new JsonArray("Vhd_mirror", made);
    }

    private static VdiInfo? Nearest(IReadOnlyList<VdiInfo> there, IReadOnlyList<string> similar, long sizeBytes) => similar
        .Where(static content => content.Length != 0)
        .Select(content => there.FirstOrDefault(
            vdi => vdi.ContentId == content && vdi.VirtualSizeBytes <= sizeBytes && vdi.Type != "cbt_metadata"))
        .FirstOrDefault(static vdi => vdi is not null);

    private async Task CancelHeldAsync(string dbg, string id, CancellationToken cancellationToken)
    {
        if (State.FindMirror(id) is not { } mirror)
            return;
        if (mirror.Stage >= ReceiveStage.Finalizing)
            throw StorageException.Migration(
                "Migration_mirror_failure", $"mirror {id} is being finalised, its sender has switched over; call DATA.MIRROR.receive_finalize2 again");
        await DestroyMadeAsync(dbg, mirror, cancellationToken);
    }

    /// <summary>What could not be undone is told with what went wrong first, and stays recorded for a cancel.</summary>
    private async Task UndoAsync(string dbg, ReceivedMirror mirror, Exception why)
    {
        try
        {
            await DestroyMadeAsync(dbg, mirror, CancellationToken.None);
        }
        catch (StorageException left)
        {
            throw StorageException.Migration("Migration_preparation_failure", $"{why.Message}; and not all of it could be undone: {left.Message}");
        }
    }

    /// <summary>As much as can be; forgotten when nothing is left.</summary>
    private async Task DestroyMadeAsync(string dbg, ReceivedMirror mirror, CancellationToken cancellationToken)
    {
        List<VdiId> made = [.. new[] { mirror.Dummy, mirror.Leaf, mirror.Parent }.OfType<VdiId>()];
        if (mirror.Stage == ReceiveStage.Preparing)
            made.AddRange((await layer.SrScanAsync(dbg, mirror.Sr, cancellationToken)).Vdis
                .Where(vdi => vdi.SmConfig.GetValueOrDefault(MirrorKey) == mirror.Id && !made.Contains(vdi.Vdi)).Select(static vdi => vdi.Vdi));
        List<string> left = [];
        await TryAsync(() => layer.DestroyAsync(dbg, mirror.LeafDatapath, allowLeak: false, cancellationToken));
        foreach (VdiId vdi in made)
            await TryAsync(() => DestroyAsync(dbg, mirror.Sr, vdi, cancellationToken));
        if (left.Count != 0)
            throw StorageException.Migration("Migration_mirror_failure", $"of mirror {mirror.Id} is still there: {string.Join("; ", left)}");
        Forget(mirror.Id);

        async Task TryAsync(Func<Task> undo)
        {
            try
            {
                await undo();
            }
            catch (StorageException e)
            {
                left.Add(e.Message);
            }
        }
    }

    private async Task DestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        try
        {
            await layer.VdiDestroyAsync(dbg, sr, vdi, cancellationToken);
        }
        catch (StorageException e) when (e.Tag == "Vdi_does_not_exist" || e.Code == "VDI_MISSING")
        {
            // It went by an earlier try.
        }
    }

    private void Forget(string id)
    {
        State.ForgetMirror(id);
        layer.Updates.Add(Changed.Mirror(id));
    }

    private JsonObject Write(ReceivedMirror mirror) => new()
    {
        ["source_vdi"] = mirror.RemoteVdi.Value,
        ["dest_vdi"] = mirror.Leaf?.Value ?? "",
        ["state"] = new JsonArray("Receiving"),
        // Nothing can arrive any more once the leaf is down: by a start of the machine, or by somebody's hand.
        ["failed"] = mirror.Stage == ReceiveStage.Receiving && State.FindDatapath(mirror.LeafDatapath)?.State.Phase != VdiPhase.Activated,
    };
}
