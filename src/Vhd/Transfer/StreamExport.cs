// A disk as a stream: an ordinary dynamic or differencing VHD, written from front to back. The block table comes before the blocks, so
// which blocks there are is decided first, by what is allocated; blocks that one file holds whole go from file to pipe without passing
// through us.
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using Platform;

namespace Vhd.Transfer;

public sealed class StreamExport
{
    private const int BlockBytes = VhdHeader.DefaultBlockBytes;
    private const int PageBytes = 4096;
    private const int BitmapBytes = VhdFooter.SectorBytes;
    private const int PipeBytes = 1024 * 1024;

    private readonly DiskSource source;
    private readonly SafeFileHandle output;
    private readonly TransferProgress? progress;
    private readonly byte[] block = new byte[PageBytes + BlockBytes];
    private bool canSend = true;

    private StreamExport(DiskSource source, SafeFileHandle output, TransferProgress? progress)
    {
        this.source = source;
        this.output = output;
        this.progress = progress;
    }

    /// <summary>Writes a chain as one dynamic image, or what lies above a base as one child of it.</summary>
    /// <param name="basePath">An image of the chain; null for everything.</param>
    /// <param name="output">A pipe, socket or file; stays the caller's.</param>
    /// <exception cref="VhdException">An image is refused; the base is none of the chain's.</exception>
    /// <exception cref="BlockIoException">EPIPE: the reader has gone. Reading failed.</exception>
    public static void Run(
        string path, string? basePath, SafeFileHandle output, TransferProgress? progress, CancellationToken cancellationToken)
    {
        using DiskSource whole = DiskSource.Open(path, isRaw: false, isLayerOnly: false, isDirect: false);
        int above = basePath is null ? whole.Layers.Count : DepthOf(whole, path, basePath);
        using ParentFacts? parent = basePath is null
            ? null
            : ParentFacts.Read(PosixStore.Instance, basePath, whole.Layers[above].Metadata is null);
        using DiskSource source = whole.Above(above);
        Posix.TryGrowPipe(output, PipeBytes);
        new StreamExport(source, output, progress).Write(parent, cancellationToken);
    }

    private static int DepthOf(DiskSource whole, string path, string basePath)
    {
        using SafeFileHandle file = Posix.OpenRegularFile(basePath, isWritable: false);
        int depth = whole.Paths.ToList().IndexOf(Posix.CanonicalPathOf(file));
        return depth > 0
            ? depth
            : throw new VhdException(VhdError.BadRequest, basePath, $"is not an image under {path}; nothing was written");
    }

    private void Write(ParentFacts? parent, CancellationToken cancellationToken)
    {
        List<int> blocks = CopyPass.Plan(source, BlockBytes);
        if (progress is not null)
            progress.TotalBytes = blocks.Count * (long)BlockBytes;
        VhdFooter footer = VhdFooter.New(
            parent is null ? VhdType.Dynamic : VhdType.Differencing, source.LengthBytes, Guid.NewGuid(), TimeProvider.System.GetUtcNow());
        MetadataImage front = Front(footer, parent, blocks);
        WriteAll(front.Bytes);
        List<SourceRun> runs = [];
        foreach (int number in blocks)
        {
            cancellationToken.ThrowIfCancellationRequested();
            long start = (long)number * BlockBytes;
            source.RunsOf(start, Math.Min(start + BlockBytes, source.LengthBytes), runs);
            if (runs is [{ LengthBytes: BlockBytes } run])
                SendBlock(run);
            else
                WriteBlock(start, runs);
            progress?.Add(BlockBytes);
        }

        WriteAll(footer.ToBytes());
    }

    /// <summary>
    /// Everything before the first block, cut where a block may begin so that gap, bitmap and data follow in whole pages.
    /// </summary>
    private MetadataImage Front(VhdFooter footer, ParentFacts? parent, List<int> blocks)
    {
        string beside = Path.Combine(Path.GetDirectoryName(parent?.CanonicalPath ?? "/export")!, "export.vhd");
        MetadataImage front = new(beside);
        uint entries = (uint)((source.LengthBytes + BlockBytes - 1) / BlockBytes);
        VhdImage.WriteEmpty(front, footer, entries, parent);
        front.SetLength(front.LengthBytes - VhdFooter.LengthBytes);
        long first = (front.LengthBytes + PageBytes - 1) / PageBytes * PageBytes;
        if (blocks.Count > 0)
            front.SetLength(first);
        uint[] table = new uint[entries];
        Array.Fill(table, VhdHeader.Unused);
        for (int i = 0; i < blocks.Count; i++)
        {
            long bitmapAt = first + i * (long)(PageBytes + BlockBytes) + PageBytes - BitmapBytes;
            if (bitmapAt / VhdFooter.SectorBytes >= VhdHeader.Unused)
                throw new VhdException(VhdError.Unsupported, "export", "a VHD's block table cannot name a block beyond 2 TiB of file");
            table[blocks[i]] = BinaryPrimitives.ReverseEndianness((uint)(bitmapAt / VhdFooter.SectorBytes));
        }

        front.Write(VhdFooter.LengthBytes + VhdHeader.LengthBytes, MemoryMarshal.AsBytes(table.AsSpan()));
        return front;
    }

    private void SendBlock(SourceRun run)
    {
        Span<byte> page = block.AsSpan(0, PageBytes);
        page.Clear();
        page[^BitmapBytes..].Fill(byte.MaxValue);
        WriteAll(page);
        try
        {
            if (canSend)
            {
                Posix.SendFile(output, run.File.Handle, run.FileOffsetBytes, run.LengthBytes);
                return;
            }
        }
        catch (BlockIoException e) when (e.Errno == Errno.EINVAL)
        {
            canSend = false; // A file opened for appending takes no sendfile; it has taken nothing yet.
        }

        run.File.ReadExactly(run.FileOffsetBytes, block.AsSpan(PageBytes));
        WriteAll(block.AsSpan(PageBytes));
    }

    private void WriteBlock(long start, List<SourceRun> runs)
    {
        block.AsSpan().Clear();
        SectorBitmap bitmap = SectorBitmap.Empty(0, BlockBytes / VhdFooter.SectorBytes);
        foreach (SourceRun run in runs)
        {
            int at = (int)(run.OffsetBytes - start);
            run.File.ReadExactly(run.FileOffsetBytes, block.AsSpan(PageBytes + at, (int)run.LengthBytes));
            bitmap.Set(at / VhdFooter.SectorBytes, (int)(at + run.LengthBytes) / VhdFooter.SectorBytes);
        }

        bitmap.WriteTo(block.AsSpan(PageBytes - BitmapBytes, BitmapBytes), 0, 0);
        WriteAll(block);
    }

    private void WriteAll(ReadOnlySpan<byte> bytes)
    {
        try
        {
            Posix.WriteAll(output, bytes);
        }
        catch (BlockIoException e) when (e.Errno == Errno.EPIPE)
        {
            throw new BlockIoException(Errno.EPIPE, "the reader of the stream has gone; it has no whole image", e);
        }
    }
}
