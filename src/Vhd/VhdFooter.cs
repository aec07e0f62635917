// The footer: 512 bytes at the end of every image, and a copy at offset 0 of dynamic and differencing ones. Big-endian. Agrees with
// research/storage.md 8.1: creator `tap`, version 1.3, byte 85 = hidden; geometry is for show, `current size` is the size of the disk.
using System.Buffers.Binary;

namespace Vhd;

/// <summary>How an image holds its content.</summary>
public enum VhdType
{
    Fixed = 2,
    Dynamic = 3,
    Differencing = 4,
}

internal sealed record VhdFooter
{
    public const int LengthBytes = 512;
    public const int SectorBytes = 512;
    public const string OurCreator = "tap\0";

    /// <summary>What the field refuses beyond: 2040 GiB keeps every block of a full image within the BAT's 32-bit sector numbers.</summary>
    public const long MaxSizeBytes = 2040L << 30;

    private const string Cookie = "conectix";
    private const string PoisonedCookie = "v_poison";
    private const uint TapVersion = 0x0001_0003;
    private const uint FirstTapVersion = 0x0001_0001;
    private const int ChecksumOffset = 64;
    private const int HiddenOffset = 85;
    private static readonly DateTimeOffset Epoch = new(2000, 1, 1, 0, 0, 0, TimeSpan.Zero);

    public required VhdType Type { get; init; }

    public required long CurrentSizeBytes { get; init; }

    public required long OriginalSizeBytes { get; init; }

    public required Guid Uuid { get; init; }

    public required uint Timestamp { get; init; }

    /// <summary>Where the header is; all ones for a fixed image.</summary>
    public long DataOffsetBytes { get; init; } = -1;

    public string CreatorApplication { get; init; } = OurCreator;

    public uint CreatorVersion { get; init; } = TapVersion;

    public uint CreatorSystem { get; init; }

    public uint Geometry { get; init; }

    public bool IsHidden { get; init; }

    public static VhdFooter New(VhdType type, long sizeBytes, Guid uuid, DateTimeOffset now) => new()
    {
        Type = type,
        CurrentSizeBytes = sizeBytes,
        OriginalSizeBytes = sizeBytes,
        Uuid = uuid,
        Timestamp = TimestampOf(now),
        DataOffsetBytes = type == VhdType.Fixed ? -1 : LengthBytes,
        Geometry = GeometryOf(sizeBytes),
    };

    /// <summary>Seconds since 2000, as footers and headers count; clamped, because a parent's clock may be anything.</summary>
    public static uint TimestampOf(DateTimeOffset time) => (uint)Math.Clamp((time - Epoch).TotalSeconds, 0, uint.MaxValue);

    /// <summary>
    /// Cylinders, heads and sectors as C&lt;&lt;16 | H&lt;&lt;8 | S: never more than the size, which strict checkers refuse.
    /// </summary>
    public static uint GeometryOf(long sizeBytes)
    {
        long sectors = Math.Min(sizeBytes / SectorBytes, 65535L * 16 * 255);
        long perTrack = 255, heads = 16, tracks = sectors / perTrack;
        if (sectors < 65535L * 16 * 63)
        {
            perTrack = 17;
            tracks = sectors / perTrack;
            heads = Math.Max(4, (tracks + 1023) / 1024);
            if (tracks >= heads * 1024 || heads > 16)
                (perTrack, heads, tracks) = (31, 16, sectors / 31);
            if (tracks >= heads * 1024)
                (perTrack, heads, tracks) = (63, 16, sectors / 63);
        }

        return (uint)((tracks / heads << 16) | (heads << 8) | perTrack);
    }

    /// <summary>Only the field's own creator writes one, and its readers insist on it.</summary>
    public bool HasBatmap => CreatorApplication == OurCreator && CreatorVersion > FirstTapVersion;

    public DateTimeOffset CreatedAt => Epoch.AddSeconds(Timestamp);

    /// <summary>A stored footer with another hidden byte, everything else kept.</summary>
    public static byte[] WithHidden(ReadOnlySpan<byte> stored, bool isHidden)
    {
        byte[] bytes = stored.ToArray();
        bytes[HiddenOffset] = isHidden ? (byte)1 : (byte)0;
        return Sealed(bytes);
    }

