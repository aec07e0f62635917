// Our copies, streams and pushes judged by qemu-img and received by nbdkit, through the built command.
using Conformance.NbdTests;
using Platform;
using Support;
using Vhd;

namespace Conformance.VhdTransferTests;

public sealed class ForeignJudges : IDisposable
{
    private const int SizeBytes = 20 << 20;
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [SkippableFact]
    public async Task A_copy_reads_the_same_to_qemu_new_in_place_raw_and_fixed()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        string disk = await DiskAsync(1), other = await DiskAsync(2);
        string copy = directory.File("copy.vhd"), raw = directory.File("copy.raw"), isFixed = directory.File("fixed.vhd");
        await SaysAsync(0, "copy", disk, copy);
        await EqualToQemuAsync(disk, "vpc", copy);
        await SaysAsync(0, "copy", other, copy, "--in-place", "--verify");
        await EqualToQemuAsync(other, "vpc", copy);
        await SaysAsync(0, "convert", "-O", "raw", other, raw);
        await EqualToQemuAsync(other, "raw", raw);
        await SaysAsync(0, "convert", "-O", "fixed", disk, isFixed, "--threads", "1");
        await EqualToQemuAsync(disk, "vpc", isFixed);
        await SaysAsync(0, "convert", "-f", "raw", "-O", "vhd", raw, directory.File("back.vhd"));
        Assert.Equal("equal\n", (await SaysAsync(0, "compare", other, directory.File("back.vhd"))).StandardOutput);
        Assert.StartsWith("different at byte ", (await SaysAsync(1, "compare", disk, other)).StandardOutput, StringComparison.Ordinal);
        Assert.Equal("[]\n", (await SaysAsync(0, "diff", other, raw, "--raw-b", "--json")).StandardOutput);
    }

    [SkippableTheory]
    [InlineData("INT")]
    [InlineData("TERM")]
    public async Task An_import_that_is_stopped_while_it_waits_for_its_sender_leaves_nothing(string signal)
    {
        string disk = await DiskAsync(5), folder = directory.File("stopped");
        Directory.CreateDirectory(folder);
        // The sender keeps the pipe open after half an image; a shell's background command ignores SIGINT, so Python starts it.
        string script = $$"""
            import subprocess, signal, time, os
            half = open('{{disk}}', 'rb').read()[:3000000]
            p = subprocess.Popen(['{{Program}}', 'import', '{{folder}}/in.vhd'], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                                 preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
            p.stdin.write(half); p.stdin.flush()
            while not os.listdir('{{folder}}'): time.sleep(0.01)
            p.send_signal(signal.SIG{{signal}})
            print(p.wait(20), p.stderr.read().decode(), os.listdir('{{folder}}'))
            """;
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        ChildResult result = await Tool.RunAsync("python3", "-c", script);
        Assert.True(result.ExitCode == 0, result.StandardError);
        Assert.StartsWith("1 vhd-util: stopped", result.StandardOutput, StringComparison.Ordinal);
        Assert.EndsWith("[]\n", result.StandardOutput, StringComparison.Ordinal);
    }

    [SkippableFact]
    public async Task A_pushed_disk_replaces_what_the_server_held_and_has_the_same_digest()
    {
        Skip.IfNot(Tool.Exists("nbdkit"), Tool.Missing("nbdkit"));
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        string disk = await DiskAsync(3), socket = directory.File("nbd.sock");
        await using NbdServerProcess server =
            await NbdServerProcess.StartAsync("nbdkit", socket, "-f", "-U", socket, "memory", $"{SizeBytes}");
        string uri = $"nbd+unix:///?socket={socket}";
        foreach (string[] flags in new string[][] { [], ["--no-digest"], ["--no-digest", "--no-zero-scan", "--threads", "1"] })
        {
            await SaysAsync(0, "copy", await DiskAsync(4), uri);
            ChildResult pushed = await SaysAsync(0, ["copy", disk, uri, "--json", .. flags]);
            await EqualToQemuAsync(disk, "raw", uri);
            if (flags.Length == 0)
                Assert.Contains(await DigestAsync(disk), pushed.StandardOutput, StringComparison.Ordinal);
        }

        string larger = directory.File("larger.vhd");
        VhdImage.CreateDynamic(larger, SizeBytes + 512);
        Assert.Contains("nothing was sent", (await SaysAsync(1, "copy", larger, uri)).StandardError, StringComparison.Ordinal);
    }

    [SkippableFact]
    public async Task A_server_that_fails_a_write_fails_the_push_with_its_reason()
    {
        Skip.IfNot(Tool.Exists("nbdkit"), Tool.Missing("nbdkit"));
        string disk = await DiskAsync(5), socket = directory.File("nbd.sock");
        await using NbdServerProcess server = await NbdServerProcess.StartAsync(
            "nbdkit",
            socket,
            "-f", "-U", socket, "--filter=error", "memory", $"{SizeBytes}", "error=ENOSPC", "error-pwrite-rate=100%");
        ChildResult failed = await SaysAsync(1, "copy", disk, $"nbd+unix:///?socket={socket}");
        Assert.Contains("ENOSPC", failed.StandardError, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_disk_goes_through_a_pipe()
    {
        string disk = await DiskAsync(6), arrived = directory.File("arrived.vhd"), program = Program;
        ChildResult piped = await Tool.RunAsync("sh", "-c", $"'{program}' export '{disk}' | '{program}' import '{arrived}'");
        Assert.Equal((0, ""), (piped.ExitCode, piped.StandardError));
        Assert.Equal(await DigestAsync(disk), await DigestAsync(arrived));
        string cutPipe = $"'{program}' export '{disk}' | head -c 3000000 | '{program}' import '{arrived}2'";
        ChildResult cut = await Tool.RunAsync("sh", "-c", cutPipe);
        Assert.Equal((1, false), (cut.ExitCode, File.Exists(arrived + "2")));
    }

    // Beside our own folder in the build's output: .../bin/Conformance/release/ and .../bin/vhd-util/release/.
    private static string Program
    {
        get
        {
            string own = AppContext.BaseDirectory.TrimEnd('/');
            return Path.GetFullPath(Path.Combine(own, "..", "..", "vhd-util", Path.GetFileName(own), "vhd-util"));
        }
    }

    private async Task<string> DiskAsync(int seed)
    {
        string path = directory.File($"{seed}-{Guid.NewGuid():n}.vhd");
        VhdImage.CreateDynamic(path, SizeBytes);
        Random random = new(seed);
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        for (int i = 0; i < 30; i++)
        {
            byte[] data = new byte[random.Next(1, 600) * 512];
            if (i % 3 > 0)
                random.NextBytes(data);
            await chain.WriteAsync(random.Next((SizeBytes - data.Length) / 512) * 512L, data, WriteFlags.None, CancellationToken.None);
        }

        return path;
    }

    private static async Task<string> DigestAsync(string disk) => (await SaysAsync(0, "digest", disk)).StandardOutput.Trim();

    private static async Task EqualToQemuAsync(string disk, string format, string other)
    {
        ChildResult result = await Tool.RunAsync("qemu-img", "compare", "-f", "vpc", "-F", format, disk, other);
        Assert.Equal((0, "Images are identical.\n"), (result.ExitCode, result.StandardOutput));
    }

    private static async Task<ChildResult> SaysAsync(int exitCode, params string[] arguments)
    {
        ChildResult result = await Tool.RunAsync(Program, arguments);
        Assert.True(result.ExitCode == exitCode, $"exit {result.ExitCode}: {result.StandardError}{result.StandardOutput}");
        return result;
    }
}
