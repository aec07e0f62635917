// The seam under the format: every byte of an image goes through these two interfaces, so that a test can put a disk under it that loses,
// reorders and tears whatever was not synced (tests/Support/SimulatedDisk.cs).
namespace Vhd;

/// <summary>One open image file. Positional, no cursor; safe for calls from several threads.</summary>
internal interface IVhdFile : IDisposable
{
    /// <summary>Where it really is, symbolic links resolved.</summary>
    string CanonicalPath { get; }

    long LengthBytes { get; }

    DateTimeOffset ModifiedAt { get; }

    /// <summary>Reads as much as there is; less than asked only at the end of the file.</summary>
    int Read(long offsetBytes, Span<byte> destination);

    /// <summary>Survives the process at return; extends the file with zeros when it begins past the end.</summary>
    void Write(long offsetBytes, ReadOnlySpan<byte> source);

    /// <summary>The range, which lies inside the file, reads as zeros; it costs no space where the filesystem can punch holes.</summary>
    void Zero(long offsetBytes, long lengthBytes);

    void SetLength(long lengthBytes);

    /// <summary>Where the data of the file ends, at the grain of its holes: zeros follow up to its length.</summary>
    long DataEndBytes();

    /// <summary>All that was done before the call survives a loss of power at return.</summary>
    void Sync();
}

/// <summary>Where image files live.</summary>
internal interface IVhdStore
{
    /// <exception cref="Platform.BlockIoException">ENOENT, EACCES, EINVAL when it is not a regular file.</exception>
    IVhdFile Open(string path, bool isWritable);

    bool Exists(string path);

    /// <summary>A new, empty file; fails when the name is taken.</summary>
    /// <param name="reserveBytes">Space the file must be given now, so that later writes cannot run out of it; 0 for none.</param>
    IVhdFile Create(string path, long reserveBytes);

    /// <summary>Gives a finished, synced file its final name, durably; fails when that name is taken.</summary>
    void Publish(string temporaryPath, string path);

    void Delete(string path);

    /// <summary>The names in a folder, without its path.</summary>
    IReadOnlyList<string> NamesIn(string folder);

    /// <summary>A second name for a file; fails when it is taken.</summary>
    void Link(string existingPath, string path);

    /// <summary>Gives a file another name, in the place of what had it. At every moment the name leads to the one or the other.</summary>
    void Rename(string fromPath, string toPath);

    /// <summary>Names that were made, changed or removed before the call survive a loss of power at return.</summary>
    void SyncFolder(string folder);
}
