// The messages of tapdisk's control socket: 544 bytes, native-endian, one fixed record with a union (research: storage.md 6.3;
// docs/formats/tapdisk-control.md; golden bytes in data/golden/tap-ctl.json). Text fields are NUL-terminated inside their fixed size.
using System.Runtime.InteropServices;
using System.Text;

namespace StorageAccess.Tap;

/// <summary>What a message is; a response is its request plus one. 100 and 101 are ours (JSON follows the record).</summary>
public enum TapMessageType
{
    None = 0,
    Error = 1,
    RuntimeError = 2,
    Pid = 3,
    PidResponse = 4,
    Attach = 5,
    AttachResponse = 6,
    Open = 7,
    OpenResponse = 8,
    Pause = 9,
    PauseResponse = 10,
    Resume = 11,
    ResumeResponse = 12,
    Close = 13,
    CloseResponse = 14,
    Detach = 15,
    DetachResponse = 16,
    ListMinors = 17,
    ListMinorsResponse = 18,
    List = 19,
    ListResponse = 20,
    Stats = 21,
    StatsResponse = 22,
    ForceShutdown = 23,
    DiskInfo = 28,
    DiskInfoResponse = 29,
    Exit = 30,
    Extension = 100,
    ExtensionResponse = 101,
}

[Flags]
public enum TapOpenFlags
{
    None = 0,
    Shared = 1,
    ReadOnly = 2,
    AddCache = 4,
    VhdIndex = 8,
    AddLog = 0x10,
    AddLocalCache = 0x20,
    ReuseParent = 0x40,
    Secondary = 0x80,
    Standby = 0x100,
    NoDirectIo = 0x200,
    Encrypted = 0x400,
}

/// <summary>A disk's state bits as LIST shows them; a paused one shows Closed, Quiesced and Paused (0x2a).</summary>
[Flags]
public enum TapState
{
    Running = 0,
    Dead = 1,
    Closed = 2,
    QuiesceRequested = 4,
    Quiesced = 8,
    PauseRequested = 0x10,
    Paused = 0x20,
    ShutdownRequested = 0x40,
    Locking = 0x80,
    LogDropped = 0x100,
    ResumeFailed = 0x200,
}

/// <summary>
/// One record of the wire: every property is a view of its bytes, so that what was received can be looked at under any layout.
/// </summary>
public sealed class TapMessage
{
    public const int SizeBytes = 544;

    /// <summary>The longest path or secondary in bytes of UTF-8; one more is the terminator.</summary>
    public const int MaximumTextBytes = 255;

    /// <summary>The longest key that may follow a record.</summary>
    public const int MaximumKeyBytes = 64;

    private const int Union = 8;
    private readonly byte[] bytes;

    public TapMessage(TapMessageType type, int minor)
    {
        bytes = new byte[SizeBytes];
        Put(0, (ushort)type);
        Put(2, (ushort)minor);
    }

    private TapMessage(byte[] bytes) => this.bytes = bytes;

    public ReadOnlyMemory<byte> Bytes => bytes;

    public TapMessageType Type => (TapMessageType)Get<ushort>(0);

    /// <summary>The minor that the message is about; -1 travels as 0xffff.</summary>
    public int Minor => Get<ushort>(2) is ushort.MaxValue ? -1 : Get<ushort>(2);

    /// <summary>params.flags</summary>
    public TapOpenFlags Flags
    {
        get => (TapOpenFlags)Get<uint>(Union);
        init => Put(Union, (uint)value);
    }

    /// <summary>params.devnum</summary>
    public int DeviceNumber
    {
        get => Get<int>(Union + 4);
        init => Put(Union + 4, value);
    }

    /// <summary>params.path (<c>type:path</c>) and list.path: the same place.</summary>
    /// <exception cref="TapException">ENAMETOOLONG: longer than 255 bytes.</exception>
    public string Path
    {
        get => GetText(Union + 12);
        init => PutText(Union + 12, value);
    }

    /// <summary>params.prt_devnum; -1 for none.</summary>
    public int ParentDeviceNumber
    {
        get => Get<int>(Union + 268);
        init => Put(Union + 268, value);
    }

    /// <summary>params.req_timeout in seconds.</summary>
    public int RequestTimeoutSeconds
    {
        get => Get<ushort>(Union + 272);
        init => Put(Union + 272, (ushort)value);
    }

