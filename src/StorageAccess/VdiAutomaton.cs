// The VDI automaton as pure functions: where one datapath may go, what all datapaths of a VDI amount to together (the superstate), and which
// backend operations lead from one superstate to another. Agrees with research/storage.md 2.3, table by table.
namespace StorageAccess;

/// <summary>What a datapath's owner asks for.</summary>
public enum DatapathOperation
{
    AttachReadOnly,
    AttachReadWrite,
    Activate,
    Deactivate,
    Detach,
}

/// <summary>What the backend is made to do when the superstate changes.</summary>
public enum BackendOperation
{
    Attach,
    Activate,
    Deactivate,
    Detach,
}

public static class VdiAutomaton
{
    /// <summary>Where one datapath stands after an operation. Repeating an operation changes nothing.</summary>
    /// <exception cref="StorageException">Illegal_transition: the field's table has no such step.</exception>
    public static VdiState Apply(VdiState now, DatapathOperation operation) => (now.Phase, operation) switch
    {
        (VdiPhase.Detached, DatapathOperation.AttachReadOnly) => new(VdiPhase.Attached, VdiAccess.ReadOnly),
        (VdiPhase.Detached, DatapathOperation.AttachReadWrite) => new(VdiPhase.Attached, VdiAccess.ReadWrite),
        (VdiPhase.Detached, DatapathOperation.Activate) =>
            throw StorageException.IllegalTransition(now, new(VdiPhase.Activated, now.Access), "activate needs an attached datapath"),
        (VdiPhase.Detached, _) => now,
        (_, DatapathOperation.AttachReadWrite) when now.Access == VdiAccess.ReadOnly =>
            throw StorageException.IllegalTransition(
                now, now with { Access = VdiAccess.ReadWrite }, "the datapath is attached read-only; detach it before attaching it writable"),
        (_, DatapathOperation.AttachReadOnly or DatapathOperation.AttachReadWrite) => now,
        (_, DatapathOperation.Activate) => now with { Phase = VdiPhase.Activated },
        (_, DatapathOperation.Deactivate) => now with { Phase = VdiPhase.Attached },
        (VdiPhase.Attached, DatapathOperation.Detach) => VdiState.Detached,
        (VdiPhase.Activated, DatapathOperation.Detach) =>
            throw StorageException.IllegalTransition(now, VdiState.Detached, "deactivate the datapath before detaching it"),
        _ => throw new ArgumentOutOfRangeException(nameof(operation)),
    };

    /// <summary>All datapaths of one VDI together: as far as the furthest of them, writable when any of them is.</summary>
    public static VdiState Superstate(IEnumerable<VdiState> datapaths)
    {
        VdiState all = VdiState.Detached;
        foreach (VdiState one in datapaths)
        {
            if (one.Phase == VdiPhase.Detached)
                continue;
            VdiAccess access = all.Phase != VdiPhase.Detached && all.Access == VdiAccess.ReadWrite ? VdiAccess.ReadWrite : one.Access;
            all = new VdiState(one.Phase > all.Phase ? one.Phase : all.Phase, access);
        }

        return all;
    }

    /// <summary>The backend operations, in order, between two superstates; null when the field has no way (read-only to writable or back).</summary>
    public static IReadOnlyList<BackendOperation>? Operations(VdiState from, VdiState to)
    {
        bool bothUp = from.Phase != VdiPhase.Detached && to.Phase != VdiPhase.Detached;
        if (bothUp && from.Access != to.Access)
            return null;
        List<BackendOperation> operations = [];
        if (to.Phase > from.Phase)
        {
            if (from.Phase == VdiPhase.Detached)
                operations.Add(BackendOperation.Attach);
            if (to.Phase == VdiPhase.Activated)
                operations.Add(BackendOperation.Activate);
        }
        else if (to.Phase < from.Phase)
        {
            if (from.Phase == VdiPhase.Activated)
                operations.Add(BackendOperation.Deactivate);
            if (to.Phase == VdiPhase.Detached)
                operations.Add(BackendOperation.Detach);
        }

        return operations;
    }

    /// <summary>Idempotent operations that bring a backend of unknown state (a call got no answer) to a superstate.</summary>
    public static IReadOnlyList<BackendOperation> Repair(VdiState to) => to.Phase switch
    {
        VdiPhase.Detached => [BackendOperation.Deactivate, BackendOperation.Detach],
        VdiPhase.Attached => [BackendOperation.Attach, BackendOperation.Deactivate],
        _ => [BackendOperation.Attach, BackendOperation.Activate],
    };
}
