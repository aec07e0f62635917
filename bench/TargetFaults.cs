// What a guest feels when its mirror's target stops or dies, and what an initial copy costs it. One run each: these are limits, not averages.
using System.Diagnostics;
using System.Globalization;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess.Tap;

namespace Bench;

internal sealed class TargetFaults(Tapdisks tapdisks, TextWriter log)
{
    private static readonly Load Writer = new("writer", "randwrite", "4k", 1);
    private static readonly Load Reader = new("reader", "randread", "4k", 1);
    private static readonly Load Crowd = new("crowd", "randwrite", "4k", 16);
    private static readonly TimeSpan StallLimit = TimeSpan.FromSeconds(5); // The field's mirror: SecondaryTarget's own.

    private readonly TapExtensions extensions = new(tapdisks.Control);
    private readonly JsonObject measured = [];

    public async Task<JsonNode> RunAsync(Served source, Served target, bool isSmall)
    {
        long size = tapdisks.SizeBytes(isSmall);
        log.WriteLine("\nthe mirror's target under load");
        await StopAsync(source, target, size);
        tapdisks.TapCtl("pause", source);
        tapdisks.TapCtl("unpause", source, "-2 null");
        await PauseAsync(source, target, size);
        Served other = tapdisks.Start(tapdisks.Disk("other", isSmall));
        tapdisks.Mirror(source, other);
        await KillAsync(source, other, size);
        tapdisks.TapCtl("pause", source);
        tapdisks.TapCtl("unpause", source, "-2 null");
        await CopyAsync(source, isSmall, size);
        return new JsonObject { ["title"] = "the mirror's target under load", ["measured"] = measured };
    }

    private async Task StopAsync(Served source, Served target, long size)
    {
        using Process writer = Fio.Start(source.Uri, Writer, 8, size), reader = Fio.Start(source.Uri, Reader, 8, size);
        await Task.Delay(1000);
        Child.Run($"kill -STOP {target.ProcessId}");
        double stalled = await UntilAsync(source, MirrorPhase.Stalled);
        double failed = stalled + await UntilAsync(source, MirrorPhase.Failed);
        FioRun wrote = Fio.ResultOf(writer, Writer), read = Fio.ResultOf(reader, Reader);
        Child.Run($"kill -CONT {target.ProcessId}");
        Report("target stopped: status says stalled after", stalled, 1);
        Report("target stopped: given up after", failed, StallLimit.TotalSeconds + 0.5);
        Report("target stopped: longest write", wrote.Max / 1e6, StallLimit.TotalSeconds + 0.5);
        Report("target stopped: longest read", read.Max / 1e6, 0.05);
    }

    private async Task PauseAsync(Served source, Served target, long size)
    {
        tapdisks.Mirror(source, target);
        using Process writer = Fio.Start(source.Uri, Writer, 4, size);
        await Task.Delay(500);
        Child.Run($"kill -STOP {target.ProcessId}");
        await Task.Delay(1000);
        Stopwatch pause = Stopwatch.StartNew();
        await tapdisks.Control.PauseAsync(source.ProcessId, source.Minor, CancellationToken.None);
        Report("target stopped: pause answers after", pause.Elapsed.TotalSeconds, 1);
        tapdisks.TapCtl("unpause", source, "-2 null");
        FioRun wrote = Fio.ResultOf(writer, Writer);
        Child.Run($"kill -CONT {target.ProcessId}");
        Report("target stopped and paused: longest write", wrote.Max / 1e6, StallLimit.TotalSeconds + 0.5);
    }

    private async Task KillAsync(Served source, Served target, long size)
    {
        using Process writer = Fio.Start(source.Uri, Writer, 3, size);
        await Task.Delay(1000);
        Child.Run($"kill -KILL {target.ProcessId}");
        double failed = await UntilAsync(source, MirrorPhase.Failed);
        FioRun wrote = Fio.ResultOf(writer, Writer);
        Report("target killed: known after", failed, 0.1);
        Report("target killed: longest write", wrote.Max / 1e6, 0.1);
    }

