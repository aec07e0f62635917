// The verbs that look and change nothing: query, check, scan.
using System.CommandLine;
using System.IO.Enumeration;
using Platform;
using Vhd;

namespace VhdUtil;

internal static class LookCommands
{
    public static Command Query()
    {
        Option<string> name = Options.Name();
        Option<bool> size = new("-v") { Description = "size of the disk in MiB" };
        Option<bool> file = new("-s") { Description = "bytes of the file" };
        Option<bool> parent = new("-p") { Description = "the parent" };
        Option<bool> hidden = new("-f") { Description = "the hidden flag" };
        Option<bool> marker = new("-m") { Description = "the marker, a byte that its writer may use as it likes" };
        Option<bool> depth = new("-d") { Description = "images in the chain" };
        Option<bool> blocks = new("-a") { Description = "allocated blocks" };
        Option<bool> room = new("-S") { Description = "largest size in MiB that the block table has room for" };
        Option<bool> isUnresolved = new("-u") { Description = "with -p, the parent's name as it is stored" };
        Option<bool> isJson = Options.Json();
        Command command = new("query", "Describe an image, a line for each thing asked, in the order v s p f m d a S.")
        {
            name, size, file, parent, hidden, marker, depth, blocks, room, isUnresolved, isJson,
        };
        Options.AddCommon(command);
        command.SetAction(async (result, _) =>
        {
            string path = result.GetRequiredValue(name);
            VhdInfo info = VhdImage.ReadInfo(path);
            foreach (string warning in info.Warnings)
                Console.Error.WriteLine($"vhd-util: {path}: {warning}");
            if (result.GetValue(isJson))
            {
                Output.WriteJson(info);
                return 0;
            }

            bool isStored = result.GetValue(isUnresolved);
            string? found = isStored ? info.ParentName : info.ParentPath;
            Print(result.GetValue(size), $"{Options.Mebibytes(info.VirtualSizeBytes)}");
            Print(result.GetValue(file), $"{info.PhysicalSizeBytes}");
            Print(result.GetValue(parent), info.ParentName is null ? $"{path} has no parent" : found ?? "query failed");
            Print(result.GetValue(hidden), info.IsHidden ? "hidden: 1" : "hidden: 0");
            Print(result.GetValue(marker), $"marker: {info.Marker}");
            if (result.GetValue(depth))
                Console.Out.WriteLine(await DepthLineAsync(path));
            Print(result.GetValue(blocks), $"{info.AllocatedBlocks}");
            Print(result.GetValue(room), $"{Options.Mebibytes(info.MaxSizeBytes)}");
            bool isLost = info.ParentName is not null && info.ParentPath is null;
            return isLost && ((result.GetValue(parent) && !isStored) || result.GetValue(depth)) ? 1 : 0;
        });
        return command;
    }

