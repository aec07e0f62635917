// `read`: what is stored in one image, looked at piece by piece (research/storage.md 8.5), or the disk's data. Letters, labels and the
// order of the answers are the field's; sm takes `-B` for its coalesce records. Lines and raw bytes share standard output.
using System.CommandLine;
using System.Globalization;
using System.Text;
using Platform;
using Vhd;

namespace VhdUtil;

internal sealed class ReadCommand
{
    private const int SectorBytes = 512;

    private readonly Option<string> name = Options.Name();
    private readonly Option<bool> headers = new("-p") { Description = "the headers, also of an image that is refused" };
    private readonly Option<long?> translated = new("-t") { Description = "where this sector of the disk is in the file" };
    private readonly Option<long?> entry = new("-b") { Description = "where this block is in the file" };
    private readonly Option<bool> allocation = new("-B") { Description = "which blocks are allocated, as a bitmap (raw bytes)" };
    private readonly Option<long?> bitmap = new("-m") { Description = "this block's sector bitmap (raw bytes)" };
    private readonly Option<long?> tested = new("-i") { Description = "whether the image holds this sector" };
    private readonly Option<long?> extents = new("-e") { Description = "the runs of sectors held from this sector on" };
    private readonly Option<bool> batmap = new("-a") { Description = "the batmap (raw bytes)" };
    private readonly Option<long?> full = new("-j") { Description = "whether the batmap calls this block full" };
    private readonly Option<long?> block = new("-d") { Description = "this block's data as this image stores it (raw bytes)" };
    private readonly Option<long?> sector = new("-r") { Description = "the disk's data from this sector on (raw bytes)" };
    private readonly Option<long?> from = new("-R") { Description = "the disk's data from this byte on (raw bytes)" };
    private readonly Option<long> count = new("-c")
    {
        Description = "how many blocks, sectors or, with -R, bytes",
        DefaultValueFactory = static _ => 1,
    };

    private readonly Option<bool> isHex = new("-x") { Description = "numbers in hex" };
    private readonly Option<bool> isCached = new("-C") { Description = "accepted as the field's tool does" };
    private readonly Option<bool> isJson = Options.Json();

    public static Command Create() => new ReadCommand().Build();

    private Command Build()
    {
        Command command = new("read", "Print what an image stores, or its disk's data.")
        {
            name, headers, translated, entry, allocation, bitmap, tested, extents, batmap, full, block, sector, from, count, isHex,
            isCached, isJson,
        };
        Options.AddCommon(command);
        command.SetAction(async (result, cancellationToken) =>
        {
            await using BufferedStream output = new(Console.OpenStandardOutput(), 1 << 16);
            await new Reading(this, result, output).RunAsync(cancellationToken);
            return 0;
        });
        return command;
    }

    /// <summary>One run of the command.</summary>
    private sealed class Reading(ReadCommand command, ParseResult result, Stream output)
    {
        private readonly string path = result.GetRequiredValue(command.name);
        private readonly long count = result.GetValue(command.count);
        private readonly bool isHex = result.GetValue(command.isHex);

        public async Task RunAsync(CancellationToken cancellationToken)
        {
            if (count < 0)
                throw new VhdException(VhdError.BadRequest, path, $"a count of {count} cannot be read");
            if (result.GetValue(command.isJson))
                Line(Output.JsonOf(VhdImage.ReadInfo(path)));
            else if (result.GetValue(command.headers))
                PrintHeaders();
            using (VhdDump dump = VhdDump.Open(path))
                Dump(dump, cancellationToken);
            if (result.GetValue(command.sector) is { } sector)
                await WriteDataAsync(sector, count, SectorBytes, cancellationToken);
            if (result.GetValue(command.from) is { } from)
                await WriteDataAsync(from, count, 1, cancellationToken);
        }

        private void PrintHeaders()
        {
            foreach (string line in VhdDump.HeaderLines(path, isHex))
                Line(line);
            output.Flush(); // What follows may refuse the image.
        }

