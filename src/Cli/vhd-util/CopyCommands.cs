// copy and convert: options, then DiskCopy. What they have in common is said once.
using System.CommandLine;
using Vhd.Transfer;

namespace VhdUtil;

internal static class CopyCommands
{
    public static Command Copy()
    {
        CopyArguments arguments = new();
        Option<bool> isLayer = new("--layer") { Description = "only what SRC itself holds, as a child of the same parent" };
        Option<bool> isRaw = new("--raw") { Description = "make a raw disk" };
        Command command = new("copy", """
            Write the content of an image and its parents as one image; holes and zeros cost nothing.

            Examples:
              vhd-util copy child.vhd flat.vhd                     a chain as one image
              vhd-util copy child.vhd disk.raw --raw --verify      as a raw disk, read back and compared
              vhd-util copy disk.vhd backup.vhd --in-place         refresh an image that is there
              vhd-util copy child.vhd delta.vhd --layer            the changes alone
              vhd-util copy child.vhd 'nbd+unix:///disk?socket=/run/nbd.sock'
              vhd-util copy child.vhd nbds://host/disk --fingerprint 9f86d0...
            """) { isLayer, isRaw };
        PushArguments push = new();
        arguments.AddTo(command);
        push.AddTo(command);
        // As the verb was first written: -n SRC --to DST.
        Option<string> name = new("-n") { Hidden = true };
        Option<string> to = new("--to") { Hidden = true };
        command.Add(name);
        command.Add(to);
        command.SetAction((result, cancellationToken) => arguments.RunAsync(
            result,
            result.GetValue(name),
            result.GetValue(to),
            push,
            options => options with
            {
                IsLayerOnly = result.GetValue(isLayer),
                Format = result.GetValue(isRaw) ? DiskFormat.Raw : DiskFormat.Vhd,
            },
            cancellationToken));
        return command;
    }

    public static Command Convert()
    {
        CopyArguments arguments = new();
        Option<string> from = new("-f") { Description = "format of SRC: vhd (default) or raw; it is never guessed" };
        Option<string> to = new("-O") { Description = "format of DST: vhd, fixed or raw", Required = true };
        from.AcceptOnlyFromAmong("vhd", "raw");
        to.AcceptOnlyFromAmong("vhd", "fixed", "raw");
        Command command = new("convert", """
            Write a disk in another format.

            Examples:
              vhd-util convert -f raw -O vhd disk.raw disk.vhd
              vhd-util convert -O fixed disk.vhd fixed.vhd
              vhd-util convert -O raw child.vhd disk.raw
            """) { from, to };
        arguments.AddTo(command);
        command.SetAction((result, cancellationToken) => arguments.RunAsync(
            result,
            null,
            null,
            null,
            options => options with
            {
                IsSourceRaw = result.GetValue(from) == "raw",
                Format = result.GetValue(to) switch { "raw" => DiskFormat.Raw, "fixed" => DiskFormat.FixedVhd, _ => DiskFormat.Vhd },
            },
            cancellationToken));
        return command;
    }

    private sealed class CopyArguments
    {
        private readonly Argument<string?> source = new("SRC") { Arity = ArgumentArity.ZeroOrOne, Description = "the disk to read" };
        private readonly Argument<string?> target = new("DST") { Arity = ArgumentArity.ZeroOrOne, Description = "the file to make" };
        private readonly Option<bool> isInPlace = new("--in-place") { Description = "write into a DST that is there, of the same size" };
        private readonly Option<bool> isVerified = new("--verify") { Description = "read both again and compare" };
        private readonly Option<bool> isDirect = new("--direct") { Description = "past the page cache" };
        private readonly Option<bool> isUnsynced = new("--no-sync") { Description = "do not wait until it is durable, as cp and qemu-img" };
        private readonly Option<int> threads = new("--threads") { Description = "threads (1 to 64)", DefaultValueFactory = _ => 2 };
        private readonly Option<bool> isJson = new("--json") { Description = "say what was done as JSON" };

        public void AddTo(Command command)
        {
            command.Add(source);
            command.Add(target);
            Option[] options = [isInPlace, isVerified, isDirect, isUnsynced, threads, isJson];
            Array.ForEach(options, command.Add);
        }

        public async Task<int> RunAsync(
            ParseResult result,
            string? from,
            string? to,
            PushArguments? push,
            Func<CopyOptions, CopyOptions> with,
            CancellationToken cancellationToken)
        {
            from ??= result.GetValue(source);
            to ??= result.GetValue(target);
            int count = result.GetValue(threads);
            if (from is null || to is null || count is < 1 or > 64)
            {
                Console.Error.WriteLine(
                    from is null || to is null ? "vhd-util: SRC and DST are needed" : $"vhd-util: {count} threads; 1 to 64 are possible");
                return 2;
            }

            using IDisposable? lease = SourceLease.Take(from);
            string done;
            using (TransferLine progress = new())
            {
                done = push is not null && Nbd.NbdUri.TryParse(to) is { } uri
                    ? Json(await push.RunAsync(result, from, uri, count, progress.Progress, cancellationToken))
                    : Json(DiskCopy.Run(from, to, with(OptionsOf(result, count, progress.Progress)), cancellationToken));
            }

            if (result.GetValue(isJson))
                Console.Out.WriteLine(done);
            return 0;
        }

        private CopyOptions OptionsOf(ParseResult result, int count, TransferProgress progress) => new()
        {
            IsInPlace = result.GetValue(isInPlace),
            IsVerified = result.GetValue(isVerified),
            IsDirect = result.GetValue(isDirect),
            IsSynced = !result.GetValue(isUnsynced),
            Threads = count,
            Progress = progress,
        };

        private static string Json(CopyResult done) =>
            $"{{\"virtual_size\":{done.VirtualSizeBytes},\"read\":{done.ReadBytes},\"written\":{done.WrittenBytes}}}";

        private static string Json(PushResult done)
        {
            string digest = done.Digest is null ? "null" : $"\"{done.Digest}\"";
            return $"{{\"virtual_size\":{done.VirtualSizeBytes},\"pushed\":{done.PushedBytes},\"digest\":{digest}}}";
        }
    }
}
