// From a child to its parent's file. The paths stored in a child are untrusted: each is only a candidate, is taken when it is inside of the
// allowed folder (symbolic links resolved), and, unless the parent is raw, when its uuid is the one that the child was made from. A raw
// parent (uuid zero) is never probed for a format: its first bytes are a guest's.
using Platform;

namespace Vhd;

/// <summary>A parent that was found.</summary>
internal readonly record struct FoundParent(string Path, bool IsRaw);

internal sealed class ParentSearch(IVhdStore store, IVhdFile child, string childPath, VhdMetadata metadata, string? rootDirectory)
{
    private readonly List<string> tried = [];
    private bool sawOutside;
    private bool sawOther;

    public FoundParent Find()
    {
        bool isRaw = metadata.Header!.ParentUuid == Guid.Empty;
        foreach (string candidate in Candidates())
        {
            string path = Path.GetFullPath(candidate, Path.GetDirectoryName(child.CanonicalPath)!);
            if (tried.Any(line => line.StartsWith(path + " ", StringComparison.Ordinal)))
                continue;
            if (Accepts(path, isRaw) is { } canonical)
                return new FoundParent(canonical, isRaw);
        }

        (VhdError error, string what) = sawOther ? (VhdError.ParentMismatch, "its parent is another image than the one it was made from")
            : sawOutside ? (VhdError.OutsideRoot, "its parent is outside of the allowed folder")
            : (VhdError.ParentMissing, "its parent is missing");
        throw new VhdException(
            error,
            childPath,
            $"{what} (parent '{metadata.Header.ParentName}'; tried: {string.Join("; ", tried)}); "
            + "put the parent back or set the right one (vhd-util modify -p)");
    }

    private IEnumerable<string> Candidates()
    {
        foreach (ParentLocator locator in metadata.Header!.Locators)
        {
            bool hasLength = locator.LengthBytes is > 0 and <= ParentLocator.MaxPathBytes && locator.LengthBytes <= locator.SpaceBytes;
            if (!hasLength || locator.OffsetBytes < 0)
                continue;
            byte[] stored = new byte[locator.LengthBytes];
            if (child.Read(locator.OffsetBytes, stored) == stored.Length && locator.Decode(stored) is { } path)
                yield return path;
        }

        string name = metadata.Header.ParentName;
        if (name.Length > 0 && !name.Contains('/', StringComparison.Ordinal) && !name.Contains('\\', StringComparison.Ordinal))
            yield return "./" + name;
    }

    private string? Accepts(string path, bool isRaw)
    {
        if (!IsInside(path))
            return Refuse(path, "outside of " + rootDirectory, ref sawOutside);
        bool ignored = false;
        try
        {
            using IVhdFile file = store.Open(path, isWritable: false);
            if (!IsInside(file.CanonicalPath))
                return Refuse(path, "leads outside of " + rootDirectory, ref sawOutside);
            if (isRaw)
                return file.CanonicalPath;
            Guid uuid = VhdMetadata.ReadFooter(file, path).Uuid;
            return uuid == metadata.Header!.ParentUuid
                ? file.CanonicalPath
                : Refuse(path, $"has uuid {uuid}, the parent had {metadata.Header.ParentUuid}", ref sawOther);
        }
        catch (BlockIoException e) when (e.Errno is Errno.ENOENT)
        {
            return Refuse(path, "is not there", ref ignored);
        }
        catch (BlockIoException e)
        {
            return Refuse(path, e.Message, ref ignored);
        }
    }

    private bool IsInside(string path) =>
        rootDirectory is null || path.StartsWith(rootDirectory.TrimEnd('/') + "/", StringComparison.Ordinal);

    private string? Refuse(string path, string why, ref bool flag)
    {
        tried.Add($"{path} {why}");
        flag = true;
        return null;
    }
}
