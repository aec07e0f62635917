// Making image files and changing what they say about themselves. A new file is written under a temporary name, synced, and then given its
// own name in a synced folder: whoever sees the name sees a finished image. Layout of ours: footer copy, header, table, batmap header,
// batmap, locators, footer.
using System.Security.Cryptography;
using Platform;

namespace Vhd;

public sealed record VhdCreateOptions
{
    /// <summary>Random when not given.</summary>
    public Guid? Uuid { get; init; }

    public TimeProvider Time { get; init; } = TimeProvider.System;

    /// <summary>Room in the block table for growing the disk later; not less than the disk.</summary>
    public long MaxSizeBytes { get; init; }
}

public static class VhdImage
{
    /// <summary>An empty dynamic image. Durable at return.</summary>
    /// <param name="sizeBytes">A multiple of 512, up to 2040 GiB.</param>
    /// <exception cref="VhdException">AlreadyExists, BadRequest.</exception>
    public static void CreateDynamic(string path, long sizeBytes, Guid? uuid = null) =>
        CreateDynamic(path, sizeBytes, new VhdCreateOptions { Uuid = uuid });

    public static void CreateDynamic(string path, long sizeBytes, VhdCreateOptions options) =>
        CreateDynamic(PosixStore.Instance, path, sizeBytes, options);

    /// <summary>A fixed image of zeros with all its space reserved. Durable at return.</summary>
    public static void CreateFixed(string path, long sizeBytes, Guid? uuid = null) =>
        CreateFixed(path, sizeBytes, new VhdCreateOptions { Uuid = uuid });

    public static void CreateFixed(string path, long sizeBytes, VhdCreateOptions options) =>
        CreateFixed(PosixStore.Instance, path, sizeBytes, options);

    /// <summary>
    /// An empty differencing child as large as its parent; it remembers the parent by a relative path. The parent is not changed, and from
    /// now on must not be: hide it (<see cref="SetHidden(string, bool)"/>) and open it only through its children. Durable at return.
    /// </summary>
    /// <exception cref="VhdException">AlreadyExists; TooDeep when the child would be the 31st; what is wrong with the parent.</exception>
    public static void CreateSnapshot(string childPath, string parentPath) =>
        CreateSnapshot(childPath, parentPath, isParentRaw: false, new VhdCreateOptions());

    /// <param name="isParentRaw">The parent is a raw disk; its format is never guessed.</param>
    public static void CreateSnapshot(string childPath, string parentPath, bool isParentRaw, VhdCreateOptions options) =>
        CreateSnapshot(PosixStore.Instance, childPath, parentPath, isParentRaw, options);

    /// <exception cref="VhdException">The image is refused.</exception>
    public static VhdInfo ReadInfo(string path) => ReadInfo(PosixStore.Instance, path);

    /// <summary>Marks or unmarks an inner node. Atomic: a crash leaves the old value or the new one. Durable at return.</summary>
    public static void SetHidden(string path, bool isHidden) => SetHidden(PosixStore.Instance, path, isHidden);

    /// <summary>
    /// Points a differencing image at another parent with the same content under it. The image must not be open for writing. A crash leaves
    /// the old parent or the new one; only a loss of power while the new parent's name has another length can leave a header that has to be
    /// set again. Durable at return.
    /// </summary>
    public static void SetParent(string childPath, string parentPath, bool isParentRaw = false) =>
        ParentChange.Apply(PosixStore.Instance, childPath, parentPath, isParentRaw);

    /// <summary>Sets the marker of the batmap's header, one byte in one sector. Durable at return.</summary>
    /// <exception cref="VhdException">BadRequest: the image has no batmap.</exception>
    public static void SetMarker(string path, byte value) => SetMarker(PosixStore.Instance, path, value);

    /// <summary>
    /// Releases every block of a differencing image: its disk reads as its parent's from then on. The image must not be open. A crash
    /// leaves all of its blocks or none. Durable at return.
    /// </summary>
    /// <exception cref="VhdException">BadRequest: the image has no parent, and nothing would be left to read.</exception>
    public static void Reset(string path) => Reset(PosixStore.Instance, path);

    /// <summary>
    /// Gives the file a length, with the footer at its end; the disk stays as large as it is. The image must not be open. A crash leaves
    /// the old length or the new one. Durable at return.
    /// </summary>
    /// <exception cref="VhdException">
    /// BadRequest: not a multiple of 512, too short for what the image holds, or the image is fixed.
    /// </exception>
    public static void SetPhysicalSize(string path, long fileBytes) => SetPhysicalSize(PosixStore.Instance, path, fileBytes);

