// The verbs that make an image: create, snapshot, copy. One method for each: its options, then what it does.
using System.CommandLine;
using Vhd;

namespace VhdUtil;

internal static class ImageCommands
{
    public static Command Create()
    {
        Option<string> name = Options.Name();
        Option<long> size = new("-s") { Description = "size of the disk in MiB", Required = true };
        Option<bool> isFixed = new("-r") { Description = "reserve all the space now (a fixed image)" };
        Option<long> room = new("-S") { Description = "room in the block table, in MiB, for growing the disk later" };
        Command command = new("create", "Make an empty image.") { name, size, isFixed, room };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            long sizeBytes = Options.Bytes(result.GetValue(size));
            VhdCreateOptions options = new() { MaxSizeBytes = Options.Bytes(result.GetValue(room)) };
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
        Option<string> name = Options.Name();
        Option<string> parent = new("-p") { Description = "the parent", Required = true };
        Option<bool> isRaw = new("-m") { Description = "the parent is a raw disk" };
        Option<bool> keepsEmpty = new("-e") { Description = "keep an empty parent (else its first ancestor that is not)" };
        Option<int> limit = new("-l") { Description = "refuse a chain longer than this" };
        Option<long> room = new("-S") { Description = "room in the block table, in MiB, for growing the disk later" };
        Command command = new("snapshot", "Make an empty child of an image.")
        {
            name, parent, isRaw, keepsEmpty, limit, room,
        };
        Options.AddCommon(command);
        command.SetAction(async (result, _) =>
        {
            string parentPath = result.GetRequiredValue(parent);
            FoundParent found = result.GetValue(isRaw) || result.GetValue(keepsEmpty)
                ? new FoundParent(parentPath, result.GetValue(isRaw))
                : FirstNotEmpty(parentPath);
            string path = result.GetRequiredValue(name);
            if (result.GetValue(limit) > 0)
                await CheckDepthAsync(path, found, result.GetValue(limit));
            VhdCreateOptions options = new() { MaxSizeBytes = Options.Bytes(result.GetValue(room)) };
            VhdImage.CreateSnapshot(path, found.Path, found.IsRaw, options);
            return 0;
        });
        return command;
    }

    private static async Task CheckDepthAsync(string path, FoundParent parent, int limit)
    {
        int depth = 1;
        if (!parent.IsRaw)
        {
            await using VhdChain chain = VhdChain.Open(parent.Path, new VhdOpenOptions { IsReadOnly = true });
            depth = chain.Paths.Count;
        }

        if (depth >= limit)
            throw new VhdException(
                VhdError.TooDeep, path, $"its parent {parent.Path} is the {depth}th image of its chain already, the limit is {limit}");
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

    private readonly record struct FoundParent(string Path, bool IsRaw);
}
