namespace Vhd.Collect;

/// <summary>What would mend a finding without a guess.</summary>
public enum Mend
{
    /// <summary>Nothing that is safe: the finding says what a person may do.</summary>
    None,

    /// <summary>Taking the folder's lock: its holder finishes or undoes what journals name.</summary>
    Finish,

    /// <summary><see cref="VhdRepair"/>, while nobody has the image open.</summary>
    Repair,

    /// <summary>The image that the child was made from is in the folder, under another name.</summary>
    SetParent,

    /// <summary>Nobody is its child, and every other image can be read.</summary>
    Delete,
}

/// <summary>One thing that is wrong.</summary>
/// <param name="Key">The image; empty for the folder as a whole.</param>
/// <param name="Target">For <see cref="Mend.SetParent"/>, the parent that was found.</param>
public sealed record ChainFinding(VhdSeverity Severity, string Key, string Message, Mend Mend, string Target = "");

/// <summary>One image of a report, in the order of the trees: a parent before its children.</summary>
/// <param name="AllocatedBytes">Blocks that the image has, whether or not it holds all of them.</param>
/// <param name="OpenBy">Processes.</param>
public sealed record ChainImage(
    string Key,
    string? Parent,
    int Depth,
    long VirtualSizeBytes,
    long FileBytes,
    long AllocatedBytes,
    bool IsHidden,
    bool IsLeased,
    IReadOnlyList<string> OpenBy);

/// <param name="Steps">What a collector would do, were nobody in its way.</param>
/// <param name="FreesBytes">About what that frees: files that go, and blocks that both sides of a merge have.</param>
public sealed record ChainReport(
    string Folder,
    IReadOnlyList<ChainImage> Images,
    IReadOnlyList<ChainFinding> Findings,
    IReadOnlyList<CollectStep> Steps,
    IReadOnlyDictionary<string, string> PutOff,
    long FreesBytes);
