namespace Vhd;

/// <summary>What an image says about itself, without its parents being opened.</summary>
public sealed record VhdInfo
{
    public required string Path { get; init; }

    public required VhdType Type { get; init; }

    public required long VirtualSizeBytes { get; init; }

    /// <summary>The file's length; holes count.</summary>
    public required long PhysicalSizeBytes { get; init; }

    public required Guid Uuid { get; init; }

    /// <summary>An inner node of a tree: not a disk of anybody's, material for the garbage collector.</summary>
    public required bool IsHidden { get; init; }

    /// <summary>Four characters, trailing NULs and blanks cut.</summary>
    public required string Creator { get; init; }

    public required string CreatorVersion { get; init; }

    public required DateTimeOffset CreatedAt { get; init; }

    /// <summary>0 for a fixed image.</summary>
    public required int BlockBytes { get; init; }

    public required int AllocatedBlocks { get; init; }

    /// <summary>The largest size that the block table has room for; the virtual size for a fixed image.</summary>
    public required long MaxSizeBytes { get; init; }

    /// <summary>Null when the image has no parent, or a raw one (<see cref="HasRawParent"/>).</summary>
    public required Guid? ParentUuid { get; init; }

    public required bool HasRawParent { get; init; }

    /// <summary>The parent's file name as the child remembers it; null without a parent.</summary>
    public required string? ParentName { get; init; }

    /// <summary>Where the parent was found; null without a parent, and when it is missing or another image.</summary>
    public required string? ParentPath { get; init; }

    /// <summary>Wrong, but not wrong enough to refuse the image: a bad trailing footer, a bad batmap.</summary>
    public required IReadOnlyList<string> Warnings { get; init; }

    /// <summary>A byte of the batmap's header that its writer may use as it likes; 0 where there is no batmap.</summary>
    public byte Marker { get; init; }

    /// <summary>The hash of the key that the data is encrypted with. Such a disk is not served here.</summary>
    public VhdKeyHash? Key { get; init; }
}
