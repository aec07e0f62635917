// Mends what can be mended without a guess: whatever the table claims stays; what it does not claim behind the last block is trimmed. An
// image that VhdMetadata refuses is not touched. Each step is one that a crash may cut short; repair is run again then.
using Platform;

namespace Vhd;

public static class VhdRepair
{
    /// <summary>Mends an image that nobody has open. Durable at return.</summary>
    /// <returns>What was done, a line each; empty when nothing was wrong.</returns>
    /// <exception cref="VhdException">It cannot be mended: why, and what to do; nothing was changed.</exception>
    public static IReadOnlyList<string> Run(string path) => Run(PosixStore.Instance, path);

    internal static IReadOnlyList<string> Run(IVhdStore store, string path)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        List<string> done = [];
        if (metadata.Footer.Uuid == Guid.Empty)
        {
            metadata.RewriteFooters(VhdFooter.WithUuid(metadata.FooterBytes, Guid.NewGuid()));
            done.Add("gave it a uuid");
        }

        if (metadata.Footer.Type == VhdType.Fixed)
            RepairFixed(file, path, done);
        else
            RepairDynamic(store, file, path, done);
        return done;
    }

    private static void RepairFixed(IVhdFile file, string path, List<string> done)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        long expected = metadata.Footer.CurrentSizeBytes + VhdFooter.LengthBytes;
        if (file.LengthBytes == expected)
            return;
        FixedResize.EndAtFooter(file, metadata);
        FixedResize.Cut(file, metadata.FooterBytes, metadata.Footer.CurrentSizeBytes);
        done.Add("put the footer right behind the disk");
    }

    private static void RepairDynamic(IVhdStore store, IVhdFile file, string path, List<string> done)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        bool isBatmapBad = metadata.Warnings.Any(static warning => warning.Fault == VhdFault.BatmapBad);
        if (isBatmapBad || metadata.Footer.DataOffsetBytes != MetadataMove.HomeBytes)
        {
            MetadataMove.Apply(store, file, path, metadata.Header!.MaxTableEntries);
            done.Add(isBatmapBad ? "wrote an empty batmap" : "moved the header and the block table back to their place");
            metadata = VhdMetadata.Read(file, path);
        }

        if (VhdResize.ForgetBeyond(file, metadata, metadata.SizeBytes))
            done.Add("cleared what spoke of something beyond the end of the disk");
        metadata = VhdMetadata.Read(file, path);
        if (!metadata.IsTidy)
        {
            VhdResize.Tidy(store, path);
            done.Add(metadata.TrailingFooterBytes < 0
                ? "wrote the trailing footer from its copy"
                : "put the footer right behind the last block");
        }

        if (VhdResize.MendCopy(file, path))
            done.Add("wrote the footer's copy");
    }
}
