// The batmap's header: one sector after the table; the map follows it in ours. Agrees with research/storage.md 8.3.
using System.Buffers.Binary;

namespace Vhd;

internal readonly record struct BatmapHeader(bool IsPresent, long OffsetBytes, uint Sectors, uint Version, uint Checksum)
{
    public const uint KnownVersion = 0x0001_0002;

    /// <summary>Of the fields here; the marker and a key's hash follow.</summary>
    public const int LengthBytes = 28;

    /// <summary>A byte that is whatever its writer says; no checksum covers it.</summary>
    public const int MarkerOffset = 28;

    private const int KeyOffset = 29;
    private const int KeyPartBytes = 32;

    /// <summary>
    /// How much of the map the checksum covers: as the field's library derives it from the disk's size, rounding down before up.
    /// </summary>
    public static long MapBytes(long sizeBytes) => Math.Max(1, ((sizeBytes >> 24) + 511) / 512) * 512;

    /// <summary>The room of a map for so many blocks.</summary>
    public static long RoomFor(uint entries) => (entries + 4095L) / 4096 * 512;

    /// <summary>The header of a map of zeros.</summary>
    public static BatmapHeader Empty(long offsetBytes, uint entries) =>
        new(true, offsetBytes, (uint)(RoomFor(entries) / VhdFooter.SectorBytes), KnownVersion, uint.MaxValue);

    public static BatmapHeader Read(ReadOnlySpan<byte> bytes) => new(
        bytes[..8].SequenceEqual("tdbatmap"u8),
        BinaryPrimitives.ReadInt64BigEndian(bytes[8..]),
        BinaryPrimitives.ReadUInt32BigEndian(bytes[16..]),
        BinaryPrimitives.ReadUInt32BigEndian(bytes[20..]),
        BinaryPrimitives.ReadUInt32BigEndian(bytes[24..]));

    /// <summary>Makes a stored header one of a map of zeros; a key's hash in it stays.</summary>
    public static void SayEmpty(Span<byte> stored) => BinaryPrimitives.WriteUInt32BigEndian(stored[24..], uint.MaxValue);

    /// <summary>The sector with the header of an image that has a batmap; null when it has none.</summary>
    public static byte[]? ReadStored(IVhdFile file, VhdMetadata metadata)
    {
        if (metadata.Header is null || !metadata.Footer.HasBatmap)
            return null;
        byte[] stored = new byte[VhdFooter.SectorBytes];
        return file.Read(metadata.BatmapHeaderBytes, stored) == stored.Length && Read(stored).IsPresent ? stored : null;
    }

    /// <summary>The hash of the key that the image's data is encrypted with; null when it is not.</summary>
    public static VhdKeyHash? KeyOf(ReadOnlySpan<byte> stored) => stored.IsEmpty || stored[KeyOffset] == 0
        ? null
        : new VhdKeyHash(
            Convert.ToHexStringLower(stored.Slice(KeyOffset + 1, KeyPartBytes)),
            Convert.ToHexStringLower(stored.Slice(KeyOffset + 1 + KeyPartBytes, KeyPartBytes)));

    public byte[] ToBytes()
    {
        byte[] bytes = new byte[VhdFooter.SectorBytes];
        "tdbatmap"u8.CopyTo(bytes);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(8), OffsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(16), Sectors);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(20), Version);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(24), Checksum);
        return bytes;
    }
}
