// The client's side of the fixed newstyle handshake: TLS when wanted, then whatever the server has of structured replies and
// base:allocation, then GO, or EXPORT_NAME at a server that does not know GO.
using System.Buffers.Binary;
using System.Text;
using Platform;

namespace Nbd;

/// <summary>What was negotiated.</summary>
internal sealed record ClientExport(
    long SizeBytes,
    TransmissionFlags Flags,
    int MinimumBlockBytes,
    int MaximumBlockBytes,
    bool HasStructuredReplies,
    uint? AllocationContextId)
{
    public bool HasAllocationContext => AllocationContextId is not null;
}

internal sealed class ClientHandshake : IDisposable
{
    private const int ReplyLimitBytes = 64 * 1024;
    private const int ReplyLimitCount = 256; // Information replies to one option.
    private const int DefaultBlockBytes = 512;

    private readonly PeerStream plain;
    private bool mayOmitZeroes;
    private bool hasStructuredReplies;
    private uint? allocationContextId;
    private long? sizeBytes;
    private TransmissionFlags flags;
    private int minimumBlockBytes = DefaultBlockBytes;
    private int maximumBlockBytes = Protocol.PayloadLimitBytes;

    public ClientHandshake(PeerStream stream)
    {
        plain = stream;
        Stream = stream;
        Reader = new WireReader(stream);
    }

    /// <summary>The connection, inside TLS once that is established.</summary>
    public Stream Stream { get; private set; }

    public WireReader Reader { get; private set; }

    /// <summary>Cuts the connection: everything that waits for it fails at once.</summary>
    public void Abort() => plain.Cut();

    public ClientExport Run(string exportName, NbdClientOptions options)
    {
        byte[] name = Encoding.UTF8.GetBytes(exportName);
        if (name.Length > Protocol.StringLimitBytes)
            throw new BlockIoException(
                Errno.EINVAL, $"an export name has at most {Protocol.StringLimitBytes} bytes, this one has {name.Length}");
        if (Greet(options))
            Negotiate(name, options.Tls);
        if (sizeBytes is not >= 0)
            throw new NbdProtocolException("the server did not tell the export's size");
        int minimum = sizeBytes % minimumBlockBytes == 0 ? minimumBlockBytes : 1;
        return new ClientExport(sizeBytes.Value, flags, minimum, maximumBlockBytes, hasStructuredReplies, allocationContextId);
    }

    public void Dispose()
    {
        plain.Dispose();
        if (!ReferenceEquals(plain, Stream))
            Stream.Dispose();
    }

    private void Negotiate(byte[] name, NbdTls? tls)
    {
        if (tls is not null)
            StartTls(tls);
        hasStructuredReplies = TryOption(Option.StructuredReply, []);
        if (hasStructuredReplies)
            TryOption(Option.SetMetaContext, [.. Counted(name), 0, 0, 0, 1, .. Counted("base:allocation"u8)]);
        // GO, asking for the block sizes (one u16: information type 3).
        if (!TryOption(Option.Go, [.. Counted(name), 0, 1, 0, (byte)InfoType.BlockSize]))
            EnterByName(name);
    }

    /// <summary>False when there is nothing to negotiate.</summary>
    private bool Greet(NbdClientOptions options)
    {
        byte[] greeting = new byte[Protocol.GreetingBytes];
        Reader.Read(greeting);
        if (BinaryPrimitives.ReadUInt64BigEndian(greeting) != Protocol.InitMagic)
            throw new NbdProtocolException("the peer is not an NBD server");
        ulong magic = BinaryPrimitives.ReadUInt64BigEndian(greeting.AsSpan(8));
        if (magic == Protocol.OldStyleMagic && options is { AcceptsOldStyle: true, Tls: null })
        {
            ReadOldStyle(greeting);
            return false;
        }

        if (magic == Protocol.OldStyleMagic)
            throw new NbdProtocolException("the server speaks the old-style handshake, which is not supported");
        HandshakeFlags offered = (HandshakeFlags)BinaryPrimitives.ReadUInt16BigEndian(greeting.AsSpan(16));
        if (magic != Protocol.OptionMagic || !offered.HasFlag(HandshakeFlags.FixedNewstyle))
            throw new NbdProtocolException("the server does not speak fixed newstyle NBD");
        mayOmitZeroes = offered.HasFlag(HandshakeFlags.NoZeroes);
        byte[] answer = new byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(answer, (uint)(offered & (HandshakeFlags.FixedNewstyle | HandshakeFlags.NoZeroes)));
        Stream.Write(answer);
        return true;
    }

    private void ReadOldStyle(byte[] begun)
    {
        byte[] greeting = new byte[Protocol.OldStyleGreetingBytes];
        begun.CopyTo(greeting, 0);
        Reader.Read(greeting.AsSpan(begun.Length));
        sizeBytes = (long)BinaryPrimitives.ReadUInt64BigEndian(greeting.AsSpan(16));
        flags = (TransmissionFlags)(ushort)BinaryPrimitives.ReadUInt32BigEndian(greeting.AsSpan(24));
    }

