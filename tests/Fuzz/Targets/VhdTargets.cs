using System.Buffers.Binary;
using System.Text;
using Platform;
using Vhd;

namespace Fuzz.Targets;

/// <summary>The VHD format: its structures one by one, and whole images on a memory filesystem.</summary>
internal static class VhdTargets
{
    private const int FooterBytes = 512;
    private const int HeaderBytes = 1024;
    private const int FooterSum = 64;
    private const int HeaderSum = 36;
    private const long SizeBytes = 4 << 20;

    private static readonly string Folder = Directory.CreateDirectory($"/dev/shm/storage-fuzz-{Environment.ProcessId}").FullName;
    private static readonly string Leaf = Path.Combine(Folder, "leaf.vhd");

    public static IEnumerable<FuzzTarget> All()
    {
        AppDomain.CurrentDomain.ProcessExit += static (_, _) => Directory.Delete(Folder, recursive: true);
        byte[] dynamic = Made("base.vhd", static path => VhdImage.CreateDynamic(path, SizeBytes));
        byte[] child = Made("child.vhd", static path => VhdImage.CreateSnapshot(path, Path.Combine(Folder, "base.vhd")));
        byte[] fixedFooter = Made("fixed.vhd", static path => VhdImage.CreateFixed(path, 1 << 20))[^FooterBytes..];
        byte[][] words = ["conectix"u8.ToArray(), "cxsparse"u8.ToArray(), "tdbatmap"u8.ToArray(), "W2ru"u8.ToArray(), "W2ku"u8.ToArray(), "MacX"u8.ToArray(), "file://"u8.ToArray()];
        yield return new FuzzTarget("vhd-footer", [dynamic[..FooterBytes], fixedFooter], ReadFooter)
        {
            Expected = [typeof(VhdException)],
            Tokens = words,
            Repair = static bytes => Sum(bytes, 0, FooterBytes, FooterSum),
        };
        yield return new FuzzTarget("vhd-header", [dynamic[FooterBytes..(FooterBytes + HeaderBytes)], child[FooterBytes..(FooterBytes + HeaderBytes)]], ReadHeader)
        {
            Expected = [typeof(VhdException)],
            Tokens = words,
            Repair = static bytes => Sum(bytes, 0, HeaderBytes, HeaderSum),
        };
        yield return new FuzzTarget(
            "vhd-locator",
            [
                [.. "MacX"u8, 0, 0, 2, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, .. "file://./base.vhd"u8],
                [.. "W2ru"u8, 0, 0, 2, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, .. Encoding.Unicode.GetBytes(".\\base.vhd")],
            ],
            ReadLocator)
        {
            Tokens = [.. words, "../"u8.ToArray(), [0, 0xd8], [0xff, 0xfe], "C:"u8.ToArray()],
        };
        yield return new FuzzTarget("vhd-image", [dynamic, child], static bytes => OpenAsync(bytes, isReadOnly: true))
        {
            Expected = [typeof(IOException)],
            Tokens = words,
            Repair = RepairImage,
            AllocationLimitBytes = 64 << 20,
        };
        yield return new FuzzTarget("vhd-image-write", [dynamic, child], static bytes => OpenAsync(bytes, isReadOnly: false))
        {
            Expected = [typeof(IOException)],
            Tokens = words,
            Repair = RepairImage,
            AllocationLimitBytes = 64 << 20,
        };
    }

    private static ValueTask<string> ReadFooter(byte[] bytes)
    {
        if (bytes.Length < FooterBytes)
            return ValueTask.FromResult("short");
        VhdFooter? footer = VhdFooter.TryRead(bytes.AsSpan(0, FooterBytes), "x.vhd", out string reason);
        if (footer is null)
            return ValueTask.FromResult(reason);
        VhdFooter? again = VhdFooter.TryRead(footer.ToBytes(), "x.vhd", out reason);
        return footer == again
            ? ValueTask.FromResult($"{footer.Type} hidden={footer.IsHidden}")
            : throw new FuzzFindingException($"what was accepted is written as something else: {footer} / {again} {reason}");
    }

    private static ValueTask<string> ReadHeader(byte[] bytes)
    {
        if (bytes.Length < HeaderBytes)
            return ValueTask.FromResult("short");
        VhdHeader header = VhdHeader.Read(bytes.AsSpan(0, HeaderBytes), FooterBytes, "x.vhd", isChecked: true);
        if (header.BlockBytes <= 0 || header.BitmapBytes <= 0) // Where the table is, is held against the file: vhd-image.
            throw new FuzzFindingException($"a header that makes no sense was accepted: {header}");
        VhdHeader again = VhdHeader.Read(header.ToBytes(), FooterBytes, "x.vhd", isChecked: true);
        return header.Locators.SequenceEqual(again.Locators) && header with { Locators = again.Locators } == again
            ? ValueTask.FromResult($"header locators={header.Locators.Count(static l => l.Code != 0)} named={header.ParentName.Length > 0}")
            : throw new FuzzFindingException($"what was accepted is written as something else: {header} / {again}");
    }

