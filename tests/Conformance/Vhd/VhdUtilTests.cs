// The command as a script runs it: output, messages and exit codes of the built executable.
using Platform;
using Support;
using Vhd;

namespace Conformance.VhdTests;

public sealed class VhdUtilTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [Fact]
    public async Task A_disk_its_child_and_its_copy_are_made_and_described_as_the_field_does()
    {
        string disk = directory.File("disk.vhd"), child = directory.File("child.vhd"), flat = directory.File("flat.vhd");
        await SaysAsync(0, "", "create", "-n", disk, "-s", "10");
        await using (VhdChain chain = VhdChain.Open(disk, new VhdOpenOptions()))
            await chain.WriteAsync(0, new byte[512], WriteFlags.None, CancellationToken.None);
        await SaysAsync(0, "", "snapshot", "-n", child, "-p", disk);
        await SaysAsync(0, "", "set", "-n", disk, "-f", "hidden", "-v", "1");
        await SaysAsync(0, $"10\n5120\n{disk}\nhidden: 0\nchain depth: 2\n", "query", "-n", child, "-vsfpd");
        await SaysAsync(0, $"{disk} has no parent\nhidden: 1\n", "query", "-n", disk, "-p", "-f");
        await SaysAsync(0, $"{child} is valid\n", "check", "-n", child);
        await SaysAsync(0, "", "copy", "-n", child, "--to", flat);
        await SaysAsync(0, $"{flat} has no parent\n", "query", "-n", flat, "-p");
        File.Move(disk, directory.File("moved.vhd"));
        await SaysAsync(1, "", "check", "-n", child);
        await SaysAsync(0, "", "modify", "-n", child, "-p", directory.File("moved.vhd"));
        await SaysAsync(0, $"{child} is valid\n", "check", "-n", child);
    }

    [Fact]
    public async Task A_chain_is_scanned_merged_resized_repaired_and_read_as_scripts_expect()
    {
        string disk = directory.File("disk.vhd"), child = directory.File("child.vhd");
        await SaysAsync(0, "", "create", "-n", disk, "-s", "10");
        byte[] data = new byte[4096];
        data.AsSpan().Fill((byte)'x');
        await using (VhdChain chain = VhdChain.Open(disk, new VhdOpenOptions()))
            await chain.WriteAsync(0, data, WriteFlags.None, CancellationToken.None);
        await SaysAsync(0, "", "snapshot", "--debug", "-n", child, "-p", disk);
        await using (VhdChain chain = VhdChain.Open(child, new VhdOpenOptions()))
            await chain.WriteAsync(8192, data, WriteFlags.None, CancellationToken.None);
        long diskBytes = new FileInfo(disk).Length, childBytes = new FileInfo(child).Length;
        string childLine = $"vhd=child.vhd capacity=10485760 size={childBytes} hidden=0 parent=disk.vhd\n";
        string diskLine = $"vhd=disk.vhd capacity=10485760 size={diskBytes} hidden=0 parent=none\n";
        await SaysAsync(0, childLine + diskLine, "scan", "-f", "-m", directory.File("*.vhd"));
        await SaysAsync(0, diskLine + "   " + childLine, "scan", "-p", directory.Path);
        await File.WriteAllTextAsync(directory.File("a.vhd"), "no image");
        ChildResult scan = await RunAsync("scan", "-f", "-c", "-m", directory.File("*.vhd"));
        Assert.Equal(0, scan.ExitCode);
        Assert.StartsWith($"vhd={directory.File("a.vhd")} scan-error=-22 error-message='", scan.StandardOutput, StringComparison.Ordinal);
        Assert.EndsWith(childLine + diskLine, scan.StandardOutput, StringComparison.Ordinal);
        Assert.Equal(1, (await RunAsync("scan", directory.Path)).ExitCode);
        await SaysAsync(0, "Coalesced 8 sectors\n", "coalesce", "--debug", "-n", child);
        await SaysAsync(0, new string('x', 512) + new string('x', 512), "read", "-n", disk, "-r", "16", "-c", "2");
        await SaysAsync(1, "", "resize", "-n", disk, "-s", "1024", "-f");
        await SaysAsync(0, "", "resize", "--debug", "-n", disk, "-s", "1024", "-j", directory.File("journal"));
        await SaysAsync(0, "1024\n", "query", "-n", disk, "-v");
        Assert.Equal(0, (await RunAsync("query", "-n", disk, "--json")).ExitCode);
        using (FileStream file = File.OpenWrite(disk))
            file.SetLength(file.Length - 512);
        await SaysAsync(1, "", "check", "-n", disk);
        await SaysAsync(0, $"{disk} is valid\n", "check", "-n", disk, "-i");
        await SaysAsync(0, "", "repair", "-n", disk);
        await SaysAsync(0, $"{disk} is valid\n", "check", "-n", disk);
    }

    [Fact]
    public async Task A_bad_request_has_one_clear_line_and_its_own_exit_code()
    {
        ChildResult missing = await SaysAsync(1, "", "query", "-n", directory.File("none"), "-v");
        Assert.StartsWith($"error opening {directory.File("none")}: -2\n", missing.StandardError, StringComparison.Ordinal);
        ChildResult unknown = await SaysAsync(2, "", "frobnicate");
        Assert.Contains("frobnicate", unknown.StandardError, StringComparison.Ordinal);
        ChildResult bad = await SaysAsync(1, "", "create", "-n", directory.File("big"), "-s", "9999999999");
        Assert.Contains("cannot be made", bad.StandardError, StringComparison.Ordinal);
        Assert.Empty(Directory.GetFileSystemEntries(directory.Path));
    }

    private static async Task<ChildResult> SaysAsync(int exitCode, string output, params string[] arguments)
    {
        ChildResult result = await RunAsync(arguments);
        Assert.Equal((exitCode, output), (result.ExitCode, result.StandardOutput));
        return result;
    }

    private static Task<ChildResult> RunAsync(params string[] arguments) => VhdUtilProgram.RunAsync(arguments);
}
