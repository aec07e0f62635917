// What is to be read: a VHD with its parents, one layer of it alone, or a raw disk. It says which bytes of which file hold a range of the
// disk; what nobody holds is zeros. Safe for several threads; nothing here changes a file.
using Platform;

namespace Vhd.Transfer;

/// <summary>A run of the disk that a file holds.</summary>
internal readonly record struct SourceRun(DiskFile File, long FileOffsetBytes, long OffsetBytes, long LengthBytes)
{
    public long EndBytes => OffsetBytes + LengthBytes;
}

internal sealed class DiskSource : IDisposable
{
    private readonly VhdChain? chain;
    private readonly VhdLayer[] layers;
    private readonly DiskFile[] files;
    private readonly LayerStack stack;
    private bool ownsFiles = true;

    private DiskSource(VhdChain? chain, IEnumerable<VhdLayer> layers, bool isDirect)
    {
        this.chain = chain;
        this.layers = [.. layers];
        files = new DiskFile[this.layers.Length];
        for (int depth = 0; depth < files.Length; depth++)
            files[depth] = new DiskFile(this.layers[depth].File, this.layers[depth].Path, isDirect, isWritable: false);
        stack = new LayerStack(this.layers);
    }

    public long LengthBytes => layers[0].SizeBytes;

    /// <summary>Leaf first.</summary>
    public IReadOnlyList<VhdLayer> Layers => layers;

    /// <summary>The images that make the disk, whether or not their content is read.</summary>
    public IReadOnlyList<string> Paths => chain?.Paths ?? [layers[0].File.CanonicalPath];

    /// <exception cref="VhdException">An image is refused; a raw disk's size is not a multiple of 512.</exception>
    public static DiskSource Open(string path, bool isRaw, bool isLayerOnly, bool isDirect)
    {
        if (isRaw)
            return OpenRaw(path, isDirect);
        VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        try
        {
            return new DiskSource(chain, chain.Layers.Take(isLayerOnly ? 1 : int.MaxValue), isDirect);
        }
        catch
        {
            chain.Abandon();
            throw;
        }
    }

    /// <summary>What the first images hold, without those under them; the files stay this source's.</summary>
    public DiskSource Above(int depth) => new(null, layers.Take(depth), isDirect: false) { ownsFiles = false };

    /// <summary>The first offset at or after one where a file may hold something; the end of the disk when there is none.</summary>
    public long NextHeld(long offsetBytes)
    {
        while (offsetBytes < LengthBytes)
        {
            (int depth, long end, long fileOffset, _) = stack.Walk(offsetBytes, LengthBytes);
            if (depth < 0)
            {
                offsetBytes = end;
                continue;
            }

            if (!layers[depth].IsFlat)
                return offsetBytes;
            long data = Posix.NextData(files[depth].Handle, fileOffset, fileOffset + end - offsetBytes);
            if (data < fileOffset + end - offsetBytes)
                return offsetBytes + data - fileOffset;
            offsetBytes = end;
        }

        return LengthBytes;
    }

    /// <summary>All that is held of a range, in order.</summary>
    public void RunsOf(long fromBytes, long toBytes, List<SourceRun> runs)
    {
        runs.Clear();
        while (fromBytes < toBytes)
        {
            (int depth, long end, long fileOffset, _) = stack.Find(fromBytes, toBytes);
            if (depth >= 0 && layers[depth].IsFlat)
                AddData(files[depth], fileOffset, fromBytes, end, runs);
            else if (depth >= 0)
                runs.Add(new SourceRun(files[depth], fileOffset, fromBytes, end - fromBytes));
            fromBytes = end;
        }
    }

    /// <summary>The content of a range, zeros where nobody holds it.</summary>
    public void Read(long offsetBytes, Span<byte> destination)
    {
        long end = offsetBytes + destination.Length;
        while (offsetBytes < end)
        {
            (int depth, long runEnd, long fileOffset, _) = stack.Find(offsetBytes, end);
            int length = (int)(runEnd - offsetBytes);
            if (depth < 0)
                destination[..length].Clear();
            else
                files[depth].ReadExactly(fileOffset, destination[..length]);
            destination = destination[length..];
            offsetBytes = runEnd;
        }
    }

    public void Dispose()
    {
        Array.ForEach(files, static file => file.Dispose());
        if (chain is null && ownsFiles)
            layers[0].Dispose();
        chain?.Abandon();
    }

    private static DiskSource OpenRaw(string path, bool isDirect)
    {
        VhdLayer layer = VhdLayer.OpenRaw(PosixStore.Instance, path);
        try
        {
            if (layer.SizeBytes != layer.File.LengthBytes || layer.SizeBytes == 0)
                throw new VhdException(
                    VhdError.BadRequest,
                    path,
                    $"{layer.File.LengthBytes} bytes are no raw disk: its size must be a multiple of 512 and not zero; nothing was done");
            return new DiskSource(null, [layer], isDirect);
        }
        catch
        {
            layer.Dispose();
            throw;
        }
    }

    /// <summary>A flat file holds everything; only what is not a hole of the file is worth reading.</summary>
    private static void AddData(DiskFile file, long fileOffset, long fromBytes, long toBytes, List<SourceRun> runs)
    {
        long fileEnd = fileOffset + toBytes - fromBytes;
        for (long at = fileOffset; at < fileEnd;)
        {
            long data = Posix.NextData(file.Handle, at, fileEnd);
            at = Posix.NextHole(file.Handle, data, fileEnd);
            // Holes of a file end at pages, those of the disk at sectors.
            long first = Math.Max(fileOffset, data / 512 * 512);
            if (at > first)
                runs.Add(new SourceRun(file, first, fromBytes + first - fileOffset, at - first));
        }
    }
}
