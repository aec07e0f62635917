// The server's side of the fixed newstyle handshake: greeting, then options one at a time until GO, EXPORT_NAME or goodbye.
using System.Buffers.Binary;
using System.Text;
using Platform;

namespace Nbd;

internal sealed class ServerHandshake : IDisposable
{
    private const int OptionLimitBytes = 64 * 1024; // Room for a name and a page of meta context queries; no client sends more.
    private const int OptionLimitCount = 4096;
    private const int PreferredBlockBytes = 4096;
    private const HandshakeFlags Offered = HandshakeFlags.FixedNewstyle | HandshakeFlags.NoZeroes;

    private static readonly UTF8Encoding StrictUtf8 = new(false, throwOnInvalidBytes: true);

    private readonly PeerStream plain;
    private readonly NbdServerOptions options;
    private readonly byte[] header = new byte[Protocol.OptionHeaderBytes];
    private HandshakeFlags clientFlags;
    private bool isSecure;
    private string? allocationExport;

    public ServerHandshake(PeerStream stream, NbdServerOptions options)
    {
        plain = stream;
        this.options = options;
        Stream = stream;
        Reader = new WireReader(stream);
    }

    /// <summary>The connection, inside TLS once that is established.</summary>
    public Stream Stream { get; private set; }

    public WireReader Reader { get; private set; }

    public bool HasStructuredReplies { get; private set; }

    /// <summary>The client may ask BLOCK_STATUS of the export it chose.</summary>
    public bool HasAllocationContext { get; private set; }

    /// <summary>The export that the client entered, or null when it left.</summary>
    public NbdExport? Run()
    {
        if (options.IsOldStyle)
            return EnterOldStyle();
        Greet();
        for (int count = 0; count < OptionLimitCount; count++)
        {
            if (!Reader.TryRead(header))
                return null;
            if (BinaryPrimitives.ReadUInt64BigEndian(header) != Protocol.OptionMagic)
                throw new NbdProtocolException("an option does not start with its magic");
            Option option = (Option)BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(8));
            byte[] data = ReadData(option, BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(12)));
            if (option == Option.Abort)
            {
                Reply(option, OptionReply.Ack, []);
                return null;
            }

