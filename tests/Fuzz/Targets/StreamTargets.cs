using System.Buffers.Binary;
using System.Text;
using System.Text.Json.Nodes;
using Platform;
using Xenops;
using Xenops.Streaming;

namespace Fuzz.Targets;

/// <summary>The memory stream: its hello, its frames, and a whole load.</summary>
internal static class StreamTargets
{
    public const string VmText =
        """{"id":"5c3a0e53-0b6f-4f2c-9a53-6f3b8f3f0001","name":"vm","memory_bytes":1048576,"domain":"simulator","vbds":[{"device":"xvda","sr":"s","vdi":"v","mode":"RW"}],"platform":{"a":"b"}}""";

    private static readonly GuestMemory Memory = new(1 << 20); // What is in it does not matter, only what is said of it.
    private static readonly Vm Domain = Vm.Parse(JsonNode.Parse(VmText));

    public static IEnumerable<FuzzTarget> All()
    {
        yield return new FuzzTarget("memory-hello", [new StreamHello("0af1", new Secret("0123456789abcdef")).ToBytes()], HelloAsync)
        {
            Expected = [typeof(IOException)],
            Repair = static bytes =>
            {
                if (bytes.Length >= 18)
                    BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(bytes.Length - 4), Crc32C.Of(bytes.AsSpan(0, bytes.Length - 4)));
            },
        };
        byte[] page = [0, 0, 0, 3, .. Enumerable.Repeat((byte)7, GuestMemory.PageSizeBytes)];
        byte[] zeroes = [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 32, 0, 0, 0, 64];
        byte[] load =
        [
            .. Frame(0, FrameType.VmRecord, Encoding.UTF8.GetBytes(Domain.ToJson().ToJsonString())), .. Frame(1, FrameType.Pages, page),
            .. Frame(2, FrameType.ZeroPages, zeroes), .. Frame(3, FrameType.RoundEnd, [0, 0, 0, 0, 0, 0, 0, 1]),
            .. Frame(4, FrameType.DeviceState, "state"u8.ToArray()), .. Frame(5, FrameType.End, new byte[48]),
        ];
        yield return new FuzzTarget("memory-frames", [load], static bytes => LoadAsync(bytes))
        {
            Expected = [typeof(IOException)],
            Repair = RepairFrames,
            AllocationLimitBytes = 24 << 20,
            Tokens = [Frame(1, FrameType.ZeroPages, zeroes), [0, 0, 0, 255], [0, 0, 1, 0], "null"u8.ToArray(), "[null]"u8.ToArray(), "\"vbds\":null"u8.ToArray()],
        };
    }

    private static async ValueTask<string> HelloAsync(byte[] bytes)
    {
        StreamHello hello = await StreamHello.ReadAsync(new ScriptedStream(bytes, bytes.Length), CancellationToken.None);
        StreamHello again = await StreamHello.ReadAsync(new ScriptedStream(hello.ToBytes(), int.MaxValue), CancellationToken.None);
        return again.Migration == hello.Migration && again.Secret.Equals(hello.Secret)
            ? "hello"
            : throw new FuzzFindingException("what was accepted is written as something else");
    }

    private static async ValueTask<string> LoadAsync(byte[] bytes)
    {
        FrameStream frames = new(new ScriptedStream(bytes, bytes.Length), TimeProvider.System, TimeSpan.FromSeconds(1));
        ImageReceived image = await new MemoryReceiver(frames, Domain, Memory).ReceiveAsync(CancellationToken.None);
        return $"loaded {image.Pages}";
    }

    private static byte[] Frame(ulong number, FrameType type, byte[] payload)
    {
        byte[] frame = new byte[FrameStream.HeaderSizeBytes + payload.Length];
        BinaryPrimitives.WriteInt32BigEndian(frame, payload.Length);
        BinaryPrimitives.WriteUInt64BigEndian(frame.AsSpan(8), number);
        frame[16] = (byte)type;
        payload.CopyTo(frame, FrameStream.HeaderSizeBytes);
        RepairFrames(frame, number);
        return frame;
    }

    private static void RepairFrames(byte[] bytes) => RepairFrames(bytes, 0);

    // Numbers in order and right checksums, for as long as the lengths make sense.
    private static void RepairFrames(byte[] bytes, ulong number)
    {
        for (int at = 0; bytes.Length - at >= FrameStream.HeaderSizeBytes; number++)
        {
            uint length = BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(at));
            if (length > bytes.Length - at - FrameStream.HeaderSizeBytes)
                return;
            Span<byte> frame = bytes.AsSpan(at, FrameStream.HeaderSizeBytes + (int)length);
            BinaryPrimitives.WriteUInt64BigEndian(frame[8..], number);
            BinaryPrimitives.WriteUInt32BigEndian(frame[4..], Crc32C.Of(frame[..4], frame[8..]));
            at += frame.Length;
        }
    }
}
