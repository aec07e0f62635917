// export and import: a disk through a pipe, for ssh, object stores and whatever else takes a stream.
using System.CommandLine;
using Microsoft.Win32.SafeHandles;
using Vhd.Transfer;

namespace VhdUtil;

internal static class StreamCommands
{
    public static Command Export()
    {
        Argument<string> disk = new("DISK") { Description = "the image" };
        Option<string?> below = new("--base") { Description = "an image under DISK: only what lies above it, as a child of it" };
        Command command = new("export", """
            Write an image and its parents to standard output as one VHD.

            Examples:
              vhd-util export disk.vhd | ssh host vhd-util import disk.vhd
              vhd-util export today.vhd --base yesterday.vhd | zstd > today.vhd.zst
            """) { disk, below };
        command.SetAction((result, cancellationToken) =>
        {
            if (!Console.IsOutputRedirected)
            {
                Console.Error.WriteLine("vhd-util: a disk does not go to a terminal; redirect standard output");
                return Task.FromResult(2);
            }

            // It may be waiting for a reader, and leaves nothing: a stream without its last footer is no image.
            using CancellationTokenRegistration onStop = cancellationToken.Register(static () => Environment.Exit(1));
            using IDisposable? lease = SourceLease.Take(result.GetRequiredValue(disk));
            using TransferLine progress = new();
            using SafeFileHandle output = new(1, ownsHandle: false);
            StreamExport.Run(result.GetRequiredValue(disk), result.GetValue(below), output, progress.Progress, cancellationToken);
            return Task.FromResult(0);
        });
        return command;
    }

    public static Command Import()
    {
        Argument<string> disk = new("DISK") { Description = "the file to make" };
        Option<string?> below = new("--base") { Description = "the parent of what comes in" };
        Option<bool> isUnsynced = new("--no-sync") { Description = "do not wait until it is durable" };
        Command command = new("import", """
            Read an image from standard input. It is checked as it comes; one that is damaged or cut leaves no file.

            Examples:
              ssh host vhd-util export disk.vhd | vhd-util import disk.vhd
              zstd -dc today.vhd.zst | vhd-util import today.vhd --base yesterday.vhd
            """) { disk, below, isUnsynced };
        command.SetAction((result, cancellationToken) =>
        {
            using TransferLine progress = new();
            using WaitingInput input = new(cancellationToken);
            StreamImport.Run(
                input,
                result.GetRequiredValue(disk),
                result.GetValue(below),
                !result.GetValue(isUnsynced),
                progress.Progress,
                cancellationToken);
            return Task.FromResult(0);
        });
        return command;
    }
}
