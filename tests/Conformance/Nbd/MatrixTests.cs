// Every foreign client on our server and our client on every foreign server, in the clear and inside TLS.
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Nbd;
using Platform;
using Support;

namespace Conformance.NbdTests;

public sealed class MatrixTests : IDisposable
{
    private const int SizeBytes = 16 << 20;

    private readonly TemporaryDirectory folder = new();
    private readonly X509Certificate2 certificate;

    public MatrixTests()
    {
        // qemu-nbd refuses a server's certificate that is an authority's too: one signs the other.
        (DateTimeOffset from, DateTimeOffset to) = (DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
        using RSA rootKey = RSA.Create(2048);
        CertificateRequest root = new("CN=authority", rootKey, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);
        root.CertificateExtensions.Add(new X509BasicConstraintsExtension(true, false, 0, true));
        using X509Certificate2 authority = root.CreateSelfSigned(from, to);
        using RSA key = RSA.Create(2048);
        CertificateRequest request = new("CN=localhost", key, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);
        SubjectAlternativeNameBuilder names = new();
        names.AddDnsName("localhost");
        request.CertificateExtensions.Add(names.Build());
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(false, false, 0, true));
        using X509Certificate2 signed = request.Create(authority, from, to, [1, 2, 3, 4]);
        certificate = signed.CopyWithPrivateKey(key);
        // Where libnbd looks for it, and where qemu and nbdkit are told to.
        Directory.CreateDirectory(Pki);
        File.WriteAllText(Path.Combine(Pki, "ca-cert.pem"), authority.ExportCertificatePem());
        File.WriteAllText(Path.Combine(Pki, "server-cert.pem"), certificate.ExportCertificatePem());
        File.WriteAllText(Path.Combine(Pki, "server-key.pem"), key.ExportPkcs8PrivateKeyPem());
    }

    private string Pki => Path.Combine(folder.Path, ".pki", "libnbd");

    public void Dispose()
    {
        certificate.Dispose();
        folder.Dispose();
    }

    [SkippableTheory]
    [InlineData("nbdinfo", false)]
    [InlineData("nbdinfo", true)]
    [InlineData("nbdcopy", false)]
    [InlineData("nbdcopy", true)]
    [InlineData("qemu-io", false)]
    [InlineData("qemu-io", true)]
    [InlineData("fio", false)]
    [InlineData("fio", true)]
    public async Task A_foreign_client_works_on_our_server(string tool, bool isTls)
    {
        Skip.IfNot(Tool.Exists(tool), Tool.Missing(tool));
        await using MemoryBlockDevice device = new(SizeBytes);
        NbdExport export = new("disk", device);
        NbdServerOptions options = new() { Find = name => name == "disk" ? export : null, Tls = isTls ? NbdTls.ForServer(certificate) : null };
        await using NbdListener listener = NbdListener.ListenTcp(new System.Net.IPEndPoint(System.Net.IPAddress.Loopback, 0), options, 16);
        int port = ((System.Net.IPEndPoint)listener.EndPoint).Port;
        string uri = $"{(isTls ? "nbds" : "nbd")}://localhost:{port}/disk";
        await RunClientAsync(tool, uri, port, isTls);
        if (tool is "qemu-io" or "fio" or "nbdcopy")
            Assert.True(device.Bytes.AsSpan().ContainsAnyExcept((byte)0), "nothing arrived");
        if (!isTls)
            return;
        ChildResult plain = await Tool.RunAsync("nbdinfo", $"nbd://localhost:{port}/disk"); // TLS is not an offer but a demand.
        Assert.NotEqual(0, plain.ExitCode);
    }

    [SkippableTheory]
    [InlineData("nbdkit", false)]
    [InlineData("nbdkit", true)]
    [InlineData("qemu-nbd", false)]
    [InlineData("qemu-nbd", true)]
    public async Task Our_client_works_on_a_foreign_server(string tool, bool isTls)
    {
        Skip.IfNot(Tool.Exists(tool), Tool.Missing(tool));
        await using NbdServerProcess server = await StartAsync(tool, isTls);
        NbdClientOptions options = new() { Tls = isTls ? NbdTls.ForClient(NbdTls.FingerprintOf(certificate)) : null };
        await using (NbdClient client = await server.ConnectAsync("", options))
        {
            byte[] written = new byte[5 << 20];
            new Random(8).NextBytes(written);
            await client.WriteAsync(1 << 20, written, WriteFlags.Fua, CancellationToken.None);
            await client.WriteZeroesAsync(2 << 20, 1 << 20, WriteFlags.NoHole, CancellationToken.None);
            await client.TrimAsync(8 << 20, 1 << 20, WriteFlags.None, CancellationToken.None);
            await client.FlushAsync(CancellationToken.None);
            written.AsSpan(1 << 20, 1 << 20).Clear();
            byte[] read = new byte[written.Length];
            await Task.WhenAll(Enumerable.Range(0, 80).Select(i =>
                client.ReadAsync((1 << 20) + (i * 65536), read.AsMemory(i * 65536, 65536), CancellationToken.None).AsTask()));
            Assert.True(read.AsSpan().SequenceEqual(written));
        }

        if (!isTls)
            return;
        await Assert.ThrowsAnyAsync<IOException>(() => server.ConnectAsync("", new NbdClientOptions()));
        NbdClientOptions wrongPin = new() { Tls = NbdTls.ForClient(new string('0', 64)) };
        await Assert.ThrowsAnyAsync<IOException>(() => server.ConnectAsync("", wrongPin));
    }

