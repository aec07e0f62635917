// digest, compare and diff: what disks hold, and where they differ. Each side is a VHD with its parents unless it is said to be raw.
using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using Vhd.Transfer;

namespace VhdUtil;

internal static class ContentCommands
{
    public static Command Digest()
    {
        Argument<string> disk = new("DISK") { Description = "the disk" };
        Option<bool> isRaw = new("--raw") { Description = "DISK is raw" };
        Option<bool> hasBlocks = new("--blocks") { Description = "a line for each block of 2 MiB too" };
        (Option<int> threads, Option<bool> isJson) = (Threads(), Options.Json());
        Command command = new("digest", """
            Say the digest of a disk's content: equal digests, equal disks, whatever the files look like.

            Examples:
              vhd-util digest child.vhd                  SHA-256 over the digests of its blocks
              vhd-util digest disk.raw --raw --json
            """) { disk, isRaw, hasBlocks, threads, isJson };
        command.SetAction((result, cancellationToken) =>
        {
            using IDisposable? lease = SourceLease.Take(result.GetRequiredValue(disk));
            using TransferLine progress = new();
            DiskDigest digest = ContentDigest.Of(
                result.GetRequiredValue(disk), result.GetValue(isRaw), result.GetValue(threads), progress.Progress, cancellationToken);
            progress.Dispose();
            if (result.GetValue(isJson))
                WriteDigestJson(digest, result.GetValue(hasBlocks));
            else
                Console.Out.WriteLine(digest.Root);
            for (int block = 0; result.GetValue(hasBlocks) && !result.GetValue(isJson) && block < digest.Blocks.Length / 32; block++)
                Console.Out.WriteLine($"{block} {BlockOf(digest, block)}");
            return Task.FromResult(0);
        });
        return command;
    }

    public static Command Compare()
    {
        (Argument<string> a, Argument<string> b) = Sides();
        (Option<bool> isRawA, Option<bool> isRawB) = RawSides();
        (Option<int> threads, Option<bool> isJson) = (Threads(), Options.Json());
        Command command = new("compare", """
            Say whether two disks hold the same. Exit code 0 when they do, 1 when they do not.

            Examples:
              vhd-util compare disk.vhd backup.vhd
              vhd-util compare disk.vhd disk.raw --raw-b
            """) { a, b, isRawA, isRawB, threads, isJson };
        command.SetAction((result, cancellationToken) =>
        {
            using IDisposable? lease = SourceLease.Take(result.GetRequiredValue(a));
            using IDisposable? otherLease = SourceLease.Take(result.GetRequiredValue(b));
            using TransferLine progress = new();
            DiskSide first = new(result.GetRequiredValue(a), result.GetValue(isRawA));
            DiskSide second = new(result.GetRequiredValue(b), result.GetValue(isRawB));
            long? difference = DiskCompare.FirstDifference(first, second, result.GetValue(threads), progress.Progress, cancellationToken);
            progress.Dispose();
            string offset = difference?.ToString(CultureInfo.InvariantCulture) ?? "null";
            Console.Out.WriteLine(
                result.GetValue(isJson) ? $"{{\"equal\":{(difference is null ? "true" : "false")},\"first_difference\":{offset}}}"
                : difference is null ? "equal" : $"different at byte {offset}");
            return Task.FromResult(difference is null ? 0 : 1);
        });
        return command;
    }

    public static Command Diff()
    {
        Argument<string> a = new("A") { Description = "a disk; alone: a child, and its own changes are told" };
        Argument<string?> b = new("B") { Arity = ArgumentArity.ZeroOrOne, Description = "the other disk" };
        (Option<bool> isRawA, Option<bool> isRawB) = RawSides();
        (Option<int> threads, Option<bool> isJson) = (Threads(), Options.Json());
        Command command = new("diff", """
            Say where two disks differ, or what a child changed: a line "offset length" for each range.

            Examples:
              vhd-util diff monday.vhd tuesday.vhd       where their contents differ, at 4 KiB
              vhd-util diff child.vhd --json             what was written since the snapshot
            """) { a, b, isRawA, isRawB, threads, isJson };
        command.SetAction((result, cancellationToken) =>
        {
            string path = result.GetRequiredValue(a);
            using IDisposable? lease = SourceLease.Take(path);
            using IDisposable? otherLease = result.GetValue(b) is { } against ? SourceLease.Take(against) : null;
            using TransferLine progress = new();
            IReadOnlyList<DiskDifference> ranges = result.GetValue(b) is { } other
                ? DiskCompare.Differences(
                    new DiskSide(path, result.GetValue(isRawA)),
                    new DiskSide(other, result.GetValue(isRawB)),
                    result.GetValue(threads),
                    progress.Progress,
                    cancellationToken)
                : DiskCompare.HeldBy(path);
            progress.Dispose();
            WriteRanges(ranges, result.GetValue(isJson));
            return Task.FromResult(0);
        });
        return command;
    }

    private static (Argument<string> A, Argument<string> B) Sides() =>
        (new("A") { Description = "one disk" }, new("B") { Description = "the other" });

    private static (Option<bool> A, Option<bool> B) RawSides() =>
        (new("--raw-a") { Description = "A is raw" }, new("--raw-b") { Description = "B is raw" });

    private static Option<int> Threads()
    {
        Option<int> threads = new("--threads") { Description = "threads (1 to 64)", DefaultValueFactory = _ => 2 };
        threads.Validators.Add(result =>
        {
            if (result.GetValueOrDefault<int>() is < 1 or > 64)
                result.AddError("--threads: 1 to 64 are possible");
        });
        return threads;
    }

    private static string BlockOf(DiskDigest digest, int block) =>
        Convert.ToHexStringLower(digest.Blocks.Span.Slice(block * ContentDigest.HashBytes, ContentDigest.HashBytes));

    private static void WriteDigestJson(DiskDigest digest, bool hasBlocks)
    {
        using Stream output = Console.OpenStandardOutput();
        using Utf8JsonWriter json = new(output);
        json.WriteStartObject();
        json.WriteString("algorithm", "sha256-64k-2m");
        json.WriteNumber("virtual_size", digest.VirtualSizeBytes);
        json.WriteString("root", digest.Root);
        if (hasBlocks)
        {
            json.WriteStartArray("blocks");
            for (int block = 0; block < digest.Blocks.Length / ContentDigest.HashBytes; block++)
                json.WriteStringValue(BlockOf(digest, block));
            json.WriteEndArray();
        }

        json.WriteEndObject();
        json.Flush();
        output.Write("\n"u8);
    }

    private static void WriteRanges(IReadOnlyList<DiskDifference> ranges, bool isJson)
    {
        using StreamWriter output = new(Console.OpenStandardOutput());
        string separator = isJson ? "[" : "";
        foreach (DiskDifference range in ranges)
        {
            output.Write(isJson
                ? $"{separator}{{\"offset\":{range.OffsetBytes},\"length\":{range.LengthBytes}}}"
                : $"{range.OffsetBytes} {range.LengthBytes}\n");
            separator = ",";
        }

        if (isJson)
            output.Write(ranges.Count == 0 ? "[]\n" : "]\n");
    }
}
