// Giving a differencing image another parent. Search takes the first stored path whose file has the uuid in the header, so the order
// below leaves a good path for the uuid at every moment: second and third locator, header, first locator, a sync after each
// (ParentSearch.cs).
using Platform;

namespace Vhd;

internal static class ParentChange
{
    public static void Apply(IVhdStore store, string childPath, string parentPath, bool isParentRaw)
    {
        using IVhdFile child = VhdLayer.OpenFile(store, childPath, isWritable: true);
        VhdMetadata metadata = VhdMetadata.Read(child, childPath, isHeaderChecked: false);
        if (metadata.Footer.Type != VhdType.Differencing)
            throw new VhdException(VhdError.BadRequest, childPath, "only a differencing image has a parent to be set; nothing was changed");
        using ParentFacts parent = ParentFacts.Read(store, parentPath, isParentRaw);
        if (parent.CanonicalPath == child.CanonicalPath)
            throw new VhdException(VhdError.Loop, childPath, "an image cannot be its own parent; nothing was changed");
        VhdHeader old = metadata.Header!;
        VhdHeader renewed = parent.Renew(childPath, child, old);
        IReadOnlyList<ParentLocator> locators = renewed.Locators;
        for (int i = 1; i < locators.Count; i++)
            parent.WriteLocator(child, locators[i]);
        child.Sync();
        WriteHeader(child, metadata.Footer.DataOffsetBytes, renewed.ToBytes());
        parent.WriteLocator(child, locators[0]);
        child.Sync();
    }

    private static void WriteHeader(IVhdFile child, long offsetBytes, byte[] header)
    {
        byte[] stored = new byte[header.Length];
        _ = child.Read(offsetBytes, stored);
        // Names of the same length change the first sector only, which is atomic.
        bool isOneSector = header.AsSpan(VhdFooter.SectorBytes).SequenceEqual(stored.AsSpan(VhdFooter.SectorBytes));
        child.Write(offsetBytes, isOneSector ? header.AsSpan(0, VhdFooter.SectorBytes) : header);
        child.Sync();
    }
}

/// <summary>What a child remembers of its parent. Holds the parent open while the child is written.</summary>
internal sealed class ParentFacts : IDisposable
{
    private static readonly uint[] Codes = [ParentLocator.Macx, ParentLocator.W2ku, ParentLocator.W2ru];

    private readonly IVhdFile file;
    private readonly Guid uuid;
    private string relativePath = "";

    private ParentFacts(IVhdFile file, Guid uuid, long sizeBytes)
    {
        this.file = file;
        this.uuid = uuid;
        SizeBytes = sizeBytes;
    }

    public long SizeBytes { get; }

    public string CanonicalPath => file.CanonicalPath;

    public static ParentFacts Read(IVhdStore store, string path, bool isRaw)
    {
        IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: false);
        try
        {
            if (isRaw)
                return new ParentFacts(file, Guid.Empty, file.LengthBytes / VhdFooter.SectorBytes * VhdFooter.SectorBytes);
            VhdFooter footer = VhdMetadata.Read(file, path).Footer;
            return footer.Uuid != Guid.Empty
                ? new ParentFacts(file, footer.Uuid, footer.CurrentSizeBytes)
                : throw new VhdException(VhdError.Unsupported, path, "it has no uuid, and a child could not tell it from a raw parent");
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Stores the parent's path in a new child, one after the other from an offset.</summary>
    /// <returns>The header that names them, and the first free byte after them.</returns>
    public (VhdHeader Header, long EndBytes) WriteLocators(IVhdFile child, VhdHeader header, long offsetBytes)
    {
        relativePath = ParentLocator.RelativePath(child.CanonicalPath, file.CanonicalPath);
        List<ParentLocator> locators = [];
        foreach (uint code in Codes)
        {
            uint length = (uint)ParentLocator.Encode(code, relativePath).Length;
            uint space = (length + 511) / 512 * 512;
            ParentLocator locator = new(code, space, length, offsetBytes);
            WriteLocator(child, locator);
            locators.Add(locator);
            offsetBytes += space;
        }

        return (Named(header, locators), offsetBytes);
    }

    /// <summary>The child's header with this parent, its locators in the places they have.</summary>
    public VhdHeader Renew(string childPath, IVhdFile child, VhdHeader header)
    {
        relativePath = ParentLocator.RelativePath(child.CanonicalPath, file.CanonicalPath);
        List<ParentLocator> locators = [];
        foreach (uint code in Codes)
        {
            ParentLocator stored = header.Locators.FirstOrDefault(locator => locator.Code == code);
            uint length = (uint)ParentLocator.Encode(code, relativePath).Length;
            bool isInside = stored.OffsetBytes > 0 && stored.OffsetBytes <= child.LengthBytes - stored.SpaceBytes;
            if (isInside && length <= stored.SpaceBytes)
                locators.Add(stored with { LengthBytes = length });
        }

        if (locators.Count == 0)
            throw new VhdException(
                VhdError.BadRequest,
                childPath,
                $"the path {relativePath} does not fit into the room it has for a parent's path; nothing was changed");
        return Named(header, locators);
    }

    public void WriteLocator(IVhdFile child, ParentLocator locator)
    {
        byte[] stored = new byte[locator.SpaceBytes];
        ParentLocator.Encode(locator.Code, relativePath).CopyTo(stored, 0);
        child.Write(locator.OffsetBytes, stored);
    }

    public void Dispose() => file.Dispose();

    private VhdHeader Named(VhdHeader header, List<ParentLocator> locators) => header with
    {
        ParentUuid = uuid,
        ParentTimestamp = VhdFooter.TimestampOf(file.ModifiedAt),
        ParentName = Path.GetFileName(file.CanonicalPath),
        Locators = locators,
    };
}
