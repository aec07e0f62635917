// tap-ctl as a driver runs it, against tapdisk processes of ours: every flag is acted on, or refused with its errno and nothing changed.
using Platform;
using StorageAccess.Tap;
using Support;
using Vhd;

namespace Conformance.TapdiskTests;

public sealed class TapCtlTests
{
    private const long DiskBytes = 4 << 20;

    [Fact]
    public async Task A_minor_can_be_fixed_and_is_taken_once()
    {
        await using TapdiskWorld world = new();
        string path = world.Control.MinorPath(7);
        await SaysAsync(world, 0, path + "\n", "", "allocate", "-m", "7");
        await SaysAsync(world, 17, "", "", "allocate", "-m", "7");
        await SaysAsync(world, 22, "", "", "allocate", "-m", "16384");
        await SaysAsync(world, 0, world.Control.MinorPath(0) + "\n", "", "allocate");
        await SaysAsync(world, 0, "", "", "free", "-m", "7");
        await SaysAsync(world, 0, path + "\n", "", "allocate", "-m7");
        bool hasDriver = File.ReadLines("/proc/devices").Any(static line => line.EndsWith(" tapdev", StringComparison.Ordinal));
        Assert.Equal(hasDriver ? 0 : 19, (await RunAsync(world, "", "major")).ExitCode);
        await SaysAsync(world, 22, "", "", "major", "-c");
    }

    [Fact]
    public async Task A_disk_is_created_on_a_fixed_minor_or_nothing_is_left()
    {
        await using TapdiskWorld world = new();
        string image = world.CreateVhd("a.vhd", DiskBytes);
        string tools = world.PathOf("tools");
        Directory.CreateDirectory(tools);
        foreach (string file in Directory.EnumerateFiles(Path.GetDirectoryName(TapCtl)!))
            File.Copy(file, Path.Combine(tools, Path.GetFileName(file)));
        string[] create = ["--control-directory", world.Control.ControlDirectory, "create", "-m", "9", "-a", "vhd:" + image];
        Assert.Equal(2, (await Tool.RunAsync(Path.Combine(tools, "tap-ctl"), create)).ExitCode); // No tapdisk beside it.
        Assert.False(File.Exists(world.Control.MinorPath(9)));

        string tapdisk = Path.Combine(tools, "tapdisk");
        await File.WriteAllTextAsync(tapdisk, $"#!/bin/sh\nexec '{Path.Combine(AppContext.BaseDirectory, "tapdisk")}' \"$@\"\n");
        File.SetUnixFileMode(tapdisk, UnixFileMode.UserRead | UnixFileMode.UserExecute);
        Assert.Equal(22, (await Tool.RunAsync(Path.Combine(tools, "tap-ctl"), [.. create, "-s"])).ExitCode);
        Assert.False(File.Exists(world.Control.MinorPath(9)));
        ChildResult created = await Tool.RunAsync(Path.Combine(tools, "tap-ctl"), create);
        Assert.Equal((0, world.Control.MinorPath(9) + "\n"), (created.ExitCode, created.StandardOutput));
        TapEntry entry = Assert.Single(await world.Control.ListAsync(default));
        Assert.Equal((9, "vhd:" + image), (entry.Minor, entry.Arguments));
        await SaysAsync(world, 17, "", "", [.. create[2..]]);
        await SaysAsync(world, 0, "", "", "destroy", "-p", $"{entry.ProcessId}", "-m", "9", "-t", "20");
        Assert.False(File.Exists(world.Control.MinorPath(9)));
    }

