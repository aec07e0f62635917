// Who may run a VM. Every path that can make a domain run asks this first (research: xenopsd.md 10.2, I1).
namespace Migration;

public enum Owner
{
    /// <summary>This pool runs it, or may.</summary>
    Here,

    /// <summary>Another pool does; a copy here is stale.</summary>
    Peer,

    /// <summary>A grant is out and its answer is not known: nobody may start it here.</summary>
    InDoubt,
}

/// <summary>One VM's ownership; the epoch only grows.</summary>
public sealed record Ownership(string Vm, long Epoch, Owner Owner, string Migration)
{
    /// <summary>What a source's record changes, or null.</summary>
    public static Ownership? After(SourceRecord record, MigrationPlan plan) => record switch
    {
        SourceRecord.Granting r => new(plan.Vm, r.Epoch, Owner.InDoubt, plan.Migration),
        SourceRecord.Accepted => new(plan.Vm, plan.Epoch + 1, Owner.Peer, plan.Migration),
        SourceRecord.Reclaimed r => new(plan.Vm, r.Epoch, Owner.Here, plan.Migration),
        SourceRecord.Recalled r => new(plan.Vm, r.Epoch, Owner.Here, plan.Migration),
        _ => null,
    };

    /// <summary>What a destination's record changes, or null. Until it accepts, the VM is the source's.</summary>
    public static Ownership? After(DestinationRecord record, MigrationPlan plan) => record switch
    {
        DestinationRecord.Claimed => new(plan.Vm, plan.Epoch, Owner.Peer, plan.Migration),
        DestinationRecord.Accepting r => new(plan.Vm, r.Epoch, Owner.Here, plan.Migration),
        DestinationRecord.Relinquished r => new(plan.Vm, r.Epoch, Owner.Peer, plan.Migration),
        _ => null,
    };
}