        private void Dump(VhdDump dump, CancellationToken cancellationToken)
        {
            Each(command.translated, sector => Translate(dump, sector));
            Each(command.entry, at => Line($"block: {Number(at)}: offset: {Offset(dump.BlockOffsetBytes(at))}"));
            if (result.GetValue(command.allocation))
                output.Write(dump.AllocationMap());
            Each(command.bitmap, at => Allocated(dump, at, () => output.Write(dump.BitmapOf(at).Span)));
            Each(command.tested, sector => Line(
                $"block {Number(sector / PerBlock(dump))}: sec: {Number(sector % PerBlock(dump))}: {(dump.Holds(sector) ? 1 : 0)}"));
            PrintExtents(dump, cancellationToken);
            byte[] map = result.GetValue(command.batmap) || result.GetValue(command.full) is not null ? dump.Batmap() : [];
            if (result.GetValue(command.batmap))
                output.Write(map);
            Each(command.full, at =>
            {
                _ = dump.BlockOffsetBytes(at); // Refuses a block that the disk does not have.
                Line($"batmap for block {Number(at)}: {(at / 8 < map.Length && (map[at / 8] & (0x80 >> (int)(at % 8))) != 0 ? 1 : 0)}");
            });
            byte[] data = new byte[result.GetValue(command.block) is null ? 0 : dump.BlockBytes];
            Each(command.block, at => Allocated(dump, at, () =>
            {
                dump.ReadBlock(at, data);
                output.Write(data);
            }));

            void Each(Option<long?> option, Action<long> print)
            {
                for (long at = 0; result.GetValue(option) is { } first && at < count; at++)
                {
                    cancellationToken.ThrowIfCancellationRequested();
                    print(first + at);
                }
            }
        }

        private void Translate(VhdDump dump, long sector)
        {
            long? offset = dump.SectorOffsetBytes(sector);
            Line($"logical sector {Number(sector)}: block number: {Number(sector / PerBlock(dump))}, "
                + $"sector offset: {Number(sector % PerBlock(dump))}, file offset: {Offset(offset)}");
        }

        private void PrintExtents(VhdDump dump, CancellationToken cancellationToken)
        {
            if (result.GetValue(command.extents) is not { } first)
                return;
            long start = -1;
            for (long at = first; at < first + count; at++)
            {
                cancellationToken.ThrowIfCancellationRequested();
                bool isHeld = dump.Holds(at);
                if (isHeld && start < 0)
                    start = at;
                if (!isHeld && start >= 0)
                    Line($"{Number(start)} {Number(at - start)}");
                start = isHeld ? start : -1;
            }

            if (start >= 0)
                Line($"{Number(start)} {Number(first + count - start)}");
        }

        private async Task WriteDataAsync(long first, long units, int unitBytes, CancellationToken cancellationToken)
        {
            await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
            long limit = chain.LengthBytes / unitBytes;
            if (first < 0 || first > limit - units)
            {
                string what = unitBytes == 1 ? "bytes" : "sectors";
                throw new BlockIoException(Errno.EINVAL, $"{path}: {what} {first}+{units} are outside of a disk of {limit}");
            }

            byte[] buffer = new byte[1 << 20];
            for (long at = first * unitBytes, end = (first + units) * unitBytes; at < end;)
            {
                // Whole sectors are read, and of the first and the last one what was asked for is written.
                int skipped = (int)(at % SectorBytes);
                int length = (int)Math.Min(buffer.Length - skipped, end - at);
                int whole = (skipped + length + SectorBytes - 1) / SectorBytes * SectorBytes;
                await chain.ReadAsync(at - skipped, buffer.AsMemory(0, whole), cancellationToken);
                await output.WriteAsync(buffer.AsMemory(skipped, length), cancellationToken);
                at += length;
            }
        }

        private void Allocated(VhdDump dump, long block, Action print)
        {
            if (dump.BlockOffsetBytes(block) is null)
                Line($"block {Number(block)} not allocated");
            else
                print();
        }

        // A fixed image has no blocks, which the dump says when it is asked for one.
        private static int PerBlock(VhdDump dump) => Math.Max(1, dump.SectorsPerBlock);

        private string Offset(long? bytes) => bytes is { } offset ? Number(offset) : "not allocated";

        // C's %#x: a zero has no prefix.
        private string Number(long value) => !isHex || value == 0 ? value.ToString(CultureInfo.InvariantCulture) : $"0x{value:x}";

        private void Line(string text) => output.Write(Encoding.UTF8.GetBytes(text + "\n"));
    }
}
