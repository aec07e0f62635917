// The lines of `scan`, which the field's drivers parse (research/storage.md 8.5).
using Platform;
using Vhd;

namespace VhdUtil;

internal sealed class ScanOutput(IReadOnlyList<VhdScanEntry> entries, bool isVerbose, bool withMarkers)
{
    private const int IndentPerLevel = 3;

    public void PrintList()
    {
        foreach (VhdScanEntry entry in entries)
            Console.Out.WriteLine(LineOf(entry, ""));
    }

    /// <summary>Roots first, each child below its parent; an image whose parent is not in the scan says so.</summary>
    public void PrintTree()
    {
        Dictionary<string, VhdScanEntry> byPath = [];
        foreach (VhdScanEntry entry in entries.Where(static entry => entry.Info is not null))
            byPath[Path.GetFullPath(entry.Path)] = entry;
        ILookup<string, VhdScanEntry> children = byPath.Values
            .Where(static entry => entry.Info!.ParentPath is not null)
            .ToLookup(static entry => entry.Info!.ParentPath!);
        foreach (VhdScanEntry entry in entries)
        {
            if (entry.Info?.ParentPath is not { } parent || !byPath.ContainsKey(parent))
                PrintBelow(entry, children, 0);
        }
    }

    private void PrintBelow(VhdScanEntry entry, ILookup<string, VhdScanEntry> children, int level)
    {
        if (level > VhdChain.MaxDepth)
            return;
        bool isOrphan = level == 0 && entry.Info?.ParentName is not null;
        Console.Out.WriteLine(new string(' ', level * IndentPerLevel) + LineOf(entry, isOrphan ? " (not found in scan)" : ""));
        foreach (VhdScanEntry child in children[Path.GetFullPath(entry.Path)].OrderBy(static child => child.Info!.IsHidden))
            PrintBelow(child, children, level + 1);
    }

    private string LineOf(VhdScanEntry entry, string remark)
    {
        if (entry.Info is not { } info)
            return $"vhd={entry.Path} scan-error={CodeOf(entry.Error!)} error-message='{entry.Error!.Message.Replace('\'', '"')}'";
        string name = isVerbose ? entry.Path : Path.GetFileName(entry.Path);
        string? found = isVerbose ? info.ParentPath ?? info.ParentName : info.ParentName;
        string markers = withMarkers ? $"marker={info.Marker} keyhash={info.Key?.Hash} " : "";
        return $"vhd={name} capacity={info.VirtualSizeBytes} size={info.PhysicalSizeBytes} hidden={(info.IsHidden ? 1 : 0)} "
            + $"{markers}parent={found ?? "none"}{remark}";
    }

    private static int CodeOf(VhdException error) => error.InnerException is BlockIoException io ? -(int)io.Errno : -(int)Errno.EINVAL;
}
