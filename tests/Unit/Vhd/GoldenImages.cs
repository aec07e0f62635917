// Images written by the field's tools (research data/golden/vhd), unpacked into a folder of the test's own.
using System.IO.Compression;
using System.Security.Cryptography;
using System.Text.Json;
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

internal sealed class GoldenImages : IDisposable
{
    private readonly TemporaryDirectory directory = new();

    public GoldenImages()
    {
        string golden = Path.Combine(AppContext.BaseDirectory, "Vhd", "golden");
        foreach (string packed in Directory.EnumerateFiles(golden, "*.gz", SearchOption.AllDirectories))
        {
            string path = PathOf(Path.GetRelativePath(golden, packed)[..^3]);
            Directory.CreateDirectory(Path.GetDirectoryName(path)!);
            using GZipStream source = new(File.OpenRead(packed), CompressionMode.Decompress);
            using FileStream target = File.Create(path);
            source.CopyTo(target);
        }

        // As the README says: the middle of the coalesce pair finds its parent as base.vhd.
        File.Copy(PathOf("coalesce/base-before.vhd"), PathOf("coalesce/base.vhd"));
    }

    public static IReadOnlyList<JsonElement> Manifest { get; } = Read();

    public string PathOf(string file) => directory.File(file);

    public static async Task<byte[]> ContentOfAsync(IBlockDevice device)
    {
        byte[] content = new byte[device.LengthBytes];
        // Odd pieces, so that runs and blocks are cut where no alignment helps.
        const int piece = 512 * 1537;
        for (int at = 0; at < content.Length; at += piece)
            await device.ReadAsync(at, content.AsMemory(at, Math.Min(piece, content.Length - at)), CancellationToken.None);
        return content;
    }

    public static async Task<byte[]> ContentOfAsync(string path)
    {
        await using VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = true });
        return await ContentOfAsync(chain);
    }

    public static string Sha256(byte[] content) => Convert.ToHexStringLower(SHA256.HashData(content));

    public void Dispose() => directory.Dispose();

    private static JsonElement[] Read()
    {
        string manifest = File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "Vhd", "golden", "manifest.json"));
        return [.. JsonDocument.Parse(manifest).RootElement.EnumerateArray()];
    }
}