    private static ValueTask<string> ReadLocator(byte[] bytes)
    {
        if (bytes.Length < 24)
            return ValueTask.FromResult("short");
        ParentLocator locator = ParentLocator.Read(bytes.AsSpan(0, 24));
        string? path = locator.Decode(bytes.AsSpan(24, Math.Min(bytes.Length - 24, ParentLocator.MaxPathBytes)));
        if (path is { Length: 0 } || path?.Contains('\0') == true)
            throw new FuzzFindingException("a locator gave a path that is none");
        return ValueTask.FromResult($"{locator.Code is ParentLocator.Macx or ParentLocator.W2ku or ParentLocator.W2ru} {path is not null}");
    }

    // Whatever is opened can be read to its end; whatever is opened for writing gives back what was written, also after it was closed.
    private static async ValueTask<string> OpenAsync(byte[] bytes, bool isReadOnly)
    {
        Store(bytes);
        byte[] written = [.. Enumerable.Repeat((byte)0x5a, 4096)];
        byte[] read = new byte[4096];
        VhdChain chain = VhdChain.Open(Leaf, new VhdOpenOptions { IsReadOnly = isReadOnly, RootDirectory = Folder });
        string kind = $"layers={chain.Paths.Count} {string.Join(' ', chain.Warnings.Take(2))}";
        long middle = chain.LengthBytes / 2 / 512 * 512;
        await using (chain)
        {
            if (chain.LengthBytes < written.Length)
                return "tiny";
            for (long at = 0, last; at < Math.Min(chain.LengthBytes, 1L << 30); at = last)
            {
                IReadOnlyList<BlockExtent> extents = await chain.ExtentsAsync(at, Math.Min(chain.LengthBytes - at, 1L << 30), CancellationToken.None);
                last = extents[^1].EndBytes;
                if (extents[0].OffsetBytes != at || last <= at)
                    throw new FuzzFindingException($"extents from {at} begin at {extents[0].OffsetBytes} and end at {last}");
            }

            foreach (long at in (long[])[0, Math.Min(middle, chain.LengthBytes - read.Length), chain.LengthBytes - read.Length])
                await chain.ReadAsync(at, read, CancellationToken.None);
            if (isReadOnly)
                return kind;
            middle = Math.Min(middle, chain.LengthBytes - written.Length);
            await chain.WriteAsync(middle, written, WriteFlags.None, CancellationToken.None);
            await chain.FlushAsync(CancellationToken.None);
            await ReadBackAsync(chain, middle, written);
        }

        try
        {
            await using VhdChain again = VhdChain.Open(Leaf, new VhdOpenOptions { IsReadOnly = true, RootDirectory = Folder });
            await ReadBackAsync(again, middle, written);
        }
        catch (IOException e)
        {
            throw new FuzzFindingException($"an image that was opened and written does not open again: {e.Message}");
        }

        return kind;
    }

    private static async Task ReadBackAsync(VhdChain chain, long at, byte[] written)
    {
        byte[] read = new byte[written.Length];
        await chain.ReadAsync(at, read, CancellationToken.None);
        if (!read.AsSpan().SequenceEqual(written))
            throw new FuzzFindingException($"what was written at {at} is not read back");
    }

    private static void Store(byte[] bytes)
    {
        using Microsoft.Win32.SafeHandles.SafeFileHandle file = File.OpenHandle(Leaf, FileMode.Create, FileAccess.Write);
        RandomAccess.Write(file, bytes, 0);
    }

    private static byte[] Made(string name, Action<string> make)
    {
        string path = Path.Combine(Folder, name);
        make(path);
        return File.ReadAllBytes(path);
    }

    private static void RepairImage(byte[] bytes)
    {
        Sum(bytes, 0, FooterBytes, FooterSum);
        Sum(bytes, FooterBytes, HeaderBytes, HeaderSum);
        if (bytes.Length >= 2 * FooterBytes)
            bytes.AsSpan(0, FooterBytes).CopyTo(bytes.AsSpan(bytes.Length - FooterBytes));
    }

    private static void Sum(byte[] bytes, int start, int length, int sumOffset)
    {
        if (bytes.Length < start + length)
            return;
        Span<byte> sum = bytes.AsSpan(start + sumOffset, 4);
        sum.Clear();
        uint total = 0;
        foreach (byte value in bytes.AsSpan(start, length))
            total += value;
        BinaryPrimitives.WriteUInt32BigEndian(sum, ~total);
    }
}