    internal static void CreateDynamic(IVhdStore store, string path, long sizeBytes, VhdCreateOptions options)
    {
        CheckSize(path, sizeBytes);
        VhdFooter footer = VhdFooter.New(VhdType.Dynamic, sizeBytes, options.Uuid ?? Guid.NewGuid(), options.Time.GetUtcNow());
        Publish(store, path, 0, file => WriteEmpty(file, footer, TableEntries(path, sizeBytes, options), null));
    }

    internal static void CreateFixed(IVhdStore store, string path, long sizeBytes, VhdCreateOptions options)
    {
        CheckSize(path, sizeBytes);
        VhdFooter footer = VhdFooter.New(VhdType.Fixed, sizeBytes, options.Uuid ?? Guid.NewGuid(), options.Time.GetUtcNow());
        Publish(store, path, sizeBytes + VhdFooter.LengthBytes, file => file.Write(sizeBytes, footer.ToBytes()));
    }

    internal static void CreateSnapshot(IVhdStore store, string childPath, string parentPath, bool isParentRaw, VhdCreateOptions options)
    {
        using ParentFacts parent = ParentFacts.Read(store, parentPath, isParentRaw);
        CheckSize(childPath, parent.SizeBytes);
        if (!isParentRaw)
            CheckDepth(store, childPath, parentPath);
        VhdFooter footer = VhdFooter.New(VhdType.Differencing, parent.SizeBytes, options.Uuid ?? Guid.NewGuid(), options.Time.GetUtcNow());
        Publish(store, childPath, 0, file => WriteEmpty(file, footer, TableEntries(childPath, parent.SizeBytes, options), parent));
    }

