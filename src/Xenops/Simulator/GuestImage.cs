// Where the simulated guest's whole state lives: inside its own memory pages, so that only what a memory stream carried exists on the
// other side. Page 0: words of State, and at byte 2048 the reason of a panic (u16 length, UTF-8). Then the table of disk slots, 32
// bytes each: byte offset i64, disk i32 with flags in the upper half, sequence last acknowledged i64, CRC32C of the original i64. Then
// one page per slot with its original block. All other pages are the heap that the memory workload writes.
using System.Buffers.Binary;
using System.Text;

namespace Xenops.Simulator;

internal enum State
{
    Magic,
    VmIdLow,
    VmIdHigh,
    Seed,
    DirtyPagesPerSecond,
    WritesPerSecond,
    SlotCount,
    DiskCount,
    LastSequence,
    LastReadNumber,
    LastPageNumber,
    Boots,
    Panics,
    WritesIssued,
    WritesAcknowledged,
    IoErrors,
    LongestWriteMicroseconds,
    ReadsVerified,
}

[Flags]
internal enum SlotFlags
{
    None = 0,

    /// <summary>The original block is in memory; only then may the slot be written.</summary>
    OriginalKept = 1,

    /// <summary>A write failed: old, new or torn content is right until the next write.</summary>
    Uncertain = 2,
}

internal sealed class GuestImage
{
    public const int AreaCount = 16;
    private const long MagicWord = 0x31_54_53_45_55_47_4d_58; // "XMGUEST1" as bytes.
    private const int SlotsPerPage = 128;
    private const int SlotWords = 4;
    private const int ReasonOffsetBytes = 2048;
    private const int ReasonLimitBytes = 1024;

    private GuestImage(GuestMemory memory) => Memory = memory;

    public GuestMemory Memory { get; }

    public Guid VmId
    {
        get
        {
            Span<byte> id = stackalloc byte[16];
            BinaryPrimitives.WriteInt64LittleEndian(id, this[State.VmIdLow]);
            BinaryPrimitives.WriteInt64LittleEndian(id[8..], this[State.VmIdHigh]);
            return new Guid(id);
        }
    }

    public ulong Seed => (ulong)this[State.Seed];

    public int SlotCount => (int)this[State.SlotCount];

    public int FirstHeapPage => 1 + TablePageCount(SlotCount) + SlotCount;

    public int HeapPageCount => Memory.PageCount - FirstHeapPage;

    public string? PanicReason
    {
        get
        {
            if (this[State.Panics] == 0)
                return null;
            ReadOnlySpan<byte> text = Memory.Page(0)[ReasonOffsetBytes..];
            int length = Math.Min((int)BinaryPrimitives.ReadUInt16LittleEndian(text), ReasonLimitBytes);
            return Encoding.UTF8.GetString(text.Slice(2, length));
        }
    }

    public GuestStatistics Statistics => new(
        this[State.WritesIssued],
        this[State.WritesAcknowledged],
        this[State.IoErrors],
        this[State.LongestWriteMicroseconds] / 1000.0,
        this[State.ReadsVerified],
        this[State.LastPageNumber],
        this[State.Boots],
        this[State.Panics],
        PanicReason);

    public long this[State word]
    {
        get => Memory.ReadWord(0, (int)word);
        set => Memory.WriteWord(0, (int)word, value);
    }

    public long Add(State word, long increment = 1) => Memory.AddToWord(0, (int)word, increment);

    public long OffsetOf(int slot) => Read(slot, 0);

    public int DiskOf(int slot) => (int)(Read(slot, 1) & uint.MaxValue);

    public SlotFlags FlagsOf(int slot) => (SlotFlags)(Read(slot, 1) >> 32);

    public void SetFlags(int slot, SlotFlags flags) => Write(slot, 1, ((long)flags << 32) | (uint)DiskOf(slot));

    public ulong SequenceOf(int slot) => (ulong)Read(slot, 2);

    public void SetSequence(int slot, ulong sequence) => Write(slot, 2, (long)sequence);

    public ReadOnlySpan<byte> OriginalOf(int slot) => Memory.Page(OriginalPage(slot));

    public bool IsOriginalIntact(int slot) => Read(slot, 3) == Crc32C.Of(OriginalOf(slot));

    public void KeepOriginal(int slot, ReadOnlySpan<byte> block)
    {
        Memory.Write(OriginalPage(slot), block);
        Write(slot, 3, Crc32C.Of(block));
        SetFlags(slot, FlagsOf(slot) | SlotFlags.OriginalKept);
    }

    public void Panic(string reason)
    {
        byte[] text = Encoding.UTF8.GetBytes(reason);
        int length = Math.Min(text.Length, ReasonLimitBytes);
        byte[] field = new byte[2 + length];
        BinaryPrimitives.WriteUInt16LittleEndian(field, (ushort)length);
        text.AsSpan(0, length).CopyTo(field.AsSpan(2));
        Memory.Write(0, field, ReasonOffsetBytes);
        Add(State.Panics);
    }

