// The verbs that look into an image or change one field of it, as scripts of the field run them: letters, lines, raw bytes, exit codes.
// Raw bytes are judged by od, hashes by sha256sum.
using Platform;
using Support;
using Vhd;

namespace Conformance.VhdTests;

public sealed class VhdUtilVerbsTests : IAsyncLifetime
{
    private readonly TemporaryDirectory directory = new();
    private readonly string disk, child;

    public VhdUtilVerbsTests()
    {
        disk = directory.File("disk.vhd");
        child = directory.File("child.vhd");
    }

    public async Task InitializeAsync()
    {
        VhdImage.CreateDynamic(disk, 20 << 20);
        await WriteAsync(disk, 0, 'p', 8);
        await WriteAsync(disk, 9, 'q', 8);
        VhdImage.CreateSnapshot(child, disk);
        await WriteAsync(child, 1, 'x', 3);
        await WriteAsync(child, 9, 'y', 2);
    }

    public Task DisposeAsync()
    {
        directory.Dispose();
        return Task.CompletedTask;
    }

    [Fact]
    public async Task What_an_image_stores_is_read_piece_by_piece()
    {
        const long block1 = 8192 - 512; // The metadata ends at 4608; data begins on a multiple of 4 KiB.
        await SaysAsync($"block: 1: offset: {block1}\nblock: 2: offset: not allocated\n", "read", "-n", child, "-b", "1", "-c", "2");
        await SaysAsync($"block: 0x1: offset: 0x{block1:x}\n", "read", "-n", child, "-b", "1", "-x");
        await SaysAsync(
            $"logical sector 4098: block number: 1, sector offset: 2, file offset: {block1 + 512 + 1024}\n",
            "read", "-n", child, "-t", "4098");
        await SaysAsync(
            "logical sector 0: block number: 0, sector offset: 0, file offset: not allocated\n", "read", "-n", child, "-t", "0");
        await SaysAsync("block 1: sec: 2: 1\nblock 1: sec: 3: 0\n", "read", "-n", child, "-i", "4098", "-c", "2");
        await SaysAsync("4096 3\n36864 2\n", "read", "-n", child, "-e", "0", "-c", "40960");
        await SaysAsync("batmap for block 1: 0\n", "read", "-n", child, "-j", "1");
        await SaysAsync(new string('x', 4) + "\0", "read", "-n", child, "-R", $"{4099 * 512 - 4}", "-c", "5");
        await SaysAsync("block 3 not allocated\n", "read", "-n", child, "-m", "3");
        await SaysAsync("block 3 not allocated\n", "read", "-n", child, "-d", "3");
        ChildResult headers = await VhdUtilProgram.RunAsync("read", "--debug", "-n", child, "-p");
        Assert.Equal(0, headers.ExitCode);
        Assert.Contains("\nMax BAT size        : 10\n", headers.StandardOutput, StringComparison.Ordinal);
        Assert.Contains("\n       decoded name : ./disk.vhd\n", headers.StandardOutput, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Maps_and_blocks_come_as_raw_bytes()
    {
        // Blocks 1 and 9 of 10, most significant bit first: what sm compresses and keeps.
        Assert.Equal("40 40", await BytesAsync("-B", 2));
        Assert.Equal("e0 00", await BytesAsync("-m 1", 2));
        Assert.Equal("00 00", await BytesAsync("-a", 2));
        Assert.Equal("78 78", await BytesAsync("-d 1", 2));
        Assert.Equal("79 79", await BytesAsync("-r 36864 -c 2", 2));
        Assert.Equal("71 71", await BytesAsync("-r 36866 -c 2", 2)); // The parent's.

        async Task<string> BytesAsync(string letters, int count)
        {
            string pipe = $"'{VhdUtilProgram.Path}' read --debug -n '{child}' {letters} | od -An -tx1 -N {count}";
            ChildResult result = await Tool.RunAsync("sh", "-c", pipe);
            Assert.Equal("", result.StandardError);
            return result.StandardOutput.Trim();
        }
    }

    [Fact]
    public async Task Markers_are_set_queried_and_scanned_and_volumes_refused()
    {
        await SaysAsync("", "set", "-n", child, "-f", "marker", "-v", "200");
        await SaysAsync("hidden: 0\nmarker: 200\n", "query", "-n", child, "-f", "-m");
        string line = $"capacity=20971520 size={new FileInfo(child).Length} hidden=0 marker=200 keyhash= parent=disk.vhd\n";
        await SaysAsync($"vhd=child.vhd {line}", "scan", "-f", "-c", "-M", child);
        await RefusedAsync("0 to 255", "set", "-n", child, "-f", "marker", "-v", "256");
        await RefusedAsync("0 to 1", "set", "-n", child, "-f", "hidden", "-v", "2");
        await RefusedAsync("LVM volumes are not supported", "scan", "-l", "VG_XenStorage-1", "-m", "VHD-*");
        await SaysAsync("marker: 200\n", "query", "-n", child, "-m");
    }

    [Fact]
    public async Task A_reset_child_reads_as_its_parent_and_a_longer_file_as_before()
    {
        string parentDigest = await DigestAsync(disk), childDigest = await DigestAsync(child);
        Assert.NotEqual(parentDigest, childDigest);
        long longer = new FileInfo(child).Length + (1 << 20);
        await SaysAsync("", "modify", "-n", child, "-s", $"{longer}");
        Assert.Equal((longer, childDigest), (new FileInfo(child).Length, await DigestAsync(child)));
        await RefusedAsync("at least", "modify", "-n", child, "-s", "1024");
        await SaysAsync("", "modify", "--debug", "-z", "-n", child);
        Assert.Equal(parentDigest, await DigestAsync(child));
        await SaysAsync("0\n", "query", "-n", child, "-a");
        await SaysAsync($"{child} is valid\n", "check", "-n", child);
        await RefusedAsync("no parent", "modify", "-z", "-n", disk);
        Assert.Equal(parentDigest, await DigestAsync(disk));
        Assert.Equal(2, (await VhdUtilProgram.RunAsync("modify", "-n", child)).ExitCode);
    }

    [Fact]
    public async Task A_filled_child_needs_its_parent_no_more_for_content()
    {
        string digest = await DigestAsync(child);
        await RefusedAsync("nothing was changed", "fill", "-n", child, "-b");
        await SaysAsync("2\n", "query", "-n", child, "-a");
        await SaysAsync("", "fill", "-n", child);
        await SaysAsync("10\n", "query", "-n", child, "-a");
        await SaysAsync("0 40960\n", "read", "-n", child, "-e", "0", "-c", "40960");
        Assert.Equal(digest, await DigestAsync(child));
        await SaysAsync("", "modify", "-z", "-n", child);
        Assert.Equal(await DigestAsync(disk), await DigestAsync(child));
    }

    [Fact]
    public async Task A_key_hash_is_computed_and_compared_never_set()
    {
        string key = directory.File("disk,aes-xts-plain,256.key");
        await File.WriteAllTextAsync(key, new string('k', 32));
        ChildResult judge = await Tool.RunAsync("sh", "-c", $"(head -c 32 /dev/zero; cat '{key}') | sha256sum");
        string expected = judge.StandardOutput.Split(' ')[0];
        await SaysAsync(expected + "\n", "key", "-C", "-k", key);
        await SaysAsync("none\n", "key", "-p", "-n", disk);
        await RefusedAsync("encryption is not supported", "key", "-s", "-n", disk, "-k", key);
        await RefusedAsync("no key hash", "key", "-c", "-n", disk, "-k", key);
        using (FileStream file = File.OpenWrite(disk))
        {
            // Behind the table: the batmap's header, and in it the key's.
            file.Position = 1536 + 512 + 29;
            file.Write([1, .. new byte[32], .. Convert.FromHexString(expected)]);
        }

        await SaysAsync($"{new string('0', 64)} {expected}\n", "key", "-p", "-n", disk);
        await SaysAsync("", "key", "-c", "-n", disk, "-k", key);
        await File.WriteAllTextAsync(key, new string('l', 32));
        await RefusedAsync("is not that of", "key", "-c", "-n", disk, "-k", key);
        await RefusedAsync("encrypted", "read", "-n", child, "-r", "0");
        await File.WriteAllTextAsync(key, "short");
        await RefusedAsync("32 or 64 bytes", "key", "-C", "-k", key);
        Assert.Equal(2, (await VhdUtilProgram.RunAsync("key", "-n", disk)).ExitCode);
    }

    [Fact]
    public async Task There_is_no_journal_to_revert_and_a_refused_images_headers_are_shown()
    {
        await RefusedAsync("there is no journal", "revert", "-n", disk, "-j", directory.File("journal"));
        await File.WriteAllTextAsync(directory.File("journal"), "vjournal");
        await RefusedAsync("not of this tool", "revert", "-n", disk, "-j", directory.File("journal"));
        using (FileStream file = File.OpenWrite(disk))
        {
            file.Position = 512 + 30; // A table of more blocks than the file could name.
            file.WriteByte(0xff);
        }

        ChildResult result = await VhdUtilProgram.RunAsync("read", "-n", disk, "-p");
        Assert.Equal(1, result.ExitCode);
        Assert.Contains("Max BAT size        : 65290\n", result.StandardOutput, StringComparison.Ordinal);
        Assert.Contains("(Bad!)", result.StandardOutput, StringComparison.Ordinal);
        Assert.Contains("header checksum", result.StandardError, StringComparison.Ordinal);
    }

    private static async Task<string> DigestAsync(string path)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        byte[] content = new byte[chain.LengthBytes];
        await chain.ReadAsync(0, content, CancellationToken.None);
        return Convert.ToHexString(System.Security.Cryptography.SHA256.HashData(content));
    }

    private static async Task WriteAsync(string path, int block, char value, int sectors)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        byte[] data = new byte[sectors * 512];
        data.AsSpan().Fill((byte)value);
        await chain.WriteAsync((long)block << 21, data, WriteFlags.None, CancellationToken.None);
    }

    private static async Task SaysAsync(string output, params string[] arguments)
    {
        ChildResult result = await VhdUtilProgram.RunAsync(arguments);
        Assert.Equal((0, output), (result.ExitCode, result.StandardOutput));
    }

    private static async Task RefusedAsync(string because, params string[] arguments)
    {
        ChildResult result = await VhdUtilProgram.RunAsync(arguments);
        Assert.Equal((1, ""), (result.ExitCode, result.StandardOutput));
        Assert.Contains(because, result.StandardError, StringComparison.Ordinal);
    }
}
