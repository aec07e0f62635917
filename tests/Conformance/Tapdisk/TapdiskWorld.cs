using System.Diagnostics;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Nbd;
using Platform;
using StorageAccess.Tap;
using Support;
using Vhd;

namespace Conformance.TapdiskTests;

/// <summary>A control folder with real tapdisk processes; everything that it started is gone when it is disposed.</summary>
internal sealed class TapdiskWorld : IAsyncDisposable
{
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(30);
    private readonly TemporaryDirectory folder = new();
    private readonly List<int> processes = [];

    public TapdiskWorld()
    {
        Control = new TapControl(folder.File("ctl"));
        Extensions = new TapExtensions(Control);
        using RSA key = RSA.Create(2048);
        CertificateRequest request = new("CN=tapdisk-test", key, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);
        using X509Certificate2 certificate = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
        File.WriteAllText(CertificatePath, certificate.ExportCertificatePem() + "\n" + key.ExportPkcs8PrivateKeyPem());
        Fingerprint = NbdTls.FingerprintOf(certificate);
    }

    public TapControl Control { get; }

    public TapExtensions Extensions { get; }

    public string Fingerprint { get; }

    public string CertificatePath => folder.File("certificate.pem");

    public string PathOf(string name) => folder.File(name);

    public string CreateVhd(string name, long sizeBytes)
    {
        VhdImage.CreateDynamic(folder.File(name), sizeBytes);
        return folder.File(name);
    }

    /// <summary>A process with one open disk, minor 0.</summary>
    public async Task<int> ServeAsync(string arguments)
    {
        int processId = await SpawnAsync();
        await Control.AttachAsync(processId, 0, default);
        await Control.OpenAsync(processId, 0, arguments, TapOpenFlags.None, null, default);
        return processId;
    }

    public async Task<int> SpawnAsync()
    {
        int processId = await Control.SpawnAsync(AppContext.BaseDirectory, default);
        processes.Add(processId);
        return processId;
    }

    public async Task CloseAsync(int processId)
    {
        await Control.CloseAsync(processId, 0, force: false, default);
        await Control.DetachAsync(processId, 0, default);
    }

    public string UriOf(int processId) => $"nbd+unix:///any?socket={Control.NbdSocketPath(processId, 0)}";

    public Task<NbdClient> ConnectAsync(int processId) =>
        NbdClient.ConnectAsync(NbdUri.Unix(Control.NbdSocketPath(processId, 0), ""), new NbdClientOptions(), default);

    /// <summary>Exports a target's disk under a new secret and says how to mirror onto it.</summary>
    public async Task<MirrorTarget> TargetAsync(int processId, TimeSpan stallLimit, long rateLimitBytesPerSecond)
    {
        Secret name = Secret.Create();
        int port = await Extensions.ExportAsync(processId, 0, "127.0.0.1:0", CertificatePath, CertificatePath, name, default);
        return new MirrorTarget($"nbds://127.0.0.1:{port}", name, Fingerprint, stallLimit, rateLimitBytesPerSecond);
    }

    public async Task<MirrorStatus> UntilAsync(int processId, MirrorPhase phase)
    {
        Stopwatch waited = Stopwatch.StartNew();
        while (true)
        {
            MirrorStatus status = await Extensions.MirrorStatusAsync(processId, 0, default);
            if (status.Phase == phase)
                return status;
            Assert.True(waited.Elapsed < Deadline && (status.Phase != MirrorPhase.Failed), $"waited for {phase}, is {status}");
            await Task.Delay(10);
        }
    }

    public async ValueTask DisposeAsync()
    {
        foreach (int processId in processes)
        {
            string name = $"/proc/{processId}/comm";
            if (File.Exists(name) && File.ReadAllText(name).StartsWith("tapdisk", StringComparison.Ordinal))
                Posix.TryKill(processId, 9);
        }

        await Task.Yield();
        folder.Dispose();
    }
}