    /// <summary>A stored footer with another size and the geometry that goes with it, everything else kept.</summary>
    public static byte[] WithSize(ReadOnlySpan<byte> stored, long sizeBytes)
    {
        byte[] bytes = stored.ToArray();
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(48), sizeBytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(56), GeometryOf(sizeBytes));
        return Sealed(bytes);
    }

    /// <summary>A stored footer that finds its header elsewhere, everything else kept.</summary>
    public static byte[] WithDataOffset(ReadOnlySpan<byte> stored, long dataOffsetBytes)
    {
        byte[] bytes = stored.ToArray();
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(16), dataOffsetBytes);
        return Sealed(bytes);
    }

    /// <summary>A stored footer with another identity, everything else kept.</summary>
    public static byte[] WithUuid(ReadOnlySpan<byte> stored, Guid uuid)
    {
        byte[] bytes = stored.ToArray();
        uuid.TryWriteBytes(bytes.AsSpan(68, 16), bigEndian: true, out _);
        return Sealed(bytes);
    }

    public byte[] ToBytes()
    {
        byte[] bytes = new byte[LengthBytes];
        System.Text.Encoding.ASCII.GetBytes(Cookie, bytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(8), 2);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(12), 0x0001_0000);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(16), DataOffsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(24), Timestamp);
        System.Text.Encoding.Latin1.GetBytes(CreatorApplication, bytes.AsSpan(28, 4));
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(32), CreatorVersion);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(36), CreatorSystem);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(40), OriginalSizeBytes);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(48), CurrentSizeBytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(56), Geometry);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(60), (uint)Type);
        Uuid.TryWriteBytes(bytes.AsSpan(68, 16), bigEndian: true, out _);
        bytes[HiddenOffset] = IsHidden ? (byte)1 : (byte)0;
        return Sealed(bytes);
    }

    /// <summary>
    /// Reads one footer. Null with a reason when these bytes are none, or a damaged one; throws when it is one that we cannot serve.
    /// </summary>
    public static VhdFooter? TryRead(ReadOnlySpan<byte> bytes, string path, out string reason)
    {
        string cookie = System.Text.Encoding.Latin1.GetString(bytes[..8]);
        if (cookie == PoisonedCookie)
            throw new VhdException(
                VhdError.Unsupported,
                path,
                "the image is disabled (footer cookie 'v_poison'): a copy into it was interrupted (remove it and copy anew) or a resize of the "
                + "field's tools (revert its journal)");
        reason = "no footer cookie 'conectix'";
        if (cookie != Cookie)
            return null;
        uint stored = BinaryPrimitives.ReadUInt32BigEndian(bytes[ChecksumOffset..]);
        uint computed = Checksum(bytes, ChecksumOffset);
        uint version = BinaryPrimitives.ReadUInt32BigEndian(bytes[32..]);
        // Creators 0.1 and 1.1 computed the checksum before they set the hidden byte.
        if (stored != computed && !(version is 0x0000_0001 or 0x0001_0001 && stored == computed + bytes[HiddenOffset]))
        {
            reason = $"footer checksum is 0x{stored:x8}, its bytes give 0x{computed:x8}";
            return null;
        }

        VhdFooter footer = new()
        {
            DataOffsetBytes = BinaryPrimitives.ReadInt64BigEndian(bytes[16..]),
            Timestamp = BinaryPrimitives.ReadUInt32BigEndian(bytes[24..]),
            CreatorApplication = System.Text.Encoding.Latin1.GetString(bytes.Slice(28, 4)),
            CreatorVersion = version,
            CreatorSystem = BinaryPrimitives.ReadUInt32BigEndian(bytes[36..]),
            OriginalSizeBytes = BinaryPrimitives.ReadInt64BigEndian(bytes[40..]),
            CurrentSizeBytes = BinaryPrimitives.ReadInt64BigEndian(bytes[48..]),
            Geometry = BinaryPrimitives.ReadUInt32BigEndian(bytes[56..]),
            Type = (VhdType)BinaryPrimitives.ReadUInt32BigEndian(bytes[60..]),
            Uuid = new Guid(bytes.Slice(68, 16), bigEndian: true),
            IsHidden = bytes[HiddenOffset] != 0,
        };
        footer.CheckServable(path, BinaryPrimitives.ReadUInt32BigEndian(bytes[12..]));
        reason = "";
        return footer;
    }

    /// <summary>A length rounded up to whole sectors.</summary>
    public static long WholeSectors(long bytes) => (bytes + SectorBytes - 1) / SectorBytes * SectorBytes;

    /// <summary>The one's complement of the sum of all bytes, the checksum field itself counted as zero.</summary>
    public static uint Checksum(ReadOnlySpan<byte> bytes, int checksumOffset)
    {
        uint sum = 0;
        for (int i = 0; i < bytes.Length; i++)
            sum += i >= checksumOffset && i < checksumOffset + 4 ? 0u : bytes[i];
        return ~sum;
    }

    private static byte[] Sealed(byte[] bytes)
    {
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(ChecksumOffset), Checksum(bytes, ChecksumOffset));
        return bytes;
    }

    private void CheckServable(string path, uint formatVersion)
    {
        if (formatVersion >> 16 != 1)
            throw new VhdException(
                VhdError.Unsupported, path, $"footer version {formatVersion >> 16}.{formatVersion & 0xffff}; 1.0 is served");
        if (Type is not (VhdType.Fixed or VhdType.Dynamic or VhdType.Differencing))
            throw new VhdException(
                VhdError.Unsupported,
                path,
                $"disk type {(uint)Type} in the footer; fixed (2), dynamic (3) and differencing (4) are served");
        if (CurrentSizeBytes <= 0 || CurrentSizeBytes % SectorBytes != 0)
            throw new VhdException(
                VhdError.Damaged, path, $"current size {(ulong)CurrentSizeBytes} in the footer is not a positive multiple of 512");
        if (CurrentSizeBytes > MaxSizeBytes)
            throw new VhdException(
                VhdError.Unsupported,
                path,
                $"current size {CurrentSizeBytes} in the footer is over the format's limit of {MaxSizeBytes} bytes");
    }
}
