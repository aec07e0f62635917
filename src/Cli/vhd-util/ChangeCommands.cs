// The verbs that change an image: resize, coalesce, repair, set, modify, fill, and revert, which there is nothing for.
using System.CommandLine;
using Platform;
using Vhd;

namespace VhdUtil;

internal static class ChangeCommands
{
    public static Command Resize()
    {
        Option<string> name = Options.Name();
        Option<long> size = new("-s") { Description = "the new size in MiB", Required = true };
        Option<string> journal = new("-j") { Description = "accepted as the field's tool does; each step here is safe without a journal" };
        Option<bool> isFast = new("-f") { Description = "only if the block table has room for the size" };
        Option<bool> isForced = new("--force") { Description = "make it smaller even if that loses data" };
        Command command = new("resize", "Give a disk another size; what is new reads as zeros.") { name, size, journal, isFast, isForced };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            string path = result.GetRequiredValue(name);
            long sizeBytes = Options.Bytes(result.GetValue(size));
            if (result.GetValue(isFast) && VhdImage.ReadInfo(path).MaxSizeBytes < sizeBytes)
                throw new VhdException(VhdError.BadRequest, path, "its block table has no room for that size; unchanged; leave -f out");
            VhdResize.Apply(path, sizeBytes, result.GetValue(isForced));
            return 0;
        });
        return command;
    }

    public static Command Coalesce()
    {
        Option<string> name = Options.Name();
        Option<string> ancestor = new("-a") { Description = "the image to merge into (default: the parent)" };
        Option<bool> isSparse = new("-s") { Description = "accepted as the field's tool does; zeros never take space here" };
        Option<bool> hasProgress = new("-p") { Description = "accepted as the field's tool does; a terminal always shows progress" };
        Option<bool> isJson = Options.Json();
        Command command = new("coalesce", "Copy what an image holds into its parent. The image stays; run it again if it was stopped.")
        {
            name, ancestor, isSparse, hasProgress, isJson,
        };
        Options.AddCommon(command);
        command.SetAction((result, cancellationToken) =>
        {
            VhdCoalesceResult merged;
            using (ProgressLine progress = new("coalesce"))
            {
                VhdCoalesceOptions options = new() { AncestorPath = result.GetValue(ancestor) };
                merged = VhdCoalesce.Run(result.GetRequiredValue(name), options, progress, cancellationToken);
            }

            if (result.GetValue(isJson))
                Output.WriteJson(merged);
            else
                Console.Out.WriteLine($"Coalesced {merged.Sectors} sectors");
            return Task.FromResult(0);
        });
        return command;
    }

    public static Command Repair()
    {
        Option<string> name = Options.Name();
        Option<bool> fromCopy = new("-b") { Description = "accepted as the field's tool does; a bad footer is always replaced" };
        Option<bool> isJson = Options.Json();
        Command command = new("repair", "Mend footers, batmap and the end of the file; what holds data is never dropped.")
        {
            name, fromCopy, isJson,
        };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            IReadOnlyList<string> done = VhdRepair.Run(result.GetRequiredValue(name));
            if (result.GetValue(isJson))
                Output.WriteJson(done);
            foreach (string line in done)
                Console.Error.WriteLine("vhd-util: " + line);
            return 0;
        });
        return command;
    }

    public static Command Set()
    {
        Option<string> name = Options.Name();
        Option<string> field = new("-f") { Description = "the field: hidden or marker", Required = true };
        field.AcceptOnlyFromAmong("hidden", "marker");
        Option<int> value = new("-v") { Description = "hidden: 0 or 1; marker: 0 to 255", Required = true };
        Command command = new("set", "Change a field of an image.") { name, field, value };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            string path = result.GetRequiredValue(name);
            bool isMarker = result.GetValue(field) == "marker";
            int given = result.GetValue(value), most = isMarker ? byte.MaxValue : 1;
            if (given < 0 || given > most)
                throw new VhdException(
                    VhdError.BadRequest, path, $"{given} is no value of '{result.GetValue(field)}': 0 to {most}; nothing was changed");
            if (isMarker)
                VhdImage.SetMarker(path, (byte)given);
            else
                VhdImage.SetHidden(path, given == 1);
            return 0;
        });
        return command;
    }

    public static Command Modify()
    {
        Option<string> name = Options.Name();
        Option<string> parent = new("-p") { Description = "the new parent, with the same content under the image" };
        Option<bool> isRaw = new("-m") { Description = "the new parent is a raw disk" };
        Option<bool> isReset = new("-z") { Description = "release every block: the image reads as its parent from then on" };
        Option<long?> size = new("-s") { Description = "bytes of the file, with the footer at its end; the disk keeps its size" };
        Command command = new("modify", "Give an image another parent, or no data of its own, or its file another length.")
        {
            name, parent, isRaw, isReset, size,
        };
        Options.AddCommon(command);
        command.Validators.Add(result =>
        {
            if (result.GetValue(parent) is null && !result.GetValue(isReset) && result.GetValue(size) is null)
                result.AddError("modify: -p, -z or -s says what is to be changed");
        });
        command.SetAction(result =>
        {
            string path = result.GetRequiredValue(name);
            if (result.GetValue(isReset))
                VhdImage.Reset(path);
            if (result.GetValue(size) is { } fileBytes)
                VhdImage.SetPhysicalSize(path, fileBytes);
            if (result.GetValue(parent) is { } parentPath)
                VhdImage.SetParent(path, parentPath, result.GetValue(isRaw));
            return 0;
        });
        return command;
    }

    public static Command Fill()
    {
        Option<string> name = Options.Name();
        Option<bool> isTableOnly = new("-b") { Description = "refused: it claims blocks that nobody wrote" };
        Option<long?> from = new("-f") { Description = "refused, as -b is" };
        Option<long?> to = new("-t") { Description = "refused, as -b is" };
        Option<bool> isUnlimited = new("-B") { Description = "refused, as -b is" };
        Command command = new("fill", "Write every block of an image with what its disk holds there, so that no later write needs space.")
        {
            name, isTableOnly, from, to, isUnlimited,
        };
        Options.AddCommon(command);
        command.SetAction(async (result, cancellationToken) =>
        {
            string path = result.GetRequiredValue(name);
            if (result.GetValue(isTableOnly) || result.GetValue(isUnlimited) || result.GetValue(from) is not null
                || result.GetValue(to) is not null)
                throw new VhdException(
                    VhdError.BadRequest,
                    path,
                    "fill -b (and -f, -t, -B with it) would lose the data of blocks and hide the parent's; nothing was changed");
            await FillAsync(path, cancellationToken);
            return 0;
        });
        return command;
    }

    public static Command Revert()
    {
        Option<string> name = Options.Name();
        Option<string> journal = new("-j") { Description = "the journal", Required = true };
        Command command = new("revert", "Undo a resize by its journal. This resize keeps none, so that there is never one to undo.")
        {
            name, journal,
        };
        Options.AddCommon(command);
        command.SetAction((Func<ParseResult, int>)Refuse);
        return command;

        int Refuse(ParseResult result) => throw Refused(result.GetRequiredValue(name), result.GetRequiredValue(journal));

        static VhdException Refused(string path, string journalPath) => new(VhdError.BadRequest, path, Path.Exists(journalPath)
            ? $"{journalPath} is not of this tool, whose resize keeps no journal: the tool that wrote it can revert it; nothing was changed"
            : $"there is no journal {journalPath} to revert: a resize of this tool that was cut short is finished by running it again; "
                + "nothing was changed");
    }

    // The content stays what it is at every moment: a fill that was stopped is run again.
    private static async Task FillAsync(string path, CancellationToken cancellationToken)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        byte[] buffer = new byte[VhdImage.ReadInfo(path) is { BlockBytes: > 0 and int blockBytes } ? blockBytes : 0];
        // A fixed image has all its space from the beginning.
        for (long at = 0; at < chain.LengthBytes && buffer.Length > 0; at += buffer.Length)
        {
            Memory<byte> piece = buffer.AsMemory(0, (int)Math.Min(buffer.Length, chain.LengthBytes - at));
            await chain.ReadAsync(at, piece, cancellationToken);
            await chain.WriteAsync(at, piece, WriteFlags.None, cancellationToken);
        }

        await chain.FlushAsync(cancellationToken);
    }
}
