// A leaf over its parents as one disk: the first image of the chain that holds a sector serves it, a sector nobody holds is zeros. Parents
// are always read-only. Requests run on the caller's thread; only one that waits for a sync completes later. Limits are in
// docs/formats/vhd.md.
using Platform;

namespace Vhd;

public sealed record VhdOpenOptions
{
    public bool IsReadOnly { get; init; }

    /// <summary>When given, no parent is opened outside of this folder, whatever a child's locators say.</summary>
    public string? RootDirectory { get; init; }
}

/// <summary>
/// A virtual disk served from a VHD and its parents. Safe for many requests at once; one writer for each leaf at a time is the caller's
/// duty. Dispose it when no request is in flight: that closes the leaf in order, so that strict checkers accept the file.
/// </summary>
public sealed class VhdChain : IBlockDevice
{
    /// <summary>Images in one chain, the leaf included: the field's limit.</summary>
    public const int MaxDepth = 30;

    // 512 bytes each: 2 MiB of bitmaps for a whole chain, whatever its depth; the page cache is behind it.
    private const int BitmapSlotsPerChain = 4096;
    private const int MinBitmapSlots = 128;
    private const int MaxExtents = 1024;
    private const int MaxRunsPerQuery = 8192;

    private readonly VhdLayer[] layers;
    private readonly LeafWriter? writer;
    private readonly LayerStack? parents;
    private bool isDisposed;

    private VhdChain(List<VhdLayer> layers, bool isReadOnly)
    {
        this.layers = [.. layers];
        parents = layers.Count > 1 ? new LayerStack(this.layers.AsSpan(1)) : null;
        writer = isReadOnly ? null : new LeafWriter(this.layers[0], parents);
    }

    public long LengthBytes => layers[0].SizeBytes;

    public int BlockSizeBytes => VhdFooter.SectorBytes;

    public bool IsReadOnly => writer is null;

    /// <summary>Leaf first, real paths.</summary>
    public IReadOnlyList<string> Paths => Array.ConvertAll(layers, static layer => layer.File.CanonicalPath);

    /// <summary>What was wrong, but not wrong enough to refuse an image of the chain.</summary>
    public IReadOnlyList<string> Warnings =>
        [.. layers.SelectMany(static layer => layer.Metadata?.Warnings ?? [])
            .Select(static warning => $"{warning.Path}: {warning.Message}")];

    /// <summary>Opens a leaf and all its parents.</summary>
    /// <exception cref="VhdException">
    /// An image is refused; a parent is missing, another, or outside of the root; the chain loops or is too deep.
    /// </exception>
    public static VhdChain Open(string leafPath, VhdOpenOptions options) => Open(PosixStore.Instance, leafPath, options);

    /// <param name="leafSizeBytes">A size that the leaf's table has room for but its footer does not say yet; 0 for the footer's.</param>
    internal static VhdChain Open(IVhdStore store, string leafPath, VhdOpenOptions options, long leafSizeBytes = 0)
    {
        string? root = options.RootDirectory is null ? null : Posix.CanonicalFolder(options.RootDirectory);
        List<VhdLayer> layers = [];
        try
        {
            layers.Add(VhdLayer.OpenImage(store, leafPath, !options.IsReadOnly, BitmapSlotsPerChain / 4, leafSizeBytes));
            while (layers[^1].Metadata?.Footer.Type == VhdType.Differencing)
                layers.Add(OpenParent(store, layers, root));
            layers.ForEach(static layer => layer.RefuseEncrypted());
            return new VhdChain(layers, options.IsReadOnly);
        }
        catch
        {
            layers.ForEach(static layer => layer.Dispose());
            throw;
        }
    }