    /// <summary>params.secondary: <c>nbd:…</c>, or <c>null</c> which removes the mirror.</summary>
    public string Secondary
    {
        get => GetText(Union + 274);
        init => PutText(Union + 274, value);
    }

    /// <summary>image.sectors</summary>
    public ulong Sectors
    {
        get => Get<ulong>(Union);
        init => Put(Union, value);
    }

    /// <summary>image.sector_size</summary>
    public uint SectorSizeBytes
    {
        get => Get<uint>(Union + 8);
        init => Put(Union + 8, value);
    }

    /// <summary>image.info: 2 when the image is read-only.</summary>
    public uint ImageInfo
    {
        get => Get<uint>(Union + 12);
        init => Put(Union + 12, value);
    }

    /// <summary>response.error: an errno; the field sends either sign.</summary>
    public int Error
    {
        get => Get<int>(Union);
        init => Put(Union, value);
    }

    /// <summary>response.message</summary>
    public string ErrorText
    {
        get => GetText(Union + 4);
        init => PutText(Union + 4, Cut(value));
    }

    /// <summary>list.count: 1 for an entry, 0 for the message that ends the list.</summary>
    public int ListCount
    {
        get => Get<int>(Union);
        init => Put(Union, value);
    }

    /// <summary>list.minor</summary>
    public int ListMinor
    {
        get => Get<int>(Union + 4);
        init => Put(Union + 4, value);
    }

    /// <summary>list.state</summary>
    public TapState ListState
    {
        get => (TapState)Get<int>(Union + 8);
        init => Put(Union + 8, (int)value);
    }

    /// <summary>tapdisk_pid</summary>
    public int ProcessId
    {
        get => Get<int>(Union);
        init => Put(Union, value);
    }

    /// <summary>info.length: how many bytes follow the record (statistics, or an extension's JSON).</summary>
    public ulong FollowingBytes
    {
        get => Get<ulong>(Union + 8);
        init => Put(Union + 8, value);
    }

    /// <summary>Takes a received record; a type that we do not know stays what it is.</summary>
    public static TapMessage Decode(ReadOnlySpan<byte> record)
    {
        if (record.Length != SizeBytes)
            throw new TapException(TapException.ProtocolError, $"a control message has {record.Length} bytes instead of {SizeBytes}");
        return new TapMessage(record.ToArray());
    }

    /// <summary>The changed-block log's path as it follows the record, 256 bytes with its terminator; nothing without a path.</summary>
    /// <exception cref="TapException">ENAMETOOLONG: longer than 255 bytes.</exception>
    public static byte[] LogPath(string? path)
    {
        if (path is null)
            return [];
        byte[] following = new byte[MaximumTextBytes + 1];
        PutText(following, path);
        return following;
    }

    /// <summary>A key as it follows the record: a byte with its length, and the key; nothing without one.</summary>
    /// <exception cref="TapException">EINVAL: neither 32 nor 64 bytes.</exception>
    public static byte[] Key(byte[]? key) => key switch
    {
        null => [],
        { Length: 32 or MaximumKeyBytes } => [(byte)key.Length, .. key],
        _ => throw new TapException(
            (int)Platform.Errno.EINVAL, $"a key has 32 or {MaximumKeyBytes} bytes, not {key.Length}; nothing was sent"),
    };

    private static string Cut(string text)
    {
        while (Encoding.UTF8.GetByteCount(text) > MaximumTextBytes)
            text = text[..^1];
        return text;
    }

    private T Get<T>(int offset)
        where T : unmanaged => MemoryMarshal.Read<T>(bytes.AsSpan(offset));

    private void Put<T>(int offset, T value)
        where T : unmanaged => MemoryMarshal.Write(bytes.AsSpan(offset), in value);

    private string GetText(int offset)
    {
        ReadOnlySpan<byte> field = bytes.AsSpan(offset, MaximumTextBytes + 1);
        int end = field.IndexOf((byte)0);
        return Encoding.UTF8.GetString(end < 0 ? field : field[..end]);
    }

    private void PutText(int offset, string text) => PutText(bytes.AsSpan(offset), text);

    private static void PutText(Span<byte> field, string text)
    {
        if (Encoding.UTF8.GetByteCount(text) > MaximumTextBytes || text.Contains('\0'))
        {
            throw new TapException(
                TapException.NameTooLong, $"'{text}' does not fit the {MaximumTextBytes} bytes of a control message; nothing was sent");
        }

        Encoding.UTF8.GetBytes(text, field);
    }
}