    /// <summary>Lays a guest out in empty memory. Half of its heap has content from the first moment.</summary>
    public static GuestImage Create(GuestMemory memory, Guid vm, SimulatorSettings settings, IReadOnlyList<long> diskLengthsBytes)
    {
        GuestImage image = new(memory);
        Span<byte> id = stackalloc byte[16];
        vm.TryWriteBytes(id);
        List<(int Disk, long Offset)> slots = PlaceSlots(settings, memory.PageCount / 4, diskLengthsBytes);
        image[State.Magic] = MagicWord;
        image[State.VmIdLow] = BinaryPrimitives.ReadInt64LittleEndian(id);
        image[State.VmIdHigh] = BinaryPrimitives.ReadInt64LittleEndian(id[8..]);
        image[State.Seed] = (long)settings.Seed;
        image[State.DirtyPagesPerSecond] = settings.DirtyPagesPerSecond;
        image[State.WritesPerSecond] = settings.WritesPerSecond;
        image[State.SlotCount] = slots.Count;
        image[State.DiskCount] = diskLengthsBytes.Count;
        image[State.Boots] = 1;
        for (int i = 0; i < slots.Count; i++)
        {
            image.Write(i, 0, slots[i].Offset);
            image.Write(i, 1, slots[i].Disk);
        }

        for (int i = 0; i < image.HeapPageCount; i += 2)
            image.WriteHeapPage(i, (ulong)image.Add(State.LastPageNumber));
        return image;
    }

    /// <summary>A look at what a guest tells of itself; zeros before it booted.</summary>
    public static GuestImage Look(GuestMemory memory) => new(memory);

    /// <summary>Reads what came over a stream; nothing in it is believed before it was checked.</summary>
    /// <exception cref="XenopsException">It is no guest, or not this VM's, or not one of these disks.</exception>
    public static GuestImage Open(GuestMemory memory, Guid vm, IReadOnlyList<long> diskLengthsBytes)
    {
        GuestImage image = new(memory);
        Require(image[State.Magic] == MagicWord, "the memory holds no simulated guest");
        Require(image.VmId == vm, $"the memory is that of VM {image.VmId}, not of {vm}");
        Require(
            image[State.DiskCount] == diskLengthsBytes.Count,
            $"the guest knows {image[State.DiskCount]} disks, not {diskLengthsBytes.Count}");
        Require(
            image[State.SlotCount] >= 0 && image[State.SlotCount] <= memory.PageCount / 4,
            "the guest's table of slots is larger than its memory");
        Require(
            image[State.DirtyPagesPerSecond] is >= 0 and <= SimulatorSettings.RateLimit, "the guest's rate of dirty pages is out of range");
        Require(image[State.WritesPerSecond] is >= 0 and <= SimulatorSettings.RateLimit, "the guest's rate of writes is out of range");
        for (int slot = 0; slot < image.SlotCount; slot++)
        {
            int disk = image.DiskOf(slot);
            Require(disk >= 0 && disk < diskLengthsBytes.Count, $"slot {slot} is on disk {disk}, which is not there");
            long offset = image.OffsetOf(slot);
            Require(
                offset >= 0 && offset % GuestBlock.SizeBytes == 0 && offset <= diskLengthsBytes[disk] - GuestBlock.SizeBytes,
                $"slot {slot} lies outside disk {disk}");
        }

        return image;
    }

    /// <summary>True when the page is what its header says it is, or was never written.</summary>
    public bool IsHeapPageIntact(int heapPage, Span<byte> scratch)
    {
        ReadOnlySpan<byte> page = Memory.Page(FirstHeapPage + heapPage);
        ulong number = BinaryPrimitives.ReadUInt64LittleEndian(page);
        if (number == 0)
            return page.IndexOfAnyExcept((byte)0) < 0;
        GuestBlock.WritePage(scratch, Seed, number, heapPage);
        return page.SequenceEqual(scratch);
    }

    public void WriteHeapPage(int heapPage, ulong number)
    {
        Span<byte> content = stackalloc byte[GuestMemory.PageSizeBytes];
        GuestBlock.WritePage(content, Seed, number, heapPage);
        Memory.Write(FirstHeapPage + heapPage, content);
    }

    /// <summary>
    /// Slots in 16 areas spread over each disk, the same for the same seed; fewer when the disks or the memory are small.
    /// </summary>
    private static List<(int Disk, long Offset)> PlaceSlots(SimulatorSettings settings, int slotLimit, IReadOnlyList<long> diskLengthsBytes)
    {
        List<(int, long)> slots = [];
        for (int disk = 0; disk < diskLengthsBytes.Count; disk++)
        {
            long blocks = diskLengthsBytes[disk] / GuestBlock.SizeBytes;
            int wanted = (int)Math.Min(Math.Min(settings.WorkingSetBlocks, slotLimit) / diskLengthsBytes.Count, blocks);
            for (int area = 0; area < AreaCount; area++)
            {
                long start = blocks * area / AreaCount;
                long room = blocks * (area + 1) / AreaCount - start;
                long length = Math.Min(room, (long)wanted * (area + 1) / AreaCount - (long)wanted * area / AreaCount);
                start += (long)(GuestBlock.Mix(settings.Seed, (ulong)(disk * AreaCount + area)) % (ulong)(room - length + 1));
                for (int i = 0; i < length; i++)
                    slots.Add((disk, (start + i) * GuestBlock.SizeBytes));
            }
        }

        return slots;
    }

    private static int TablePageCount(int slots) => (slots + SlotsPerPage - 1) / SlotsPerPage;

    private static void Require(bool holds, string otherwise)
    {
        if (!holds)
            throw XenopsException.Internal($"the memory image is refused: {otherwise}");
    }

    private int OriginalPage(int slot) => 1 + TablePageCount(SlotCount) + slot;

    private long Read(int slot, int word) => Memory.ReadWord(1 + slot / SlotsPerPage, slot % SlotsPerPage * SlotWords + word);

    private void Write(int slot, int word, long value) =>
        Memory.WriteWord(1 + slot / SlotsPerPage, slot % SlotsPerPage * SlotWords + word, value);
}
