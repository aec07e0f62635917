// From a datapath to the process that serves it, and whether that process can do what a migration needs: asked, never guessed from the SR's type.
using System.Globalization;
using System.Text.RegularExpressions;
using Migration;
using Nbd;
using StorageAccess;
using StorageAccess.Tap;

namespace Xapi.Migration;

/// <summary>One disk of one tapdisk.</summary>
public sealed record TapdiskDisk(int ProcessId, int Minor);

public sealed partial class TapdiskOf(StorageLayer layer, TapControl control)
{
    public TapExtensions Extensions { get; } = new(control);

    /// <summary>The tapdisk behind an activated datapath.</summary>
    /// <exception cref="MigrationException">SR_DOES_NOT_SUPPORT_MIGRATION: the disk is served by something that cannot mirror.</exception>
    public async Task<TapdiskDisk> FindAsync(
        SrId sr, VdiId vdi, DatapathId datapath, string capability, MigrationSide side, CancellationToken cancellationToken)
    {
        Backend backend = layer.DpAttachInfo(sr, vdi, datapath);
        string? socket = backend.Nbd is { } nbd ? NbdUri.TryParse(nbd.Uri)?.SocketPath : null;
        if (socket is null)
            throw Cannot(sr, side, $"VDI {vdi} is not served over NBD");
        string target = File.ResolveLinkTarget(socket, returnFinalTarget: true)?.FullName ?? socket;
        if (SocketName().Match(Path.GetFileName(target)) is not { Success: true } match)
            throw Cannot(sr, side, $"VDI {vdi} is served by {target}, which is no tapdisk's socket");
        TapdiskDisk disk = new(
            int.Parse(match.Groups["pid"].ValueSpan, CultureInfo.InvariantCulture), int.Parse(match.Groups["minor"].ValueSpan, CultureInfo.InvariantCulture));
        IReadOnlyList<string> capabilities = await Extensions.CapabilitiesAsync(disk.ProcessId, cancellationToken);
        return capabilities.Contains(capability)
            ? disk
            : throw Cannot(sr, side, $"tapdisk {disk.ProcessId} serves VDI {vdi} and cannot do \"{capability}\"");
    }

    private static MigrationException Cannot(SrId sr, MigrationSide side, string why) => new("SR_DOES_NOT_SUPPORT_MIGRATION", [sr.Value, "VDI_MIRROR"], side, why);

    [GeneratedRegex(@"^nbd(?<pid>\d{1,9})\.(?<minor>\d{1,9})$")]
    private static partial Regex SocketName();
}
