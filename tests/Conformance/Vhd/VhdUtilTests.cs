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
        // Beside our own folder in the build's output: .../bin/Conformance/release/ and .../bin/vhd-util/release/.
        string own = AppContext.BaseDirectory.TrimEnd('/');
        string program = Path.Combine(own, "..", "..", "vhd-util", Path.GetFileName(own), "vhd-util");
        ChildResult result = await Tool.RunAsync(program, arguments);
        Assert.Equal((exitCode, output), (result.ExitCode, result.StandardOutput));
        return result;
    }
}
