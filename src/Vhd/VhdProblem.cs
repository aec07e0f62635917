namespace Vhd;

public enum VhdSeverity
{
    /// <summary>Odd, legal, and nobody's harm.</summary>
    Note,

    /// <summary>Wrong, but the content is whole; <see cref="VhdRepair"/> mends it where it can be mended.</summary>
    Warning,

    /// <summary>The image is refused as it is.</summary>
    Error,
}

/// <summary>What can be wrong with an image that has content still.</summary>
public enum VhdFault
{
    /// <summary>The image as a whole is refused; the message says why.</summary>
    Refused,

    /// <summary>No footer at the end of the file.</summary>
    FooterMissing,

    FooterCopyDiffers,

    /// <summary>Not closed in order: the footer is not right behind the last block.</summary>
    NotClosed,

    BatmapBad,

    /// <summary>A block over metadata, over another block or outside of the file.</summary>
    BlockMisplaced,

    /// <summary>The last block is cut short; nothing in the cut is claimed.</summary>
    BlockCut,

    /// <summary>Table entries or bitmap bits beyond the end of the disk, which a later growth by other tools would show.</summary>
    BeyondEnd,

    /// <summary>The header is not at byte 512: a resize was cut short.</summary>
    HeaderMoved,

    NoUuid,

    GeometryTooLarge,

    FutureTimestamp,

    /// <summary>The parent's file was modified at another time than the child remembers.</summary>
    ParentTimestamp,

    /// <summary>The parent is missing, another image, or not allowed.</summary>
    Parent,
}

/// <summary>One thing that is wrong with an image.</summary>
/// <param name="OffsetBytes">Where in the file; -1 when nowhere in particular.</param>
public sealed record VhdProblem(VhdSeverity Severity, VhdFault Fault, string Path, string Message, long OffsetBytes);
