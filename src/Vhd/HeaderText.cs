// An image's footer, header, parent locators and batmap header as text, under the labels that the field's `vhd-util read -p` prints and
// scripts look for. It reads the raw bytes and believes none of them, so that an image which is refused can be looked at too; no more is
// read than is in the file, and control characters of stored names are not printed.
using System.Buffers.Binary;
using System.Globalization;
using System.Text;

namespace Vhd;

internal sealed class HeaderText(IVhdFile file, bool isHex)
{
    private const int ChecksumOffset = 64;
    private const int HeaderChecksumOffset = 36;
    private const int LocatorOffset = 576;
    private const int LocatorBytes = 24;
    private const uint Windows = 0x5769_326B;
    private const uint Macintosh = 0x4D61_6320;

    private static readonly string[] TypeNames =
        ["None", "Reserved (deprecated)", "Fixed hard disk", "Dynamic hard disk", "Differencing hard disk", "Reserved (deprecated)"];

    private readonly List<string> lines = [];

    public IReadOnlyList<string> Lines()
    {
        byte[] footer = Footer();
        AddFooter(footer);
        uint type = U32(footer, 60);
        long headerAt = I64(footer, 16);
        byte[] header = new byte[VhdHeader.LengthBytes];
        if (type is not (3 or 4) || !TryRead(headerAt, header))
            return lines;
        AddHeader(header);
        if (type == 4)
            AddLocators(header);
        AddBatmap(header, I64(footer, 48));
        return lines;
    }

    /// <summary>The trailing one, unless only the copy at the front is good.</summary>
    private byte[] Footer()
    {
        byte[] trailing = new byte[VhdFooter.LengthBytes], copy = new byte[VhdFooter.LengthBytes];
        _ = file.Read(Math.Max(0, file.LengthBytes - trailing.Length), trailing);
        _ = file.Read(0, copy);
        return !IsGood(trailing) && IsGood(copy) ? copy : trailing;
    }

    private static bool IsGood(byte[] footer) => U32(footer, ChecksumOffset) == VhdFooter.Checksum(footer, ChecksumOffset);

    private void AddFooter(byte[] footer)
    {
        AddTitle("VHD Footer Summary:");
        Add("Cookie", Text(footer.AsSpan(0, 8)));
        uint features = U32(footer, 8);
        Add("Features", $"(0x{features:x8}) {((features & 1) != 0 ? "<TEMP>" : "")}{((features & 2) != 0 ? "<RESV>" : "")}");
        Add("File format version", Version(U32(footer, 12)));
        Add("Data offset", Number((ulong)I64(footer, 16)));
        Add("Timestamp", Time(U32(footer, 24)));
        Add("Creator Application", $"'{Text(footer.AsSpan(28, 4))}'");
        Add("Creator version", Version(U32(footer, 32)));
        Add("Creator OS", U32(footer, 36) switch { Windows => "Windows", Macintosh => "Macintosh", _ => "Unknown!" });
        Add("Original disk size", Size((ulong)I64(footer, 40)));
        Add("Current disk size", Size((ulong)I64(footer, 48)));
        ulong cylinders = U32(footer, 56) >> 16, heads = footer[58], sectors = footer[59];
        Add("Geometry", $"Cyl: {Number(cylinders)}, Hds: {Number(heads)}, Sctrs: {Number(sectors)}");
        Add("", "= " + Size(cylinders * heads * sectors << 9));
        Add("Disk type", U32(footer, 60) < TypeNames.Length ? TypeNames[U32(footer, 60)] : "Unknown type!");
        Add("Checksum", Checksum(U32(footer, ChecksumOffset), VhdFooter.Checksum(footer, ChecksumOffset)));
        Add("UUID", Uuid(footer.AsSpan(68, 16)));
        Add("Saved state", footer[84] == 0 ? "No" : "Yes");
        Add("Hidden", footer[85].ToString(CultureInfo.InvariantCulture));
        lines.Add("");
    }

    private void AddHeader(byte[] header)
    {
        AddTitle("VHD Header Summary:");
        Add("Cookie", Text(header.AsSpan(0, 8)));
        Add("Data offset (unusd)", Number((ulong)I64(header, 8)));
        Add("Table offset", Number((ulong)I64(header, 16)));
        Add("Header version", $"0x{U32(header, 24):x8}");
        Add("Max BAT size", Number(U32(header, 28)));
        Add("Block size", $"{Number(U32(header, 32))} ({Number(U32(header, 32) >> 20)} MB)");
        string name = Encoding.BigEndianUnicode.GetString(header, 64, 512);
        Add("Parent name", Printable(name.Split('\0')[0]));
        Add("Parent UUID", Uuid(header.AsSpan(40, 16)));
        Add("Parent timestamp", Time(U32(header, 56)));
        Add("Checksum", Checksum(U32(header, HeaderChecksumOffset), VhdFooter.Checksum(header, HeaderChecksumOffset)));
        lines.Add("");
    }

