// Our client on other people's servers: nbdkit, whole and with its faults switched on, and qemu-nbd.
using Nbd;
using Platform;
using Support;

namespace Conformance.NbdTests;

public sealed class ForeignServerTests : IDisposable
{
    private const int SizeBytes = 16 << 20;

    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(20);

    private readonly TemporaryDirectory folder = new();

    private string Socket => folder.File("k.sock");

    public void Dispose() => folder.Dispose();

    [SkippableTheory]
    [InlineData("")] // Structured replies, extents.
    [InlineData("--no-sr")]
    [InlineData("--mask-handshake=0")] // Not even fixed newstyle: refused below.
    public async Task A_disk_of_nbdkit_is_written_and_read_back(string option)
    {
        await using NbdServerProcess server = await NbdkitAsync(option.Length > 0 ? [option, "memory", "16M"] : ["memory", "16M"]);
        if (option.Contains("handshake", StringComparison.Ordinal))
        {
            await Assert.ThrowsAsync<NbdProtocolException>(() => server.ConnectAsync());
            return;
        }

        await using NbdClient client = await server.ConnectAsync();
        Assert.Equal(option.Length == 0, client.HasStructuredReplies);
        byte[] written = new byte[6 << 20];
        new Random(3).NextBytes(written);
        await client.WriteAsync(1 << 20, written, WriteFlags.Fua, CancellationToken.None);
        await client.WriteZeroesAsync(2 << 20, 1 << 20, WriteFlags.None, CancellationToken.None);
        written.AsSpan(1 << 20, 1 << 20).Clear();
        await client.FlushAsync(CancellationToken.None);
        byte[] read = new byte[written.Length];
        await Task.WhenAll(Enumerable.Range(0, 96).Select(i =>
            client.ReadAsync((1 << 20) + i * 65536, read.AsMemory(i * 65536, 65536), CancellationToken.None).AsTask()));
        Assert.True(read.AsSpan().SequenceEqual(written));
        IReadOnlyList<BlockExtent> extents = await client.ExtentsAsync(0, SizeBytes, CancellationToken.None);
        Assert.Equal(option.Length == 0 ? ExtentKind.Hole : ExtentKind.Data, extents[0].Kind);
    }

    [SkippableTheory]
    [InlineData("EIO", Errno.EIO)]
    [InlineData("ENOSPC", Errno.ENOSPC)]
    [InlineData("EPERM", Errno.EPERM)]
    public async Task An_error_of_the_server_is_the_callers_and_the_connection_lives_on(string error, Errno expected)
    {
        await using NbdServerProcess server = await NbdkitAsync(
            "--filter=error", "memory", "16M", $"error-pwrite={error}", "error-pwrite-rate=100%");
        await using NbdClient client = await server.ConnectAsync();
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(
            async () => await client.WriteAsync(0, new byte[4096], WriteFlags.None, CancellationToken.None));
        Assert.Equal(expected, e.Errno);
        await client.ReadAsync(0, new byte[4096], CancellationToken.None);
    }

    [SkippableFact]
    public async Task Many_reads_of_which_some_fail_each_get_their_own_answer()
    {
        await using NbdServerProcess server = await NbdkitAsync(
            "--filter=error", "pattern", "16M", "error-pread=EIO", "error-pread-rate=30%");
        await using NbdClient client = await server.ConnectAsync();
        bool[] isGood = await Task.WhenAll(Enumerable.Range(0, 200).Select(async i =>
        {
            byte[] read = new byte[4096];
            try
            {
                await client.ReadAsync(i * 4096L, read, CancellationToken.None);
            }
            catch (BlockIoException e) when (e.Errno == Errno.EIO)
            {
                return false;
            }

            // nbdkit's pattern: each eight bytes are their own offset, big-endian.
            Assert.Equal(i * 4096L + 8, System.Buffers.Binary.BinaryPrimitives.ReadInt64BigEndian(read.AsSpan(8)));
            return true;
        }));
        Assert.InRange(isGood.Count(static good => good), 80, 190);
    }

    [SkippableFact]
    public async Task A_slow_server_is_overtaken_timed_out_and_seen_to_stall()
    {
        await using NbdServerProcess server = await NbdkitAsync("--filter=delay", "memory", "16M", "delay-read=30", "delay-write=0");
        await using NbdClient client = await server.ConnectAsync("", new NbdClientOptions { RequestTimeout = TimeSpan.FromSeconds(1.5) });
        Task read = client.ReadAsync(0, new byte[4096], CancellationToken.None).AsTask();
        await client.WriteAsync(0, new byte[4096], WriteFlags.None, CancellationToken.None).AsTask().WaitAsync(Deadline);
        Assert.False(read.IsCompleted);
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(() => read.WaitAsync(Deadline));
        Assert.Equal(Errno.ETIMEDOUT, e.Errno);
    }

