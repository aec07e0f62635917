// A peer driven by hand, in hex: what it sends and expects is written down in the tests, not computed by the code under test.
using System.Globalization;
using System.Net.Sockets;
using System.Text;

namespace Unit.NbdTests;

internal sealed class RawPeer(Stream stream)
{
    public static readonly TimeSpan Deadline = TimeSpan.FromSeconds(10);

    public const string Greeting = "4e42444d41474943 49484156454f5054 0003";
    public const string OptionMagic = "49484156454f5054";
    public const string OptionReplyMagic = "0003e889045565a9";

    public Stream Stream { get; } = stream;

    public static string U16(int value) => value.ToString("x4", CultureInfo.InvariantCulture);

    public static string U32(long value) => value.ToString("x8", CultureInfo.InvariantCulture);

    public static string U64(ulong value) => value.ToString("x16", CultureInfo.InvariantCulture);

    public static string Text(string text) => U32(Encoding.UTF8.GetByteCount(text)) + Convert.ToHexStringLower(Encoding.UTF8.GetBytes(text));

    public static string Option(int option, string dataHex = "") =>
        OptionMagic + U32(option) + U32(Bytes(dataHex).Length) + dataHex;

    public static string OptionReply(int option, long type, string dataHex = "") =>
        OptionReplyMagic + U32(option) + U32(type) + U32(Bytes(dataHex).Length) + dataHex;

    public static string Request(int command, ulong cookie, ulong offset, long length, int flags = 0) =>
        "25609513" + U16(flags) + U16(command) + U64(cookie) + U64(offset) + U32(length);

    public static string SimpleReply(ulong cookie, int error = 0) => "67446698" + U32(error) + U64(cookie);

    public static string Chunk(int flags, int type, ulong cookie, string payloadHex) => Chunk(flags, type, cookie, Bytes(payloadHex).Length, payloadHex);

    public static string Chunk(int flags, int type, ulong cookie, long length, string payloadHex) =>
        "668e33ef" + U16(flags) + U16(type) + U64(cookie) + U32(length) + payloadHex;

    public static string Fill(byte value, int count) => Convert.ToHexStringLower(Enumerable.Repeat(value, count).ToArray());

    public static byte[] Bytes(string hex) => Convert.FromHexString(hex.Replace(" ", "", StringComparison.Ordinal));

    public async Task SendAsync(params string[] hex) => await Stream.WriteAsync(Bytes(string.Concat(hex))).AsTask().WaitAsync(Deadline);

    public async Task<byte[]> ReceiveAsync(int count)
    {
        byte[] bytes = new byte[count];
        await Stream.ReadExactlyAsync(bytes).AsTask().WaitAsync(Deadline);
        return bytes;
    }

    public async Task ExpectAsync(params string[] hex)
    {
        byte[] expected = Bytes(string.Concat(hex));
        Assert.Equal(Convert.ToHexStringLower(expected), Convert.ToHexStringLower(await ReceiveAsync(expected.Length)));
    }

    /// <summary>The other side hangs up; what it sent before that is read and forgotten.</summary>
    public async Task ExpectClosedAsync()
    {
        byte[] rest = new byte[4096];
        try
        {
            while (await Stream.ReadAsync(rest).AsTask().WaitAsync(Deadline) > 0)
            {
            }
        }
        catch (IOException e) when (e.InnerException is SocketException { SocketErrorCode: SocketError.ConnectionReset })
        {
        }
    }
}
