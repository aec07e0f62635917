// In the original tapdisk's place: mirrors by -2, connections handed over as descriptors, new leaves under load. Judges: fio, qemu-img,
// and python for what the framework cannot send.
using System.Text.Json;
using Nbd;
using Platform;
using StorageAccess.Tap;
using Support;
using Vhd;

namespace Conformance.TapdiskTests;

public sealed class DropInTests
{
    private const long DiskBytes = 32 * 1024 * 1024;

    private const string SendDescriptor = """
        import socket, sys
        to, label, what = sys.argv[1:4]
        far = socket.socket(socket.AF_UNIX); far.connect(what)
        near = socket.socket(socket.AF_UNIX); near.connect(to)
        socket.send_fds(near, [label.encode()], [far.fileno()])
        """;

    // Hands one end of a pair over, and speaks NBD on the other: twice, with DISC in between.
    private const string SpeakOnPassed = """
        import socket, struct, sys
        to, style = sys.argv[1:3]
        near, far = socket.socketpair()
        control = socket.socket(socket.AF_UNIX); control.connect(to)
        socket.send_fds(control, [b"x"], [far.fileno()]); far.close()
        def exactly(count):
            got = b""
            while len(got) < count:
                part = near.recv(count - len(got))
                assert part, "closed"
                got += part
            return got
        for value in (0x5a, 0xa5):
            if style == "old":
                greeting = exactly(152)
                assert greeting[:16] == b"NBDMAGIC" + bytes.fromhex("00420281861253").rjust(8, b"\0"), greeting
                size = struct.unpack(">Q", greeting[16:24])[0]
                assert greeting[28:] == bytes(124)
            else:
                assert exactly(18)[:16] == b"NBDMAGICIHAVEOPT"
                near.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 14) + b"tapdisk_client")
                size = struct.unpack(">QH", exactly(10))[0]
            assert size == int(sys.argv[3]), size
            block = bytes([value]) * 4096
            near.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 7, 8192, 4096) + block)
            assert exactly(16) == struct.pack(">IIQ", 0x67446698, 0, 7)
            near.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 8, 8192, 4096))
            assert exactly(16) == struct.pack(">IIQ", 0x67446698, 0, 8) and exactly(4096) == block
            near.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 9, 0, 0))
        """;

    [SkippableFact]
    public async Task A_secondary_gets_every_write_and_nothing_else_and_ends_with_null()
    {
        Skip.IfNot(Tool.Exists("qemu-io") && Tool.Exists("fio"), Tool.Missing("fio"));
        await using TapdiskWorld world = new();
        Sides sides = await Sides.CreateAsync(world);
        await RunAsync("qemu-io", "-f", "raw", "-c", "write -P 0x11 31M 64k", world.UriOf(sides.Source)); // Before: never copied.
        await world.Control.PauseAsync(sides.Source, 0, default);
        await world.Control.ResumeAsync(sides.Source, 0, "vhd:" + sides.SourceImage, sides.Secondary, default);
        await world.UntilAsync(sides.Source, MirrorPhase.Synced);
        await FioAsync(world, sides.Source, size: "16m");
        using (JsonDocument stats = JsonDocument.Parse((await world.Control.StatsAsync(sides.Source, 0, default)).Json))
        {
            JsonElement images = stats.RootElement.GetProperty("images");
            Assert.Equal(2, images.GetArrayLength());
            Assert.Equal("nbd", images[1].GetProperty("driver").GetProperty("name").GetString());
            Assert.Equal(sides.Secondary["nbd:".Length..], images[1].GetProperty("name").GetString());
            Assert.Equal(0, stats.RootElement.GetProperty("nbd_mirror_failed").GetInt32());
            Assert.Equal(16 * 2048 + 128, images[0].GetProperty("hits")[1].GetInt64()); // In sectors.
            Assert.Equal(16 * 2048, images[1].GetProperty("hits")[1].GetInt64());
        }

        await world.Control.PauseAsync(sides.Source, 0, default); // The mirror lives across it.
        await world.Control.ResumeAsync(sides.Source, 0, null, null, default);
        await RunAsync("qemu-io", "-f", "raw", "-c", "write -P 0x22 20M 64k", world.UriOf(sides.Source));
        await world.Control.PauseAsync(sides.Source, 0, default);
        await world.Control.ResumeAsync(sides.Source, 0, null, "null", default);
        await RunAsync("qemu-io", "-f", "raw", "-c", "write -P 0x33 24M 64k", world.UriOf(sides.Source));
        await RunAsync(
            "qemu-io", "-f", "raw", "-c", "read -P 0x22 20M 64k", "-c", "read -P 0 24M 64k", "-c", "read -P 0 31M 64k",
            world.UriOf(sides.Target));
        Assert.Equal(MirrorPhase.None, (await world.Extensions.MirrorStatusAsync(sides.Source, 0, default)).Phase);
        Assert.DoesNotContain("nbd\"", (await world.Control.StatsAsync(sides.Source, 0, default)).Json, StringComparison.Ordinal);
    }