    public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, destination.Length, isWrite: false);
        cancellationToken.ThrowIfCancellationRequested();
        try
        {
            Read(offsetBytes, destination.Span);
            return ValueTask.CompletedTask;
        }
        catch (IOException e) when (e is not BlockIoException)
        {
            throw Wrapped(e);
        }
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, source.Length, isWrite: true);
        cancellationToken.ThrowIfCancellationRequested();
        try
        {
            if (writer!.PutData(offsetBytes, source.Span))
                return new ValueTask(ClaimAfterSyncAsync(offsetBytes, source.Length, flags));
            writer.Claim(offsetBytes, source.Length);
            return Finished(flags);
        }
        catch (IOException e)
        {
            writer!.Failed();
            throw Wrapped(e);
        }
    }

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: true);
        cancellationToken.ThrowIfCancellationRequested();
        try
        {
            writer!.WriteZeroes(offsetBytes, lengthBytes, flags.HasFlag(WriteFlags.NoHole));
            return Finished(flags);
        }
        catch (IOException e)
        {
            throw Wrapped(e);
        }
    }

    /// <summary>Always zeros afterwards, so that both sides of a mirror agree.</summary>
    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        WriteZeroesAsync(offsetBytes, lengthBytes, flags & ~WriteFlags.NoHole, cancellationToken);

    public ValueTask FlushAsync(CancellationToken cancellationToken) =>
        writer is null ? ValueTask.CompletedTask : new ValueTask(SyncAsync());

    /// <summary>Sector-exact: Data where any image of the chain holds the sector, Hole elsewhere.</summary>
    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        BlockIoException.CheckRange(this, offsetBytes, lengthBytes, isWrite: false);
        if (lengthBytes == 0)
            throw new BlockIoException(Errno.EINVAL, "an extent query of no length");
        List<BlockExtent> extents = [];
        int budget = MaxRunsPerQuery;
        long end = offsetBytes + lengthBytes;
        for (long at = offsetBytes; at < end && budget > 0 && extents.Count < MaxExtents;)
        {
            cancellationToken.ThrowIfCancellationRequested();
            (bool isPresent, long runEnd) = FirstRun(at, end, ref budget);
            ExtentKind kind = isPresent ? ExtentKind.Data : ExtentKind.Hole;
            if (extents.Count > 0 && extents[^1].Kind == kind)
                extents[^1] = extents[^1] with { LengthBytes = runEnd - extents[^1].OffsetBytes };
            else
                extents.Add(new BlockExtent(at, runEnd - at, kind));
            at = runEnd;
        }

        return ValueTask.FromResult<IReadOnlyList<BlockExtent>>(extents);
    }

    /// <summary>Closes the leaf in order: everything written is durable and the file has its final shape.</summary>
    /// <exception cref="BlockIoException">The last sync failed: the image is as a crash leaves it.</exception>
    public ValueTask DisposeAsync()
    {
        Close();
        return ValueTask.CompletedTask;
    }

    /// <summary>The same on this thread, which it always is.</summary>
    internal void Close()
    {
        if (isDisposed)
            return;
        isDisposed = true;
        try
        {
            writer?.Close();
        }
        catch (IOException e)
        {
            throw Wrapped(e);
        }
        finally
        {
            Abandon();
        }
    }

    internal IReadOnlyList<VhdLayer> Layers => layers;

    internal LayerStack? Parents => parents;

    internal LeafWriter Writer => writer ?? throw new InvalidOperationException("the chain was opened for reading only");

    /// <summary>Lets go of the files as they are, which is what the death of the process does.</summary>
    internal void Abandon()
    {
        isDisposed = true;
        Array.ForEach(layers, static layer => layer.Dispose());
    }

    private static VhdLayer OpenParent(IVhdStore store, List<VhdLayer> layers, string? root)
    {
        VhdLayer child = layers[^1];
        if (layers.Count == MaxDepth)
            throw new VhdException(
                VhdError.TooDeep,
                layers[0].Path,
                $"the chain has more than {MaxDepth} images; coalesce it first ({child.Path} has a parent still)");
        FoundParent found = new ParentSearch(store, child.File, child.Path, child.Metadata!, root).Find();
        if (layers.Any(layer => layer.File.CanonicalPath == found.Path))
            throw new VhdException(VhdError.Loop, layers[0].Path, $"the chain comes back to {found.Path}, the parent of {child.Path}");
        return found.IsRaw
            ? VhdLayer.OpenRaw(store, found.Path)
            : VhdLayer.OpenImage(store, found.Path, isWritable: false, SlotsOf(layers.Count));
    }

    private static int SlotsOf(int depth) =>
        Math.Max(MinBitmapSlots, BitmapSlotsPerChain / (4 * (int)System.Numerics.BitOperations.RoundUpToPowerOf2((uint)depth)));

    /// <summary>Whether anything is held at an offset, and where that ends.</summary>
    internal (bool IsPresent, long EndBytes) RunAt(long offsetBytes)
    {
        int budget = int.MaxValue;
        return FirstRun(offsetBytes, LengthBytes, ref budget);
    }

    internal void Read(long offsetBytes, Span<byte> destination)
    {
        VhdLayer leaf = layers[0];
        while (!destination.IsEmpty)
        {
            LayerRun run = leaf.Find(offsetBytes, offsetBytes + destination.Length);
            Span<byte> piece = destination[..(int)(run.EndBytes - offsetBytes)];
            if (run.IsPresent)
                leaf.ReadExactly(run.FileOffsetBytes, piece);
            else if (parents is null)
                piece.Clear();
            else
                parents.Read(offsetBytes, piece);
            destination = destination[piece.Length..];
            offsetBytes += piece.Length;
        }
    }

    /// <summary>The run at an offset; costs one of the budget for each layer that may be looked at.</summary>
    private (bool IsPresent, long EndBytes) FirstRun(long offsetBytes, long endBytes, ref int budget)
    {
        budget--;
        LayerRun run = layers[0].Find(offsetBytes, endBytes);
        if (run.IsPresent || parents is null)
            return (run.IsPresent, run.EndBytes);
        budget -= layers.Length - 1;
        StackRun deeper = parents.Walk(offsetBytes, run.EndBytes);
        return (deeper.IsPresent, deeper.EndBytes);
    }

    private async Task ClaimAfterSyncAsync(long offsetBytes, long lengthBytes, WriteFlags flags)
    {
        try
        {
            await writer!.SyncAsync();
            writer.Claim(offsetBytes, lengthBytes);
            if (flags.HasFlag(WriteFlags.Fua))
                await writer.SyncAsync();
        }
        catch (IOException e)
        {
            writer!.Failed();
            throw Wrapped(e);
        }
    }

    private ValueTask Finished(WriteFlags flags) =>
        flags.HasFlag(WriteFlags.Fua) ? new ValueTask(SyncAsync()) : ValueTask.CompletedTask;

    private async Task SyncAsync()
    {
        try
        {
            await writer!.SyncAsync();
        }
        catch (IOException e)
        {
            throw Wrapped(e);
        }
    }

    private BlockIoException Wrapped(IOException e) =>
        e as BlockIoException ?? new BlockIoException(BlockIoException.ErrnoOf(e), $"{layers[0].Path}: {e.Message}", e);
}
