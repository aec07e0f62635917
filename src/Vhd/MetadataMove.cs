// Room for a longer block table. Blocks in its way go to the end of the file first (LeafWriter.MakeWay). Then all metadata is written once
// more behind the footer, and one sector, the footer, switches to that copy; the old place is written anew with the longer table, and the
// footer switches back. Field and strict readers see the usual layout at the end; in between ours see a header elsewhere, which is legal.
using System.Buffers.Binary;
using Platform;

namespace Vhd;

internal sealed class MetadataMove
{
    /// <summary>The usual place.</summary>
    public const int HomeBytes = VhdFooter.LengthBytes;

    // The field uses a sector for each; a claim of more is not a path.
    private const int MaxLocatorBytes = 64 * 1024;

    private readonly IVhdFile file;
    private readonly VhdMetadata metadata;
    private readonly uint entries;
    private readonly bool keepsBlocks;
    private readonly byte[] table;
    private readonly byte[] batmapRest = [];
    private readonly List<(ParentLocator Locator, byte[] Stored)> locators = [];

    private MetadataMove(IVhdFile file, VhdMetadata metadata, uint entries, bool keepsBlocks = true)
    {
        this.file = file;
        this.metadata = metadata;
        this.entries = entries;
        this.keepsBlocks = keepsBlocks;
        table = metadata.WholeTable(entries);
        if (!keepsBlocks)
            table.AsSpan(0, (int)entries * 4).Fill(0xFF);
        if (BatmapHeader.ReadStored(file, metadata) is { } stored)
            batmapRest = stored[BatmapHeader.LengthBytes..];
        foreach (ParentLocator locator in metadata.Header!.Locators)
        {
            byte[] path = new byte[VhdFooter.WholeSectors(Math.Min(locator.SpaceBytes, MaxLocatorBytes))];
            if (locator.OffsetBytes > 0 && locator.SpaceBytes <= MaxLocatorBytes && file.Read(locator.OffsetBytes, path) == path.Length)
                locators.Add((locator with { SpaceBytes = (uint)path.Length }, path));
        }
    }

    /// <summary>The first byte behind the metadata, when it begins at an offset.</summary>
    private long EndOf(long startBytes) =>
        BatmapOf(startBytes) + BatmapBytes + locators.Sum(static each => (long)each.Stored.Length);

    private long BatmapOf(long startBytes) => startBytes + VhdHeader.LengthBytes + VhdFooter.WholeSectors(entries * 4L);

    private long BatmapBytes => metadata.Footer.HasBatmap ? VhdFooter.SectorBytes + BatmapHeader.RoomFor(entries) : 0;

    /// <summary>
    /// Leaves the metadata at its usual place with room for so many blocks. A crash leaves the old table or the new one.
    /// </summary>
    public static void Apply(IVhdStore store, IVhdFile file, string path, uint entries)
    {
        MakeWay(store, path, new MetadataMove(file, VhdMetadata.Read(file, path), entries).EndOf(HomeBytes));
        new MetadataMove(file, VhdMetadata.Read(file, path), entries).Run();
    }

    /// <summary>
    /// Releases every block at once: the switch to an empty table behind the footer is one sector. The old blocks are in nobody's way
    /// from then on, and the file is cut before them at the end. A crash leaves the old table or the empty one.
    /// </summary>
    public static void Empty(IVhdFile file, string path)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        new MetadataMove(file, metadata, metadata.Header!.MaxTableEntries, keepsBlocks: false).Run();
    }

    private static void MakeWay(IVhdStore store, string path, long beforeBytes)
    {
        using VhdLayer layer = VhdLayer.OpenImage(store, path, isWritable: true, VhdLayer.StripeCount);
        LeafWriter writer = new(layer, null);
        writer.MakeWay(beforeBytes);
        writer.Close();
    }

    private void Run()
    {
        byte[] away = VhdFooter.WithDataOffset(metadata.FooterBytes, AwayBytes);
        WriteAt(AwayBytes);
        file.Sync();
        // From here to the end the file's last sector is the footer that counts.
        long footerAt = file.LengthBytes;
        WriteFooters(footerAt, away);
        WriteAt(HomeBytes);
        file.Sync();
        byte[] home = VhdFooter.WithDataOffset(metadata.FooterBytes, HomeBytes);
        WriteFooters(footerAt, home);
        long end = keepsBlocks ? Math.Max(metadata.DataEndBytes, EndOf(HomeBytes)) : EndOf(HomeBytes);
        file.Write(end, home);
        file.Sync();
        file.SetLength(end + VhdFooter.LengthBytes);
        file.Sync();
    }

    /// <summary>Behind everything that is there, and behind what will be at home.</summary>
    private long AwayBytes { get => field == 0 ? field = VhdFooter.WholeSectors(Math.Max(file.LengthBytes, EndOf(HomeBytes))) : field; }

    private void WriteFooters(long trailingBytes, byte[] footer)
    {
        file.Write(trailingBytes, footer);
        file.Sync();
        file.Write(0, footer);
        file.Sync();
    }

    private void WriteAt(long startBytes)
    {
        long at = BatmapOf(startBytes) + BatmapBytes;
        List<ParentLocator> placed = [];
        foreach ((ParentLocator locator, byte[] stored) in locators)
        {
            file.Write(at, stored);
            placed.Add(locator with { OffsetBytes = at });
            at += stored.Length;
        }

        VhdHeader header = metadata.Header! with
        {
            TableOffsetBytes = startBytes + VhdHeader.LengthBytes,
            MaxTableEntries = entries,
            Locators = placed,
        };
        file.Write(startBytes, header.ToBytes());
        file.Write(header.TableOffsetBytes, table);
        if (metadata.Footer.HasBatmap)
            WriteEmptyBatmap(BatmapOf(startBytes));
    }

    private void WriteEmptyBatmap(long headerBytes)
    {
        byte[] header = BatmapHeader.Empty(headerBytes + VhdFooter.SectorBytes, entries).ToBytes();
        // What follows the known fields is a key's hash, which stays.
        batmapRest.CopyTo(header, BatmapHeader.LengthBytes);
        file.Write(headerBytes, header);
        file.Write(headerBytes + VhdFooter.SectorBytes, new byte[BatmapHeader.RoomFor(entries)]);
    }
}