    [Fact]
    public async Task What_a_tapdisk_of_ours_cannot_do_is_refused_and_nothing_is_open()
    {
        await using TapdiskWorld world = new();
        int processId = await world.SpawnAsync();
        await world.Control.AttachAsync(processId, 0, default);
        string[] open = ["open", "-p", $"{processId}", "-m", "0", "-a", "vhd:" + world.CreateVhd("a.vhd", DiskBytes)];
        string key = new('k', 32);
        await SaysAsync(world, 95, "", "", [.. open, "-C", world.PathOf("a.log")]);
        await SaysAsync(world, 36, "", "", [.. open, "-C", new string('l', 256)]);
        await SaysAsync(world, 95, "", key, [.. open, "-E"]);
        await SaysAsync(world, 95, "", key + key, [.. open, "-E", "-C", "/log"]);
        await SaysAsync(world, 22, "", key + "k", [.. open, "-E"]);
        await SaysAsync(world, 22, "", "", [.. open, "-s"]);
        await SaysAsync(world, 95, "", "", [.. open, "-s", "-2", "nbd:/nowhere"]);
        await SaysAsync(world, 22, "", "", [.. open, "-t", "65536"]);
        Assert.Null((await world.Control.ListProcessAsync(processId, default)).Single().Arguments);
        ChildResult refused = await RunAsync(world, key, [.. open, "-E"]);
        Assert.Contains("Encrypted is not served", refused.StandardError, StringComparison.Ordinal);
        string log = await File.ReadAllTextAsync(Path.Combine(world.Control.ControlDirectory, "tapdisk.log"));
        Assert.DoesNotContain(key, log, StringComparison.Ordinal);

        await SaysAsync(world, 0, "", "", [.. open, "-R", "-D", "-r", "-t", "40"]);
        await SaysAsync(world, 0, "", "", "pause", "-p", $"{processId}", "-m", "0", "-t", "20");
        await SaysAsync(world, 95, "", "", "unpause", "-p", $"{processId}", "-m", "0", "-c", world.PathOf("a.log"));
        Assert.True((await world.Control.ListProcessAsync(processId, default)).Single().State.HasFlag(TapState.Paused));
        await SaysAsync(world, 0, "", "", "unpause", "-p", $"{processId}", "-m", "0");
        await SaysAsync(world, 22, "", "", "close", "-p", $"{processId}", "-m", "0", "-t", "0");
        await SaysAsync(world, 0, "", "", "close", "-p", $"{processId}", "-m", "0", "-t", "120");
    }

    [Fact]
    public async Task A_disk_is_stacked_on_the_minor_that_serves_its_parent_and_on_no_other()
    {
        await using TapdiskWorld world = new();
        string parent = world.CreateVhd("parent.vhd", DiskBytes), other = world.CreateVhd("other.vhd", DiskBytes);
        string child = world.PathOf("child.vhd");
        VhdImage.CreateSnapshot(child, parent);
        File.CreateSymbolicLink(world.PathOf("link.vhd"), parent);
        int first = await world.SpawnAsync(), second = await world.SpawnAsync();
        foreach ((int process, int minor, string image) in new[] { (first, 3, "link.vhd"), (first, 4, "other.vhd"), (second, 6, "") })
        {
            await world.Control.AttachAsync(process, minor, default);
            if (image.Length > 0)
                await world.Control.OpenAsync(process, minor, "vhd:" + world.PathOf(image), TapOpenFlags.ReadOnly, null, default);
        }

        await world.Control.AttachAsync(first, 5, default);
        string[] here = ["open", "-p", $"{first}", "-m", "5", "-a", "vhd:" + child];
        string[] elsewhere = ["open", "-p", $"{second}", "-m", "6", "-a", "vhd:" + child];
        await SaysAsync(world, 22, "", "", [.. here, "-e", "4"]);
        await SaysAsync(world, 19, "", "", [.. here, "-e", "6"]); // Attached, and nothing open there.
        await SaysAsync(world, 19, "", "", [.. here, "-e", "77"]);
        ChildResult refused = await RunAsync(world, "", [.. elsewhere, "-e", "4"]);
        Assert.Equal(22, refused.ExitCode);
        Assert.Contains($"minor 4 serves vhd:{other}", refused.StandardError, StringComparison.Ordinal);
        await SaysAsync(world, 0, "", "", [.. here, "-e", "3"]);
        await SaysAsync(world, 0, "", "", "close", "-p", $"{first}", "-m", "5");
        await SaysAsync(world, 0, "", "", [.. elsewhere, "-e", "3"]);
        Assert.Equal("vhd:" + child, (await world.Control.ListProcessAsync(second, default)).Single().Arguments);
    }

    private static string TapCtl
    {
        get
        {
            string own = AppContext.BaseDirectory.TrimEnd('/');
            return Path.Combine(own, "..", "..", "tap-ctl", Path.GetFileName(own), "tap-ctl");
        }
    }

    private static async Task SaysAsync(TapdiskWorld world, int exitCode, string output, string input, params string[] arguments)
    {
        ChildResult result = await RunAsync(world, input, arguments);
        Assert.Equal((exitCode, output), (result.ExitCode, result.StandardOutput));
        Assert.Equal(exitCode != 0, result.StandardError.Length > 0);
    }

    private static Task<ChildResult> RunAsync(TapdiskWorld world, string input, params string[] arguments) => ChildProcess.RunAsync(
        TapCtl,
        ["--control-directory", world.Control.ControlDirectory, .. arguments],
        input,
        new Dictionary<string, string?>(),
        TimeSpan.FromMinutes(1),
        1 << 20,
        CancellationToken.None);
}