    private void StartTls(NbdTls tls)
    {
        if (!TryOption(Option.StartTls, []))
            throw new NbdProtocolException("the server does not offer TLS, which this client insists on");
        if (Reader.BufferedBytes > 0)
            throw new NbdProtocolException("plain text arrived together with the answer to STARTTLS");
        Stream secure = tls.AuthenticateAsClient(plain);
        Stream = secure;
        Reader = new WireReader(secure);
    }

    private void EnterByName(byte[] name)
    {
        SendOption(Option.ExportName, name);
        byte[] reply = new byte[Protocol.ExportNameReplyBytes];
        if (!Reader.TryRead(reply))
            throw new BlockIoException(Errno.ENOENT, "the server has no such export");
        sizeBytes = (long)BinaryPrimitives.ReadUInt64BigEndian(reply);
        flags = (TransmissionFlags)BinaryPrimitives.ReadUInt16BigEndian(reply.AsSpan(8));
        if (!mayOmitZeroes)
            Reader.Skip(Protocol.ExportNameZeroesBytes);
    }

    /// <summary>One option and all its replies. False when the server does not do it; an exception when it refuses us.</summary>
    private bool TryOption(Option option, byte[] data)
    {
        SendOption(option, data);
        byte[] header = new byte[Protocol.OptionReplyHeaderBytes];
        for (int count = 0; count < ReplyLimitCount; count++)
        {
            Reader.Read(header);
            if (BinaryPrimitives.ReadUInt64BigEndian(header) != Protocol.OptionReplyMagic
                || BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(8)) != (uint)option)
                throw new NbdProtocolException($"the answer to option {option} is not one");
            OptionReply type = (OptionReply)BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(12));
            uint length = BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(16));
            if (length > ReplyLimitBytes)
                throw new NbdProtocolException($"the answer to option {option} claims {length} bytes");
            byte[] reply = new byte[length];
            Reader.Read(reply);
            if (type == OptionReply.Ack)
                return true;
            if ((type & OptionReply.ErrorBit) != 0)
                return Refused(option, type, Encoding.UTF8.GetString(reply));
            Take(type, reply);
        }

        throw new NbdProtocolException($"the server does not come to an end with option {option}");
    }

    private static bool Refused(Option option, OptionReply type, string message) => type switch
    {
        OptionReply.TlsRequired => throw new BlockIoException(Errno.EACCES, "the server requires TLS " + message),
        OptionReply.Unknown when option == Option.Go =>
            throw new BlockIoException(Errno.ENOENT, "the server has no such export " + message),
        OptionReply.Policy when option == Option.Go =>
            throw new BlockIoException(Errno.EACCES, "the server refuses this client " + message),
        OptionReply.Unsupported => false,
        _ when option == Option.Go => throw new NbdProtocolException($"the server refused the export (0x{(uint)type:x}) {message}"),
        _ => false,
    };

    private void Take(OptionReply type, byte[] reply)
    {
        if (type == OptionReply.MetaContext && reply.Length > 4 && reply.AsSpan(4).SequenceEqual("base:allocation"u8))
            allocationContextId = BinaryPrimitives.ReadUInt32BigEndian(reply);
        if (type != OptionReply.Info || reply.Length < 2)
            return;
        switch ((InfoType)BinaryPrimitives.ReadUInt16BigEndian(reply))
        {
            case InfoType.Export when reply.Length == 12:
                sizeBytes = (long)BinaryPrimitives.ReadUInt64BigEndian(reply.AsSpan(2));
                flags = (TransmissionFlags)BinaryPrimitives.ReadUInt16BigEndian(reply.AsSpan(10));
                break;
            case InfoType.BlockSize when reply.Length == 14:
                TakeBlockSizes(BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(2)),
                    BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(10)));
                break;
        }
    }

    private void TakeBlockSizes(uint minimum, uint maximum)
    {
        if (minimum == 0 || !uint.IsPow2(minimum) || minimum > 64 * 1024 || maximum < minimum
            || (maximum != uint.MaxValue && maximum % minimum != 0))
            throw new NbdProtocolException($"the server's block sizes make no sense: minimum {minimum}, maximum {maximum}");
        minimumBlockBytes = (int)minimum;
        maximumBlockBytes = (int)Math.Min(maximum, Protocol.PayloadLimitBytes);
    }

    private void SendOption(Option option, byte[] data)
    {
        byte[] message = new byte[Protocol.OptionHeaderBytes + data.Length];
        BinaryPrimitives.WriteUInt64BigEndian(message, Protocol.OptionMagic);
        BinaryPrimitives.WriteUInt32BigEndian(message.AsSpan(8), (uint)option);
        BinaryPrimitives.WriteUInt32BigEndian(message.AsSpan(12), (uint)data.Length);
        data.CopyTo(message, Protocol.OptionHeaderBytes);
        Stream.Write(message);
    }

    private static byte[] Counted(ReadOnlySpan<byte> text)
    {
        byte[] counted = new byte[4 + text.Length];
        BinaryPrimitives.WriteUInt32BigEndian(counted, (uint)text.Length);
        text.CopyTo(counted.AsSpan(4));
        return counted;
    }
}
