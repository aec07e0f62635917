// The header of dynamic and differencing images: 1,024 bytes, big-endian, found through the footer's data offset (512 in ours). Agrees with
// research/storage.md 8.2. A parent uuid of zero in a differencing image means a raw parent.
using System.Buffers.Binary;
using System.Text;

namespace Vhd;

internal sealed record VhdHeader
{
    public const int LengthBytes = 1024;
    public const int DefaultBlockBytes = 2 * 1024 * 1024;
    public const uint Unused = 0xFFFF_FFFF;
    public const int LocatorCount = 8;

    // Smaller blocks would let a 2 TiB header ask for more memory than a disk may have; larger ones nobody writes.
    private const int MinBlockBytes = 512 * 1024;
    private const int MaxBlockBytes = 16 * 1024 * 1024;
    private const int ChecksumOffset = 36;
    private const int NameOffset = 64;
    private const int NameBytes = 512;
    private const int LocatorOffset = 576;
    private const int LocatorBytes = 24;

    public required long TableOffsetBytes { get; init; }

    public required uint MaxTableEntries { get; init; }

    public int BlockBytes { get; init; } = DefaultBlockBytes;

    public Guid ParentUuid { get; init; }

    public uint ParentTimestamp { get; init; }

    /// <summary>The parent's file name without a folder.</summary>
    public string ParentName { get; init; } = "";

    /// <summary>Where the parent's paths are stored; unused slots are left out.</summary>
    public IReadOnlyList<ParentLocator> Locators { get; init; } = [];

    /// <summary>A block's sector bitmap as stored: one bit for each sector, rounded up to whole sectors.</summary>
    public int BitmapBytes => (int)VhdFooter.WholeSectors(BlockBytes / VhdFooter.SectorBytes / 8);

    /// <summary>The end of the table as stored: four bytes for each entry, padded to whole sectors.</summary>
    public long TableEndBytes => TableOffsetBytes + VhdFooter.WholeSectors(MaxTableEntries * 4L);

    public byte[] ToBytes()
    {
        byte[] bytes = new byte[LengthBytes];
        Encoding.ASCII.GetBytes("cxsparse", bytes);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(8), -1);
        BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan(16), TableOffsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(24), 0x0001_0000);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(28), MaxTableEntries);
        BinaryPrimitives.WriteInt32BigEndian(bytes.AsSpan(32), BlockBytes);
        ParentUuid.TryWriteBytes(bytes.AsSpan(40, 16), bigEndian: true, out _);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(56), ParentTimestamp);
        // One unit is left for the NUL that readers of the name expect.
        string name = ParentName[..Math.Min(ParentName.Length, NameBytes / 2 - 1)];
        Encoding.BigEndianUnicode.GetBytes(name, bytes.AsSpan(NameOffset, NameBytes));
        for (int i = 0; i < Locators.Count; i++)
            Locators[i].WriteTo(bytes.AsSpan(LocatorOffset + i * LocatorBytes));
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(ChecksumOffset), VhdFooter.Checksum(bytes, ChecksumOffset));
        return bytes;
    }

    /// <param name="isChecked">False reads one with a wrong checksum: a power cut in a change of parent leaves it, SetParent mends it.</param>
    public static VhdHeader Read(ReadOnlySpan<byte> bytes, long offsetBytes, string path, bool isChecked)
    {
        if (!bytes[..8].SequenceEqual("cxsparse"u8))
            throw new VhdException(VhdError.Damaged, path, $"no header cookie 'cxsparse' at byte {offsetBytes}");
        uint stored = BinaryPrimitives.ReadUInt32BigEndian(bytes[ChecksumOffset..]);
        uint computed = VhdFooter.Checksum(bytes, ChecksumOffset);
        if (isChecked && stored != computed)
            throw new VhdException(
                VhdError.Damaged,
                path,
                $"header checksum at byte {offsetBytes + ChecksumOffset} is 0x{stored:x8}, its bytes give 0x{computed:x8}; "
                + "if a change of parent was cut short, set the parent again (vhd-util modify -p)");
        uint version = BinaryPrimitives.ReadUInt32BigEndian(bytes[24..]);
        if (version >> 16 != 1)
            throw new VhdException(VhdError.Unsupported, path, $"header version {version >> 16}.{version & 0xffff}; 1.0 is served");
        uint blockBytes = BinaryPrimitives.ReadUInt32BigEndian(bytes[32..]);
        if (blockBytes is < MinBlockBytes or > MaxBlockBytes || !System.Numerics.BitOperations.IsPow2(blockBytes))
            throw new VhdException(
                VhdError.Unsupported,
                path,
                $"block size {blockBytes} in the header; powers of two from {MinBlockBytes} to {MaxBlockBytes} are served");
        return new VhdHeader
        {
            TableOffsetBytes = BinaryPrimitives.ReadInt64BigEndian(bytes[16..]),
            MaxTableEntries = BinaryPrimitives.ReadUInt32BigEndian(bytes[28..]),
            BlockBytes = (int)blockBytes,
            ParentUuid = new Guid(bytes.Slice(40, 16), bigEndian: true),
            ParentTimestamp = BinaryPrimitives.ReadUInt32BigEndian(bytes[56..]),
            ParentName = NameOf(bytes.Slice(NameOffset, NameBytes)),
            Locators = LocatorsOf(bytes),
        };
    }

    private static string NameOf(ReadOnlySpan<byte> bytes)
    {
        string name = Encoding.BigEndianUnicode.GetString(bytes);
        int end = name.IndexOf('\0', StringComparison.Ordinal);
        return end < 0 ? name : name[..end];
    }

    private static List<ParentLocator> LocatorsOf(ReadOnlySpan<byte> header)
    {
        List<ParentLocator> locators = [];
        for (int i = 0; i < LocatorCount; i++)
        {
            ParentLocator locator = ParentLocator.Read(header[(LocatorOffset + i * LocatorBytes)..]);
            if (locator.Code != 0)
                locators.Add(locator);
        }

        return locators;
    }
}
