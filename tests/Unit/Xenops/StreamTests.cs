using System.Text;
using Xenops;
using Xenops.Streaming;

namespace Unit.XenopsTests;

public sealed class StreamTests
{
    private static readonly TimeSpan Silence = TimeSpan.FromSeconds(10);
    private static readonly Vm SmallVm = new() { Id = Rig.Id, Name = "n", MemoryBytes = 3 * GuestMemory.PageSizeBytes };

    [Fact]
    public void The_checksum_is_Castagnolis() => Assert.Equal(0xe3069283, Crc32C.Of("123456789"u8));

    [Fact]
    public async Task A_frame_is_these_bytes()
    {
        using MemoryStream bytes = new();
        FrameStream frames = new(bytes, TimeProvider.System, Silence);
        await frames.WriteAsync(FrameType.RoundEnd, new byte[] { 0, 0, 0, 0, 0, 0, 0, 3 }, CancellationToken.None);
        await frames.WriteAsync(FrameType.DeviceState, "{}"u8.ToArray(), CancellationToken.None);
        Assert.Equal(
            "00000008" + "788d400e" + "0000000000000000" + "04" + "0000000000000003"
            + "00000002" + "0f2d47d4" + "0000000000000001" + "05" + "7b7d",
            Convert.ToHexStringLower(bytes.ToArray()));
    }

    [Fact]
    public void The_hello_is_these_bytes() => Assert.Equal(
        "584d454d5354524d" + "0001" + "0002" + "0003" + "6d31" + "616263" + "77515529",
        Convert.ToHexStringLower(new StreamHello("m1", new Platform.Secret("abc")).ToBytes()));

    [Fact]
    public async Task What_was_recorded_loads_to_the_same_memory()
    {
        (byte[] stream, GuestMemory sent) = await RecordAsync();
        (ImageReceived? image, GuestMemory received, string? why) = await LoadAsync(stream);
        Assert.Null(why);
        Assert.Equal("{}", Encoding.UTF8.GetString(image!.DeviceState));
        for (int page = 0; page < sent.PageCount; page++)
            Assert.True(sent.Page(page).SequenceEqual(received.Page(page)));
        Assert.Equal(Convert.ToHexStringLower(PageDigests.RootOf(received)), image.Digest);
    }

    [Fact]
    public async Task A_stream_cut_at_any_byte_is_refused()
    {
        (byte[] stream, _) = await RecordAsync();
        for (int length = 0; length < stream.Length; length++)
            Assert.NotNull((await LoadAsync(stream[..length])).Why);
    }

    [Fact]
    public async Task A_stream_with_one_bit_flipped_anywhere_is_refused()
    {
        (byte[] stream, _) = await RecordAsync();
        for (int i = 0; i < stream.Length; i++)
        {
            byte[] damaged = stream.ToArray();
            damaged[i] ^= (byte)(1 << (i % 8));
            Assert.NotNull((await LoadAsync(damaged)).Why);
        }
    }

    [Fact]
    public async Task A_stream_with_a_byte_after_its_end_is_refused()
    {
        (byte[] stream, _) = await RecordAsync();
        Assert.Contains("after the end", (await LoadAsync([.. stream, 0])).Why);
    }

    [Theory]
    [InlineData("no record", "starts with")]
    [InlineData("page outside", "outside a memory")]
    [InlineData("run outside", "outside a memory")]
    [InlineData("wrong round", "in round 0")]
    [InlineData("wrong count", "does not end")]
    [InlineData("short batch", "another length")]
    [InlineData("page missing", "never came")]
    [InlineData("too many pages", "more pages than the memory")]
    [InlineData("unknown frame", "does not belong")]
    [InlineData("other VM", "is of VM")]
    [InlineData("record no JSON", "malformed")]
    [InlineData("huge state", "device state is larger")]
    [InlineData("wrong digest", "digest")]
    public async Task A_well_framed_stream_that_lies_is_refused_and_the_sender_is_told(string lie, string why)
    {
        using MemoryStream bytes = new();
        FrameStream frames = new(bytes, TimeProvider.System, Silence);
        Task Put(FrameType type, params int[] numbers) => frames.WriteAsync(
            type, numbers.SelectMany(static n =>
                new[] { (byte)(n >> 24), (byte)(n >> 16), (byte)(n >> 8), (byte)n }).ToArray(), CancellationToken.None);
        Vm record = lie == "other VM" ? SmallVm with { Id = Guid.Empty.ToString() } : SmallVm;
        byte[] json = lie == "record no JSON" ? "{"u8.ToArray() : Encoding.UTF8.GetBytes(record.ToJson().ToJsonString());
        if (lie != "no record")
            await frames.WriteAsync(FrameType.VmRecord, json, CancellationToken.None);
        if (lie == "page outside")
            await frames.WriteAsync(
                FrameType.Pages,
                new byte[] { 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3 }.Concat(new byte[4096]).ToArray(), CancellationToken.None);
        if (lie == "unknown frame")
            await Put(FrameType.Welcome);
        int pages = lie == "page missing" ? 2 : 3;
        await Put(FrameType.ZeroPages, lie == "wrong round" ? 1 : 0, lie == "short batch" ? 2 : 1, lie == "run outside" ? 1 : 0, pages);
        if (lie == "too many pages")
            await Put(FrameType.ZeroPages, 0, 1, 0, 1);
        await Put(FrameType.RoundEnd, 0, lie == "wrong count" ? 2 : pages);
        await frames.WriteAsync(FrameType.DeviceState, new byte[lie == "huge state" ? 65537 : 0], CancellationToken.None);
        byte[] end = new byte[48];
        end[39] = (byte)pages;
        BitConverter.TryWriteBytes(end.AsSpan(40), System.Net.IPAddress.HostToNetworkOrder(frames.BytesWritten));
        await frames.WriteAsync(FrameType.End, end, CancellationToken.None);

        OneWay stream = new(bytes.ToArray());
        string? reason = (await LoadAsync(stream)).Why;
        Assert.Contains(why, reason);
        Assert.Contains(why, Encoding.UTF8.GetString(stream.Answers.ToArray()));
    }

