// Everything that is wrong with an image, as data. Nothing is changed. The list is what the field's checker looks at
// (research/storage.md 8.5) and what our own reader warns of.
using Platform;

namespace Vhd;

public sealed record VhdCheckOptions
{
    /// <summary>Look at the images below as well.</summary>
    public bool WithParents { get; init; }

    /// <summary>When given, no parent is looked for outside of this folder.</summary>
    public string? RootDirectory { get; init; }

    public TimeProvider Time { get; init; } = TimeProvider.System;
}

public static class VhdCheck
{
    // Clocks of two hosts differ.
    private static readonly TimeSpan ClockSlack = TimeSpan.FromHours(1);

    /// <summary>Looks at an image that nobody writes to. Empty: it is valid.</summary>
    /// <exception cref="VhdException">CannotOpen only.</exception>
    public static IReadOnlyList<VhdProblem> Run(string path, VhdCheckOptions options) => Run(PosixStore.Instance, path, options);

    internal static IReadOnlyList<VhdProblem> Run(IVhdStore store, string path, VhdCheckOptions options)
    {
        List<VhdProblem> found = [];
        string? root = options.RootDirectory is null ? null : Posix.CanonicalFolder(options.RootDirectory);
        string? next = path;
        for (int depth = 0; next is not null; depth++)
        {
            if (depth == VhdChain.MaxDepth)
            {
                found.Add(Refused(VhdFault.Parent, path, $"the chain has more than {VhdChain.MaxDepth} images, or comes back to itself"));
                break;
            }

            next = CheckOne(store, next, options, root, found);
            if (!options.WithParents)
                break;
        }

        return found;
    }

    /// <returns>The parent, when it is an image that can be looked at.</returns>
    private static string? CheckOne(IVhdStore store, string path, VhdCheckOptions options, string? root, List<VhdProblem> found)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: false);
        VhdMetadata metadata;
        try
        {
            metadata = VhdMetadata.Inspect(file, path, found);
        }
        catch (VhdException e)
        {
            found.Add(Refused(VhdFault.Refused, path, e.Message[(e.Path.Length + 2)..]));
            return null;
        }

        CheckFooter(metadata, path, options.Time.GetUtcNow(), found);
        if (metadata.Header is null)
            return null;
        CheckBlocks(file, metadata, path, found);
        return metadata.Footer.Type == VhdType.Differencing ? CheckParent(store, file, metadata, path, root, found) : null;
    }

    private static void CheckFooter(VhdMetadata metadata, string path, DateTimeOffset now, List<VhdProblem> found)
    {
        VhdFooter footer = metadata.Footer;
        long at = metadata.TrailingFooterBytes;
        if (footer.Uuid == Guid.Empty)
            found.Add(new VhdProblem(VhdSeverity.Warning, VhdFault.NoUuid, path, "it has no uuid, so it cannot be a parent", at));
        uint geometry = footer.Geometry;
        long sectors = (geometry >> 16) * (long)((geometry >> 8) & 0xFF) * (geometry & 0xFF);
        if (sectors * VhdFooter.SectorBytes > footer.CurrentSizeBytes)
            found.Add(new VhdProblem(
                VhdSeverity.Warning, VhdFault.GeometryTooLarge, path, $"its geometry has {sectors} sectors, more than the disk", at));
        if (footer.CreatedAt > now + ClockSlack)
            found.Add(new VhdProblem(
                VhdSeverity.Note, VhdFault.FutureTimestamp, path, $"it was made in the future, at {footer.CreatedAt:u}", at));
        bool isWhole = !found.Exists(problem => problem.Path == path && problem.Fault is VhdFault.FooterMissing or VhdFault.BlockMisplaced);
        if (metadata.Header is not null && isWhole && !metadata.IsTidy)
            found.Add(new VhdProblem(
                VhdSeverity.Warning,
                VhdFault.NotClosed,
                path,
                $"its last writer did not close it: its blocks end at {metadata.DataEndBytes}",
                at));
    }

    private static void CheckBlocks(IVhdFile file, VhdMetadata metadata, string path, List<VhdProblem> found)
    {
        if (metadata.Footer.DataOffsetBytes != MetadataMove.HomeBytes)
            found.Add(new VhdProblem(
                VhdSeverity.Warning,
                VhdFault.HeaderMoved,
                path,
                $"its header is at byte {metadata.Footer.DataOffsetBytes}: a change of size was cut short",
                metadata.Footer.DataOffsetBytes));
        if (!found.Exists(static problem => problem.Fault == VhdFault.BlockMisplaced) && metadata.SpeaksBeyond(metadata.SizeBytes))
            found.Add(new VhdProblem(
                VhdSeverity.Warning,
                VhdFault.BeyondEnd,
                path,
                "its table or last bitmap speaks of something beyond the end of the disk",
                metadata.Header!.TableOffsetBytes));
    }

    private static string? CheckParent(
        IVhdStore store, IVhdFile file, VhdMetadata metadata, string path, string? root, List<VhdProblem> found)
    {
        try
        {
            FoundParent parent = new ParentSearch(store, file, path, metadata, root).Find();
            using IVhdFile parentFile = VhdLayer.OpenFile(store, parent.Path, isWritable: false);
            if (VhdFooter.TimestampOf(parentFile.ModifiedAt) != metadata.Header!.ParentTimestamp)
                found.Add(new VhdProblem(
                    VhdSeverity.Note,
                    VhdFault.ParentTimestamp,
                    path,
                    $"its parent {parent.Path} was modified after the child was made",
                    -1));
            return parent.IsRaw ? null : parent.Path;
        }
        catch (VhdException e)
        {
            found.Add(Refused(VhdFault.Parent, path, e.Message[(e.Path.Length + 2)..]));
            return null;
        }
    }

    private static VhdProblem Refused(VhdFault fault, string path, string message) => new(VhdSeverity.Error, fault, path, message, -1);
}
