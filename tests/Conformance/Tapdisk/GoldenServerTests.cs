// Our tapdisk against the bytes of the original: the recorded requests of the original tap-ctl are played to it, and its answers are
// compared byte for byte. What may differ: sizes and paths of that run, and what the original leaves uninitialised behind the end of a
// list and of an error.
using System.Net.Sockets;
using System.Runtime.CompilerServices;
using System.Text;
using System.Text.Json;
using StorageAccess.Tap;

namespace Conformance.TapdiskTests;

public sealed class GoldenServerTests
{
    private const string GoldenImage = "/srv/sr/a.vhd";
    private const string GoldenTarget = "/run/blktap-control/nbd19798.1";
    private const long GoldenSizeBytes = 8 * 1024 * 1024;

    [Fact]
    public async Task The_originals_requests_get_the_originals_answers()
    {
        await using TapdiskWorld world = new();
        int target = await world.ServeAsync("vhd:" + world.CreateVhd("target.vhd", GoldenSizeBytes));
        string image = world.CreateVhd("a.vhd", GoldenSizeBytes);
        int tapdisk = await world.SpawnAsync();
        Dictionary<string, string> names = new() { [GoldenImage] = image, [GoldenTarget] = world.Control.NbdSocketPath(target, 0) };
        int compared = 0;
        foreach (JsonElement step in Golden())
        {
            string verb = step.GetProperty("verb").GetString()!;
            foreach ((byte[] request, List<JsonElement> answers) in Exchanges(step))
            {
                using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                await socket.ConnectAsync(new UnixDomainSocketEndPoint(world.Control.ControlSocketPath(tapdisk)));
                await socket.SendAsync(Renamed(request, names));
                foreach (JsonElement answer in answers)
                {
                    await CompareAsync(socket, verb, answer, names, tapdisk);
                    compared++;
                }
            }
        }

        Assert.Equal(17, compared);
    }

    private static async Task CompareAsync(Socket socket, string verb, JsonElement golden, Dictionary<string, string> names, int tapdisk)
    {
        if (golden.GetProperty("text").GetString() is { } text)
        {
            foreach ((string old, string current) in names)
                text = text.Replace(old, current, StringComparison.Ordinal);
            byte[] body = await ReceiveAsync(socket, Encoding.UTF8.GetByteCount(text));
            Assert.Equal(text, Encoding.UTF8.GetString(body));
            return;
        }

        TapMessage expected = TapMessage.Decode(Record(golden));
        TapMessage got = TapMessage.Decode(await ReceiveAsync(socket, TapMessage.SizeBytes));
        Assert.Equal((verb, expected.Type, expected.Minor), (verb, got.Type, got.Minor));
        switch (expected.Type)
        {
            case TapMessageType.PidResponse:
                Assert.Equal(tapdisk, got.ProcessId);
                break;
            case TapMessageType.Error:
                Assert.Equal(expected.Error, got.Error);
                break;
            case TapMessageType.ListResponse when expected.ListCount == 0:
                Assert.Equal((0, -1), (got.ListCount, got.ListMinor));
                break;
            case TapMessageType.StatsResponse:
                Assert.InRange(got.FollowingBytes, 1u, 4096u); // Held against the text that follows.
                break;
            default:
                Assert.Equal(
                    Convert.ToHexString(Renamed(expected.Bytes.ToArray(), names)), Convert.ToHexString(got.Bytes.Span));
                break;
        }
    }

    private static IEnumerable<(byte[] Request, List<JsonElement> Answers)> Exchanges(JsonElement step)
    {
        byte[]? request = null;
        List<JsonElement> answers = [];
        foreach (JsonElement message in step.GetProperty("messages").EnumerateArray())
        {
            if (message.GetProperty("dir").GetString() != "send")
            {
                // What tap-ctl read of its host's time zone was recorded with the socket.
                if (message.GetProperty("text").GetString()?.StartsWith("TZif", StringComparison.Ordinal) != true)
                    answers.Add(message);
                continue;
            }

            if (request is not null)
                yield return (request, answers);
            request = Record(message);
            answers = [];
        }

        yield return (request!, answers);
    }

    // A path in a fixed field: the new one over it, zeros where it is shorter.
    private static byte[] Renamed(byte[] record, Dictionary<string, string> names)
    {
        foreach ((string old, string current) in names)
        {
            int at = record.AsSpan().IndexOf(Encoding.UTF8.GetBytes(old));
            if (at < 0)
                continue;
            record.AsSpan(at, old.Length).Clear();
            Encoding.UTF8.GetBytes(current).CopyTo(record, at);
        }

        return record;
    }

    private static byte[] Record(JsonElement message) =>
        Convert.FromHexString(message.GetProperty("hex_trimmed").GetString()!.PadRight(2 * TapMessage.SizeBytes, '0'));

    private static async Task<byte[]> ReceiveAsync(Socket socket, int count)
    {
        byte[] bytes = new byte[count];
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        for (int got = 0, read; got < count; got += read)
        {
            read = await socket.ReceiveAsync(bytes.AsMemory(got), SocketFlags.None, limit.Token);
            Assert.True(read > 0, $"it closed after {got} of {count} bytes");
        }

        return bytes;
    }

    private static List<JsonElement> Golden([CallerFilePath] string here = "")
    {
        string path = Path.Combine(Path.GetDirectoryName(here)!, "..", "..", "Unit", "Tapdisk", "Golden", "tap-ctl.json");
        using JsonDocument golden = JsonDocument.Parse(File.ReadAllText(path));
        return [.. golden.RootElement.EnumerateArray().Select(static step => step.Clone())];
    }
}
