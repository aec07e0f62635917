using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using Nbd;
using Platform;
using Support;

namespace Fuzz.Targets;

/// <summary>Both ends of NBD, each against a peer that says anything; and its addresses.</summary>
internal static class NbdTargets
{
    private const int DiskBytes = 65536;
    private static readonly MemoryBlockDevice Disk = new(DiskBytes);
    private static readonly NbdExport Export = new("disk", Disk) { IsListed = true };
    private static readonly NbdServerOptions ServerOptions = new() { Find = Find, List = static () => [Export] };
    private static readonly byte[] Magic = "IHAVEOPT"u8.ToArray();
    private static readonly byte[] Allocation = "base:allocation"u8.ToArray();
    private static readonly byte[] Tail = Join(Option(8), Option(10, Text("disk"), U32(1), Text("base:allocation")), Option(7, Text("disk"), U16(0)));

    public static IEnumerable<FuzzTarget> All()
    {
        byte[] client = Join(U32(3), Option(3), Option(6, Text("disk"), U16(1), U16(3)), Tail);
        byte[][] words = [Magic, Allocation, Text("disk"), Option(5), Option(3), U32(0x80000001), "base:"u8.ToArray()];
        yield return new FuzzTarget("nbd-server-handshake", [client, Join(U32(1), Option(1, "disk"u8.ToArray())), Join(U32(3), Option(2))], ServeAsync)
        {
            Tokens = words,
        };
        NbdServerOptions secure = ServerOptions with { Tls = NbdTls.ForServer(Certificate()) };
        yield return new FuzzTarget("nbd-server-tls", [Join(U32(3), Option(3), Option(5)), client], bytes => ServeAsync(bytes, secure))
        {
            Tokens = words,
        };
        byte[] requests = Join(
            Request(1, 1, 0, 512), new byte[512], Request(0, 2, 0, 4096), Request(7, 3, 0, DiskBytes), Request(6, 4, 512, 512, 3), Request(3, 5, 0, 0),
            Request(4, 6, 0, 4096), Request(0, 7, 0, 8192, 4), Request(2, 8, 0, 0));
        yield return new FuzzTarget("nbd-server-requests", [requests, Request(0, 1, 0, 512)], static bytes => ServeAsync(Join(U32(3), Tail, bytes)))
        {
            Tokens = [U32(0x25609513), Request(1, 9, 0, 512), Request(0, 9, 0, 65536)],
            AllocationLimitBytes = 72 << 20, // Two requests of the longest kind that is served.
        };
        byte[] server = Join("NBDMAGICIHAVEOPT"u8.ToArray(), U16(3), ServerReplies());
        byte[] old = Join("NBDMAGIC"u8.ToArray(), U64(0x00420281861253), U64(DiskBytes), U32(3), new byte[124]);
        yield return new FuzzTarget("nbd-client-handshake", [server, old], ConnectAsync)
        {
            Expected = [typeof(IOException)],
            Tokens = [Reply(8, 1), Reply(7, 3), Reply(7, 1), Reply(10, 4, U32(1), Allocation), U64(0x0003e889045565a9), U32(0x80000006)],
        };
        yield return new FuzzTarget("nbd-client-replies", [Replies()], bytes => ReplyAsync(server, bytes))
        {
            Expected = [typeof(IOException)],
            Tokens = [Chunk(1, 1, 1, U64(0)), Chunk(0, 2, 1, U64(0), U32(512)), Chunk(1, 5, 2, U32(1)), U32(0x67446698), U32(0x668e33ef)],
        };
        yield return new FuzzTarget(
            "nbd-uri",
            [.. new[] { "nbd:unix:/run/s.sock:exportname=disk", "nbd+unix:///disk?socket=/run/s", "nbds://[::1]:10810/a%20b", "nbd://host" }.Select(Encoding.UTF8.GetBytes)],
            ReadUri)
        {
            Tokens = [.. new[] { ":exportname=", "nbd+unix:///", "?socket=", "nbds://", "%2F", "%", "[", "]", ":", "/../" }.Select(Encoding.UTF8.GetBytes)],
        };
    }

    private static NbdExport? Find(string name) => name is "disk" or "" ? Export : null;

    private static ValueTask<string> ServeAsync(byte[] bytes) => ServeAsync(bytes, ServerOptions);

    private static ValueTask<string> ServeAsync(byte[] bytes, NbdServerOptions options)
    {
        NbdSessionEnd end = NbdServer.Serve(new ScriptedStream(bytes, bytes.Length), options, CancellationToken.None);
        if (end.Reason.StartsWith("unexpected", StringComparison.Ordinal))
            throw new FuzzFindingException(end.Reason);
        return ValueTask.FromResult(end.Reason);
    }

    private static async ValueTask<string> ConnectAsync(byte[] bytes)
    {
        NbdClientOptions options = new() { AcceptsOldStyle = true };
        await using NbdClient client = await ConnectAsync(new ScriptedStream(bytes, bytes.Length), options);
        if (client.LengthBytes < 0 || client.BlockSizeBytes <= 0 || client.MaxPayloadBytes < client.BlockSizeBytes)
            throw new FuzzFindingException($"an export of {client.LengthBytes} bytes, blocks of {client.BlockSizeBytes} to {client.MaxPayloadBytes}");
        return $"connected structured={client.HasStructuredReplies} extents={client.HasExtents} readonly={client.IsReadOnly}";
    }

