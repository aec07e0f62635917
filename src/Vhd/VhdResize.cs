// Another size for a disk. One sector, the footer, says the size: everything that the new size needs is made ready before it is written,
// and what the old size used is cleared after it, so that a crash leaves the old size or the new one with equal content. Space that is new
// reads as zeros, whatever an earlier, larger size or a larger parent has there (docs/formats/vhd.md, "Another size").
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Platform;

namespace Vhd;

public static class VhdResize
{
    /// <summary>
    /// Gives an image that nobody has open another size. Durable at return; run again after a crash, it finishes.
    /// </summary>
    /// <param name="sizeBytes">A multiple of 512, up to 2040 GiB.</param>
    /// <param name="mayLoseData">A smaller size is refused while anything but zeros lies beyond it, unless this is set.</param>
    /// <exception cref="VhdException">BadRequest: the size, or data beyond it; what is wrong with the image or its parents.</exception>
    public static void Apply(string path, long sizeBytes, bool mayLoseData = false) =>
        Apply(PosixStore.Instance, path, sizeBytes, mayLoseData);

    internal static void Apply(IVhdStore store, string path, long sizeBytes, bool mayLoseData)
    {
        VhdImage.CheckSize(path, sizeBytes);
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        VhdFooter footer = VhdMetadata.Read(file, path).Footer;
        if (sizeBytes < footer.CurrentSizeBytes && !mayLoseData)
            RefuseToLoseData(store, path, sizeBytes);
        if (footer.Type == VhdType.Fixed)
            FixedResize.Apply(file, path, sizeBytes);
        else if (sizeBytes < footer.CurrentSizeBytes)
            Shrink(store, file, path, sizeBytes);
        else
            Grow(store, file, path, sizeBytes);
        if (footer.Type == VhdType.Fixed)
            return;
        Tidy(store, path);
        MendCopy(file, path);
    }

    private static void Grow(IVhdStore store, IVhdFile file, string path, long sizeBytes)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        long entries = metadata.EntriesFor(sizeBytes);
        // A header elsewhere was left by a move that was cut short.
        if (entries > metadata.Header!.MaxTableEntries || metadata.Footer.DataOffsetBytes != MetadataMove.HomeBytes)
        {
            MetadataMove.Apply(store, file, path, (uint)Math.Max(entries, metadata.Header.MaxTableEntries));
            metadata = VhdMetadata.Read(file, path);
        }

        metadata.ResetBatmap();
        if (sizeBytes == metadata.Footer.CurrentSizeBytes)
        {
            ForgetBeyond(file, metadata, sizeBytes);
            return;
        }

