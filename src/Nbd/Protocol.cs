// The numbers of the NBD protocol, in one place (NetworkBlockDevice/nbd, doc/proto.md; docs/formats/nbd.md). Everything on the wire is
// big-endian.
using Platform;

namespace Nbd;

/// <summary>The peer broke the protocol, or refused what we cannot do without; the connection is gone.</summary>
public sealed class NbdProtocolException(string message, Exception? innerException = null) : IOException(message, innerException);

internal static class Protocol
{
    public const ulong InitMagic = 0x4e42444d41474943; // "NBDMAGIC"
    public const ulong OptionMagic = 0x49484156454f5054; // "IHAVEOPT"
    public const ulong OldStyleMagic = 0x0000420281861253;
    public const ulong OptionReplyMagic = 0x0003e889045565a9;
    public const uint RequestMagic = 0x25609513;
    public const uint SimpleReplyMagic = 0x67446698;
    public const uint StructuredReplyMagic = 0x668e33ef;

    public const int GreetingBytes = 18; // init magic, option magic, u16 handshake flags
    public const int OldStyleGreetingBytes = 152; // init magic, old-style magic, u64 size, u32 flags (the low half counts), 124 zeroes
    public const int OptionHeaderBytes = 16; // option magic, u32 option, u32 length
    public const int OptionReplyHeaderBytes = 20; // reply magic, u32 option, u32 type, u32 length
    public const int RequestHeaderBytes = 28; // magic, u16 flags, u16 command, u64 cookie, u64 offset, u32 length
    public const int SimpleReplyBytes = 16; // magic, u32 error, u64 cookie
    public const int ChunkHeaderBytes = 20; // magic, u16 flags, u16 type, u64 cookie, u32 length
    public const int ExportNameReplyBytes = 10; // u64 size, u16 transmission flags
    public const int ExportNameZeroesBytes = 124; // after it, unless both sides said NO_ZEROES

    /// <summary>The longest string of the protocol, an export name among them.</summary>
    public const int StringLimitBytes = 4096;

    /// <summary>The most that we send or take with one READ or WRITE; also what a peer that says nothing is taken to accept.</summary>
    public const int PayloadLimitBytes = 32 * 1024 * 1024;

    /// <summary>What of TRIM, WRITE_ZEROES and BLOCK_STATUS fits into one request with every block size that we accept.</summary>
    public const long RangeLimitBytes = 1L << 30;

    public const string AllocationContext = "base:allocation";

    /// <summary>The eight errors of the protocol; everything else is EIO.</summary>
    public static Errno ToWire(Errno errno) => errno switch
    {
        Errno.EPERM or Errno.EIO or Errno.ENOMEM or Errno.EINVAL or Errno.ENOSPC => errno,
        Errno.EOVERFLOW or Errno.ENOTSUP or Errno.ESHUTDOWN => errno,
        Errno.EROFS or Errno.EACCES => Errno.EPERM,
        _ => Errno.EIO,
    };

    /// <summary>What a received error number means; an unknown one is EINVAL, as the protocol asks.</summary>
    public static Errno FromWire(uint value) => Enum.IsDefined((Errno)value) ? (Errno)value : Errno.EINVAL;
}

[Flags]
internal enum HandshakeFlags : ushort
{
    FixedNewstyle = 1,
    NoZeroes = 2,
}

[Flags]
internal enum TransmissionFlags : ushort
{
    HasFlags = 1 << 0,
    ReadOnly = 1 << 1,
    SendFlush = 1 << 2,
    SendFua = 1 << 3,
    SendTrim = 1 << 5,
    SendWriteZeroes = 1 << 6,
    SendDf = 1 << 7,
    CanMultiConn = 1 << 8,
}

internal enum Option : uint
{
    ExportName = 1,
    Abort = 2,
    List = 3,
    StartTls = 5,
    Info = 6,
    Go = 7,
    StructuredReply = 8,
    ListMetaContext = 9,
    SetMetaContext = 10,
}

internal enum OptionReply : uint
{
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    ErrorBit = 1u << 31,
    Unsupported = ErrorBit | 1,
    Policy = ErrorBit | 2,
    Invalid = ErrorBit | 3,
    TlsRequired = ErrorBit | 5,
    Unknown = ErrorBit | 6,
    Shutdown = ErrorBit | 7,
    TooBig = ErrorBit | 9,
}

internal enum InfoType : ushort
{
    Export = 0,
    BlockSize = 3,
}

internal enum Command : ushort
{
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
    BlockStatus = 7,
}

[Flags]
internal enum CommandFlags : ushort
{
    None = 0,
    Fua = 1 << 0,
    NoHole = 1 << 1,
    DontFragment = 1 << 2,
    RequestOne = 1 << 3,
}

internal enum ChunkType : ushort
{
    None = 0,
    OffsetData = 1,
    OffsetHole = 2,
    BlockStatus = 5,
    ErrorBit = 1 << 15,
    Error = ErrorBit | 1,
    ErrorOffset = ErrorBit | 2,
}

[Flags]
internal enum ChunkFlags : ushort
{
    None = 0,
    Done = 1,
}

[Flags]
internal enum AllocationFlags : uint
{
    Data = 0,
    Hole = 1,
    Zero = 2,
}