    [SkippableFact]
    public async Task A_killed_server_is_noticed_at_once()
    {
        await using NbdServerProcess server = await NbdkitAsync("--filter=delay", "memory", "16M", "delay-read=30");
        await using NbdClient client = await server.ConnectAsync();
        Task read = client.ReadAsync(0, new byte[4096], CancellationToken.None).AsTask();
        server.Kill();
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(() => read.WaitAsync(Deadline));
        Assert.Equal(Errno.ESHUTDOWN, e.Errno);
        Assert.Equal(Errno.ESHUTDOWN, (await client.Lost.WaitAsync(Deadline)).Errno);
    }

    [SkippableFact]
    public async Task Odd_sizes_and_small_limits_of_a_server_are_respected()
    {
        await using NbdServerProcess server = await NbdkitAsync(
            "--filter=blocksize-policy", "--filter=truncate", "memory", "16M", "truncate=10000001",
            "blocksize-minimum=1", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error");
        await using NbdClient client = await server.ConnectAsync();
        Assert.Equal((10000001L, 1, 65536), (client.LengthBytes, client.BlockSizeBytes, client.MaxPayloadBytes));
        byte[] written = new byte[1 << 20];
        new Random(4).NextBytes(written);
        await client.WriteAsync(10000001 - written.Length, written, WriteFlags.None, CancellationToken.None);
        byte[] read = new byte[written.Length];
        await client.ReadAsync(10000001 - written.Length, read, CancellationToken.None);
        Assert.True(read.AsSpan().SequenceEqual(written));
    }

    [SkippableFact]
    public async Task A_read_only_server_makes_a_read_only_device()
    {
        await using NbdServerProcess server = await NbdkitAsync("--readonly", "pattern", "16M");
        await using NbdClient client = await server.ConnectAsync();
        Assert.True(client.IsReadOnly);
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(
            async () => await client.WriteAsync(0, new byte[4096], WriteFlags.None, CancellationToken.None));
        Assert.Equal(Errno.EPERM, e.Errno);
    }

    [SkippableFact]
    public async Task Qemu_nbd_takes_our_writes_and_qemu_img_finds_them()
    {
        Skip.IfNot(Tool.Exists("qemu-nbd") && Tool.Exists("qemu-img"), Tool.Missing("qemu-nbd"));
        string image = folder.File("disk.qcow2");
        string expected = folder.File("expected.img");
        Assert.Equal(0, (await Tool.RunAsync("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")).ExitCode);
        byte[] content = new byte[SizeBytes];
        new Random(6).NextBytes(content.AsSpan(3 << 20, 5 << 20));
        await File.WriteAllBytesAsync(expected, content);
        await using (NbdServerProcess server = await NbdServerProcess.StartAsync(
            "qemu-nbd", Socket, "--format=qcow2", "--discard=unmap", "--export-name=disk", "--persistent", "--shared=4", $"--socket={Socket}", image))
        {
            await using NbdClient client = await server.ConnectAsync("disk");
            await client.WriteAsync(3 << 20, content.AsMemory(3 << 20, 5 << 20), WriteFlags.None, CancellationToken.None);
            await client.WriteAsync(12 << 20, content.AsMemory(3 << 20, 1 << 20), WriteFlags.None, CancellationToken.None);
            await client.TrimAsync(12 << 20, 1 << 20, WriteFlags.None, CancellationToken.None);
            await client.FlushAsync(CancellationToken.None);
            IReadOnlyList<BlockExtent> extents = await client.ExtentsAsync(0, SizeBytes, CancellationToken.None);
            Assert.Equal(new BlockExtent(0, 3 << 20, ExtentKind.Hole), extents[0]);
            Assert.Equal(ExtentKind.Data, extents[1].Kind);
            BlockIoException unknown = await Assert.ThrowsAsync<BlockIoException>(() => server.ConnectAsync("other"));
            Assert.Equal(Errno.ENOENT, unknown.Errno);
        }

        ChildResult compare = await Tool.RunAsync("qemu-img", "compare", "-f", "raw", "-F", "qcow2", expected, image);
        Assert.True(compare.ExitCode == 0, compare.StandardOutput + compare.StandardError);
    }

    private Task<NbdServerProcess> NbdkitAsync(params string[] arguments)
    {
        Skip.IfNot(Tool.Exists("nbdkit"), Tool.Missing("nbdkit"));
        return NbdServerProcess.StartAsync("nbdkit", Socket, ["--foreground", "-U", Socket, .. arguments]);
    }
}
