// A VHD that arrives as a stream, front to back: footer copy, header, table, blocks in the order of the file, footer. What it says about
// itself is checked before its first block is taken, so a stream that is none is refused at once; nothing that it claims makes us keep or
// write more than it sends. The file has its name only when all has come, is whole, and durable.
using System.Security.Cryptography;
using Platform;

namespace Vhd.Transfer;

public static class StreamImport
{
    private const int PieceBytes = 1024 * 1024;
    private const int FrontBytes = VhdFooter.LengthBytes + VhdHeader.LengthBytes;

    /// <summary>Takes a dynamic image, or a differencing one for a base that is here.</summary>
    /// <param name="basePath">The parent of a differencing stream; it must be the image that the stream names.</param>
    /// <returns>Bytes of the stream.</returns>
    /// <exception cref="VhdException">
    /// The stream is no VHD, is damaged, ends early, goes on too long, or has another parent; or the file cannot be written.
    /// No file is left.
    /// </exception>
    public static long Run(
        Stream input, string targetPath, string? basePath, bool isSynced, TransferProgress? progress, CancellationToken cancellationToken)
    {
        PosixStore store = PosixStore.Instance;
        if (store.Exists(targetPath))
            throw new VhdException(VhdError.AlreadyExists, targetPath, "there is a file already; it was left as it is");
        string temporary = $"{targetPath}.{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(4))}.new";
        try
        {
            long length;
            using (IVhdFile file = store.Create(temporary, 0))
            {
                length = Receive(input, file, targetPath, progress, cancellationToken);
                CheckWhole(file, temporary, targetPath, basePath);
                if (isSynced)
                    file.Sync();
            }

            if (basePath is not null)
                ParentChange.Apply(store, temporary, basePath, isParentRaw: false);
            store.Publish(temporary, targetPath, isSynced);
            return length;
        }
        catch (Exception e)
        {
            store.Delete(temporary);
            if (e is UnauthorizedAccessException or (IOException and not (VhdException or BlockIoException)))
                throw new VhdException(VhdError.CannotWrite, targetPath, $"{e.Message}; no file was left", e);
            throw;
        }
    }

    private static long Receive(
        Stream input, IVhdFile file, string path, TransferProgress? progress, CancellationToken cancellationToken)
    {
        byte[] front = new byte[FrontBytes];
        ReadAll(input, front, path, 0);
        VhdFooter footer = VhdFooter.TryRead(front.AsSpan(0, VhdFooter.LengthBytes), path, out string reason)
            ?? throw new VhdException(VhdError.NotAnImage, path, $"the stream is not a VHD: {reason}; no file was left");
        if (footer.Type == VhdType.Fixed || footer.DataOffsetBytes != VhdFooter.LengthBytes)
            throw new VhdException(
                VhdError.Unsupported, path, "a stream must be a dynamic or differencing VHD with its header at byte 512");
        VhdHeader header = VhdHeader.Read(front.AsSpan(VhdFooter.LengthBytes), VhdFooter.LengthBytes, path, isChecked: true);
        if (header.TableOffsetBytes != FrontBytes)
            throw new VhdException(VhdError.Unsupported, path, "a stream's block table must follow its header");
        file.Write(0, front);
        long end = FrontBytes + ReceiveTable(input, file, path, footer, header, out long footerAt);
        if (progress is not null)
            progress.TotalBytes = footerAt;
        end = ReceiveBlocks(input, file, path, end, footerAt, progress, cancellationToken);
        if (input.ReadByte() >= 0)
            throw new VhdException(VhdError.Damaged, path, $"the stream goes on after its footer at byte {footerAt}; no file was left");
        return end;
    }

