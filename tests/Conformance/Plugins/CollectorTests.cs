// sr-gc as a program, with a real tapdisk whose guest writes meanwhile, judged by qemu-io: merges of bases and of the disk in use, the
// lease, and kill -9 at random moments.
using System.Diagnostics;
using Platform;
using StorageAccess.Tap;
using Support;
using Vhd;
using Vhd.Collect;

namespace Conformance.PluginsTests;

public sealed class CollectorTests : IAsyncLifetime
{
    private const long DiskBytes = 64 << 20;
    private const string Disk = "d1";
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly TemporaryDirectory folder = new();
    private readonly TapControl taps;
    private readonly ImageFolder images;

    public CollectorTests()
    {
        taps = new TapControl(folder.Path);
        Directory.CreateDirectory(folder.File("sr"));
        File.WriteAllText(folder.File("sr/.sr.json"), """{"Uuid":"u","Name":"","Description":"","QuotaBytes":0,"MadeFolder":true}""");
        images = new ImageFolder(folder.File("sr"));
        VhdImage.CreateDynamic(images.PathOf(Disk), DiskBytes);
    }

    public Task InitializeAsync() => Task.CompletedTask;

    public async Task DisposeAsync()
    {
        foreach (TapEntry entry in await taps.ListAsync(None))
        {
            if (entry.ProcessId is { } processId)
                Posix.TryKill(processId, 9);
        }

        folder.Dispose();
    }

    [SkippableFact]
    public async Task A_guest_writes_through_inner_and_leaf_merges_and_a_lease_keeps_them_off()
    {
        Skip.IfNot(Tool.Exists("qemu-io"), Tool.Missing("qemu-io"));
        await MakeChainAsync();
        string socket = await OpenAsync();
        using (ImageLease.Take(images.PathOf(Disk), TimeSpan.FromSeconds(1)))
            Assert.Contains("leased", (await CollectAsync()).StandardOutput);
        Assert.Equal(4, images.Keys().Count);

        Task guest = IoAsync(socket, [.. Enumerable.Range(0, 60).Select(static i => $"write -P {i + 1} {40 + i / 4}M 64k")]);
        ChildResult result = await CollectAsync();
        await guest;
        Assert.True(result.ExitCode == 0, result.StandardOutput + result.StandardError);
        Assert.Equal([Disk], images.Keys());
        Assert.Equal([".sr.json", "d1.vhd"], Directory.GetFiles(images.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal));
        Assert.Null(VhdImage.ReadInfo(images.PathOf(Disk)).ParentName);
        await VerifyAsync(socket);
        await IoAsync(socket, "read -P 60 54M 64k");
    }

    [SkippableFact]
    public async Task A_collector_that_is_killed_twenty_times_loses_nothing_and_the_next_one_leaves_nothing()
    {
        Skip.IfNot(Tool.Exists("qemu-io"), Tool.Missing("qemu-io"));
        await MakeChainAsync();
        string socket = await OpenAsync();
        Random random = new(4);
        for (int life = 0; life < 20; life++)
        {
            using Process collector = Process.Start(StartOf("--rate", "12"))!;
            // The fault itself: a moment that nothing announces.
            await Task.WhenAny(collector.WaitForExitAsync(None), Task.Delay(random.Next(20, 700), None));
            collector.Kill();
            await collector.WaitForExitAsync(None);
            // Its pause ended with it: the guest goes on although nobody has mended anything.
            await IoAsync(socket, "read -P 0x11 8M 4M", $"write -P {life + 1} 40M 64k");
            Assert.True((await DoctorAsync("--mend")).ExitCode == 0);
            await VerifyAsync(socket, $"read -P {life + 1} 40M 64k");
        }

        ChildResult result = await CollectAsync();
        Assert.True(result.ExitCode == 0, result.StandardOutput + result.StandardError);
        await VerifyAsync(socket);
        Assert.Equal([".sr.json", "d1.vhd"], Directory.GetFiles(images.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal));
    }

    [SkippableFact]
    public async Task The_doctor_shows_every_image_beside_a_broken_one()
    {
        await MakeChainAsync();
        File.WriteAllBytes(images.PathOf("broken"), new byte[4096]);
        ChildResult result = await DoctorAsync();
        Assert.Equal(1, result.ExitCode);
        Assert.Contains("error: broken: cannot be read", result.StandardOutput);
        Assert.Contains("d1  64 MiB", result.StandardOutput);
        Assert.Contains("4 images, deepest 4, 1 errors", result.StandardOutput);
    }

    /// <summary>Three hidden bases under the disk, each with something of its own.</summary>
    private async Task MakeChainAsync()
    {
        for (int i = 1; i <= 3; i++)
        {
            await using (VhdChain chain = VhdChain.Open(images.PathOf(Disk), new VhdOpenOptions()))
            {
                byte[] data = new byte[4 << 20];
                data.AsSpan().Fill((byte)(0x10 + i));
                await chain.WriteAsync(i * (8L << 20), data, WriteFlags.None, None);
            }

            images.Fork(Disk, $"base{i}", newKey: null);
        }
    }

    private static async Task VerifyAsync(string socket, params string[] more) => await IoAsync(
        socket, ["read -P 0 0 8M", "read -P 0x11 8M 4M", "read -P 0x12 16M 4M", "read -P 0x13 24M 4M", "read -P 0 28M 4M", .. more]);

    private async Task<string> OpenAsync()
    {
        int processId = await taps.SpawnAsync(Path.GetDirectoryName(Built("tapdisk", "Tapdisk"))!, None);
        int minor = await taps.AllocateMinorAsync(None);
        await taps.AttachAsync(processId, minor, None);
        await taps.OpenAsync(processId, minor, "vhd:" + images.PathOf(Disk), TapOpenFlags.None, null, None);
        return taps.NbdSocketPath(processId, minor);
    }

    private static async Task IoAsync(string socket, params string[] commands)
    {
        List<string> arguments = ["-f", "raw"];
        foreach (string command in commands)
            arguments.AddRange("-c", command);
        ChildResult result = await Tool.RunAsync("qemu-io", [.. arguments, $"nbd+unix:///?socket={socket}"]);
        Assert.True(result.ExitCode == 0 && !result.StandardOutput.Contains("failed"), result.StandardOutput + result.StandardError);
    }

    private Task<ChildResult> CollectAsync() => RunAsync([images.Path]);

    private Task<ChildResult> DoctorAsync(params string[] options) => RunAsync(["doctor", images.Path, .. options]);

    private Task<ChildResult> RunAsync(string[] arguments) => ChildProcess.RunAsync(
        Built("sr-gc"), arguments, "", new Dictionary<string, string?> { ["BLKTAP_CONTROL_DIRECTORY"] = folder.Path },
        TimeSpan.FromMinutes(1), 1 << 20, None);

    private ProcessStartInfo StartOf(params string[] options)
    {
        ProcessStartInfo start = new(Built("sr-gc"), [images.Path, .. options])
        {
            RedirectStandardError = true,
            RedirectStandardOutput = true,
        };
        start.Environment["BLKTAP_CONTROL_DIRECTORY"] = folder.Path;
        return start;
    }

    /// <summary>The newest build of an executable of ours; the project file makes sure that there is one.</summary>
    private static string Built(string program, string? project = null)
    {
        string root = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(root, "Storage.sln")))
            root = Path.GetDirectoryName(root)!;
        return Directory.GetFiles(Path.Combine(root, "artifacts/bin", project ?? program), program, SearchOption.AllDirectories)
            .OrderByDescending(File.GetLastWriteTimeUtc).First();
    }
}
