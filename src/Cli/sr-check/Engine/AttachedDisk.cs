// Opens what a plugin's attach answered: an NBD export, a file or a block device.
using Nbd;
using Platform;
using SrCheck.Plugins;

namespace SrCheck;

internal static class AttachedDisk
{
    private const int SocketPathLimit = 107;
    private static readonly NbdClientOptions Options = new()
    {
        ConnectTimeout = TimeSpan.FromSeconds(10),
        RequestTimeout = TimeSpan.FromSeconds(30),
    };

    /// <summary>The best of the ways: NBD, then a block device, then a file.</summary>
    /// <exception cref="Checks.CheckFailedException">None of them can be opened.</exception>
    public static async Task<IBlockDevice> OpenAsync(IReadOnlyList<Access> ways, bool isWritable)
    {
        Access way = ways.OrderBy(static w => w.Kind switch { AccessKind.Nbd => 0, AccessKind.BlockDevice => 1, _ => 2 }).FirstOrDefault()
            ?? throw new Checks.CheckFailedException("attach answered no way to reach the disk from here (NBD, file or device)");
        try
        {
            if (way.Kind != AccessKind.Nbd)
                return new RawFile(way.Address, !isWritable);
            NbdUri uri = NbdUri.TryParse(way.Address) ?? throw new Checks.CheckFailedException($"\"{way.Address}\" is no NBD address");
            if (uri.SocketPath is { Length: > SocketPathLimit } path)
                throw new Checks.CheckFailedException($"the socket's path has {path.Length} bytes, the limit is {SocketPathLimit}");
            return await NbdClient.ConnectAsync(uri, Options, CancellationToken.None);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new Checks.CheckFailedException($"{way.Kind} \"{PluginCall.Cut(way.Address)}\" cannot be opened: {e.Message}");
        }
    }

    /// <summary>Whether somebody answers there now; a file always does.</summary>
    public static async Task<bool> AnswersAsync(IReadOnlyList<Access> ways)
    {
        try
        {
            await using IBlockDevice device = await OpenAsync(ways, isWritable: false);
            return true;
        }
        catch (Checks.CheckFailedException)
        {
            return false;
        }
    }
}
