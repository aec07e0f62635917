// `vhd-util copy --direct`: past the page cache, on a real file system, with sizes that no page divides. Without a file system that can
// do it there is nothing to be seen, and the test says so.
using Microsoft.Win32.SafeHandles;
using Platform;
using Support;
using Vhd;

namespace Conformance.VhdTests;

public sealed class DirectCopyTests : IDisposable
{
    private static readonly string[] Candidates = ["/var/tmp", AppContext.BaseDirectory, Path.GetTempPath()];

    private readonly string? folder = Candidates.Select(FolderIn).FirstOrDefault(static made => made is not null);

    public void Dispose()
    {
        if (folder is not null)
            Directory.Delete(folder, recursive: true);
    }

    [SkippableTheory]
    [InlineData(2 << 20)]
    [InlineData((2 << 20) + 512)]
    [InlineData((5 << 20) - 512)]
    [InlineData(4096 * 1001 + 1536)]
    [InlineData((9 << 20) + 3584)]
    public async Task A_copy_past_the_page_cache_is_equal_whatever_its_size(int sizeBytes)
    {
        Skip.If(folder is null, $"none of {string.Join(", ", Candidates)} can do direct I/O");
        string source = Path.Combine(folder!, "source.vhd"), flat = Path.Combine(folder!, "flat.raw");
        byte[] disk = await MakeAsync(source, sizeBytes);

        await CopyAsync("--raw", source, flat);
        Assert.True(Enumerable.SequenceEqual(disk, await File.ReadAllBytesAsync(flat)), "the raw copy differs");

        string copy = Path.Combine(folder!, "copy.vhd"), back = Path.Combine(folder!, "back.vhd");
        await CopyAsync("--verify", source, copy);
        ChildResult converted = await VhdUtilProgram.RunAsync("convert", "-f", "raw", "-O", "vhd", "--direct", flat, back);
        Assert.True(converted.ExitCode == 0, converted.StandardError);
        foreach (string made in new[] { copy, back })
        {
            Assert.True(Enumerable.SequenceEqual(disk, await ContentAsync(made)), made);
            Assert.Empty(VhdCheck.Run(made, new VhdCheckOptions()));
        }

        // In place: over another disk's bytes, of which none may be left.
        string other = Path.Combine(folder!, "other.vhd");
        Array.Reverse(disk);
        VhdImage.CreateDynamic(other, sizeBytes);
        await using (VhdChain chain = VhdChain.Open(other, new VhdOpenOptions()))
            await chain.WriteAsync(0, disk, WriteFlags.None, CancellationToken.None);
        Array.Reverse(disk);
        await CopyAsync("--in-place", source, other);
        Assert.True(Enumerable.SequenceEqual(disk, await ContentAsync(other)), "the copy in place differs");
    }

    private static async Task CopyAsync(string option, string from, string to)
    {
        ChildResult result = await VhdUtilProgram.RunAsync("copy", "--direct", option, from, to);
        Assert.True(result.ExitCode == 0, result.StandardError);
    }

    // Data at the edges of pages, blocks and the disk, over a parent, and holes between.
    private static async Task<byte[]> MakeAsync(string path, int sizeBytes)
    {
        byte[] disk = new byte[sizeBytes];
        Random random = new(sizeBytes);
        string parent = path + ".parent";
        VhdImage.CreateDynamic(parent, sizeBytes);
        await WriteAsync(parent);
        VhdImage.CreateSnapshot(path, parent);
        await WriteAsync(path);
        return disk;

        async Task WriteAsync(string image)
        {
            await using VhdChain chain = VhdChain.Open(image, new VhdOpenOptions());
            foreach (int near in new[] { 0, 4096, 2 << 20, 4 << 20, 8 << 20, sizeBytes })
            {
                int start = Math.Clamp(near - 512 * random.Next(20), 0, sizeBytes - 512);
                int length = Math.Min(512 * random.Next(1, 40), sizeBytes - start);
                random.NextBytes(disk.AsSpan(start, length));
                await chain.WriteAsync(start, disk.AsMemory(start, length), WriteFlags.None, CancellationToken.None);
            }
        }
    }

    private static async Task<byte[]> ContentAsync(string path)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        byte[] content = new byte[chain.LengthBytes];
        await chain.ReadAsync(0, content, CancellationToken.None);
        return content;
    }

    private static string? FolderIn(string parent)
    {
        string made = Path.Combine(parent, $"storage-direct-{Guid.NewGuid():n}");
        try
        {
            Directory.CreateDirectory(made);
            using SafeFileHandle file = File.OpenHandle(Path.Combine(made, "probe"), FileMode.CreateNew, FileAccess.ReadWrite);
            Posix.OpenDirect(file, isWritable: true).Dispose();
            return made;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            if (Directory.Exists(made))
                Directory.Delete(made, recursive: true);
            return null;
        }
    }
}