    public static Command Check()
    {
        Option<string> name = Options.Name();
        Option<bool> ignoresFooter = new("-i") { Description = "accept an image whose trailing footer is missing (its copy is good)" };
        Option<bool> ignoresParent = new("-I") { Description = "accept a missing or another parent" };
        Option<bool> ignoresTime = new("-t") { Description = "accept times in the future" };
        Option<bool> withParents = new("-p") { Description = "check the images below as well" };
        Option<bool> bitmaps = new("-b") { Description = "accepted as the field's tool does; bitmaps are always looked at" };
        Option<bool> noOverlaps = new("-B") { Description = "accepted as the field's tool does; the whole table is always looked at" };
        Option<bool> isJson = Options.Json();
        Command command = new("check", "Say whether an image is valid, and everything that is wrong with it.")
        {
            name, ignoresFooter, ignoresParent, ignoresTime, withParents, bitmaps, noOverlaps, isJson,
        };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            string path = result.GetRequiredValue(name);
            HashSet<VhdFault> ignored = [];
            if (result.GetValue(ignoresFooter))
                ignored.UnionWith([VhdFault.FooterMissing, VhdFault.NotClosed]);
            if (result.GetValue(ignoresParent))
                ignored.Add(VhdFault.Parent);
            if (result.GetValue(ignoresTime))
                ignored.Add(VhdFault.FutureTimestamp);
            IReadOnlyList<VhdProblem> problems = VhdCheck.Run(path, new VhdCheckOptions { WithParents = result.GetValue(withParents) });
            bool isValid = problems.All(problem => problem.Severity == VhdSeverity.Note || ignored.Contains(problem.Fault));
            if (result.GetValue(isJson))
                Output.WriteJson(new { path, isValid, problems });
            else
                Tell(path, isValid, problems);
            return isValid ? 0 : 1;
        });
        return command;
    }

    public static Command Scan()
    {
        Argument<string[]> files = new("files") { Description = "images, or a folder's *.vhd", Arity = ArgumentArity.ZeroOrMore };
        Option<string> match = new("-m") { Description = "a path whose last part may hold * and ?" };
        Option<bool> isFast = new("-f") { Description = "accepted as the field's tool does" };
        Option<bool> goesOn = new("-c") { Description = "exit with 0 even when an image is broken" };
        Option<bool> isPretty = new("-p") { Description = "as a tree: a child below its parent" };
        Option<bool> withParents = new("-a") { Description = "the images below as well" };
        Option<bool> isVerbose = new("-v") { Description = "whole paths instead of names" };
        Option<bool> withMarkers = new("-M") { Description = "markers and key hashes as well" };
        Option<string> group = new("-l") { Description = "an LVM volume group; refused: only files are scanned" };
        Option<bool> isJson = Options.Json();
        Command command = new("scan", "Describe many images, a line for each; a broken one does not stop the rest.")
        {
            files, match, isFast, goesOn, isPretty, withParents, isVerbose, withMarkers, group, isJson,
        };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            if (result.GetValue(group) is { } volumes)
                throw new BlockIoException(
                    Errno.ENOTSUP, $"LVM volumes are not supported: {volumes} was not scanned; name files or a folder");
            List<string> paths = [.. Matching(result.GetValue(match)), .. result.GetValue(files)!.SelectMany(Expand)];
            List<VhdScanEntry> found = [.. result.GetValue(withParents) ? VhdScan.WithParents(paths) : VhdScan.Run(paths)];
            ScanOutput output = new(found, result.GetValue(isVerbose), result.GetValue(withMarkers));
            if (result.GetValue(isJson))
                Output.WriteJson(found.Select(static entry => new { entry.Path, entry.Info, Error = entry.Error?.Message }));
            else if (result.GetValue(isPretty))
                output.PrintTree();
            else
                output.PrintList();
            return found.Exists(static entry => entry.Error is not null) && !result.GetValue(goesOn) ? 1 : 0;
        });
        return command;
    }

    private static void Print(bool isAsked, string line)
    {
        if (isAsked)
            Console.Out.WriteLine(line);
    }

    private static void Tell(string path, bool isValid, IReadOnlyList<VhdProblem> problems)
    {
        foreach (VhdProblem problem in problems)
        {
            string severity = problem.Severity.ToString().ToLowerInvariant();
            Console.Error.WriteLine($"vhd-util: {severity}: {problem.Path}: {problem.Message}");
        }

        if (isValid)
            Console.Out.WriteLine($"{path} is valid");
    }

    private static IEnumerable<string> Expand(string path) =>
        Directory.Exists(path) ? Matching(Path.Combine(path, "*.vhd")) : [path];

    private static IEnumerable<string> Matching(string? pattern)
    {
        if (pattern is null)
            return [];
        string folder = Path.GetDirectoryName(pattern) is { Length: > 0 } given ? given : ".";
        string last = Path.GetFileName(pattern);
        if (!Directory.Exists(folder))
            throw new BlockIoException(Errno.ENOENT, $"no folder {folder}");
        return Directory.EnumerateFiles(folder)
            .Where(path => FileSystemName.MatchesSimpleExpression(last, Path.GetFileName(path), ignoreCase: false))
            .Order(StringComparer.Ordinal)
            .Select(path => pattern.Contains('/', StringComparison.Ordinal) ? path : Path.GetFileName(path));
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
}