    [SkippableFact]
    public async Task A_secondary_that_dies_costs_the_guest_nothing_and_another_is_brought_up_to_date()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        await using TapdiskWorld world = new();
        Sides sides = await Sides.CreateAsync(world);
        await world.Control.PauseAsync(sides.Source, 0, default);
        await world.Control.ResumeAsync(sides.Source, 0, null, sides.Secondary, default);
        await using GuestWriter guest = new(await world.ConnectAsync(sides.Source), seed: 5);
        await UntilAsync(() => guest.Count > 200);
        Posix.TryKill(sides.Target, 9);
        await world.UntilAsync(sides.Source, MirrorPhase.Failed);
        Assert.True((await world.Control.StatsAsync(sides.Source, 0, default)).MirrorFailed);
        int count = guest.Count;
        await UntilAsync(() => guest.Count > count + 100);

        int again = await world.ServeAsync("vhd:" + sides.TargetImage);
        await world.Control.PauseAsync(sides.Source, 0, default);
        await world.Control.ResumeAsync(sides.Source, 0, null, "nbd:" + world.Control.NbdSocketPath(again, 0), default);
        MirrorStatus synced = await world.UntilAsync(sides.Source, MirrorPhase.Synced);
        Assert.False((await world.Control.StatsAsync(sides.Source, 0, default)).MirrorFailed);
        Assert.Equal("", synced.Error);
        await guest.StopAsync();
        await world.CloseAsync(sides.Source);
        await world.CloseAsync(again);
        await SameAsync(sides);
    }

    [Fact]
    public async Task A_secondary_that_is_not_there_is_told_in_the_statistics_and_one_of_another_size_is_refused()
    {
        await using TapdiskWorld world = new();
        Sides sides = await Sides.CreateAsync(world);
        await world.Control.PauseAsync(sides.Source, 0, default);
        await world.Control.ResumeAsync(sides.Source, 0, null, "nbd:" + world.PathOf("nowhere"), default);
        Assert.True((await world.Control.StatsAsync(sides.Source, 0, default)).MirrorFailed);
        await using NbdClient guest = await world.ConnectAsync(sides.Source);
        await guest.WriteAsync(1 << 20, new byte[4096], WriteFlags.None, default);
        MirrorStatus failed = await world.Extensions.MirrorStatusAsync(sides.Source, 0, default);
        Assert.Equal((MirrorPhase.Failed, 1), (failed.Phase, failed.DirtyChunks));
        await world.Control.PauseAsync(sides.Source, 0, default);
        await world.Control.ResumeAsync(sides.Source, 0, null, "null", default);
        Assert.False((await world.Control.StatsAsync(sides.Source, 0, default)).MirrorFailed);

        int small = await world.ServeAsync("vhd:" + world.CreateVhd("small.vhd", DiskBytes / 2));
        string wrong = "nbd:" + world.Control.NbdSocketPath(small, 0);
        await world.Control.PauseAsync(sides.Source, 0, default);
        TapException refused = await Assert.ThrowsAsync<TapException>(() =>
            world.Control.ResumeAsync(sides.Source, 0, null, wrong, default));
        Assert.Equal(22, refused.ErrnoNumber);
        TapState state = (await world.Control.ListProcessAsync(sides.Source, default)).Single().State;
        Assert.Equal((TapState)0x22a, state);
        await world.Control.ResumeAsync(sides.Source, 0, null, null, default);
        await guest.WriteAsync(0, new byte[4096], WriteFlags.None, default);

        await world.Control.AttachAsync(sides.Source, 1, default);
        refused = await Assert.ThrowsAsync<TapException>(() => world.Control.OpenAsync(
            sides.Source, 1, "vhd:" + world.CreateVhd("b.vhd", DiskBytes), TapOpenFlags.None, wrong, default));
        Assert.Equal(22, refused.ErrnoNumber);
        await world.Control.DetachAsync(sides.Source, 1, default); // Nothing is open.
    }

    [SkippableFact]
    public async Task A_connection_handed_over_under_a_label_becomes_the_secondary_and_open_takes_one_too()
    {
        Skip.IfNot(Tool.Exists("python3") && Tool.Exists("qemu-img"), Tool.Missing("python3"));
        await using TapdiskWorld world = new();
        Sides sides = await Sides.CreateAsync(world);
        await RunAsync(
            "python3", "-c", SendDescriptor, world.Control.NbdClientSocketPath(sides.Source), "mirror_vbd/12/xvda",
            world.Control.NbdSocketPath(sides.Target, 0));
        await world.Control.CloseAsync(sides.Source, 0, force: false, default);
        await UntilAsync(() => File.ReadAllText(Path.Combine(world.Control.ControlDirectory, "tapdisk.log")).Contains("took a connection"));
        await world.Control.OpenAsync(
            sides.Source, 0, "vhd:" + sides.SourceImage, TapOpenFlags.None, "nbd:mirror_vbd/12/xvda", default);
        await world.UntilAsync(sides.Source, MirrorPhase.Synced);
        await RunAsync("qemu-io", "-f", "raw", "-c", "write -P 0x44 3M 4M", "-c", "flush", world.UriOf(sides.Source));
        await world.CloseAsync(sides.Source);
        await world.CloseAsync(sides.Target);
        await SameAsync(sides);
    }

    [SkippableTheory]
    [InlineData("old")]
    [InlineData("new")]
    public async Task A_client_handed_over_is_served_and_may_come_back_after_its_goodbye(string style)
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        await using TapdiskWorld world = new();
        int tapdisk = await world.ServeAsync("vhd:" + world.CreateVhd("a.vhd", DiskBytes));
        string to = world.Control.PassingSocketPath(tapdisk, 0, isNewStyle: style == "new");
        await RunAsync("python3", "-c", SpeakOnPassed, to, style, $"{DiskBytes}");
        await using NbdClient reader =
            await NbdClient.ConnectAsync(NbdUri.Unix(world.Control.OldNbdSocketPath(tapdisk, 0), "any"), new NbdClientOptions(), default);
        byte[] read = new byte[4096];
        await reader.ReadAsync(8192, read, default);
        Assert.All(read, static value => Assert.Equal(0xa5, value));
        await world.CloseAsync(tapdisk);
        await UntilAsync(() => Directory.GetFiles(world.Control.ControlDirectory).Length == 1); // The log.
    }

    [SkippableFact]
    public async Task New_leaves_under_a_verifying_writer_lose_nothing()
    {
        Skip.IfNot(Tool.Exists("fio"), Tool.Missing("fio"));
        await using TapdiskWorld world = new();
        string leaf = world.CreateVhd("0.vhd", DiskBytes);
        int tapdisk = await world.ServeAsync("vhd:" + leaf);
        Task fio = FioAsync(world, tapdisk, size: "32m", "--loops=4", "--rate=,40m");
        for (int i = 1; i <= 4; i++)
        {
            await Task.Delay(300); // Somewhere in the middle of the writer's life: any moment will do.
            await world.Control.PauseAsync(tapdisk, 0, default);
            string next = world.PathOf($"{i}.vhd");
            VhdImage.CreateSnapshot(next, leaf);
            await world.Control.ResumeAsync(tapdisk, 0, "vhd:" + next, null, default);
            leaf = next;
        }

        await fio;
        Assert.Contains(leaf, (await world.Control.StatsAsync(tapdisk, 0, default)).Json, StringComparison.Ordinal);
        await world.CloseAsync(tapdisk);
    }

    private static Task FioAsync(TapdiskWorld world, int processId, string size, params string[] more) => RunAsync(
        "fio",
        [
            "--name=verify", "--ioengine=nbd", $"--uri={world.UriOf(processId)}", "--rw=randwrite", "--bs=16k", "--iodepth=16",
            $"--size={size}", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=9", $"--directory={world.PathOf("")}",
            .. more,
        ]);

    private static async Task SameAsync(Sides sides)
    {
        ChildResult compared = await Tool.RunAsync(
            "qemu-img", "compare", "-f", "vpc", "-F", "vpc", sides.SourceImage, sides.TargetImage);
        Assert.Equal("Images are identical.\n", compared.StandardOutput);
    }

    private static async Task RunAsync(string tool, params string[] arguments)
    {
        ChildResult result = await Tool.RunAsync(tool, arguments);
        Assert.True(result.ExitCode == 0, $"{tool} {string.Join(' ', arguments)}: {result.StandardError}{result.StandardOutput}");
    }

    private static async Task UntilAsync(Func<bool> isTrue)
    {
        DateTime deadline = DateTime.UtcNow.AddSeconds(30);
        while (!isTrue())
        {
            Assert.True(DateTime.UtcNow < deadline, "it did not come to pass");
            await Task.Delay(10);
        }
    }

    /// <summary>Two tapdisks with an empty disk each.</summary>
    private sealed record Sides(string SourceImage, string TargetImage, int Source, int Target, string Secondary)
    {
        public static async Task<Sides> CreateAsync(TapdiskWorld world)
        {
            string source = world.CreateVhd("source.vhd", DiskBytes);
            string target = world.CreateVhd("target.vhd", DiskBytes);
            int targetProcess = await world.ServeAsync("vhd:" + target);
            return new Sides(
                source, target, await world.ServeAsync("vhd:" + source), targetProcess,
                "nbd:" + world.Control.NbdSocketPath(targetProcess, 0));
        }
    }
}
