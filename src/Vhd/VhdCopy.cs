// Our own export: a device's content as one flat file. Holes and zeros are skipped, so the file is as small as the content; the order is
// the disk's.
using Platform;

namespace Vhd;

public enum ExportFormat
{
    Vhd,
    Raw,
}

public static class VhdCopy
{
    private const int ZeroGrainBytes = 4096;

    /// <summary>
    /// Writes the whole content of a device to a new file, durable at return; a failed or cancelled export leaves no file.
    /// </summary>
    /// <param name="progress">Bytes of the disk done so far.</param>
    /// <exception cref="VhdException">AlreadyExists, or the device's size is not one a VHD can have.</exception>
    public static async Task ExportAsync(
        IBlockDevice source, string path, ExportFormat format, IProgress<long>? progress, CancellationToken cancellationToken)
    {
        PosixStore store = PosixStore.Instance;
        if (store.Exists(path))
            throw new VhdException(VhdError.AlreadyExists, path, "there is a file already; it was left as it is");
        string temporary = $"{path}.{Guid.NewGuid():n}.new";
        try
        {
            if (format == ExportFormat.Vhd)
                await ToVhdAsync(source, store, temporary, progress, cancellationToken);
            else
                await ToRawAsync(source, store, temporary, progress, cancellationToken);
            store.Publish(temporary, path);
        }
        catch
        {
            store.Delete(temporary);
            throw;
        }
    }

    private static async Task ToVhdAsync(
        IBlockDevice source, PosixStore store, string path, IProgress<long>? progress, CancellationToken cancellationToken)
    {
        VhdImage.CreateDynamic(store, path, source.LengthBytes, new VhdCreateOptions());
        await using VhdChain target = VhdChain.Open(store, path, new VhdOpenOptions());
        await CopyAsync(
            source, (offset, data) => target.WriteAsync(offset, data, WriteFlags.None, cancellationToken), progress, cancellationToken);
    }

    private static async Task ToRawAsync(
        IBlockDevice source, PosixStore store, string path, IProgress<long>? progress, CancellationToken cancellationToken)
    {
        using IVhdFile target = store.Create(path, 0);
        target.SetLength(source.LengthBytes);
        await CopyAsync(
            source,
            (offset, data) =>
            {
                target.Write(offset, data.Span);
                return ValueTask.CompletedTask;
            },
            progress,
            cancellationToken);
        target.Sync();
    }

    private static async Task CopyAsync(
        IBlockDevice source,
        Func<long, ReadOnlyMemory<byte>, ValueTask> write,
        IProgress<long>? progress,
        CancellationToken cancellationToken)
    {
        byte[] buffer = new byte[VhdHeader.DefaultBlockBytes];
        for (long at = 0; at < source.LengthBytes;)
        {
            foreach (BlockExtent extent in await source.ExtentsAsync(at, source.LengthBytes - at, cancellationToken))
            {
                at = extent.EndBytes;
                if (extent.Kind != ExtentKind.Data)
                    continue;
                for (long from = extent.OffsetBytes; from < extent.EndBytes; from += buffer.Length)
                {
                    Memory<byte> piece = buffer.AsMemory(0, (int)Math.Min(buffer.Length, extent.EndBytes - from));
                    await source.ReadAsync(from, piece, cancellationToken);
                    await WriteNonZeroAsync(from, piece, write);
                }

                progress?.Report(at);
            }
        }
    }

    /// <summary>Writes the runs that hold anything, cut at 4 KiB of the disk.</summary>
    private static async Task WriteNonZeroAsync(
        long offsetBytes, ReadOnlyMemory<byte> data, Func<long, ReadOnlyMemory<byte>, ValueTask> write)
    {
        int runStart = 0;
        for (int at = 0; at < data.Length;)
        {
            int grain = (int)Math.Min(data.Length - at, ZeroGrainBytes - (offsetBytes + at) % ZeroGrainBytes);
            bool isZero = !data.Span.Slice(at, grain).ContainsAnyExcept((byte)0);
            if (isZero && at > runStart)
                await write(offsetBytes + runStart, data[runStart..at]);
            at += grain;
            if (isZero)
                runStart = at;
        }

        if (runStart < data.Length)
            await write(offsetBytes + runStart, data[runStart..]);
    }
}
