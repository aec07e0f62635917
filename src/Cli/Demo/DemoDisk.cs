// The demo's disk: a dynamic VHD. The caller's, or an ext4 filesystem made of files of this machine, or (without mkfs.ext4) generated files' bytes.
using Platform;
using Vhd;

namespace Demo;

internal static class DemoDisk
{
    private const long LengthBytes = 1L << 30;
    private const long ContentLimitBytes = 192L << 20;

    /// <summary>Puts the disk at <paramref name="path"/>; says what it is.</summary>
    public static async Task<string> MakeAsync(string path, string scratch, CancellationToken cancellationToken)
    {
        string raw = Path.Combine(scratch, "disk.raw");
        string what = await TryExt4Async(raw, scratch, cancellationToken) ?? WriteGenerated(raw);
        await using (RawFile source = new(raw, isReadOnly: true))
            await VhdCopy.ExportAsync(source, path, ExportFormat.Vhd, null, cancellationToken);
        File.Delete(raw);
        return what;
    }

    /// <summary>Takes a copy of the caller's image: his file is never opened for writing.</summary>
    /// <exception cref="VhdException">It is not an image that a VM could run on.</exception>
    public static async Task<string> TakeAsync(string callersPath, string path, CancellationToken cancellationToken)
    {
        await using (VhdChain chain = VhdChain.Open(callersPath, new VhdOpenOptions { IsReadOnly = true }))
        {
            if (VhdImage.ReadInfo(callersPath).ParentPath is null)
                File.Copy(callersPath, path);
            else
                await VhdCopy.ExportAsync(chain, path, ExportFormat.Vhd, null, cancellationToken); // A chain arrives as one image.
        }

        return $"a copy of {callersPath}";
    }

    private static async Task<string?> TryExt4Async(string raw, string scratch, CancellationToken cancellationToken)
    {
        string? mkfs = new[] { "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4" }.FirstOrDefault(File.Exists);
        if (mkfs is null)
            return null;
        string folder = Directory.CreateDirectory(Path.Combine(scratch, "files")).FullName;
        int count = CopyFiles(Path.GetDirectoryName(typeof(object).Assembly.Location)!, folder);
        await using (FileStream file = File.Create(raw))
            file.SetLength(LengthBytes);
        ChildResult made = await ChildProcess.RunAsync(
            mkfs, ["-q", "-F", "-d", folder, raw], "", new Dictionary<string, string?>(), TimeSpan.FromMinutes(1), 1 << 20, cancellationToken);
        Directory.Delete(folder, recursive: true);
        return made.ExitCode == 0 ? $"ext4 with {count} files of this machine" : null;
    }

    private static int CopyFiles(string from, string to)
    {
        long left = ContentLimitBytes;
        int count = 0;
        foreach (FileInfo file in new DirectoryInfo(from).EnumerateFiles().OrderBy(static f => f.Name, StringComparer.Ordinal))
        {
            if (file.Length > left)
                continue;
            file.CopyTo(Path.Combine(to, file.Name));
            left -= file.Length;
            count++;
        }

        return count;
    }

    /// <summary>Files' worth of bytes with holes between them.</summary>
    private static string WriteGenerated(string raw)
    {
        Random random = new(4);
        using FileStream file = File.Create(raw);
        file.SetLength(LengthBytes);
        byte[] content = new byte[1 << 20];
        for (long at = 0; at < LengthBytes; at += 8 << 20)
        {
            random.NextBytes(content);
            file.Position = at;
            file.Write(content);
        }

        return "generated files (mkfs.ext4 is not on this machine)";
    }
}
