// The verbs that change an image: resize, coalesce, repair, set, modify.
using System.CommandLine;
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
        Option<string> field = new("-f") { Description = "the field: hidden", Required = true };
        field.AcceptOnlyFromAmong("hidden");
        Option<int> value = new("-v") { Description = "0 or 1", Required = true };
        Command command = new("set", "Change a field of an image.") { name, field, value };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            VhdImage.SetHidden(result.GetRequiredValue(name), result.GetValue(value) != 0);
            return 0;
        });
        return command;
    }

    public static Command Modify()
    {
        Option<string> name = Options.Name();
        Option<string> parent = new("-p") { Description = "the new parent, with the same content under the image", Required = true };
        Option<bool> isRaw = new("-m") { Description = "the new parent is a raw disk" };
        Command command = new("modify", "Give an image another parent.") { name, parent, isRaw };
        Options.AddCommon(command);
        command.SetAction(result =>
        {
            VhdImage.SetParent(result.GetRequiredValue(name), result.GetRequiredValue(parent), result.GetValue(isRaw));
            return 0;
        });
        return command;
    }
}