    /// <summary>The table bounds everything that follows, so it is looked at before that is taken.</summary>
    private static long ReceiveTable(
        Stream input, IVhdFile file, string path, VhdFooter footer, VhdHeader header, out long footerAt)
    {
        long needed = (footer.CurrentSizeBytes + header.BlockBytes - 1) / header.BlockBytes;
        long most = (VhdFooter.MaxSizeBytes + header.BlockBytes - 1) / header.BlockBytes;
        if (header.MaxTableEntries < needed || header.MaxTableEntries > most)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"a block table of {header.MaxTableEntries} entries for {footer.CurrentSizeBytes} bytes; no file was left");
        byte[] table = new byte[header.TableEndBytes - header.TableOffsetBytes];
        ReadAll(input, table, path, FrontBytes);
        file.Write(FrontBytes, table);
        long last = -1;
        for (int block = 0; block < needed; block++)
        {
            uint start = System.Buffers.Binary.BinaryPrimitives.ReadUInt32BigEndian(table.AsSpan(block * 4));
            last = start == VhdHeader.Unused ? last : Math.Max(last, start);
        }

        // Without a block the footer follows the metadata, whose length only its end tells: the stream's.
        footerAt = last < 0 ? -1 : last * VhdFooter.SectorBytes + header.BitmapBytes + header.BlockBytes;
        if (last >= 0 && footerAt < header.TableEndBytes)
            throw new VhdException(VhdError.Damaged, path, "the block table names a block over itself; no file was left");
        return table.Length;
    }

    private static long ReceiveBlocks(
        Stream input, IVhdFile file, string path, long at, long footerAt, TransferProgress? progress, CancellationToken cancellationToken)
    {
        // Metadata of an image without blocks: batmap and locators, far less than this.
        long end = footerAt < 0 ? at + PieceBytes : footerAt + VhdFooter.LengthBytes;
        byte[] piece = new byte[PieceBytes];
        while (at < end)
        {
            cancellationToken.ThrowIfCancellationRequested();
            Span<byte> wanted = piece.AsSpan(0, (int)Math.Min(piece.Length, end - at));
            int length = input.ReadAtLeast(wanted, wanted.Length, throwOnEndOfStream: false);
            WriteSparsely(file, at, wanted[..length]);
            at += length;
            progress?.Add(length);
            if (length < wanted.Length)
                break;
        }

        if (footerAt >= 0 && at < end)
            throw Truncated(path, at, end);
        return at;
    }

    /// <summary>Zeros stay holes: the file takes no more space than it holds.</summary>
    private static void WriteSparsely(IVhdFile file, long offsetBytes, ReadOnlySpan<byte> piece)
    {
        file.SetLength(offsetBytes + piece.Length);
        while (!piece.IsEmpty)
        {
            int length = ZeroScan.RunLength(offsetBytes, piece, out bool isZero);
            if (!isZero)
                file.Write(offsetBytes, piece[..length]);
            offsetBytes += length;
            piece = piece[length..];
        }
    }

    private static void CheckWhole(IVhdFile file, string temporary, string path, string? basePath)
    {
        VhdMetadata metadata = VhdMetadata.Read(file, temporary);
        IEnumerable<string> wrong = metadata.Warnings.Select(static warning => warning.Message);
        if (!metadata.IsTidy || metadata.Warnings.Count > 0)
            throw new VhdException(
                VhdError.Damaged, path, $"the stream is not whole: its end is not where it must be; {string.Join("; ", wrong)}");
        bool isChild = metadata.Footer.Type == VhdType.Differencing;
        if (isChild && basePath is null)
            throw new VhdException(
                VhdError.ParentMissing,
                path,
                $"the stream is a child of '{metadata.Header!.ParentName}': say which image that is (--base)");
        if (!isChild && basePath is not null)
            throw new VhdException(VhdError.BadRequest, path, "the stream is a whole image and has no base; no file was left");
        Guid? held = basePath is null ? null : VhdImage.ReadInfo(basePath).Uuid;
        if (held is not null && held != metadata.Header!.ParentUuid)
            throw new VhdException(
                VhdError.ParentMismatch,
                path,
                $"the stream is a child of {metadata.Header.ParentUuid}, {basePath} is {held}; no file was left");
    }

    private static void ReadAll(Stream input, Span<byte> destination, string path, long offsetBytes)
    {
        int read = input.ReadAtLeast(destination, destination.Length, throwOnEndOfStream: false);
        if (read < destination.Length)
            throw Truncated(path, offsetBytes + read, offsetBytes + destination.Length);
    }

    private static VhdException Truncated(string path, long atBytes, long endBytes) =>
        new(VhdError.Damaged, path, $"the stream ended at byte {atBytes}, before {endBytes}; no file was left");
}
