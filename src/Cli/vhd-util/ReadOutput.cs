// What `read` prints: the image's facts under the field's labels, or the disk's data.
using System.Globalization;
using Platform;
using Vhd;

namespace VhdUtil;

internal static class ReadOutput
{
    private const int SectorBytes = 512;

    public static void PrintHeaders(VhdInfo info)
    {
        string type = info.Type switch
        {
            VhdType.Fixed => "Fixed hard disk",
            VhdType.Dynamic => "Dynamic hard disk",
            _ => "Differencing hard disk",
        };
        Line("Creator Application", $"'{info.Creator}'");
        Line("Creator version", info.CreatorVersion);
        Line("Timestamp", info.CreatedAt.ToString("u", CultureInfo.InvariantCulture));
        Line("Current disk size", $"{Options.Mebibytes(info.VirtualSizeBytes)} MB ({info.VirtualSizeBytes} Bytes)");
        Line("Disk type", type);
        Line("UUID", info.Uuid.ToString());
        Line("Hidden", info.IsHidden ? "1" : "0");
        if (info.Type == VhdType.Fixed)
            return;
        Line("Max disk size", $"{Options.Mebibytes(info.MaxSizeBytes)} MB ({info.MaxSizeBytes} Bytes)");
        Line("Block size", $"{info.BlockBytes} ({Options.Mebibytes(info.BlockBytes)} MB)");
        Line("Allocated blocks", info.AllocatedBlocks.ToString(CultureInfo.InvariantCulture));
        if (info.ParentName is null)
            return;
        Line("Parent name", info.ParentName);
        Line("Parent UUID", (info.ParentUuid ?? Guid.Empty).ToString());
        Line("Parent path", info.ParentPath ?? "not found");
    }

    public static async Task WriteDataAsync(string path, long sector, long count, CancellationToken cancellationToken)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        long sectors = chain.LengthBytes / SectorBytes;
        if (count < 0 || sector > sectors - count)
            throw new BlockIoException(Errno.EINVAL, $"{path}: sectors {sector}+{count} are outside of a disk of {sectors}");
        await using Stream output = Console.OpenStandardOutput();
        byte[] buffer = new byte[1 << 20];
        for (long at = sector * SectorBytes, end = (sector + count) * SectorBytes; at < end;)
        {
            Memory<byte> piece = buffer.AsMemory(0, (int)Math.Min(buffer.Length, end - at));
            await chain.ReadAsync(at, piece, cancellationToken);
            await output.WriteAsync(piece, cancellationToken);
            at += piece.Length;
        }
    }

    private static void Line(string label, string value) => Console.Out.WriteLine($"{label,-20}: {value}");
}
