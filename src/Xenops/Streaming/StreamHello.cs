// The first bytes of a connection, before any frame: magic "XMEMSTRM" (8), u16 version, u16 length of the migration's id, u16 length of
// the secret, id, secret (both ASCII), u32 CRC32C of all before it; big-endian. Fixed bounds, so that a stranger cannot make us hold
// memory.
using System.Buffers.Binary;
using System.Text;
using Platform;

namespace Xenops.Streaming;

internal sealed record StreamHello(string Migration, Secret Secret)
{
    public const ushort Version = 1;
    public const int TextLimitBytes = 128;
    private const int FixedSizeBytes = 14;
    private static ReadOnlySpan<byte> Magic => "XMEMSTRM"u8;

    public byte[] ToBytes()
    {
        byte[] migration = Encoding.ASCII.GetBytes(Migration);
        byte[] secret = Encoding.ASCII.GetBytes(Secret.Reveal());
        if (migration.Length > TextLimitBytes || secret.Length > TextLimitBytes)
            throw XenopsException.Internal($"the migration's id or the secret is longer than {TextLimitBytes} bytes");
        byte[] bytes = new byte[FixedSizeBytes + migration.Length + secret.Length + 4];
        Magic.CopyTo(bytes);
        BinaryPrimitives.WriteUInt16BigEndian(bytes.AsSpan(8), Version);
        BinaryPrimitives.WriteUInt16BigEndian(bytes.AsSpan(10), (ushort)migration.Length);
        BinaryPrimitives.WriteUInt16BigEndian(bytes.AsSpan(12), (ushort)secret.Length);
        migration.CopyTo(bytes, FixedSizeBytes);
        secret.CopyTo(bytes, FixedSizeBytes + migration.Length);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(bytes.Length - 4), Crc32C.Of(bytes.AsSpan(0, bytes.Length - 4)));
        return bytes;
    }

    /// <exception cref="MemoryStreamException">Not a hello of this version.</exception>
    public static async Task<StreamHello> ReadAsync(Stream stream, CancellationToken cancellationToken)
    {
        byte[] head = new byte[FixedSizeBytes];
        await FillAsync(stream, head, cancellationToken);
        if (!head.AsSpan(0, 8).SequenceEqual(Magic))
            throw new MemoryStreamException("the peer does not speak the memory stream's protocol");
        ushort version = BinaryPrimitives.ReadUInt16BigEndian(head.AsSpan(8));
        if (version != Version)
            throw new MemoryStreamException($"the peer speaks version {version} of the memory stream, we speak {Version}");
        int migrationLength = BinaryPrimitives.ReadUInt16BigEndian(head.AsSpan(10));
        int secretLength = BinaryPrimitives.ReadUInt16BigEndian(head.AsSpan(12));
        if (migrationLength > TextLimitBytes || secretLength > TextLimitBytes)
            throw new MemoryStreamException("the hello's texts are too long");
        byte[] tail = new byte[migrationLength + secretLength + 4];
        await FillAsync(stream, tail, cancellationToken);
        if (BinaryPrimitives.ReadUInt32BigEndian(tail.AsSpan(tail.Length - 4)) != Crc32C.Of(head, tail.AsSpan(0, tail.Length - 4)))
            throw new MemoryStreamException("the hello has a wrong checksum");
        return new StreamHello(
            Encoding.ASCII.GetString(tail, 0, migrationLength), new Secret(Encoding.ASCII.GetString(tail, migrationLength, secretLength)));
    }

    private static async Task FillAsync(Stream stream, Memory<byte> buffer, CancellationToken cancellationToken)
    {
        if (await stream.ReadAtLeastAsync(buffer, buffer.Length, throwOnEndOfStream: false, cancellationToken) < buffer.Length)
            throw new MemoryStreamException("the connection was closed inside the hello");
    }
}
