// Other people's clients on our server: libnbd's tools, qemu's, and fio.
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text.Json;
using Nbd;
using Platform;
using Support;

namespace Conformance.NbdTests;

public sealed class ForeignClientTests : IDisposable
{
    private const int SizeBytes = 48 << 20;

    private readonly TemporaryDirectory folder = new();

    private string Uri => $"nbd+unix:///disk?socket={folder.File("s.sock")}";

    public void Dispose() => folder.Dispose();

    [SkippableFact]
    public async Task Nbdinfo_sees_what_we_offer_and_lists_only_what_may_be_listed()
    {
        Require("nbdinfo");
        MemoryBlockDevice device = new(SizeBytes);
        await using NbdListener listener = Serve(new NbdExport("disk", device) { IsListed = true }, new NbdExport("secret", device));
        using JsonDocument info = JsonDocument.Parse(await RunAsync("nbdinfo", "--json", Uri));
        JsonElement export = info.RootElement.GetProperty("exports")[0];
        Assert.Equal("newstyle-fixed", info.RootElement.GetProperty("protocol").GetString());
        Assert.True(info.RootElement.GetProperty("structured").GetBoolean());
        Assert.Equal(SizeBytes, export.GetProperty("export-size").GetInt64());
        Assert.Equal("base:allocation", export.GetProperty("contexts")[0].GetString());
        foreach (string can in new[] { "can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero" })
            Assert.True(export.GetProperty(can).GetBoolean(), can);
        foreach (string not in new[] { "can_cache", "can_fast_zero", "is_read_only", "is_rotational" })
            Assert.False(export.GetProperty(not).GetBoolean(), not);
        Assert.Equal(512, export.GetProperty("block_size_minimum").GetInt32());
        Assert.Equal(4096, export.GetProperty("block_size_preferred").GetInt32());
        Assert.Equal(32 << 20, export.GetProperty("block_size_maximum").GetInt32());

        string list = await RunAsync("nbdinfo", "--list", "--json", Uri);
        Assert.Contains("\"disk\"", list, StringComparison.Ordinal);
        Assert.DoesNotContain("secret", list, StringComparison.Ordinal);
    }

    [SkippableFact]
    public async Task Nbdinfo_maps_data_and_holes()
    {
        Require("nbdinfo");
        MemoryBlockDevice device = new(1 << 20);
        await device.WriteAsync(65536, new byte[131072], WriteFlags.None, CancellationToken.None);
        await using NbdListener listener = Serve(new NbdExport("disk", device));
        using JsonDocument map = JsonDocument.Parse(await RunAsync("nbdinfo", "--map", "--json", Uri));
        Assert.Equal(
            [(0L, 65536L, 3), (65536L, 131072L, 0), (196608L, 851968L, 3)],
            map.RootElement.EnumerateArray().Select(static extent =>
                (extent.GetProperty("offset").GetInt64(), extent.GetProperty("length").GetInt64(), extent.GetProperty("type").GetInt32())));
    }

    [SkippableFact]
    public async Task Nbdcopy_brings_a_disk_in_and_out_over_several_connections()
    {
        Require("nbdcopy");
        string image = folder.File("in.img");
        byte[] content = SparseContent(7);
        await File.WriteAllBytesAsync(image, content);
        await using MemoryBlockDevice device = new(SizeBytes);
        await using NbdListener listener = Serve(new NbdExport("disk", device));
        await RunAsync("nbdcopy", "--flush", image, Uri);
        Assert.True(device.Bytes.AsSpan().SequenceEqual(content));
        Assert.True(device.FlushCount > 0);
        await RunAsync("nbdcopy", "--connections=4", Uri, folder.File("out.img"));
        Assert.True(File.ReadAllBytes(folder.File("out.img")).AsSpan().SequenceEqual(content));
    }

