// ./demo as a newcomer runs it: real processes, real disks. Each line of "Done when" that a machine can check.
using System.Security.Cryptography;
using System.Text.Json.Nodes;
using Platform;
using Support;
using Vhd;

namespace EndToEnd;

public class DemoTests
{
    [Fact]
    public async Task A_running_vm_moves_its_bytes_are_verified_and_nothing_is_left()
    {
        (int exitCode, JsonNode result) = await DemoAsync("--json");

        Assert.Equal(0, exitCode);
        Assert.True((bool)result["migrated"]!);
        Assert.True((bool)result["verified"]!);
        Assert.True((bool)result["restored"]!);
        Assert.Equal(0, (int)result["leftovers"]!);
        Assert.Equal(0, (int)result["writes_lost"]!);
        Assert.Equal((long)result["bytes_logical"]!, (long)result["bytes_compared"]!);
        Assert.InRange((long)result["bytes_sent"]!, 1, (long)result["bytes_logical"]! / 2);
        Assert.InRange((double)result["blackout_ms"]!, 0.1, 10_000);
        Assert.Equal(64, ((string)result["receipt"]!["digests"]!["disks"]![0]!["root"]!).Length);
    }

    [SkippableFact]
    public async Task A_disk_of_the_callers_arrives_and_qemu_img_finds_it_identical()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        Skip.IfNot(File.Exists("/usr/sbin/mkfs.ext4"), Tool.Missing("mkfs.ext4"));
        using TemporaryDirectory folder = new();
        string disk = await MakeDiskAsync(folder);
        byte[] before = SHA256.HashData(await File.ReadAllBytesAsync(disk));

        (int exitCode, JsonNode result) = await DemoAsync("--json", "--disk", disk, "--keep", folder.File("kept"));

        Assert.Equal(0, exitCode);
        Assert.True((bool)result["verified"]!);
        Assert.Equal(0, (int)result["leftovers"]!);
        Assert.Equal(before, SHA256.HashData(await File.ReadAllBytesAsync(disk)));
        ChildResult compare = await Tool.RunAsync("qemu-img", "compare", "-f", "vpc", "-F", "vpc", disk, folder.File("kept/destination.vhd"));
        Assert.Equal("Images are identical.", compare.StandardOutput.Trim());
    }

    [Fact]
    public async Task When_the_destinations_tapdisk_is_killed_in_the_copy_the_migration_goes_on_and_nothing_is_lost_or_left()
    {
        (int exitCode, JsonNode result) = await DemoAsync("--json", "--fault", "kill-destination-tapdisk");

        Assert.Equal(0, exitCode);
        Assert.True((bool)result["migrated"]!);
        Assert.True((bool)result["verified"]!);
        Assert.Equal("destination", (string)result["vm_runs_on"]!);
        Assert.Equal(0, (int)result["writes_lost"]!);
        Assert.Equal(0, (int)result["leftovers"]!);
    }

    [Theory]
    [InlineData("bad checksum")]
    [InlineData("truncated BAT")]
    [InlineData("BAT entry past the end")]
    [InlineData("missing parent")]
    public async Task A_broken_disk_is_refused_by_name_before_anything_starts(string how)
    {
        using TemporaryDirectory folder = new();
        string disk = await BreakAsync(folder, how);

        (int exitCode, JsonNode result) = await DemoAsync("--json", "--disk", disk);

        Assert.Equal(2, exitCode);
        Assert.False((bool)result["migrated"]!);
        Assert.Contains(disk, (string)result["error"]!, StringComparison.Ordinal);
    }

    private static async Task<(int ExitCode, JsonNode Result)> DemoAsync(params string[] arguments)
    {
        ChildResult demo = await ChildProcess.RunAsync(
            Path.Combine(ServedPools.Out, "demo"), arguments, "", new Dictionary<string, string?>(), TimeSpan.FromSeconds(120), 1 << 20,
            CancellationToken.None);
        string last = demo.StandardOutput.Trim().Split('\n')[^1];
        Assert.True(last.StartsWith('{'), $"no JSON came last; exit {demo.ExitCode}: {demo.StandardOutput}{demo.StandardError}");
        return (demo.ExitCode, JsonNode.Parse(last)!);
    }

    private static async Task<string> MakeDiskAsync(TemporaryDirectory folder)
    {
        string files = Directory.CreateDirectory(folder.File("files")).FullName;
        Random random = new(7);
        for (int i = 0; i < 40; i++)
        {
            byte[] content = new byte[random.Next(1, 1 << 20)];
            random.NextBytes(content);
            await File.WriteAllBytesAsync(Path.Combine(files, $"file{i}"), content);
        }

        await using (FileStream raw = File.Create(folder.File("disk.raw")))
            raw.SetLength(256 << 20);
        Assert.Equal(0, (await Tool.RunAsync("/usr/sbin/mkfs.ext4", "-q", "-F", "-d", files, folder.File("disk.raw"))).ExitCode);
        Assert.Equal(0, (await Tool.RunAsync("qemu-img", "convert", "-f", "raw", "-O", "vpc", folder.File("disk.raw"), folder.File("disk.vhd"))).ExitCode);
        return folder.File("disk.vhd");
    }

    private static async Task<string> BreakAsync(TemporaryDirectory folder, string how)
    {
        string disk = folder.File("disk.vhd");
        VhdImage.CreateDynamic(disk, 16 << 20);
        await using (VhdChain chain = VhdChain.Open(disk, new VhdOpenOptions()))
            await chain.WriteAsync(0, new byte[] { 1 }.Concat(new byte[4095]).ToArray(), WriteFlags.None, CancellationToken.None);
        const int batOffset = 1536;
        byte[] bytes = await File.ReadAllBytesAsync(disk);
        switch (how)
        {
            case "bad checksum":
                bytes[64] ^= 1; // In the copy at 0 and in the trailing footer: with one of them whole it would open.
                bytes[^448] ^= 1;
                break;
            case "truncated BAT":
                bytes = bytes[..(batOffset + 8)];
                break;
            case "BAT entry past the end":
                bytes[batOffset] = 0x7f;
                break;
            case "missing parent":
                VhdImage.CreateSnapshot(folder.File("child.vhd"), disk);
                File.Delete(disk);
                return folder.File("child.vhd");
        }

        await File.WriteAllBytesAsync(disk, bytes);
        return disk;
    }
}