            if (Answer(option, data) is { } export)
                return export;
        }

        throw new NbdProtocolException($"the client sent more than {OptionLimitCount} options");
    }

    /// <summary>Cuts the connection: everything that waits for it fails at once.</summary>
    public void Abort() => plain.Cut();

    public void Dispose()
    {
        plain.Dispose();
        if (!ReferenceEquals(Stream, plain))
            Stream.Dispose();
    }

    private NbdExport EnterOldStyle()
    {
        if (options.Find("") is not { } export || !export.TryEnter())
            throw new NbdProtocolException("there is no export to serve in the old style");
        byte[] greeting = new byte[Protocol.OldStyleGreetingBytes];
        BinaryPrimitives.WriteUInt64BigEndian(greeting, Protocol.InitMagic);
        BinaryPrimitives.WriteUInt64BigEndian(greeting.AsSpan(8), Protocol.OldStyleMagic);
        BinaryPrimitives.WriteUInt64BigEndian(greeting.AsSpan(16), (ulong)export.Device.LengthBytes);
        BinaryPrimitives.WriteUInt32BigEndian(greeting.AsSpan(24), (uint)FlagsOf(export));
        return Enter(export, () => Stream.Write(greeting));
    }

    private void Greet()
    {
        byte[] greeting = new byte[Protocol.GreetingBytes];
        BinaryPrimitives.WriteUInt64BigEndian(greeting, Protocol.InitMagic);
        BinaryPrimitives.WriteUInt64BigEndian(greeting.AsSpan(8), Protocol.OptionMagic);
        BinaryPrimitives.WriteUInt16BigEndian(greeting.AsSpan(16), (ushort)Offered);
        Stream.Write(greeting);
        Reader.Read(header.AsSpan(0, 4));
        uint flags = BinaryPrimitives.ReadUInt32BigEndian(header);
        if ((flags & ~(uint)Offered) != 0)
            throw new NbdProtocolException($"unknown client flags 0x{flags:x}");
        clientFlags = (HandshakeFlags)flags;
    }

    private byte[] ReadData(Option option, uint lengthBytes)
    {
        if (lengthBytes > OptionLimitBytes)
        {
            if (option != Option.ExportName)
                Reply(option, OptionReply.TooBig, []);
            throw new NbdProtocolException($"option {option} carries {lengthBytes} bytes, more than {OptionLimitBytes}");
        }

        byte[] data = lengthBytes == 0 ? [] : new byte[lengthBytes];
        Reader.Read(data);
        return data;
    }

    private NbdExport? Answer(Option option, byte[] data)
    {
        if (options.Tls is not null && !isSecure && option != Option.StartTls)
        {
            if (option == Option.ExportName)
                throw new NbdProtocolException("the client asked for an export before TLS, which is required");
            Reply(option, OptionReply.TlsRequired, "TLS is required"u8.ToArray());
            return null;
        }

        switch (option)
        {
            case Option.ExportName:
                return EnterByName(data);
            case Option.Go or Option.Info:
                return Info(option, data);
            case Option.List:
                List(data);
                return null;
            case Option.StartTls:
                StartTls(data);
                return null;
            case Option.StructuredReply:
                HasStructuredReplies |= data.Length == 0;
                Reply(option, data.Length == 0 ? OptionReply.Ack : OptionReply.Invalid, []);
                return null;
            case Option.SetMetaContext or Option.ListMetaContext:
                MetaContext(option, data);
                return null;
            default:
                Reply(option, OptionReply.Unsupported, []);
                return null;
        }
    }

    // EXPORT_NAME has no error reply: what it cannot have ends the connection.
    private NbdExport EnterByName(byte[] data)
    {
        if (data.Length > Protocol.StringLimitBytes || !TryText(data, out string name) || options.Find(name) is not { } export
            || !export.TryEnter())
            throw new NbdProtocolException("the client asked for an export that does not exist");
        HasAllocationContext = allocationExport == name;
        byte[] reply = new byte[Protocol.ExportNameReplyBytes
            + (clientFlags.HasFlag(HandshakeFlags.NoZeroes) ? 0 : Protocol.ExportNameZeroesBytes)];
        BinaryPrimitives.WriteUInt64BigEndian(reply, (ulong)export.Device.LengthBytes);
        BinaryPrimitives.WriteUInt16BigEndian(reply.AsSpan(8), (ushort)FlagsOf(export));
        return Enter(export, () => Stream.Write(reply));
    }

    private NbdExport? Info(Option option, byte[] data)
    {
        // u32 name length, name, u16 count, that many u16 information types. We always send both that we have.
        OptionData fields = new(data);
        if (!fields.TryString(out string name) || !fields.TryUInt16(out ushort count) || fields.Remaining != count * 2)
        {
            Reply(option, OptionReply.Invalid, []);
            return null;
        }

        if (options.Find(name) is not { } export)
        {
            Reply(option, OptionReply.Unknown, "no such export"u8.ToArray());
            return null;
        }

        if (option == Option.Info)
        {
            SendInfo(option, export);
            return null;
        }

        if (!export.TryEnter())
        {
            Reply(option, OptionReply.Shutdown, "the export is being closed"u8.ToArray());
            return null;
        }

        HasAllocationContext = allocationExport == name;
        return Enter(export, () => SendInfo(option, export));
    }

    private static NbdExport Enter(NbdExport export, Action answer)
    {
        try
        {
            answer();
            return export;
        }
        catch
        {
            export.Leave();
            throw;
        }
    }

    private void SendInfo(Option option, NbdExport export)
    {
        byte[] size = new byte[12];
        BinaryPrimitives.WriteUInt16BigEndian(size, (ushort)InfoType.Export);
        BinaryPrimitives.WriteUInt64BigEndian(size.AsSpan(2), (ulong)export.Device.LengthBytes);
        BinaryPrimitives.WriteUInt16BigEndian(size.AsSpan(10), (ushort)FlagsOf(export));
        Reply(option, OptionReply.Info, size);

        byte[] block = new byte[14];
        int minimum = export.Device.BlockSizeBytes;
        BinaryPrimitives.WriteUInt16BigEndian(block, (ushort)InfoType.BlockSize);
        BinaryPrimitives.WriteUInt32BigEndian(block.AsSpan(2), (uint)minimum);
        BinaryPrimitives.WriteUInt32BigEndian(block.AsSpan(6), (uint)Math.Max(minimum, PreferredBlockBytes));
        BinaryPrimitives.WriteUInt32BigEndian(block.AsSpan(10), Protocol.PayloadLimitBytes);
        Reply(option, OptionReply.Info, block);
        Reply(option, OptionReply.Ack, []);
    }

    private TransmissionFlags FlagsOf(NbdExport export)
    {
        TransmissionFlags flags = TransmissionFlags.HasFlags | TransmissionFlags.SendFlush;
        flags |= export.IsReadOnly
            ? TransmissionFlags.ReadOnly
            : TransmissionFlags.SendFua | TransmissionFlags.SendTrim | TransmissionFlags.SendWriteZeroes;
        if (HasStructuredReplies)
            flags |= TransmissionFlags.SendDf;
        return export.IsCoherent ? flags | TransmissionFlags.CanMultiConn : flags;
    }

    private void List(byte[] data)
    {
        if (data.Length != 0)
        {
            Reply(Option.List, OptionReply.Invalid, []);
            return;
        }

        foreach (NbdExport export in options.List().Where(static export => export.IsListed))
        {
            byte[] name = Encoding.UTF8.GetBytes(export.Name);
            byte[] reply = new byte[4 + name.Length];
            BinaryPrimitives.WriteUInt32BigEndian(reply, (uint)name.Length);
            name.CopyTo(reply, 4);
            Reply(Option.List, OptionReply.Server, reply);
        }

        Reply(Option.List, OptionReply.Ack, []);
    }

    private void StartTls(byte[] data)
    {
        OptionReply refusal = options.Tls is null ? OptionReply.Unsupported : OptionReply.Invalid;
        if (options.Tls is null || isSecure || data.Length != 0)
        {
            Reply(Option.StartTls, refusal, []);
            return;
        }

        // An honest client waits for the answer. Plain text that is here already was put there by somebody else (CVE-2021-3716).
        if (Reader.BufferedBytes > 0)
            throw new NbdProtocolException("plain text arrived together with STARTTLS");
        Reply(Option.StartTls, OptionReply.Ack, []);
        Stream secure = options.Tls.AuthenticateAsServer(plain);
        Stream = secure;
        Reader = new WireReader(secure);
        isSecure = true;
        HasStructuredReplies = false;
        allocationExport = null;
    }

    private void MetaContext(Option option, byte[] data)
    {
        // u32 name length, name, u32 count, that many (u32 length, query). A list with no query asks for everything.
        OptionData fields = new(data);
        List<string> queries = [];
        bool isValid = fields.TryString(out string name) & fields.TryUInt32(out uint count);
        for (uint i = 0; isValid && i < count; i++)
        {
            isValid = fields.TryString(out string query);
            queries.Add(query);
        }

        bool isSet = option == Option.SetMetaContext;
        if (isSet)
            allocationExport = null;
        if (!isValid || fields.Remaining != 0 || (isSet && !HasStructuredReplies))
        {
            Reply(option, OptionReply.Invalid, []);
            return;
        }

        if (options.Find(name) is null)
        {
            Reply(option, OptionReply.Unknown, "no such export"u8.ToArray());
            return;
        }

        if (queries.Contains(Protocol.AllocationContext) || (!isSet && (queries.Count == 0 || queries.Contains("base:"))))
        {
            byte[] reply = [0, 0, 0, isSet ? (byte)ServerTransmission.AllocationContextId : (byte)0, .. "base:allocation"u8];
            Reply(option, OptionReply.MetaContext, reply);
            if (isSet)
                allocationExport = name;
        }

        Reply(option, OptionReply.Ack, []);
    }

    private void Reply(Option option, OptionReply type, byte[] data)
    {
        byte[] reply = new byte[Protocol.OptionReplyHeaderBytes + data.Length];
        BinaryPrimitives.WriteUInt64BigEndian(reply, Protocol.OptionReplyMagic);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(8), (uint)option);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(12), (uint)type);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(16), (uint)data.Length);
        data.CopyTo(reply, Protocol.OptionReplyHeaderBytes);
        Stream.Write(reply);
    }

    private static bool TryText(ReadOnlySpan<byte> bytes, out string text)
    {
        try
        {
            text = StrictUtf8.GetString(bytes);
            return true;
        }
        catch (DecoderFallbackException)
        {
            text = "";
            return false;
        }
    }

    /// <summary>Reads an option's fields from the front; false when the data is too short or a string is not one.</summary>
    private struct OptionData(byte[] data)
    {
        private int at;

        public readonly int Remaining => data.Length - at;

        public bool TryUInt16(out ushort value)
        {
            value = 0;
            if (Remaining < 2)
                return false;
            value = BinaryPrimitives.ReadUInt16BigEndian(data.AsSpan(at));
            at += 2;
            return true;
        }

        public bool TryUInt32(out uint value)
        {
            value = 0;
            if (Remaining < 4)
                return false;
            value = BinaryPrimitives.ReadUInt32BigEndian(data.AsSpan(at));
            at += 4;
            return true;
        }

        public bool TryString(out string text)
        {
            text = "";
            if (!TryUInt32(out uint length) || length > Protocol.StringLimitBytes || length > Remaining)
                return false;
            at += (int)length;
            return TryText(data.AsSpan(at - (int)length, (int)length), out text);
        }
    }
}
