// One method for each verb: its options, then what it does.
using System.CommandLine;
using Vhd;

namespace VhdUtil;

internal static class ImageCommands
{
    private const int BytesPerMebibyteShift = 20;

    public static Command Create()
    {
        Option<string> name = Name();
        Option<long> size = new("-s") { Description = "size of the disk in MiB", Required = true };
        Option<bool> isFixed = new("-r") { Description = "reserve all the space now (a fixed image)" };
        Option<long> room = new("-S") { Description = "room in the block table, in MiB, for growing the disk later" };
        Command command = new("create", "Make an empty image.") { name, size, isFixed, room };
        command.SetAction(result =>
        {
            long sizeBytes = Bytes(result.GetValue(size));
            VhdCreateOptions options = new() { MaxSizeBytes = Bytes(result.GetValue(room)) };
            if (result.GetValue(isFixed))
                VhdImage.CreateFixed(result.GetRequiredValue(name), sizeBytes, options);
            else
                VhdImage.CreateDynamic(result.GetRequiredValue(name), sizeBytes, options);
            return 0;
        });
        return command;
    }

    public static Command Snapshot()
    {
        Option<string> name = Name();
        Option<string> parent = new("-p") { Description = "the parent", Required = true };
        Option<bool> isRaw = new("-m") { Description = "the parent is a raw disk" };
        Option<bool> keepsEmpty = new("-e") { Description = "keep an empty parent (else its first ancestor that is not)" };
        Command command = new("snapshot", "Make an empty child of an image.") { name, parent, isRaw, keepsEmpty };
        command.SetAction(result =>
        {
            string parentPath = result.GetRequiredValue(parent);
            FoundParent found = result.GetValue(isRaw) || result.GetValue(keepsEmpty)
                ? new FoundParent(parentPath, result.GetValue(isRaw))
                : FirstNotEmpty(parentPath);
            VhdImage.CreateSnapshot(result.GetRequiredValue(name), found.Path, found.IsRaw, new VhdCreateOptions());
            return 0;
        });
        return command;
    }

    public static Command Query()
    {
        Option<string> name = Name();
        Option<bool> size = new("-v") { Description = "size of the disk in MiB" };
        Option<bool> file = new("-s") { Description = "bytes of the file" };
        Option<bool> parent = new("-p") { Description = "the parent" };
        Option<bool> hidden = new("-f") { Description = "the hidden flag" };
        Option<bool> depth = new("-d") { Description = "images in the chain" };
        Option<bool> blocks = new("-a") { Description = "allocated blocks" };
        Option<bool> room = new("-S") { Description = "largest size in MiB that the block table has room for" };
        Command command = new("query", "Describe an image, a line for each thing asked, in the order v s p f d a S.")
        {
            name, size, file, parent, hidden, depth, blocks, room,
        };
        command.SetAction(async (result, _) =>
        {
            string path = result.GetRequiredValue(name);
            VhdInfo info = VhdImage.ReadInfo(path);
            foreach (string warning in info.Warnings)
                Console.Error.WriteLine($"vhd-util: {path}: {warning}");
            Print(result.GetValue(size), $"{info.VirtualSizeBytes >> BytesPerMebibyteShift}");
            Print(result.GetValue(file), $"{info.PhysicalSizeBytes}");
            Print(result.GetValue(parent), info.ParentName is null ? $"{path} has no parent" : info.ParentPath ?? "query failed");
            Print(result.GetValue(hidden), info.IsHidden ? "hidden: 1" : "hidden: 0");
            if (result.GetValue(depth))
                Console.Out.WriteLine(await DepthLineAsync(path));
            Print(result.GetValue(blocks), $"{info.AllocatedBlocks}");
            Print(result.GetValue(room), $"{info.MaxSizeBytes >> BytesPerMebibyteShift}");
            return info.ParentName is not null && info.ParentPath is null && (result.GetValue(parent) || result.GetValue(depth)) ? 1 : 0;
        });
        return command;
    }

    public static Command Check()
    {
        Option<string> name = Name();
        Option<bool> ignoresFooter = new("-i") { Description = "accept an image whose trailing footer is missing (its copy is good)" };
        Command command = new("check", "Say whether an image and its parents can be served as they are.") { name, ignoresFooter };
        command.SetAction(async (result, _) =>
        {
            string path = result.GetRequiredValue(name);
            await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
            foreach (string warning in chain.Warnings)
                Console.Error.WriteLine("vhd-util: " + warning);
            if (chain.Warnings.Count > 0 && !result.GetValue(ignoresFooter))
                return 1;
            Console.Out.WriteLine($"{path} is valid");
            return 0;
        });
        return command;
    }

    public static Command Set()
    {
        Option<string> name = Name();
        Option<string> field = new("-f") { Description = "the field: hidden", Required = true };
        field.AcceptOnlyFromAmong("hidden");
        Option<int> value = new("-v") { Description = "0 or 1", Required = true };
        Command command = new("set", "Change a field of an image.") { name, field, value };
        command.SetAction(result =>
        {
            VhdImage.SetHidden(result.GetRequiredValue(name), result.GetValue(value) != 0);
            return 0;
        });
        return command;
    }

    public static Command Modify()
    {
        Option<string> name = Name();
        Option<string> parent = new("-p") { Description = "the new parent, with the same content under the image", Required = true };
        Option<bool> isRaw = new("-m") { Description = "the new parent is a raw disk" };
        Command command = new("modify", "Give an image another parent.") { name, parent, isRaw };
        command.SetAction(result =>
        {
            VhdImage.SetParent(result.GetRequiredValue(name), result.GetRequiredValue(parent), result.GetValue(isRaw));
            return 0;
        });
        return command;
    }

    private static Option<string> Name() => new("-n") { Description = "the image", Required = true };

    // A count of MiB that overflows is a size that the library refuses.
    private static long Bytes(long mebibytes) =>
        Math.Abs(mebibytes) < 1L << 40 ? mebibytes << BytesPerMebibyteShift : long.MaxValue;

    private static void Print(bool isAsked, string line)
    {
        if (isAsked)
            Console.Out.WriteLine(line);
    }

    /// <summary>A parent without a block of its own adds nothing but depth.</summary>
    private static FoundParent FirstNotEmpty(string path)
    {
        for (int depth = 0; depth < VhdChain.MaxDepth; depth++)
        {
            VhdInfo info = VhdImage.ReadInfo(path);
            if (info.AllocatedBlocks > 0 || info.ParentPath is null)
                break;
            path = info.ParentPath;
            if (info.HasRawParent)
                return new FoundParent(path, true);
        }

        return new FoundParent(path, false);
    }

    private static async Task<string> DepthLineAsync(string path)
    {
        try
        {
            await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
            return $"chain depth: {chain.Paths.Count}";
        }
        catch (VhdException e)
        {
            await Console.Error.WriteLineAsync("vhd-util: " + e.Message);
            return "error checking chain depth: -2";
        }
    }

    private readonly record struct FoundParent(string Path, bool IsRaw);
}
