// The client and the codec against the bytes that the original tap-ctl and tapdisk exchanged (Golden/tap-ctl.json).
using System.Net.Sockets;
using System.Runtime.CompilerServices;
using System.Text;
using System.Text.Json;
using StorageAccess.Tap;
using Support;

namespace Unit.TapdiskTests;

public sealed class TapControlTests : IDisposable
{
    private const int GoldenProcessId = 0x4d42;
    private readonly TemporaryDirectory folder = new();
    private readonly TapControl control;
    private static CancellationToken Token => CancellationToken.None;

    public TapControlTests() => control = new TapControl(folder.Path);

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task Every_verb_sends_and_understands_the_originals_bytes()
    {
        await using GoldenTapdisk tapdisk = new(control.ControlSocketPath(GoldenProcessId));
        await Play("attach", () => control.AttachAsync(GoldenProcessId, 0, Token));
        TapImage? image = null;
        await Play("open", async () =>
            image = await control.OpenAsync(GoldenProcessId, 0, "vhd:/srv/sr/a.vhd", TapOpenFlags.None, null, Token));
        Assert.Equal(new TapImage(8 * 1024 * 1024, 512, false), image);
        await Play("pause", () => control.PauseAsync(GoldenProcessId, 0, Token));
        await Play("unpause onto a mirror", () =>
            control.ResumeAsync(GoldenProcessId, 0, "vhd:/srv/sr/a.vhd", "nbd:/run/blktap-control/nbd19798.1", Token));
        TapStats? stats = null;
        await Play("stats with mirror", async () => stats = await control.StatsAsync(GoldenProcessId, 0, Token));
        Assert.False(stats!.MirrorFailed);
        Assert.Equal(0, stats.OutstandingRequests);
        await Play("close", () => control.CloseAsync(GoldenProcessId, 0, false, Token));
        await Play("detach", () => control.DetachAsync(GoldenProcessId, 0, Token));

        async Task Play(string verb, Func<Task> call)
        {
            tapdisk.Expect(verb, skipMessages: 0);
            await call();
            Assert.Equal("", tapdisk.Difference);
        }
    }

    [Fact]
    public async Task A_list_ends_with_the_empty_entry_whatever_is_left_in_its_bytes()
    {
        await using GoldenTapdisk tapdisk = new(control.ControlSocketPath(GoldenProcessId));
        tapdisk.Expect("list while paused", skipMessages: 2);
        IReadOnlyList<TapEntry> entries = await control.ListProcessAsync(GoldenProcessId, Token);
        Assert.Equal("", tapdisk.Difference);
        TapState paused = TapState.Paused | TapState.Quiesced | TapState.Closed;
        Assert.Equal(new TapEntry(GoldenProcessId, 0, paused, "vhd:/srv/sr/a.vhd"), Assert.Single(entries));
    }

    [Fact]
    public async Task A_refused_open_is_the_errno_that_tap_ctl_exits_with()
    {
        await using GoldenTapdisk tapdisk = new(control.ControlSocketPath(GoldenProcessId));
        tapdisk.Expect("open an open one", skipMessages: 0);
        TapException refused = await Assert.ThrowsAsync<TapException>(() =>
            control.OpenAsync(GoldenProcessId, 0, "vhd:/srv/sr/a.vhd", TapOpenFlags.None, null, Token));
        Assert.Equal(114, refused.ErrnoNumber);
    }

    [Fact]
    public async Task The_original_tapdisk_has_no_capabilities()
    {
        await using GoldenTapdisk tapdisk = new(control.ControlSocketPath(GoldenProcessId));
        tapdisk.AnswerWith(new TapMessage(TapMessageType.Error, 0) { Error = 22 });
        Assert.Empty(await new TapExtensions(control).CapabilitiesAsync(GoldenProcessId, Token));
    }