    private static Task<NbdClient> ConnectAsync(ScriptedStream stream, NbdClientOptions options) =>
        NbdClient.ConnectAsync(() => stream, stream.Cut, "disk", options, CancellationToken.None);

    // Three requests are on their way when the server begins to answer. What was answered must be answered whole.
    private static async ValueTask<string> ReplyAsync(byte[] handshake, byte[] bytes)
    {
        ScriptedStream stream = new(Join(handshake, bytes), handshake.Length);
        await using NbdClient client = await ConnectAsync(stream, new NbdClientOptions());
        byte[] read = new byte[1536];
        Task reading = client.ReadAsync(0, read, CancellationToken.None).AsTask();
        Task<IReadOnlyList<BlockExtent>> asking = client.ExtentsAsync(0, DiskBytes, CancellationToken.None).AsTask();
        Task flushing = client.FlushAsync(CancellationToken.None).AsTask();
        stream.Release();
        StringBuilder kinds = new();
        foreach (Task task in (Task[])[reading, asking, flushing])
        {
            try
            {
                await task;
                kinds.Append("answered ");
            }
            catch (IOException e)
            {
                kinds.Append(e.Message).Append(' ');
            }
        }

        if (asking.IsCompletedSuccessfully)
            Check(await asking);
        return kinds.ToString();
    }

    private static void Check(IReadOnlyList<BlockExtent> extents)
    {
        long at = 0;
        foreach (BlockExtent extent in extents)
        {
            if (extent.OffsetBytes != at || extent.LengthBytes <= 0)
                throw new FuzzFindingException($"an extent at {extent.OffsetBytes} of {extent.LengthBytes} where {at} was due");
            at = extent.EndBytes;
        }

        if (at is 0 or > DiskBytes)
            throw new FuzzFindingException($"the extents end at {at}");
    }

    private static ValueTask<string> ReadUri(byte[] bytes)
    {
        NbdUri? uri = NbdUri.TryParse(Encoding.UTF8.GetString(bytes));
        if (uri is null)
            return ValueTask.FromResult("none");
        NbdUri? again = NbdUri.TryParse(uri.ToString());
        return again == uri
            ? ValueTask.FromResult($"uri tcp={uri.Host is not null} tls={uri.IsTls} colon={uri.IsColonForm} named={uri.ExportName.Length > 0}")
            : throw new FuzzFindingException($"'{uri}' is read as '{again}'");
    }

    private static byte[] ServerReplies() => Join(
        Reply(8, 1),
        Reply(10, 4, U32(1), Allocation),
        Reply(10, 1),
        Reply(7, 3, U16(0), U64(DiskBytes), U16(0x6d)),
        Reply(7, 3, U16(3), U32(512), U32(4096), U32(1 << 20)),
        Reply(7, 1));

    private static byte[] Replies() => Join(
        Chunk(0, 1, 1, U64(0), new byte[512]),
        Chunk(1, 2, 1, U64(512), U32(1024)),
        Chunk(1, 5, 2, U32(1), U32(512), U32(0), U32(DiskBytes - 512), U32(3)),
        Join(U32(0x67446698), U32(0), U64(3)));

    private static X509Certificate2 Certificate()
    {
        using ECDsa key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        CertificateRequest request = new("CN=fuzz", key, HashAlgorithmName.SHA256);
        return request.CreateSelfSigned(DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
    }

    private static byte[] Option(uint option, params byte[][] data) => Join(Magic, U32(option), U32((uint)Join(data).Length), Join(data));

    private static byte[] Reply(uint option, uint type, params byte[][] data) =>
        Join(U64(0x0003e889045565a9), U32(option), U32(type), U32((uint)Join(data).Length), Join(data));

    private static byte[] Request(ushort command, ulong cookie, ulong offset, uint length, ushort flags = 0) =>
        Join(U32(0x25609513), U16(flags), U16(command), U64(cookie), U64(offset), U32(length));

    private static byte[] Chunk(ushort flags, ushort type, ulong cookie, params byte[][] payload) =>
        Join(U32(0x668e33ef), U16(flags), U16(type), U64(cookie), U32((uint)Join(payload).Length), Join(payload));

    private static byte[] Text(string text) => Join(U32((uint)text.Length), Encoding.UTF8.GetBytes(text));

    private static byte[] U16(ushort value)
    {
        byte[] bytes = new byte[2];
        BinaryPrimitives.WriteUInt16BigEndian(bytes, value);
        return bytes;
    }

    private static byte[] U32(uint value)
    {
        byte[] bytes = new byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, value);
        return bytes;
    }

    private static byte[] U64(ulong value)
    {
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteUInt64BigEndian(bytes, value);
        return bytes;
    }

    private static byte[] Join(params byte[][] parts) => [.. parts.SelectMany(static part => part)];
}
