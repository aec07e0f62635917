// Many images at once: what each says of itself, or why it is refused. One that is broken never stops the rest.
namespace Vhd;

/// <summary>One image of a scan.</summary>
/// <param name="Info">Null when the image is refused.</param>
/// <param name="Error">Null when it is not.</param>
public sealed record VhdScanEntry(string Path, VhdInfo? Info, VhdException? Error);

public static class VhdScan
{
    /// <summary>Reads each image when it is asked for, in the order given.</summary>
    public static IEnumerable<VhdScanEntry> Run(IEnumerable<string> paths) => paths.Select(Read);

    /// <summary>Every image of a folder, by name, and the ancestors that lie elsewhere.</summary>
    public static IEnumerable<VhdScanEntry> WithParents(IEnumerable<string> paths)
    {
        HashSet<string> seen = [];
        Queue<string> waiting = new(paths);
        while (waiting.TryDequeue(out string? path))
        {
            if (!seen.Add(System.IO.Path.GetFullPath(path)))
                continue;
            VhdScanEntry entry = Read(path);
            if (entry.Info is { ParentPath: { } parent, HasRawParent: false })
                waiting.Enqueue(parent);
            yield return entry;
        }
    }

    private static VhdScanEntry Read(string path)
    {
        try
        {
            return new VhdScanEntry(path, VhdImage.ReadInfo(path), null);
        }
        catch (VhdException e)
        {
            return new VhdScanEntry(path, null, e);
        }
    }
}
