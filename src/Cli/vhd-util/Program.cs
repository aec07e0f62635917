// vhd-util: the field's verbs and output (research/storage.md 8.5) over the Vhd library, and `copy`. Facts go to standard output,
// everything else to standard error. Exit codes: 0 done, 1 the image or the request is bad, 2 the command line is.
using System.CommandLine;
using Platform;
using Vhd;

namespace VhdUtil;

internal static class Program
{
    private const string Examples = """

        Examples:
          vhd-util create -n disk.vhd -s 1024              an empty dynamic disk of 1 GiB
          vhd-util snapshot -n child.vhd -p disk.vhd       a child that holds what changes from now on
          vhd-util query -n child.vhd -vsfpd               size in MiB, file bytes, hidden, parent, depth
          vhd-util check -n child.vhd                      is it a valid image, and what is wrong with it?
          vhd-util scan -m '/sr/*.vhd'                     a line for each image of a folder (-p: as a tree)
          vhd-util coalesce -n child.vhd                   copy what the child holds into its parent
          vhd-util resize -n disk.vhd -s 2048              another size
          vhd-util repair -n disk.vhd                      mend the footers of an image whose writer died
          vhd-util modify -n child.vhd -z                  forget what the child holds
          vhd-util read -n disk.vhd -p                     its headers, as they are stored
          vhd-util read -n disk.vhd -r 0 -c 8              the first 4 KiB of the disk
          vhd-util copy child.vhd flat.vhd                 the chain's content as one image (--raw: as a raw disk)
        """;

    private static async Task<int> Main(string[] arguments)
    {
        RootCommand root = new("Makes, describes and checks VHD images." + Examples)
        {
            ImageCommands.Create(), ImageCommands.Snapshot(),
            LookCommands.Query(), LookCommands.Check(), LookCommands.Scan(), ReadCommand.Create(),
            ChangeCommands.Resize(), ChangeCommands.Coalesce(), ChangeCommands.Repair(), ChangeCommands.Set(), ChangeCommands.Modify(),
            ChangeCommands.Fill(), ChangeCommands.Revert(), KeyCommand.Create(),
            CopyCommands.Copy(), CopyCommands.Convert(), ContentCommands.Digest(), ContentCommands.Compare(), ContentCommands.Diff(),
            StreamCommands.Export(), StreamCommands.Import(),
        };
        ParseResult command = root.Parse(arguments);
        if (command.Errors.Count > 0)
        {
            foreach (System.CommandLine.Parsing.ParseError error in command.Errors)
                await Console.Error.WriteLineAsync("vhd-util: " + error.Message);
            await Console.Error.WriteLineAsync("vhd-util: try --help");
            return 2;
        }

        using StopSignals stop = new();
        try
        {
            InvocationConfiguration configuration = new() { EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null };
            return await command.InvokeAsync(configuration, stop.Token);
        }
        catch (OperationCanceledException)
        {
            await Console.Error.WriteLineAsync(
                "vhd-util: stopped; no new file was left, a merge can be run again, a target in place is half-written and marked so");
            return 1;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or FormatException)
        {
            // Scripts of the field look for this line; the reason follows it.
            if (e is VhdException { Error: VhdError.CannotOpen, InnerException: BlockIoException io } bad)
                await Console.Error.WriteLineAsync($"error opening {bad.Path}: -{(int)io.Errno}");
            await Console.Error.WriteLineAsync("vhd-util: " + e.Message);
            return 1;
        }
    }
}
