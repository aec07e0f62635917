// The datapath half of the layer: one call takes one datapath one step along the automaton; the backend is called when the superstate
// changes. Before a backend call the VDI's row says "maybe" (unsettled); an answer settles it. A row found unsettled, after a crash or
// after a call without an answer, is repaired by idempotent calls to what the datapath table says before anything else is done with the
// VDI.
using Platform;

namespace StorageAccess;

public sealed partial class StorageLayer
{
    /// <summary>Attaches, or answers what the attach of an earlier datapath answered.</summary>
    public async Task<Backend> AttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        DatapathOperation operation = access == VdiAccess.ReadWrite ? DatapathOperation.AttachReadWrite : DatapathOperation.AttachReadOnly;
        await PerformAsync(dbg, datapath, sr, vdi, vm, operation, cancellationToken);
        return state.FindVdi(sr, vdi)?.Backend ?? throw StorageException.Internal($"VDI {vdi} was detached by another call");
    }

    public Task ActivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        PerformAsync(dbg, datapath, sr, vdi, vm, DatapathOperation.Activate, cancellationToken);

    public Task DeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        PerformAsync(dbg, datapath, sr, vdi, vm, DatapathOperation.Deactivate, cancellationToken);

    public Task DetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        PerformAsync(dbg, datapath, sr, vdi, vm, DatapathOperation.Detach, cancellationToken);

    /// <summary>
    /// Takes a datapath down from whatever state it is in. When the backend refuses: with <paramref name="allowLeak"/> the datapath is
    /// forgotten and the VDI is cleaned up before its next use; without, the error is raised and the datapath is kept as leaked, to be
    /// tried again then.
    /// </summary>
    public async Task DestroyAsync(string dbg, DatapathId datapath, bool allowLeak, CancellationToken cancellationToken)
    {
        if (state.FindDatapath(datapath) is not { } row)
            return;
        using IDisposable held = await VdiLocks(row.Sr).TakeAsync(row.Vdi.Value, $"DP.destroy {datapath} ({dbg})", cancellationToken);
        if (state.FindDatapath(datapath) is not { } current || current.Vdi != row.Vdi || current.Sr != row.Sr)
            return;
        OperationsFor(current, VdiState.Detached);
        try
        {
            await RepairAsync(dbg, row.Sr, row.Vdi, cancellationToken);
            await TakeDownAsync(dbg, current, cancellationToken);
        }
        catch (StorageException)
        {
            Leak(current, allowLeak);
            if (!allowLeak)
                throw;
        }
    }

    /// <summary>Every datapath that is not detached, by SR and VDI.</summary>
    public IReadOnlyList<DatapathRow> Datapaths() => state.Datapaths();

    /// <summary>The superstate of a VDI, and each datapath's state.</summary>
    public (VdiState Superstate, IReadOnlyList<DatapathRow> Datapaths) DpStatVdi(SrId sr, VdiId vdi)
    {
        List<DatapathRow> rows = state.Datapaths(sr, vdi);
        return (VdiAutomaton.Superstate(rows.Select(static r => r.State)), rows);
    }

    /// <summary>What attach answered; only while the datapath is activated.</summary>
    public Backend DpAttachInfo(SrId sr, VdiId vdi, DatapathId datapath)
    {
        DatapathRow? row = state.FindDatapath(datapath);
        if (row is null || row.Sr != sr || row.Vdi != vdi || row.State.Phase != VdiPhase.Activated)
            throw StorageException.Internal($"datapath {datapath} of VDI {vdi} is not activated: {row?.State ?? VdiState.Detached}");
        return state.FindVdi(sr, vdi)?.Backend ?? throw StorageException.Internal($"nothing is known of the attach of VDI {vdi}");
    }

    private async Task PerformAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, DatapathOperation operation, CancellationToken cancellationToken)
    {
        using IDisposable held = await VdiLocks(sr).TakeAsync(vdi.Value, $"{operation} of {datapath} ({dbg})", cancellationToken);
        Attached(sr);
        await SettleAsync(dbg, sr, vdi, cancellationToken);
        DatapathRow? known = state.FindDatapath(datapath);
        if (known is not null && (known.Sr != sr || known.Vdi != vdi))
            throw StorageException.Internal($"{known} is on VDI {known.Vdi} of SR {known.Sr}; a datapath has one VDI");
        known ??= new DatapathRow(datapath, sr, vdi, vm, VdiState.Detached) { Since = time.GetUtcNow() };
        await StepAsync(dbg, known, operation, cancellationToken);
    }

    /// <summary>Repairs what a call without an answer left, then retries what leaked.</summary>
    private async Task SettleAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        await RepairAsync(dbg, sr, vdi, cancellationToken);
        foreach (DatapathRow leaked in state.Datapaths(sr, vdi).Where(static d => d.IsLeaked))
            await TakeDownAsync(dbg, leaked, cancellationToken);
    }

    private async Task TakeDownAsync(string dbg, DatapathRow row, CancellationToken cancellationToken)
    {
        DatapathRow attached = await StepAsync(dbg, row, DatapathOperation.Deactivate, cancellationToken);
        await StepAsync(dbg, attached, DatapathOperation.Detach, cancellationToken);
    }

    private void Leak(DatapathRow row, bool allowLeak)
    {
        DatapathRow now = state.FindDatapath(row.Datapath) ?? row;
        if (!allowLeak)
        {
            state.Save(now with { IsLeaked = true });
            return;
        }

        // The datapath goes; the backend may still be up, so the VDI says "maybe" until a repair has taken it to what is left.
        DatapathRow gone = now with { State = VdiState.Detached };
        if (state.FindVdi(row.Sr, row.Vdi) is { } vdi)
            state.SaveTogether(vdi with { IsUnsettled = true }, gone);
        else
            state.Save(gone);
    }

    private async Task<DatapathRow> StepAsync(string dbg, DatapathRow row, DatapathOperation operation, CancellationToken cancellationToken)
    {
        VdiState next = VdiAutomaton.Apply(row.State, operation);
        (VdiState before, VdiState after, IReadOnlyList<BackendOperation> operations) = OperationsFor(row, next);
        DatapathRow stepped = row with { State = next };
        VdiRow vdi = state.FindVdi(row.Sr, row.Vdi) ?? new VdiRow(row.Sr, row.Vdi, VdiState.Detached, false, row.Datapath, row.Vm, null);
        // The backend's whole life is under the name of the datapath that attached it: a plugin tells users apart by it.
        if (before.Phase == VdiPhase.Detached)
            vdi = vdi with { Datapath = row.Datapath, Vm = row.Vm };
        if (operations.Count != 0)
            vdi = await CallBackendAsync(dbg, vdi, operations, after, cancellationToken);
        state.SaveTogether(vdi, stepped);
        updates.Add(Changed.Dp(row.Datapath));
        return stepped;
    }

    /// <summary>What the backend must do so that the datapath may stand there.</summary>
    /// <exception cref="StorageException">VDI_IN_USE: other datapaths hold the VDI in a way that the field has no step from.</exception>
    private (VdiState Before, VdiState After, IReadOnlyList<BackendOperation> Operations) OperationsFor(DatapathRow row, VdiState next)
    {
        List<DatapathRow> others = state.Datapaths(row.Sr, row.Vdi).Where(d => d.Datapath != row.Datapath).ToList();
        VdiState before = VdiAutomaton.Superstate(others.Select(static d => d.State).Append(row.State));
        VdiState after = VdiAutomaton.Superstate(others.Select(static d => d.State).Append(next));
        return (before, after, VdiAutomaton.Operations(before, after) ?? throw InUse(row.Vdi, $"{row.State} to {next}", others));
    }

    private async Task RepairAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        if (state.FindVdi(sr, vdi) is not { IsUnsettled: true } row)
            return;
        VdiState wanted = VdiAutomaton.Superstate(state.Datapaths(sr, vdi).Select(static d => d.State));
        state.Save(await CallBackendAsync(dbg, row, VdiAutomaton.Repair(wanted), wanted, cancellationToken));
    }

    /// <returns>The settled row, not yet saved.</returns>
    private async Task<VdiRow> CallBackendAsync(
        string dbg, VdiRow vdi, IReadOnlyList<BackendOperation> operations, VdiState target, CancellationToken cancellationToken)
    {
        IStorageBackend backend = BackendOf(Registered(vdi.Sr));
        bool wasUnsettled = vdi.IsUnsettled;
        state.Save(vdi with { IsUnsettled = true });
        try
        {
            foreach (BackendOperation operation in operations)
                vdi = await CallBackendAsync(dbg, backend, vdi, operation, target.Access, cancellationToken);
        }
        catch (StorageException e) when (!e.IsOutcomeUnknown && !wasUnsettled && operations.Count == 1)
        {
            state.Save(vdi); // A clear no to a single call: as it was.
            throw Named(e, vdi.Sr, vdi.Vdi, operations[0].ToString());
        }

        return vdi with { State = target, IsUnsettled = false };
    }

    private static async Task<VdiRow> CallBackendAsync(
        string dbg, IStorageBackend backend, VdiRow vdi, BackendOperation operation, VdiAccess access, CancellationToken cancellationToken)
    {
        switch (operation)
        {
            case BackendOperation.Attach:
                return vdi with
                {
                    Backend =
                    await backend.VdiAttachAsync(dbg, vdi.Datapath, vdi.Sr, vdi.Vdi, vdi.Vm, access, cancellationToken)
                };
            case BackendOperation.Activate:
                await backend.VdiActivateAsync(dbg, vdi.Datapath, vdi.Sr, vdi.Vdi, vdi.Vm, access, cancellationToken);
                return vdi;
            case BackendOperation.Deactivate:
                await backend.VdiDeactivateAsync(dbg, vdi.Datapath, vdi.Sr, vdi.Vdi, vdi.Vm, cancellationToken);
                return vdi;
            default:
                await backend.VdiDetachAsync(dbg, vdi.Datapath, vdi.Sr, vdi.Vdi, vdi.Vm, cancellationToken);
                return vdi with { Backend = null };
        }
    }
}
