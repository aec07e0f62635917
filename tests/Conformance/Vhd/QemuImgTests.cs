// Images of ours, judged by qemu-img: the size, the content, and nothing else in the file that it would take for damage.
using System.Text.Json;
using Platform;
using Support;
using Vhd;

namespace Conformance.VhdTests;

public sealed class QemuImgTests : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public void Dispose() => directory.Dispose();

    [SkippableTheory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public async Task Generated_images_have_the_exact_size_and_content_in_qemu_img(int part)
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        for (int seed = part * 50; seed < part * 50 + 50; seed++)
        {
            Random random = new(seed);
            string path = directory.File($"{seed}.vhd");
            long size = random.Next(1, 20000) * 512L;
            if (seed % 4 == 0)
                VhdImage.CreateFixed(path, size);
            else
                VhdImage.CreateDynamic(path, size);
            byte[] content = await WriteSomeAsync(path, random);
            await AgreesAsync(path, size, content);
        }
    }

    [SkippableFact]
    public async Task Sizes_that_no_geometry_can_express_are_exact()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        foreach (long size in new[] { 512, 1536, (1L << 20) + 512, (127L << 30) + 512, 130558L << 20, (1L << 40) + 512, 2040L << 30 })
        {
            string path = directory.File($"{size}.vhd");
            VhdImage.CreateDynamic(path, size);
            Assert.Equal(size, await SizeOfAsync(path));
        }
    }

    [SkippableFact]
    public async Task A_chain_exported_by_us_is_what_we_read()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        Random random = new(1);
        VhdImage.CreateDynamic(directory.File("0.vhd"), 9 << 20);
        await WriteSomeAsync(directory.File("0.vhd"), random);
        for (int depth = 1; depth < 6; depth++)
        {
            string leaf = directory.File($"{depth}.vhd");
            VhdImage.CreateSnapshot(leaf, directory.File($"{depth - 1}.vhd"));
            byte[] content = await WriteSomeAsync(leaf, random);
            string flat = directory.File($"flat{depth}.vhd");
            await using (VhdChain chain = VhdChain.Open(leaf, new VhdOpenOptions { IsReadOnly = true }))
                await VhdCopy.ExportAsync(chain, flat, ExportFormat.Vhd, null, CancellationToken.None);
            await AgreesAsync(flat, 9 << 20, content);
        }
    }

    [SkippableFact]
    public async Task An_image_left_open_by_a_dead_process_is_whole_in_qemu_img()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        string path = directory.File("dead.vhd");
        VhdImage.CreateDynamic(path, 9 << 20);
        VhdChain chain = VhdChain.Open(path, new VhdOpenOptions());
        byte[] content = new byte[9 << 20];
        new Random(1).NextBytes(content.AsSpan(3 << 20, 2 << 20));
        await chain.WriteAsync(3 << 20, content.AsMemory(3 << 20, 2 << 20), WriteFlags.None, CancellationToken.None);
        chain.Abandon();
        await AgreesAsync(path, 9 << 20, content);
    }

    [SkippableFact]
    public async Task An_image_made_and_written_by_qemu_reads_the_same_here_and_can_be_written()
    {
        Skip.IfNot(Tool.Exists("qemu-img") && Tool.Exists("qemu-io"), Tool.Missing("qemu-img"));
        string path = directory.File("theirs.vhd");
        await RunAsync("qemu-img", "create", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", path, "10M");
        await RunAsync("qemu-io", "-f", "vpc", "-c", "write -P 0x5a 1M 64k", "-c", "write -P 0xa5 9M 1M", path);
        byte[] expected = new byte[10 << 20];
        expected.AsSpan(1 << 20, 64 << 10).Fill(0x5a);
        expected.AsSpan(9 << 20, 1 << 20).Fill(0xa5);
        Assert.Equal(expected, await ReadAsync(path));
        byte[] data = new byte[3 << 20];
        new Random(1).NextBytes(data);
        await using (VhdChain chain = VhdChain.Open(path, new VhdOpenOptions()))
            await chain.WriteAsync(3 << 20, data, WriteFlags.None, CancellationToken.None);
        data.CopyTo(expected, 3 << 20);
        await AgreesAsync(path, 10 << 20, expected);
    }

    private static async Task RunAsync(string tool, params string[] arguments)
    {
        ChildResult result = await Tool.RunAsync(tool, arguments);
        Assert.True(result.ExitCode == 0, result.StandardError + result.StandardOutput);
    }

    private static async Task<byte[]> WriteSomeAsync(string path, Random random)
    {
        await using (VhdChain chain = VhdChain.Open(path, new VhdOpenOptions()))
        {
            int sectors = (int)(chain.LengthBytes / 512);
            for (int i = random.Next(6); i > 0; i--)
            {
                int sector = random.Next(sectors);
                byte[] data = new byte[Math.Min(random.Next(1, 5000), sectors - sector) * 512];
                random.NextBytes(data);
                await chain.WriteAsync(sector * 512L, data, WriteFlags.None, CancellationToken.None);
            }
        }

        return await ReadAsync(path);
    }

    private static async Task<byte[]> ReadAsync(string path)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        byte[] content = new byte[chain.LengthBytes];
        await chain.ReadAsync(0, content, CancellationToken.None);
        return content;
    }

    private async Task AgreesAsync(string path, long sizeBytes, byte[] content)
    {
        // qemu-img 7.2 has no `check` for vpc; opening it is its check: it refuses a cut block, a bad table, a bad checksum.
        string raw = directory.File("judge.raw");
        ChildResult result = await Tool.RunAsync("qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw);
        Assert.True(result.ExitCode == 0, result.StandardError);
        Assert.Equal(sizeBytes, new FileInfo(raw).Length);
        Assert.True(content.AsSpan().SequenceEqual(File.ReadAllBytes(raw)), path);
    }

    private static async Task<long> SizeOfAsync(string path)
    {
        ChildResult result = await Tool.RunAsync("qemu-img", "info", "-f", "vpc", "--output=json", path);
        Assert.True(result.ExitCode == 0, result.StandardError);
        return JsonDocument.Parse(result.StandardOutput).RootElement.GetProperty("virtual-size").GetInt64();
    }
}
