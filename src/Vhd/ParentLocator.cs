// A parent locator: where in the child's file a path to its parent is stored, and in which spelling. Agrees with research/storage.md 8.2:
// we write MACX, W2KU and W2RU, all three holding the same relative path, and read those three. A path is untrusted text: it is only ever a
// candidate.
using System.Buffers.Binary;
using System.Text;

namespace Vhd;

internal readonly record struct ParentLocator(uint Code, uint SpaceBytes, uint LengthBytes, long OffsetBytes)
{
    public const uint Macx = 0x4D61_6358;
    public const uint W2ku = 0x5732_6B75;
    public const uint W2ru = 0x5732_7275;

    /// <summary>Longer paths than Linux allows are not read.</summary>
    public const int MaxPathBytes = 8192;

    private static readonly UTF8Encoding StrictUtf8 = new(false, true);
    private static readonly UnicodeEncoding StrictUtf16 = new(bigEndian: false, byteOrderMark: false, throwOnInvalidBytes: true);

    public static ParentLocator Read(ReadOnlySpan<byte> entry) => new(
        BinaryPrimitives.ReadUInt32BigEndian(entry),
        SpaceOf(BinaryPrimitives.ReadUInt32BigEndian(entry[4..])),
        BinaryPrimitives.ReadUInt32BigEndian(entry[8..]),
        BinaryPrimitives.ReadInt64BigEndian(entry[16..]));

    public void WriteTo(Span<byte> entry)
    {
        BinaryPrimitives.WriteUInt32BigEndian(entry, Code);
        BinaryPrimitives.WriteUInt32BigEndian(entry[4..], SpaceBytes);
        BinaryPrimitives.WriteUInt32BigEndian(entry[8..], LengthBytes);
        BinaryPrimitives.WriteInt64BigEndian(entry[16..], OffsetBytes);
    }

    /// <summary>The stored spelling of a relative path with slashes.</summary>
    public static byte[] Encode(uint code, string relativePath) =>
        code == Macx ? Encoding.UTF8.GetBytes("file://" + relativePath) : Encoding.Unicode.GetBytes(relativePath.Replace('/', '\\'));

    /// <summary>The path stored, with slashes; null when it is none that can name a file here (another system's, bad text).</summary>
    public string? Decode(ReadOnlySpan<byte> stored)
    {
        try
        {
            string path = Code switch
            {
                Macx => StrictUtf8.GetString(stored),
                W2ku or W2ru => StrictUtf16.GetString(stored).Replace('\\', '/'),
                _ => "",
            };
            path = path.TrimEnd('\0');
            if (Code == Macx)
                path = path.StartsWith("file://", StringComparison.Ordinal) ? path["file://".Length..] : "";
            bool isForeign = path.Contains('\0', StringComparison.Ordinal) || path.StartsWith("//", StringComparison.Ordinal)
                || (path.Length > 1 && path[1] == ':');
            return path.Length == 0 || isForeign ? null : path;
        }
        catch (DecoderFallbackException)
        {
            return null; // A lone surrogate or broken UTF-8: text that names nothing.
        }
        catch (ArgumentException)
        {
            return null; // Half a UTF-16 unit at the end.
        }
    }

    /// <summary>The path from a child's folder to its parent, as the field spells it: `./base.vhd`, `../other/base.vhd`.</summary>
    public static string RelativePath(string childCanonicalPath, string parentCanonicalPath)
    {
        string relative = Path.GetRelativePath(Path.GetDirectoryName(childCanonicalPath)!, parentCanonicalPath);
        return relative.StartsWith("../", StringComparison.Ordinal) ? relative : "./" + relative;
    }

    // Written in bytes by the field's tools, in sectors by others: a value under a sector's size can only be sectors.
    private static uint SpaceOf(uint space) => space < VhdFooter.SectorBytes ? space * VhdFooter.SectorBytes : space;
}
