// A dynamic image with blocks of 512 KiB, as another tool may write it, laid out by hand.
using System.Buffers.Binary;
using Vhd;

namespace Unit.VhdTests;

internal static class SmallBlocks
{
    private const int BlockBytes = 512 << 10;
    private const int BitmapBytes = 512;

    public static void Write(string path, long sizeBytes, Guid uuid, byte[] content)
    {
        uint entries = (uint)((sizeBytes + BlockBytes - 1) / BlockBytes);
        VhdFooter footer = VhdFooter.New(VhdType.Dynamic, sizeBytes, uuid, DateTimeOffset.UnixEpoch.AddYears(40)) with
        {
            CreatorApplication = "oth ",
            CreatorVersion = 1,
        };
        VhdHeader header = new() { TableOffsetBytes = 1536, MaxTableEntries = entries, BlockBytes = BlockBytes };
        using FileStream file = File.Create(path);
        file.Write(footer.ToBytes());
        file.Write(header.ToBytes());
        byte[] table = new byte[VhdFooter.WholeSectors(entries * 4)];
        table.AsSpan().Fill(0xFF);
        for (uint i = 0; i < entries; i++)
        {
            uint sector = (uint)((1536 + table.Length + i * (long)(BlockBytes + BitmapBytes)) / 512);
            BinaryPrimitives.WriteUInt32BigEndian(table.AsSpan((int)i * 4), sector);
        }

        file.Write(table);
        byte[] bitmap = new byte[BitmapBytes];
        bitmap.AsSpan(0, BlockBytes / 512 / 8).Fill(0xFF);
        for (int i = 0; i < entries; i++)
        {
            file.Write(bitmap);
            file.Write(content.AsSpan(i * BlockBytes, BlockBytes));
        }

        file.Write(footer.ToBytes());
    }
}
