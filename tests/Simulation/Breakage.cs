namespace Simulation;

/// <summary>
/// An ordering rule that is broken on purpose, in the ports or the journal around the product's code: each must be found by the oracle, or the oracle
/// is blind there.
/// </summary>
public enum Breakage
{
    None,

    /// <summary>The destination answers a grant before its Accepting record is durable.</summary>
    AcceptingIsNotDurable,

    /// <summary>The destination accepts while the source can still write to its disks.</summary>
    ExportsStayOpen,

    /// <summary>An export of an earlier attempt still takes writes.</summary>
    OldExportsLive,

    /// <summary>The source takes a lost answer to its grant for a refusal.</summary>
    SilenceIsRefusal,

    /// <summary>The source grants with a copy that is only paused.</summary>
    FreezeSkipped,

    /// <summary>The source's copy is destroyed before the destination is known to own the VM.</summary>
    FreezeDestroys,

    /// <summary>A restarted source does not read what it wrote last.</summary>
    JournalTailIgnored,

    /// <summary>VM.start does not ask who owns the VM.</summary>
    OwnershipNotAsked,

    /// <summary>A mirror says that it is in sync while chunks are dirty, and finishes so.</summary>
    DirtyIsSynced,

    /// <summary>What was written and not flushed when a connection broke counts as equal.</summary>
    UnflushedForgotten,

    /// <summary>A mirror is finished without a flush of the target.</summary>
    FinishedWithoutAFlush,

    /// <summary>The destination says whatever digests the source has.</summary>
    DigestEchoed,

    /// <summary>A grant that comes again starts the loaded memory again.</summary>
    RunStartsAgain,

    /// <summary>The witness gives each who asks what he proposes.</summary>
    WitnessForgets,

    /// <summary>The destination's patience is used after it accepted.</summary>
    PatienceAfterAccepting,

    /// <summary>Disks that were to be held are destroyed.</summary>
    HoldDestroys,

    /// <summary>The VM is recalled without the destination having given it up.</summary>
    RecalledWithoutAsking,

    /// <summary>The destination makes things before its journal names them.</summary>
    MakingIsNotDurable,

    /// <summary>A guest counts as stopped while its writes are under way.</summary>
    StopDoesNotDrain,

    /// <summary>The destination confirms without having let go of what only the transfer needed.</summary>
    ReleaseSkipped,
}
