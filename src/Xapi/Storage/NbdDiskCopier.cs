// DATA.copy's bytes: what the source has allocated and is not zero, a few pieces in flight, between two disks that tapdisks (or plugins) serve
// over NBD.
using Nbd;
using Platform;
using StorageAccess;

namespace Xapi.Storage;

public sealed class NbdDiskCopier : IDiskCopier
{
    private const int PieceBytes = 1 << 20;
    private const int PiecesInFlight = 4;
    private const long ExtentStepBytes = 1L << 30;
    private static readonly NbdClientOptions Options = new() { RequestTimeout = TimeSpan.FromSeconds(60) };

    public async Task CopyAsync(Backend from, Backend to, IProgress<double> progress, CancellationToken cancellationToken)
    {
        await using NbdClient source = await ConnectAsync(from, cancellationToken);
        await using NbdClient destination = await ConnectAsync(to, cancellationToken);
        if (destination.LengthBytes < source.LengthBytes)
            throw StorageException.Migration(
                "Migration_mirror_copy_failure", $"the new disk has {destination.LengthBytes} bytes, the source {source.LengthBytes}");
        try
        {
            await CopyAsync(source, destination, progress, cancellationToken);
            await destination.FlushAsync(cancellationToken);
        }
        catch (BlockIoException e)
        {
            throw StorageException.Migration("Migration_mirror_copy_failure", e.Message);
        }
    }

    private static async Task CopyAsync(
        NbdClient source, NbdClient destination, IProgress<double> progress, CancellationToken cancellationToken)
    {
        List<Task> pieces = [];
        try
        {
            await foreach ((long at, int length) in PiecesAsync(source, cancellationToken))
            {
                if (pieces.Count == PiecesInFlight)
                {
                    Task first = await Task.WhenAny(pieces);
                    pieces.Remove(first);
                    await first;
                }

                pieces.Add(CopyPieceAsync(source, destination, at, length, cancellationToken));
                progress.Report((double)at / source.LengthBytes);
            }
        }
        finally
        {
            await Task.WhenAll(pieces); // Also when one has failed: the connections go next.
        }
    }

    private static async Task<NbdClient> ConnectAsync(Backend backend, CancellationToken cancellationToken)
    {
        NbdUri uri = (backend.Nbd is { } nbd ? NbdUri.TryParse(nbd.Uri) : null)
            ?? throw StorageException.Migration("Migration_preparation_failure", "the disk is not served over NBD");
        return await NbdClient.ConnectAsync(uri, Options, cancellationToken);
    }

    private static async IAsyncEnumerable<(long At, int Length)> PiecesAsync(
        NbdClient source, [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancellationToken)
    {
        for (long at = 0; at < source.LengthBytes;)
        {
            IReadOnlyList<BlockExtent> extents =
                await source.ExtentsAsync(at, Math.Min(ExtentStepBytes, source.LengthBytes - at), cancellationToken);
            foreach (BlockExtent extent in extents.Where(static extent => extent.Kind == ExtentKind.Data))
            {
                for (long piece = extent.OffsetBytes; piece < extent.EndBytes; piece += PieceBytes)
                    yield return (piece, (int)Math.Min(PieceBytes, extent.EndBytes - piece));
            }

            at = extents[^1].EndBytes;
        }
    }

    private static async Task CopyPieceAsync(
        NbdClient source, NbdClient destination, long at, int length, CancellationToken cancellationToken)
    {
        byte[] piece = new byte[length];
        await source.ReadAsync(at, piece, cancellationToken);
        if (piece.AsSpan().ContainsAnyExcept((byte)0))
            await destination.WriteAsync(at, piece, WriteFlags.None, cancellationToken);
    }
}
