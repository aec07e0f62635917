namespace StorageAccess.Tap;

/// <summary>How a disk is to be opened. What a tapdisk cannot do it refuses; nothing is left out in silence.</summary>
/// <param name="Arguments"><c>vhd:/path</c> or <c>aio:/path</c>.</param>
public sealed record TapOpening(string Arguments)
{
    public TapOpenFlags Flags { get; init; }

    /// <summary>A mirror's target in the field's spelling (<c>nbd:…</c>), or null.</summary>
    public string? Secondary { get; init; }

    /// <summary>The minor whose image is this one's parent, or null.</summary>
    public int? ParentMinor { get; init; }

    /// <summary>0 to 65535; 0 for the tapdisk's own.</summary>
    public int RequestTimeoutSeconds { get; init; }

    /// <summary>A changed-block log that the tapdisk is to keep, or null.</summary>
    public string? LogPath { get; init; }

    /// <summary>The key that the image's data is encrypted with, 32 or 64 bytes, or null. The caller clears it.</summary>
    public byte[]? Key { get; init; }
}
