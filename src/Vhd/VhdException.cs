namespace Vhd;

/// <summary>What is wrong with an image or a chain.</summary>
public enum VhdError
{
    /// <summary>No such file, or it cannot be opened (permission, a folder, a FIFO).</summary>
    CannotOpen,

    /// <summary>A new file cannot be written: no such folder, no permission, no space.</summary>
    CannotWrite,

    /// <summary>The target of a create, snapshot or export is there already; it was left alone.</summary>
    AlreadyExists,

    /// <summary>Neither the trailing footer nor its copy is a VHD footer.</summary>
    NotAnImage,

    /// <summary>A structure of the image is wrong: checksum, BAT entry, truncation.</summary>
    Damaged,

    /// <summary>A legal or possible image that we do not serve: version, size, block size, type.</summary>
    Unsupported,

    /// <summary>A differencing image whose parent cannot be found.</summary>
    ParentMissing,

    /// <summary>The parent that was found is not the one the child was made from.</summary>
    ParentMismatch,

    /// <summary>The chain comes back to itself.</summary>
    Loop,

    /// <summary>More links than <see cref="VhdChain.MaxDepth"/>.</summary>
    TooDeep,

    /// <summary>A parent lies outside of the folder that the caller allows.</summary>
    OutsideRoot,

    /// <summary>What the caller asks for cannot be made: a size, a name.</summary>
    BadRequest,
}

/// <summary>An image was refused. The message names the file, what is wrong, where, and what to do; nothing was changed.</summary>
public sealed class VhdException : IOException
{
    public VhdException(VhdError error, string path, string message, Exception? innerException = null)
        : base($"{path}: {message}", innerException)
    {
        Error = error;
        Path = path;
    }

    public VhdError Error { get; }

    /// <summary>The file that is wrong, which may be a parent of the one asked for.</summary>
    public string Path { get; }
}