    [SkippableFact]
    public async Task A_flush_and_a_trim_that_a_foreign_server_fails_are_the_callers_errors()
    {
        Skip.IfNot(Tool.Exists("nbdkit"), Tool.Missing("nbdkit"));
        await using NbdServerProcess server = await NbdServerProcess.StartAsync(
            "nbdkit", folder.File("k.sock"), "--foreground", "-U", folder.File("k.sock"), "--filter=error", "memory", "16M",
            "error-trim=ENOSPC", "error-trim-rate=100%", "error-zero=EIO", "error-zero-rate=100%", "error-extents=EIO", "error-extents-rate=100%");
        await using NbdClient client = await server.ConnectAsync();
        await FailsAsync(Errno.ENOSPC, client.TrimAsync(0, 4096, WriteFlags.None, CancellationToken.None).AsTask());
        await FailsAsync(Errno.EIO, client.WriteZeroesAsync(0, 4096, WriteFlags.None, CancellationToken.None).AsTask());
        await FailsAsync(Errno.EIO, client.ExtentsAsync(0, 4096, CancellationToken.None).AsTask());
        await client.FlushAsync(CancellationToken.None);
    }

    private async Task RunClientAsync(string tool, string uri, int port, bool isTls)
    {
        string image = folder.File("in.img");
        byte[] content = new byte[SizeBytes];
        new Random(2).NextBytes(content.AsSpan(1 << 20, 3 << 20));
        await File.WriteAllBytesAsync(image, content);
        switch (tool)
        {
            case "nbdinfo":
                await RunAsync("nbdinfo", "--json", uri);
                break;
            case "nbdcopy":
                await RunAsync("nbdcopy", "--flush", "--connections=4", image, uri);
                await RunAsync("nbdcopy", "--connections=4", uri, folder.File("out.img"));
                Assert.Equal(content, await File.ReadAllBytesAsync(folder.File("out.img")));
                break;
            case "qemu-io":
                string[] tls = isTls ? ["--object", $"tls-creds-x509,id=tls,endpoint=client,dir={Pki}"] : [];
                string disk = $"driver=nbd,host=localhost,port={port},export=disk" + (isTls ? ",tls-creds=tls" : "");
                await RunAsync(
                    "qemu-io",
                    [
                        .. tls, "--image-opts", "-c", "write -P 0x5a 1M 5M", "-c", "write -f -P 0xa5 2M 512", "-c", "write -z 3M 1M", "-c", "discard 8M 1M",
                        "-c", "flush", "-c", "read -P 0xa5 2M 512", "-c", "read -P 0 3M 1M", "-c", "read -P 0x5a 4M 2M", disk,
                    ]);
                break;
            default:
                await RunAsync(
                    "fio", "--name=verify", "--ioengine=nbd", $"--uri={uri}", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k", "--iodepth=16",
                    "--size=12m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=9", $"--directory={folder.Path}");
                break;
        }
    }

    private Task<NbdServerProcess> StartAsync(string tool, bool isTls)
    {
        string socket = folder.File("k.sock");
        if (tool == "nbdkit")
        {
            string[] tls = isTls ? ["--tls=require", $"--tls-certificates={Pki}"] : [];
            return NbdServerProcess.StartAsync("nbdkit", socket, ["--foreground", "-U", socket, .. tls, "memory", "16M"]);
        }

        string image = folder.File("disk.img");
        File.WriteAllBytes(image, new byte[SizeBytes]);
        string[] credentials = isTls ? ["--object", $"tls-creds-x509,id=tls,endpoint=server,dir={Pki},verify-peer=no", "--tls-creds", "tls"] : [];
        return NbdServerProcess.StartAsync(
            "qemu-nbd", socket, [.. credentials, "--format=raw", "--discard=unmap", "--persistent", "--shared=4", $"--socket={socket}", image]);
    }

    private async Task RunAsync(string tool, params string[] arguments)
    {
        ChildResult result = await Tool.RunAsync("env", ["HOME=" + folder.Path, tool, .. arguments]);
        Assert.True(result.ExitCode == 0, $"{tool} {string.Join(' ', arguments)}: {result.StandardError}{result.StandardOutput}");
    }

    private static async Task FailsAsync(Errno errno, Task call) => Assert.Equal(errno, (await Assert.ThrowsAsync<BlockIoException>(() => call)).Errno);
}