    // The initial copy of our own mirror: over TLS, onto an empty disk; alone, and beside a guest that writes as fast as it can.
    private async Task CopyAsync(Served source, bool isSmall, long size)
    {
        await CopyOnceAsync(source, isSmall); // The first one pays for memory that the machine never had in its hands.
        double alone = await CopyOnceAsync(source, isSmall);
        FioRun free = Fio.Run(source.Uri, Crowd, 2, size);
        using Process writer = Fio.Start(source.Uri, Crowd, Math.Max(0.5, alone), size); // No longer than the copy: its rest would flatter us.
        await Task.Delay(150);
        double beside = await CopyOnceAsync(source, isSmall);
        FioRun wrote = Fio.ResultOf(writer, Crowd);
        Report("initial copy alone", alone, null);
        Report("initial copy beside a crowd of writes, of alone", beside / alone, 1.5, "x");
        Report("the crowd beside a copy, of its free rate (at least)", wrote.PerSecond / free.PerSecond, -0.3, "x");
        Report("the crowd beside a copy: p99", wrote.P99 / 1e6, 0.05);
    }

    private async Task<double> CopyOnceAsync(Served source, bool isSmall)
    {
        Served target = tapdisks.Start(tapdisks.Empty("copied", isSmall));
        using RSA key = RSA.Create(2048);
        CertificateRequest request = new("CN=bench", key, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);
        using X509Certificate2 certificate = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddDays(-1), DateTimeOffset.UtcNow.AddDays(1));
        string pem = Path.Combine(tapdisks.ControlDirectory, "certificate.pem"), keyPem = Path.Combine(tapdisks.ControlDirectory, "key.pem");
        await File.WriteAllTextAsync(pem, certificate.ExportCertificatePem());
        await File.WriteAllTextAsync(keyPem, key.ExportPkcs8PrivateKeyPem());
        Secret name = new(Guid.NewGuid().ToString("n"));
        int port = await extensions.ExportAsync(
            target.ProcessId, target.Minor, "127.0.0.1:0", pem, keyPem, name, CancellationToken.None);
        string fingerprint = Convert.ToHexStringLower(SHA256.HashData(certificate.RawDataMemory.Span));
        Stopwatch copy = Stopwatch.StartNew();
        await extensions.MirrorStartAsync(
            source.ProcessId, source.Minor, new MirrorTarget($"nbds://127.0.0.1:{port}", name, fingerprint, StallLimit, 0), CancellationToken.None);
        await UntilAsync(source, MirrorPhase.Synced);
        double took = copy.Elapsed.TotalSeconds;
        await extensions.MirrorStopAsync(source.ProcessId, source.Minor, CancellationToken.None);
        Report("  its target's peak memory, MiB", Tapdisks.PeakMiB(target.ProcessId), 64, "MiB");
        tapdisks.Stop(target);
        double allocation = (double)new FileInfo(target.Image).Length / new FileInfo(source.Image).Length;
        Report("  its target's file, of the source's", allocation, 1.05, "x");
        return took;
    }

    /// <returns>Seconds.</returns>
    private async Task<double> UntilAsync(Served source, MirrorPhase phase)
    {
        Stopwatch wait = Stopwatch.StartNew();
        while (wait.Elapsed < TimeSpan.FromSeconds(60))
        {
            MirrorStatus status = await extensions.MirrorStatusAsync(source.ProcessId, source.Minor, CancellationToken.None);
            if (status.Phase == phase)
                return wait.Elapsed.TotalSeconds;
            if (status.Phase == MirrorPhase.Failed)
                throw new InvalidOperationException($"the mirror failed: {status.Error}");
            await Task.Delay(5);
        }

        throw new InvalidOperationException($"the mirror did not become {phase} in a minute");
    }

    /// <param name="limit">At most; negative: at least.</param>
    private void Report(string what, double value, double? limit, string unit = "s")
    {
        bool isMet = limit is not { } most || (most >= 0 ? value <= most : value >= -most);
        string goal = limit is { } l ? string.Create(CultureInfo.InvariantCulture, $", goal {Math.Abs(l):f2}: {(isMet ? "pass" : "MISS")}") : "";
        log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  {what,-56}{value,9:f3} {unit}{goal}"));
        measured[what.Trim()] = value;
    }
}
