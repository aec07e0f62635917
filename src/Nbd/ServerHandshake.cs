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

    private readonly Stream plain;
    private readonly NbdServerOptions options;
    private readonly byte[] header = new byte[Protocol.OptionHeaderBytes];
    private HandshakeFlags clientFlags;
    private bool isSecure;
    private string? allocationExport;

    public ServerHandshake(Stream stream, NbdServerOptions options)
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
    public async Task<NbdExport?> RunAsync(CancellationToken cancellationToken)
    {
        if (options.IsOldStyle)
            return await EnterOldStyleAsync(cancellationToken);
        await GreetAsync(cancellationToken);
        for (int count = 0; count < OptionLimitCount; count++)
        {
            if (!await Reader.TryReadAsync(header, cancellationToken))
                return null;
            if (BinaryPrimitives.ReadUInt64BigEndian(header) != Protocol.OptionMagic)
                throw new NbdProtocolException("an option does not start with its magic");
            Option option = (Option)BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(8));
            byte[] data = await ReadDataAsync(option, BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(12)), cancellationToken);
            if (option == Option.Abort)
            {
                await ReplyAsync(option, OptionReply.Ack, [], cancellationToken);
                return null;
            }

            if (await AnswerAsync(option, data, cancellationToken) is { } export)
                return export;
        }

        throw new NbdProtocolException($"the client sent more than {OptionLimitCount} options");
    }

    /// <summary>Cuts the connection: everything that waits for it fails at once.</summary>
    public void Abort() => plain.Dispose();

    public void Dispose()
    {
        plain.Dispose();
        Reader.Dispose();
        if (!ReferenceEquals(Stream, plain))
            Stream.Dispose();
    }

    private async Task<NbdExport> EnterOldStyleAsync(CancellationToken cancellationToken)
    {
        if (options.Find("") is not { } export || !export.TryEnter())
            throw new NbdProtocolException("there is no export to serve in the old style");
        byte[] greeting = new byte[Protocol.OldStyleGreetingBytes];
        BinaryPrimitives.WriteUInt64BigEndian(greeting, Protocol.InitMagic);
        BinaryPrimitives.WriteUInt64BigEndian(greeting.AsSpan(8), Protocol.OldStyleMagic);
        BinaryPrimitives.WriteUInt64BigEndian(greeting.AsSpan(16), (ulong)export.Device.LengthBytes);
        BinaryPrimitives.WriteUInt32BigEndian(greeting.AsSpan(24), (uint)FlagsOf(export));
        return await EnterAsync(export, async () => await Stream.WriteAsync(greeting, cancellationToken));
    }

    private async Task GreetAsync(CancellationToken cancellationToken)
    {
        byte[] greeting = new byte[Protocol.GreetingBytes];
        BinaryPrimitives.WriteUInt64BigEndian(greeting, Protocol.InitMagic);
        BinaryPrimitives.WriteUInt64BigEndian(greeting.AsSpan(8), Protocol.OptionMagic);
        BinaryPrimitives.WriteUInt16BigEndian(greeting.AsSpan(16), (ushort)Offered);
        await Stream.WriteAsync(greeting, cancellationToken);
        await Reader.ReadAsync(header.AsMemory(0, 4), cancellationToken);
        uint flags = BinaryPrimitives.ReadUInt32BigEndian(header);
        if ((flags & ~(uint)Offered) != 0)
            throw new NbdProtocolException($"unknown client flags 0x{flags:x}");
        clientFlags = (HandshakeFlags)flags;
    }

    private async Task<byte[]> ReadDataAsync(Option option, uint lengthBytes, CancellationToken cancellationToken)
    {
        if (lengthBytes > OptionLimitBytes)
        {
            if (option != Option.ExportName)
                await ReplyAsync(option, OptionReply.TooBig, [], cancellationToken);
            throw new NbdProtocolException($"option {option} carries {lengthBytes} bytes, more than {OptionLimitBytes}");
        }

        byte[] data = lengthBytes == 0 ? [] : new byte[lengthBytes];
        await Reader.ReadAsync(data, cancellationToken);
        return data;
    }

    private async Task<NbdExport?> AnswerAsync(Option option, byte[] data, CancellationToken cancellationToken)
    {
        if (options.Tls is not null && !isSecure && option != Option.StartTls)
        {
            if (option == Option.ExportName)
                throw new NbdProtocolException("the client asked for an export before TLS, which is required");
            await ReplyAsync(option, OptionReply.TlsRequired, "TLS is required"u8.ToArray(), cancellationToken);
            return null;
        }

        switch (option)
        {
            case Option.ExportName:
                return await EnterByNameAsync(data, cancellationToken);
            case Option.Go or Option.Info:
                return await InfoAsync(option, data, cancellationToken);
            case Option.List:
                await ListAsync(data, cancellationToken);
                return null;
            case Option.StartTls:
                await StartTlsAsync(data, cancellationToken);
                return null;
            case Option.StructuredReply:
                HasStructuredReplies |= data.Length == 0;
                await ReplyAsync(option, data.Length == 0 ? OptionReply.Ack : OptionReply.Invalid, [], cancellationToken);
                return null;
            case Option.SetMetaContext or Option.ListMetaContext:
                await MetaContextAsync(option, data, cancellationToken);
                return null;
            default:
                await ReplyAsync(option, OptionReply.Unsupported, [], cancellationToken);
                return null;
        }
    }

    // EXPORT_NAME has no error reply: what it cannot have ends the connection.
    private async Task<NbdExport> EnterByNameAsync(byte[] data, CancellationToken cancellationToken)
    {
        if (data.Length > Protocol.StringLimitBytes || !TryText(data, out string name) || options.Find(name) is not { } export
            || !export.TryEnter())
            throw new NbdProtocolException("the client asked for an export that does not exist");
        HasAllocationContext = allocationExport == name;
        byte[] reply = new byte[Protocol.ExportNameReplyBytes
            + (clientFlags.HasFlag(HandshakeFlags.NoZeroes) ? 0 : Protocol.ExportNameZeroesBytes)];
        BinaryPrimitives.WriteUInt64BigEndian(reply, (ulong)export.Device.LengthBytes);
        BinaryPrimitives.WriteUInt16BigEndian(reply.AsSpan(8), (ushort)FlagsOf(export));
        return await EnterAsync(export, async () => await Stream.WriteAsync(reply, cancellationToken));
    }

    private async Task<NbdExport?> InfoAsync(Option option, byte[] data, CancellationToken cancellationToken)
    {
        // u32 name length, name, u16 count, that many u16 information types. We always send both that we have.
        OptionData fields = new(data);
        if (!fields.TryString(out string name) || !fields.TryUInt16(out ushort count) || fields.Remaining != count * 2)
        {
            await ReplyAsync(option, OptionReply.Invalid, [], cancellationToken);
            return null;
        }

        if (options.Find(name) is not { } export)
        {
            await ReplyAsync(option, OptionReply.Unknown, "no such export"u8.ToArray(), cancellationToken);
            return null;
        }

        if (option == Option.Info)
        {
            await SendInfoAsync(option, export, cancellationToken);
            return null;
        }

        if (!export.TryEnter())
        {
            await ReplyAsync(option, OptionReply.Shutdown, "the export is being closed"u8.ToArray(), cancellationToken);
            return null;
        }

        HasAllocationContext = allocationExport == name;
        return await EnterAsync(export, () => SendInfoAsync(option, export, cancellationToken));
    }

    private static async Task<NbdExport> EnterAsync(NbdExport export, Func<Task> answer)
    {
        try
        {
            await answer();
            return export;
        }
        catch
        {
            export.Leave();
            throw;
        }
    }

    private async Task SendInfoAsync(Option option, NbdExport export, CancellationToken cancellationToken)
    {
        byte[] size = new byte[12];
        BinaryPrimitives.WriteUInt16BigEndian(size, (ushort)InfoType.Export);
        BinaryPrimitives.WriteUInt64BigEndian(size.AsSpan(2), (ulong)export.Device.LengthBytes);
        BinaryPrimitives.WriteUInt16BigEndian(size.AsSpan(10), (ushort)FlagsOf(export));
        await ReplyAsync(option, OptionReply.Info, size, cancellationToken);

        byte[] block = new byte[14];
        int minimum = export.Device.BlockSizeBytes;
        BinaryPrimitives.WriteUInt16BigEndian(block, (ushort)InfoType.BlockSize);
        BinaryPrimitives.WriteUInt32BigEndian(block.AsSpan(2), (uint)minimum);
        BinaryPrimitives.WriteUInt32BigEndian(block.AsSpan(6), (uint)Math.Max(minimum, PreferredBlockBytes));
        BinaryPrimitives.WriteUInt32BigEndian(block.AsSpan(10), Protocol.PayloadLimitBytes);
        await ReplyAsync(option, OptionReply.Info, block, cancellationToken);
        await ReplyAsync(option, OptionReply.Ack, [], cancellationToken);
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

    private async Task ListAsync(byte[] data, CancellationToken cancellationToken)
    {
        if (data.Length != 0)
        {
            await ReplyAsync(Option.List, OptionReply.Invalid, [], cancellationToken);
            return;
        }

        foreach (NbdExport export in options.List().Where(static export => export.IsListed))
        {
            byte[] name = Encoding.UTF8.GetBytes(export.Name);
            byte[] reply = new byte[4 + name.Length];
            BinaryPrimitives.WriteUInt32BigEndian(reply, (uint)name.Length);
            name.CopyTo(reply, 4);
            await ReplyAsync(Option.List, OptionReply.Server, reply, cancellationToken);
        }

        await ReplyAsync(Option.List, OptionReply.Ack, [], cancellationToken);
    }

    private async Task StartTlsAsync(byte[] data, CancellationToken cancellationToken)
    {
        OptionReply refusal = options.Tls is null ? OptionReply.Unsupported : OptionReply.Invalid;
        if (options.Tls is null || isSecure || data.Length != 0)
        {
            await ReplyAsync(Option.StartTls, refusal, [], cancellationToken);
            return;
        }

        // An honest client waits for the answer. Plain text that is here already was put there by somebody else (CVE-2021-3716).
        if (Reader.BufferedBytes > 0)
            throw new NbdProtocolException("plain text arrived together with STARTTLS");
        await ReplyAsync(Option.StartTls, OptionReply.Ack, [], cancellationToken);
        Stream secure = await options.Tls.AuthenticateAsServerAsync(plain, cancellationToken);
        Reader.Dispose();
        Stream = secure;
        Reader = new WireReader(secure);
        isSecure = true;
        HasStructuredReplies = false;
        allocationExport = null;
    }

    private async Task MetaContextAsync(Option option, byte[] data, CancellationToken cancellationToken)
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
            await ReplyAsync(option, OptionReply.Invalid, [], cancellationToken);
            return;
        }

        if (options.Find(name) is null)
        {
            await ReplyAsync(option, OptionReply.Unknown, "no such export"u8.ToArray(), cancellationToken);
            return;
        }

        if (queries.Contains(Protocol.AllocationContext) || (!isSet && (queries.Count == 0 || queries.Contains("base:"))))
        {
            byte[] reply = [0, 0, 0, isSet ? (byte)ServerTransmission.AllocationContextId : (byte)0, .. "base:allocation"u8];
            await ReplyAsync(option, OptionReply.MetaContext, reply, cancellationToken);
            if (isSet)
                allocationExport = name;
        }

        await ReplyAsync(option, OptionReply.Ack, [], cancellationToken);
    }

    private async Task ReplyAsync(Option option, OptionReply type, byte[] data, CancellationToken cancellationToken)
    {
        byte[] reply = new byte[Protocol.OptionReplyHeaderBytes + data.Length];
        BinaryPrimitives.WriteUInt64BigEndian(reply, Protocol.OptionReplyMagic);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(8), (uint)option);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(12), (uint)type);
        BinaryPrimitives.WriteUInt32BigEndian(reply.AsSpan(16), (uint)data.Length);
        data.CopyTo(reply, Protocol.OptionReplyHeaderBytes);
        await Stream.WriteAsync(reply, cancellationToken);
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