    [Fact]
    public async Task A_peer_that_says_nothing_is_given_up()
    {
        FrameStream frames = new(new NeverAnswers(), TimeProvider.System, TimeSpan.FromMilliseconds(20));
        MemoryStreamException e = await Assert.ThrowsAsync<MemoryStreamException>(() => frames.ReadAsync(CancellationToken.None));
        Assert.Contains("did not send", e.Message);
    }

    [Fact]
    public async Task A_page_that_is_zero_again_is_zero_on_the_other_side()
    {
        (byte[] stream, _) = await RecordAsync(secondRoundPage: 1);
        (_, GuestMemory received, string? why) = await LoadAsync(stream);
        Assert.Null(why);
        Assert.Equal(-1, received.Page(1).IndexOfAnyExcept((byte)0));
    }

    /// <summary>
    /// One small stream, as a sender writes it to a receiver that says yes to everything: page 1 has content in round 0, and a page of
    /// zeros in round 1.
    /// </summary>
    private static async Task<(byte[] Stream, GuestMemory Memory)> RecordAsync(int secondRoundPage = 2)
    {
        using MemoryStream answers = new();
        FrameStream receiver = new(answers, TimeProvider.System, Silence);
        await receiver.WriteAsync(FrameType.Welcome, ReadOnlyMemory<byte>.Empty, CancellationToken.None);
        await receiver.WriteAsync(FrameType.RoundReceived, new byte[] { 0, 0, 0, 0, 0, 0, 0, 3 }, CancellationToken.None);
        await receiver.WriteAsync(FrameType.RoundReceived, new byte[] { 0, 0, 0, 1, 0, 0, 0, 1 }, CancellationToken.None);
        OneWay stream = new(answers.ToArray());
        GuestMemory memory = new(SmallVm.MemoryBytes);
        memory.Write(1, "first"u8);
        MemorySender sender = new(new FrameStream(stream, TimeProvider.System, Silence), memory, TimeProvider.System);
        await sender.StartAsync(SmallVm, CancellationToken.None);
        memory.MarkAll();
        await sender.SendRoundAsync(memory.TakeDirty(), CancellationToken.None);
        memory.Write(secondRoundPage, new byte[16]);
        await sender.SendRoundAsync(memory.TakeDirty(), CancellationToken.None);
        await sender.FinishAsync("{}"u8.ToArray(), CancellationToken.None);
        return (stream.Answers.ToArray(), memory);
    }

    private static Task<(ImageReceived? Image, GuestMemory Memory, string? Why)> LoadAsync(byte[] stream) => LoadAsync(new OneWay(stream));

    private static async Task<(ImageReceived? Image, GuestMemory Memory, string? Why)> LoadAsync(OneWay stream)
    {
        GuestMemory memory = new(SmallVm.MemoryBytes);
        MemoryReceiver receiver = new(new FrameStream(stream, TimeProvider.System, Silence), SmallVm, memory);
        try
        {
            return (await receiver.ReceiveAsync(CancellationToken.None), memory, null);
        }
        catch (MemoryStreamException e)
        {
            return (null, memory, e.Message);
        }
    }

    /// <summary>Reads what was given, keeps what is written.</summary>
    private sealed class OneWay(byte[] incoming) : MemoryStream(incoming, writable: false)
    {
        public MemoryStream Answers { get; } = new();

        public override bool CanWrite => true;

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) =>
            Answers.WriteAsync(buffer, cancellationToken);
    }

    private sealed class NeverAnswers : MemoryStream
    {
        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            await Task.Delay(Timeout.InfiniteTimeSpan, cancellationToken);
            return 0;
        }
    }
}
