// The nouns of SMAPIv2, with the field's names and defaults (research: storage.md 1.3).
namespace StorageAccess;

/// <summary>An SR's uuid.</summary>
public readonly record struct SrId(string Value)
{
    public override string ToString() => Value;
}

/// <summary>A VDI's location inside its SR: what the driver or plugin calls the disk.</summary>
public readonly record struct VdiId(string Value)
{
    public override string ToString() => Value;
}

/// <summary>A datapath: one user of one VDI, for example <c>vbd/3/xvda</c>.</summary>
public readonly record struct DatapathId(string Value)
{
    public override string ToString() => Value;
}

public sealed record VdiInfo
{
    public required VdiId Vdi { get; init; }

    public string Uuid { get; init; } = "";

    public string ContentId { get; init; } = "";

    public string NameLabel { get; init; } = "";

    public string NameDescription { get; init; } = "";

    /// <summary>The wire name is <c>ty</c>.</summary>
    public string Type { get; init; } = "user";

    public bool IsASnapshot { get; init; }

    public string SnapshotTime { get; init; } = "19700101T00:00:00Z";

    public string SnapshotOf { get; init; } = "";

    public bool ReadOnly { get; init; }

    public bool Sharable { get; init; }

    public bool CbtEnabled { get; init; }

    public IReadOnlyList<string> Tags { get; init; } = [];

    public long VirtualSizeBytes { get; init; }

    public long PhysicalUtilisationBytes { get; init; }

    public IReadOnlyDictionary<string, string> SmConfig { get; init; } = new Dictionary<string, string>();
}

public sealed record SrInfo(string Uuid, string NameLabel, string NameDescription, long TotalSpaceBytes, long FreeSpaceBytes,
    bool Clustered, string Health);

public sealed record SrScan(IReadOnlyList<VdiInfo> Vdis, SrInfo Info);

/// <summary>The answer of SR.probe: text that SMAPIv1 drivers lay out as they like, or a list.</summary>
public abstract record ProbeResult;

/// <param name="Xml">An XML document, for a person or a client that knows the driver.</param>
public sealed record RawProbe(string Xml) : ProbeResult;

public sealed record ProbeList(IReadOnlyList<ProbedSr> Found) : ProbeResult;

/// <param name="Complete">The configuration is enough to attach or create an SR with.</param>
/// <param name="Sr">Null when there is no SR there yet.</param>
public sealed record ProbedSr(
    IReadOnlyDictionary<string, string> Configuration, bool Complete, SrInfo? Sr, IReadOnlyDictionary<string, string> ExtraInfo);

/// <summary>What <c>Query.query</c> tells of a driver or plugin. Features are names, without versions.</summary>
public sealed record QueryResult(
    string Driver,
    string Name,
    string Description,
    string Vendor,
    string Version,
    string RequiredApiVersion,
    IReadOnlyList<string> Features,
    IReadOnlyDictionary<string, string> Configuration,
    string SmapiVersion);

/// <summary>Work of a data plane that goes on by itself: <c>MirrorV1</c> or <c>CopyV1</c>, and whose it is.</summary>
public sealed record DataOperation(string Kind, string Key);

/// <param name="IsComplete">Everything is copied; a mirror goes on all the same.</param>
/// <param name="Progress">0 to 1, or null when the plane does not say.</param>
public sealed record DataStatus(bool HasFailed, bool IsComplete, double? Progress);

/// <summary>One of the ways in which an attached VDI can be reached; the consumer picks.</summary>
public abstract record Implementation;

public sealed record XenDisk(string Params, IReadOnlyDictionary<string, string> Extra, string BackendType) : Implementation;

public sealed record BlockDevicePath(string Path) : Implementation;

public sealed record FilePath(string Path) : Implementation;

/// <summary>The field's spelling: <c>nbd:unix:SOCKET:exportname=NAME</c>.</summary>
public sealed record NbdImplementation(string Uri) : Implementation;

/// <summary>The answer of VDI.attach3.</summary>
public sealed record Backend(IReadOnlyList<Implementation> Implementations)
{
    /// <summary>The NBD way in, or null.</summary>
    public NbdImplementation? Nbd => Implementations.OfType<NbdImplementation>().FirstOrDefault(static i => i.Uri.Length != 0);
}

public enum VdiAccess
{
    ReadOnly,
    ReadWrite,
}

public enum VdiPhase
{
    Detached,
    Attached,
    Activated,
}

/// <summary>Where one datapath stands, or (the superstate) all datapaths of a VDI together. Access means nothing when detached.</summary>
public readonly record struct VdiState(VdiPhase Phase, VdiAccess Access)
{
    public static VdiState Detached => default;

    /// <summary>The field's spelling: <c>Activated(RW)</c>.</summary>
    public override string ToString() =>
        Phase == VdiPhase.Detached ? "Detached" : $"{Phase}({(Access == VdiAccess.ReadWrite ? "RW" : "RO")})";
}

/// <summary>One row of the datapath table, as DP diagnostics shows it.</summary>
public sealed record DatapathRow(DatapathId Datapath, SrId Sr, VdiId Vdi, string Vm, VdiState State)
{
    /// <summary>Its destruction failed; it is tried again before the next operation on the VDI.</summary>
    public bool IsLeaked { get; init; }

    /// <summary>When it was first attached.</summary>
    public DateTimeOffset Since { get; init; }

    public override string ToString() =>
        $"datapath {Datapath} of VM {Vm}, {State}{(IsLeaked ? ", leaked" : "")}, since {Since:yyyyMMddTHH:mm:ssZ}";
}