        ForgetBeyond(file, metadata, metadata.Footer.CurrentSizeBytes);
        if (metadata.Footer.Type == VhdType.Differencing)
            HideParents(store, path, metadata.Footer.CurrentSizeBytes, sizeBytes);
        // Blocks that hide a parent have moved the footer.
        metadata = VhdMetadata.Read(file, path);
        metadata.RewriteFooters(VhdFooter.WithSize(metadata.FooterBytes, sizeBytes));
    }

    private static void Shrink(IVhdStore store, IVhdFile file, string path, long sizeBytes)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        metadata.ResetBatmap();
        metadata.RewriteFooters(VhdFooter.WithSize(metadata.FooterBytes, sizeBytes));
        ForgetBeyond(file, metadata, sizeBytes);
        int span = metadata.Header!.BitmapBytes + metadata.Header.BlockBytes;
        foreach (uint entry in metadata.Table.AsSpan((int)metadata.EntriesFor(sizeBytes)))
        {
            long start = entry * (long)VhdFooter.SectorBytes;
            long end = Math.Min(start + span, metadata.UsableEndBytes);
            if (entry != VhdHeader.Unused && start < end)
                file.Zero(start, end - start);
        }
    }

    /// <summary>Puts the footer behind the last block that is left.</summary>
    internal static void Tidy(IVhdStore store, string path)
    {
        using VhdLayer layer = VhdLayer.OpenImage(store, path, isWritable: true, VhdLayer.StripeCount);
        if (layer.Metadata!.IsTidy)
            return;
        LeafWriter writer = new(layer, null);
        writer.Tidy();
        writer.Close();
    }

    /// <summary>Makes the footer's copy what the trailing footer is.</summary>
    /// <returns>Whether it was not.</returns>
    internal static bool MendCopy(IVhdFile file, string path)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        if (!metadata.Warnings.Any(static warning => warning.Fault == VhdFault.FooterCopyDiffers))
            return false;
        file.Write(0, metadata.FooterBytes);
        file.Sync();
        return true;
    }

    /// <summary>No table entry and no bit of the last block speaks of anything beyond a size.</summary>
    /// <returns>Whether anything did.</returns>
    internal static bool ForgetBeyond(IVhdFile file, VhdMetadata metadata, long sizeBytes)
    {
        byte[] rest = metadata.EntriesBeyond(sizeBytes, out long at);
        bool hasEntries = rest.AsSpan().ContainsAnyExcept((byte)0xFF);
        if (hasEntries)
        {
            rest.AsSpan().Fill(0xFF);
            file.Write(at, rest);
            file.Sync();
        }

        if (metadata.BitsBeyond(sizeBytes, out int cut, out long bitmapAt) is not { } bitmap)
            return hasEntries;
        byte[] stored = new byte[metadata.Header!.BitmapBytes];
        bitmap.WriteCutTo(stored, cut);
        file.Write(bitmapAt, stored);
        long cutBytes = cut * (long)VhdFooter.SectorBytes;
        file.Zero(bitmapAt + stored.Length + cutBytes, metadata.Header.BlockBytes - cutBytes);
        file.Sync();
        return true;
    }

    /// <summary>Where the parents hold data beyond the disk's end, the image claims zeros before the end moves.</summary>
    private static void HideParents(IVhdStore store, string path, long fromBytes, long toBytes)
    {
        VhdChain chain = VhdChain.Open(store, path, new VhdOpenOptions(), toBytes);
        try
        {
            for (long at = fromBytes; at < toBytes;)
            {
                StackRun run = chain.Parents!.Walk(at, toBytes);
                if (run.IsPresent)
                    chain.Writer.WriteZeroes(at, run.EndBytes - at, isKept: false);
                at = run.EndBytes;
            }

            chain.Close();
        }
        finally
        {
            chain.Abandon();
        }
    }

    private static void RefuseToLoseData(IVhdStore store, string path, long sizeBytes)
    {
        VhdChain chain = VhdChain.Open(store, path, new VhdOpenOptions { IsReadOnly = true });
        try
        {
            long data = FirstData(chain, sizeBytes);
            if (data >= 0)
                throw new VhdException(
                    VhdError.BadRequest,
                    path,
                    $"a size of {sizeBytes} bytes would lose data: the disk holds some at byte {data} and maybe beyond; unchanged "
                    + "(force it to lose that data)");
        }
        finally
        {
            chain.Abandon();
        }
    }

    private static long FirstData(VhdChain chain, long fromBytes)
    {
        byte[] buffer = new byte[1 << 20];
        for (long at = fromBytes; at < chain.LengthBytes;)
        {
            (bool isPresent, long end) = chain.RunAt(at);
            for (; at < end && isPresent;)
            {
                Span<byte> piece = buffer.AsSpan(0, (int)Math.Min(buffer.Length, end - at));
                chain.Read(at, piece);
                int data = piece.IndexOfAnyExcept((byte)0);
                if (data >= 0)
                    return at + data;
                at += piece.Length;
            }

            at = end;
        }

        return -1;
    }
}

/// <summary>A fixed image has one footer, at its end, and everything before it is the guest's.</summary>
internal static class FixedResize
{
    public static void Apply(IVhdFile file, string path, long sizeBytes)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        EndAtFooter(file, metadata);
        long oldSize = metadata.Footer.CurrentSizeBytes;
        byte[] footer = VhdFooter.WithSize(metadata.FooterBytes, sizeBytes);
        if (sizeBytes > oldSize)
        {
            // The length first: while the file ends in a hole, the footer is what its data ends with (VhdMetadata.FindLostFooter).
            if (file.LengthBytes < sizeBytes + VhdFooter.LengthBytes)
            {
                file.SetLength(sizeBytes + VhdFooter.LengthBytes);
                file.Sync();
            }

            MoveFooter(file, metadata, Math.Max(sizeBytes, file.LengthBytes - VhdFooter.LengthBytes));
            file.Zero(oldSize, file.LengthBytes - VhdFooter.LengthBytes - oldSize);
            file.Sync();
            file.Write(file.LengthBytes - VhdFooter.LengthBytes, footer);
            file.Sync();
        }
        else if (sizeBytes < oldSize)
        {
            metadata.RewriteFooters(footer);
        }

        Cut(file, footer, sizeBytes);
    }

    /// <summary>Cuts the hole that a growth which was cut short left behind the footer.</summary>
    public static void EndAtFooter(IVhdFile file, VhdMetadata metadata)
    {
        if (file.LengthBytes <= metadata.TrailingFooterBytes + VhdFooter.LengthBytes)
            return;
        file.SetLength(metadata.TrailingFooterBytes + VhdFooter.LengthBytes);
        file.Sync();
    }

    /// <summary>The old footer, which says the old size, in its new place, before the disk takes the old one.</summary>
    private static void MoveFooter(IVhdFile file, VhdMetadata metadata, long toBytes)
    {
        file.Write(toBytes, metadata.FooterBytes);
        file.Sync();
    }

    /// <summary>Ends the file right behind the disk.</summary>
    public static void Cut(IVhdFile file, byte[] footer, long sizeBytes)
    {
        long last = file.LengthBytes - VhdFooter.LengthBytes;
        if (last == sizeBytes)
            return;
        // Were anything but zeros left between the two footers, a power cut while the file is cut could hide the first one.
        file.Zero(sizeBytes, last - sizeBytes);
        file.Sync();
        file.Write(sizeBytes, footer);
        file.Sync();
        file.SetLength(sizeBytes + VhdFooter.LengthBytes);
        file.Sync();
    }
}
