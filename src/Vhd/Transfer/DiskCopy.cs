// Copies a disk: a VHD with its parents, one layer of it, or a raw disk, into a dynamic, fixed or raw file. A new file has a temporary name
// until it is whole (and durable, unless asked otherwise); whatever goes wrong, no file is left. In place there is nothing to go back to: a
// VHD is marked as half-written until it is whole.
using System.Security.Cryptography;
using Platform;

namespace Vhd.Transfer;

public enum DiskFormat
{
    /// <summary>A dynamic VHD; of one layer alone, a differencing one.</summary>
    Vhd,

    /// <summary>A VHD with all its space reserved.</summary>
    FixedVhd,

    Raw,
}

public sealed record CopyOptions
{
    public DiskFormat Format { get; init; }

    /// <summary>The source is a raw disk; a format is never guessed.</summary>
    public bool IsSourceRaw { get; init; }

    /// <summary>Only what the image itself holds, as a child of the same parent.</summary>
    public bool IsLayerOnly { get; init; }

    /// <summary>Into an existing target of the same size, whatever it holds.</summary>
    public bool IsInPlace { get; init; }

    /// <summary>Past the page cache, on both sides.</summary>
    public bool IsDirect { get; init; }

    /// <summary>Durable at return.</summary>
    public bool IsSynced { get; init; } = true;

    /// <summary>Reads both again and compares them.</summary>
    public bool IsVerified { get; init; }

    public int Threads { get; init; } = 2;

    public TransferProgress? Progress { get; init; }
}

/// <param name="ReadBytes">Content read from the source.</param>
/// <param name="WrittenBytes">Content written to the target; metadata is not counted.</param>
public sealed record CopyResult(long VirtualSizeBytes, long ReadBytes, long WrittenBytes);

public static class DiskCopy
{
    /// <exception cref="VhdException">An image is refused; the target is there (in place: is not); it cannot be written.</exception>
    /// <exception cref="BlockIoException">Reading, writing or syncing failed.</exception>
    public static CopyResult Run(string sourcePath, string targetPath, CopyOptions options, CancellationToken cancellationToken)
    {
        using DiskSource source = DiskSource.Open(sourcePath, options.IsSourceRaw, options.IsLayerOnly, options.IsDirect);
        if (options.IsLayerOnly && source.Layers[0].Metadata?.Footer.Type != VhdType.Differencing)
            throw new VhdException(VhdError.BadRequest, sourcePath, "only a differencing image can be copied as a layer; nothing was done");
        try
        {
            CopyResult result = options.IsInPlace
                ? IntoExisting(source, targetPath, options, cancellationToken)
                : IntoNew(source, targetPath, options, cancellationToken);
            return result;
        }
        catch (Exception e) when (e is UnauthorizedAccessException or (IOException and not (VhdException or BlockIoException)))
        {
            string left = options.IsInPlace ? "it is half-written" : "no file was left";
            throw new VhdException(VhdError.CannotWrite, targetPath, $"{e.Message}; {left}", e);
        }
    }

    private static CopyResult IntoNew(DiskSource source, string path, CopyOptions options, CancellationToken cancellationToken)
    {
        PosixStore store = PosixStore.Instance;
        if (store.Exists(path))
            throw new VhdException(
                VhdError.AlreadyExists, path, "there is a file already; it was left as it is (--in-place writes into it)");
        string temporary = $"{path}.{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(4))}.new";
        try
        {
            CopyResult result;
            using (CopyTarget target = NewTargets.Create(source, store, temporary, options))
                result = Fill(source, target, options, cancellationToken);
            if (options.IsVerified)
                Verify(source, temporary, options, cancellationToken);
            store.Publish(temporary, path, options.IsSynced);
            return result;
        }
        catch
        {
            store.Delete(temporary);
            throw;
        }
    }

    private static CopyResult IntoExisting(DiskSource source, string path, CopyOptions options, CancellationToken cancellationToken)
    {
        CopyResult result;
        using (CopyTarget target = ExistingTargets.Open(source, path, options))
            result = Fill(source, target, options, cancellationToken);
        if (options.IsVerified)
            Verify(source, path, options, cancellationToken);
        return result;
    }

    private static CopyResult Fill(DiskSource source, CopyTarget target, CopyOptions options, CancellationToken cancellationToken)
    {
        List<int> blocks = CopyPass.Plan(source, target.BlockBytes);
        CopyPass pass = new(source, target, options.Progress);
        pass.Run(blocks, options.Threads, options.IsDirect, cancellationToken);
        target.Finish(blocks, options.IsSynced);
        return new CopyResult(source.LengthBytes, pass.ReadBytes, pass.WrittenBytes);
    }

    private static void Verify(DiskSource source, string path, CopyOptions options, CancellationToken cancellationToken)
    {
        using DiskSource written = DiskSource.Open(path, options.Format == DiskFormat.Raw, options.IsLayerOnly, options.IsDirect);
        DiskDifference? difference = ComparePass.First(source, written, options.Threads, null, cancellationToken);
        if (difference is not null)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"read back, it differs from its source at byte {difference.Value.OffsetBytes}: the storage cannot be trusted");
    }
}