    [Fact]
    public async Task A_dead_tapdisks_sockets_are_removed_and_a_free_minor_is_listed_alone()
    {
        int dead = int.MaxValue - 7;
        using (Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
            socket.Bind(new UnixDomainSocketEndPoint(control.ControlSocketPath(dead)));
        File.WriteAllText(control.ControlSocketPath(dead), "");
        File.WriteAllText(control.NbdSocketPath(dead, 3), "");
        File.WriteAllText(control.NbdSocketPath(dead + 1, 3), "");
        int minor = await control.AllocateMinorAsync(Token);
        IReadOnlyList<TapEntry> entries = await control.ListAsync(Token);
        Assert.Equal(new TapEntry(null, minor, TapState.Running, null), Assert.Single(entries));
        Assert.False(File.Exists(control.ControlSocketPath(dead)));
        Assert.False(File.Exists(control.NbdSocketPath(dead, 3)));
        Assert.True(File.Exists(control.NbdSocketPath(dead + 1, 3)));
    }

    [Fact]
    public async Task Minors_are_distinct_under_contention_and_reused_when_freed()
    {
        int[] minors = await Task.WhenAll(Enumerable.Range(0, 16).Select(_ => Task.Run(() => control.AllocateMinorAsync(Token))));
        Assert.Equal(Enumerable.Range(0, 16), minors.Order());
        await control.FreeMinorAsync(5, Token);
        await control.FreeMinorAsync(5, Token);
        Assert.Equal(5, await control.AllocateMinorAsync(Token));
    }

    [Fact]
    public void A_path_that_does_not_fit_is_refused_before_anything_is_sent()
    {
        Assert.Equal(255, new TapMessage(TapMessageType.Open, 0) { Path = new string('a', 255) }.Path.Length);
        TapException refused = Assert.Throws<TapException>(() => new TapMessage(TapMessageType.Open, 0) { Path = new string('a', 256) });
        Assert.Equal(TapException.NameTooLong, refused.ErrnoNumber);
    }

    /// <summary>A control socket that plays one recorded conversation: compares what it gets, answers what the original answered.</summary>
    private sealed class GoldenTapdisk : IAsyncDisposable
    {
        private readonly Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        private readonly Task serving;
        private List<(bool IsSend, byte[] Bytes)> script = [];

        public GoldenTapdisk(string path)
        {
            listener.Bind(new UnixDomainSocketEndPoint(path));
            listener.Listen(10);
            serving = ServeAsync();
        }

        public string Difference { get; private set; } = "";

        public void Expect(string verb, int skipMessages) => script = [.. Messages(verb).Skip(skipMessages)];

        public void AnswerWith(TapMessage answer) => script = [(false, answer.Bytes.ToArray())];

        public async ValueTask DisposeAsync()
        {
            listener.Dispose();
            await serving;
        }

        private async Task ServeAsync()
        {
            while (true)
            {
                Socket client;
                try
                {
                    client = await listener.AcceptAsync();
                }
                catch (Exception e) when (e is SocketException or ObjectDisposedException)
                {
                    return; // The test ended it, in an accept or between two.
                }

                using (client)
                    await PlayAsync(client);
            }
        }

        private async Task PlayAsync(Socket client)
        {
            byte[] request = new byte[TapMessage.SizeBytes];
            foreach ((bool isSend, byte[] bytes) in script)
            {
                if (!isSend)
                {
                    await client.SendAsync(bytes);
                    continue;
                }

                int got = await client.ReceiveAsync(request);
                if (got != bytes.Length || !request.AsSpan(0, got).SequenceEqual(bytes))
                    Difference = $"sent {Convert.ToHexString(request.AsSpan(0, got))}\ninstead of {Convert.ToHexString(bytes)}";
            }
        }

        private static IEnumerable<(bool IsSend, byte[] Bytes)> Messages(string verb, [CallerFilePath] string here = "")
        {
            string path = Path.Combine(Path.GetDirectoryName(here)!, "Golden", "tap-ctl.json");
            using JsonDocument golden = JsonDocument.Parse(File.ReadAllText(path));
            JsonElement entry = golden.RootElement.EnumerateArray().Single(e => e.GetProperty("verb").GetString() == verb);
            foreach (JsonElement message in entry.GetProperty("messages").EnumerateArray())
            {
                byte[] bytes = message.GetProperty("hex_trimmed").GetString() is { } hex
                    ? Convert.FromHexString(hex.PadRight(2 * TapMessage.SizeBytes, '0'))
                    : Encoding.UTF8.GetBytes(message.GetProperty("text").GetString()!);
                yield return (message.GetProperty("dir").GetString() == "send", bytes);
            }
        }
    }
}