    [SkippableFact]
    public async Task Qemu_io_verifies_patterns_zeroes_and_discards()
    {
        Require("qemu-io");
        await using NbdListener listener = Serve(new NbdExport("disk", new MemoryBlockDevice(SizeBytes)));
        await RunAsync(
            "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 5M", "-c", "write -f -P 0xa5 2M 512", "-c", "read -P 0xa5 2M 512",
            "-c", "read -P 0x5a 3M 2M", "-c", "write -z 3M 1M", "-c", "write -z -u 4M 1M", "-c", "read -P 0 3M 2M",
            "-c", "discard 5M 1M", "-c", "flush", "-c", "read -P 0x5a 1M 1M", "-c", "read -P 0 8M 4M", Uri);
        ChildResult wrong = await Tool.RunAsync("qemu-io", "-f", "raw", "-c", "read -P 0x11 1M 1M", Uri);
        Assert.NotEqual(0, wrong.ExitCode); // The judge can say no.
    }

    [SkippableFact]
    public async Task Qemu_img_converts_to_us_and_finds_the_same_bytes()
    {
        Require("qemu-img");
        string image = folder.File("in.img");
        await File.WriteAllBytesAsync(image, SparseContent(11));
        await using NbdListener listener = Serve(new NbdExport("disk", new MemoryBlockDevice(SizeBytes)));
        await RunAsync("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", image, Uri);
        await RunAsync("qemu-img", "compare", "-f", "raw", "-F", "raw", image, Uri);
        await RunAsync("qemu-img", "convert", "-f", "raw", "-O", "raw", Uri, folder.File("out.img"));
        await RunAsync("qemu-img", "compare", "-f", "raw", "-F", "raw", image, folder.File("out.img"));
    }

    [SkippableFact]
    public async Task Qemu_works_through_tls_and_not_without_it()
    {
        Require("qemu-img");
        using RSA key = RSA.Create(2048);
        CertificateRequest request = new("CN=pool.example", key, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);
        SubjectAlternativeNameBuilder names = new();
        names.AddDnsName("pool.example");
        request.CertificateExtensions.Add(names.Build());
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(true, false, 0, true));
        using X509Certificate2 certificate = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
        await File.WriteAllTextAsync(folder.File("ca-cert.pem"), certificate.ExportCertificatePem());
        await using NbdListener listener = Serve(NbdTls.ForServer(certificate), new NbdExport("disk", new MemoryBlockDevice(SizeBytes)));
        string credentials = $"tls-creds-x509,id=tls,endpoint=client,dir={folder.Path}";
        string disk = $"driver=nbd,path={folder.File("s.sock")},export=disk,tls-creds=tls,tls-hostname=pool.example";
        await RunAsync(
            "qemu-io", "--object", credentials, "--image-opts", "-c", "write -P 0x77 0 8M", "-c", "read -P 0x77 0 8M", "-c", "flush", disk);
        ChildResult plain = await Tool.RunAsync("qemu-img", "info", Uri);
        Assert.NotEqual(0, plain.ExitCode);
    }

    [SkippableFact]
    public async Task Fio_verifies_a_random_writer_at_depth()
    {
        Require("fio");
        await using NbdListener listener = Serve(new NbdExport("disk", new MemoryBlockDevice(SizeBytes)));
        await RunAsync(
            "fio", "--name=verify", "--ioengine=nbd", $"--uri={Uri}", "--rw=randwrite", "--bsrange=4k-256k", "--blockalign=4k",
            "--iodepth=32",
            "--size=32m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=9", $"--directory={folder.Path}");
    }

    private NbdListener Serve(params NbdExport[] exports) => Serve(null, exports);

    private NbdListener Serve(NbdTls? tls, params NbdExport[] exports) => NbdListener.ListenUnix(
        folder.File("s.sock"),
        new NbdServerOptions { Find = name => exports.FirstOrDefault(export => export.Name == name), List = () => exports, Tls = tls },
        maxConnections: 16);

    private static byte[] SparseContent(int seed)
    {
        Random random = new(seed);
        byte[] content = new byte[SizeBytes];
        for (int i = 0; i < 40; i++)
        {
            int length = random.Next(1, 1 << 20);
            random.NextBytes(content.AsSpan(random.Next(SizeBytes - length), length));
        }

        return content;
    }

    private static void Require(string tool) => Skip.IfNot(Tool.Exists(tool), Tool.Missing(tool));

    private static async Task<string> RunAsync(string tool, params string[] arguments)
    {
        ChildResult result = await Tool.RunAsync(tool, arguments);
        Assert.True(result.ExitCode == 0, $"{tool} {string.Join(' ', arguments)}: {result.StandardError}{result.StandardOutput}");
        return result.StandardOutput;
    }
}