    private void AddLocators(byte[] header)
    {
        AddTitle("VHD Parent Locators:");
        for (int i = 0; i < VhdHeader.LocatorCount; i++)
        {
            byte[] entry = header[(LocatorOffset + i * LocatorBytes)..][..LocatorBytes];
            if (U32(entry, 0) == 0)
                continue;
            Add("locator:", i.ToString(CultureInfo.InvariantCulture));
            Add("       code", NameOf(U32(entry, 0)));
            Add("       data_space", Number(U32(entry, 4)));
            Add("       data_length", Number(U32(entry, 8)));
            Add("       data_offset", Number((ulong)I64(entry, 16)));
            if (PathOf(ParentLocator.Read(entry)) is { } path)
                Add("       decoded name", Printable(path));
            else
                lines.Add("failed to read parent name");
            lines.Add("");
        }
    }

    private string? PathOf(ParentLocator locator)
    {
        if (locator.LengthBytes > ParentLocator.MaxPathBytes)
            return null;
        byte[] stored = new byte[locator.LengthBytes];
        return TryRead(locator.OffsetBytes, stored) ? locator.Decode(stored) : null;
    }

    private void AddBatmap(byte[] header, long sizeBytes)
    {
        byte[] stored = new byte[VhdFooter.SectorBytes];
        long at = I64(header, 16) + VhdFooter.WholeSectors(U32(header, 28) * 4L);
        if (!TryRead(at, stored) || BatmapHeader.Read(stored) is not { IsPresent: true } batmap)
            return;
        AddTitle("VHD Batmap Summary:");
        Add("Batmap offset", Number((ulong)batmap.OffsetBytes));
        Add("Batmap size (secs)", Number(batmap.Sectors));
        Add("Batmap version", $"0x{batmap.Version:x8}");
        long length = BatmapHeader.MapBytes(sizeBytes);
        byte[] map = new byte[length <= file.LengthBytes ? length : 0];
        if (map.Length == length && TryRead(batmap.OffsetBytes, map))
            Add("Checksum", Checksum(batmap.Checksum, VhdFooter.Checksum(map, int.MaxValue)));
        else
            Add("Checksum", $"0x{batmap.Checksum:x}, and no such map in the file (Bad!)");
        lines.Add("");
    }

    private bool TryRead(long at, byte[] bytes) =>
        at >= 0 && at <= file.LengthBytes - bytes.Length && file.Read(at, bytes) == bytes.Length;

    private static string NameOf(uint code) => code switch
    {
        0x5769_3272 => "PLAT_CODE_WI2R",
        0x5769_326B => "PLAT_CODE_WI2K",
        ParentLocator.W2ru => "PLAT_CODE_W2RU",
        ParentLocator.W2ku => "PLAT_CODE_W2KU",
        0x4D61_6320 => "PLAT_CODE_MAC",
        ParentLocator.Macx => "PLAT_CODE_MACX",
        _ => "UNKOWN", // The field's spelling.
    };

    private void AddTitle(string title)
    {
        lines.Add(title);
        lines.Add(new string('-', title.Length));
    }

    private void Add(string label, string value) => lines.Add($"{label,-20}: {value}");

    // C's %#x: a zero has no prefix.
    private string Number(ulong value) => !isHex || value == 0 ? value.ToString(CultureInfo.InvariantCulture) : $"0x{value:x}";

    private string Size(ulong bytes) => $"{Number(bytes >> 20)} MB ({Number(bytes)} Bytes)";

    private static string Version(uint version) => $"Major: {version >> 16}, Minor: {version & 0xffff}";

    private static string Checksum(uint stored, uint computed) =>
        $"0x{stored:x}|0x{computed:x} ({(stored == computed ? "Good!" : "Bad!")})";

    // As C's ctime, in UTC.
    private static string Time(uint seconds)
    {
        DateTime time = new DateTime(2000, 1, 1, 0, 0, 0, DateTimeKind.Utc).AddSeconds(seconds);
        return string.Create(CultureInfo.InvariantCulture, $"{time:ddd MMM} {time.Day,2} {time:HH:mm:ss yyyy}");
    }

    private static string Uuid(ReadOnlySpan<byte> bytes) => new Guid(bytes, bigEndian: true).ToString();

    private static string Text(ReadOnlySpan<byte> bytes)
    {
        int end = bytes.IndexOf((byte)0);
        return Printable(Encoding.Latin1.GetString(end < 0 ? bytes : bytes[..end]));
    }

    private static string Printable(string text) => string.Concat(text.Select(static c => char.IsControl(c) ? '?' : c));

    private static uint U32(byte[] bytes, int at) => BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(at));

    private static long I64(byte[] bytes, int at) => BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan(at));
}