    internal static VhdInfo ReadInfo(IVhdStore store, string path)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: false);
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        VhdFooter footer = metadata.Footer;
        bool isChild = footer.Type == VhdType.Differencing;
        VhdHeader? header = metadata.Header;
        byte[]? batmap = BatmapHeader.ReadStored(file, metadata);
        return new VhdInfo
        {
            Path = path,
            Type = footer.Type,
            VirtualSizeBytes = footer.CurrentSizeBytes,
            PhysicalSizeBytes = file.LengthBytes,
            Uuid = footer.Uuid,
            IsHidden = footer.IsHidden,
            Creator = footer.CreatorApplication.TrimEnd('\0', ' '),
            CreatorVersion = $"{footer.CreatorVersion >> 16}.{footer.CreatorVersion & 0xffff}",
            CreatedAt = footer.CreatedAt,
            BlockBytes = header?.BlockBytes ?? 0,
            AllocatedBlocks = metadata.AllocatedBlocks,
            MaxSizeBytes = header is null
                ? footer.CurrentSizeBytes
                : Math.Min(VhdFooter.MaxSizeBytes, header.MaxTableEntries * (long)header.BlockBytes),
            ParentUuid = isChild && header!.ParentUuid != Guid.Empty ? header.ParentUuid : null,
            HasRawParent = isChild && header!.ParentUuid == Guid.Empty,
            ParentName = isChild ? header!.ParentName : null,
            ParentPath = isChild ? ParentPathOf(store, file, path, metadata) : null,
            Warnings = [.. metadata.Warnings.Select(static warning => warning.Message)],
            Marker = batmap?[BatmapHeader.MarkerOffset] ?? 0,
            Key = BatmapHeader.KeyOf(batmap),
        };
    }

    internal static void SetHidden(IVhdStore store, string path, bool isHidden)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        metadata.RewriteFooters(VhdFooter.WithHidden(metadata.FooterBytes, isHidden));
    }

    internal static void SetMarker(IVhdStore store, string path, byte value)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        byte[] stored = BatmapHeader.ReadStored(file, metadata)
            ?? throw new VhdException(VhdError.BadRequest, path, "it has no batmap, whose header a marker is in; nothing was changed");
        stored[BatmapHeader.MarkerOffset] = value;
        file.Write(metadata.BatmapHeaderBytes, stored);
        file.Sync();
    }

    internal static void Reset(IVhdStore store, string path)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        if (metadata.Footer.Type != VhdType.Differencing)
            throw new VhdException(
                VhdError.BadRequest, path, "it has no parent, and its disk would be lost; nothing was changed (make a new image instead)");
        if (metadata.Stray is { } stray)
            throw new VhdException(VhdError.Damaged, path, $"{stray} is outside of the file; nothing was changed");
        MetadataMove.Empty(file, path);
    }

    internal static void SetPhysicalSize(IVhdStore store, string path, long fileBytes)
    {
        using IVhdFile file = VhdLayer.OpenFile(store, path, isWritable: true);
        VhdMetadata metadata = VhdMetadata.Read(file, path);
        long least = metadata.DataEndBytes + VhdFooter.LengthBytes;
        bool isFixed = metadata.Footer.Type == VhdType.Fixed;
        if (fileBytes % VhdFooter.SectorBytes != 0 || fileBytes < least || (isFixed && fileBytes != least))
            throw new VhdException(
                VhdError.BadRequest,
                path,
                $"its file cannot have {fileBytes} bytes: "
                + (isFixed ? $"a fixed image has {least}" : $"it needs a multiple of 512, at least {least}") + "; nothing was changed");
        if (fileBytes == file.LengthBytes)
            return;
        // Behind all blocks: until the file ends there, nobody takes it for the footer, or both say the same.
        file.Write(fileBytes - VhdFooter.LengthBytes, metadata.FooterBytes);
        file.Sync();
        file.SetLength(fileBytes);
        file.Sync();
    }

    /// <summary>
    /// Writes a file under a temporary name and gives it its own when it is whole and durable; on failure neither name is left.
    /// </summary>
    internal static void Publish(IVhdStore store, string path, long reserveBytes, Action<IVhdFile> write)
    {
        if (store.Exists(path))
            throw new VhdException(VhdError.AlreadyExists, path, "there is a file already; it was left as it is");
        string temporary = $"{path}.{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(4))}.new";
        try
        {
            using (IVhdFile file = store.Create(temporary, reserveBytes))
            {
                write(file);
                file.Sync();
            }

            store.Publish(temporary, path);
        }
        catch (Exception e)
        {
            store.Delete(temporary);
            if (e is UnauthorizedAccessException or (IOException and not VhdException))
                throw new VhdException(VhdError.CannotWrite, path, $"cannot be written: {e.Message}; no file was left", e);
            throw;
        }
    }

    private static string? ParentPathOf(IVhdStore store, IVhdFile file, string path, VhdMetadata metadata)
    {
        try
        {
            return new ParentSearch(store, file, path, metadata, null).Find().Path;
        }
        catch (VhdException)
        {
            return null; // A missing parent is no reason to refuse the child's own facts.
        }
    }

    internal static void CheckSize(string path, long sizeBytes)
    {
        if (sizeBytes <= 0 || sizeBytes % VhdFooter.SectorBytes != 0 || sizeBytes > VhdFooter.MaxSizeBytes)
            throw new VhdException(
                VhdError.BadRequest,
                path,
                $"a disk of {sizeBytes} bytes cannot be made: it must be a multiple of 512, from 512 to {VhdFooter.MaxSizeBytes}");
    }

    private static void CheckDepth(IVhdStore store, string childPath, string parentPath)
    {
        VhdChain parent = VhdChain.Open(store, parentPath, new VhdOpenOptions { IsReadOnly = true });
        int depth = parent.Paths.Count;
        parent.Abandon();
        if (depth >= VhdChain.MaxDepth)
            throw new VhdException(
                VhdError.TooDeep,
                childPath,
                $"its parent {parentPath} is the {depth}th image of its chain already; coalesce the chain first");
    }

    private static uint TableEntries(string path, long sizeBytes, VhdCreateOptions options)
    {
        if (options.MaxSizeBytes != 0)
            CheckSize(path, options.MaxSizeBytes);
        return (uint)((Math.Max(sizeBytes, options.MaxSizeBytes) + VhdHeader.DefaultBlockBytes - 1) / VhdHeader.DefaultBlockBytes);
    }

    internal static void WriteEmpty(IVhdFile file, VhdFooter footer, uint tableEntries, ParentFacts? parent)
    {
        VhdHeader header = new() { TableOffsetBytes = VhdFooter.LengthBytes + VhdHeader.LengthBytes, MaxTableEntries = tableEntries };
        // An all-zero batmap says nothing, so it is never wrong: we do not keep one, but creator `tap` must have it.
        BatmapHeader batmap = BatmapHeader.Empty(header.TableEndBytes + VhdFooter.SectorBytes, tableEntries);
        long end = batmap.OffsetBytes + BatmapHeader.RoomFor(tableEntries);
        file.SetLength(end);
        if (parent is not null)
            (header, end) = parent.WriteLocators(file, header, end);
        file.Write(0, footer.ToBytes());
        file.Write(VhdFooter.LengthBytes, header.ToBytes());
        // As the field's tools do (golden bt-dynamic-empty): the padding after the last entry stays zero.
        byte[] unused = new byte[64 * 1024];
        unused.AsSpan().Fill(0xFF);
        long tableBytes = tableEntries * 4L;
        for (long done = 0; done < tableBytes; done += unused.Length)
            file.Write(header.TableOffsetBytes + done, unused.AsSpan(0, (int)Math.Min(unused.Length, tableBytes - done)));
        file.Write(header.TableEndBytes, batmap.ToBytes());
        file.Write(end, footer.ToBytes());
    }
}
