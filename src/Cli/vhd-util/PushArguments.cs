// What `copy` takes when DST is an NBD export, and how it is pushed there.
using System.CommandLine;
using Nbd;
using Vhd.Transfer;

namespace VhdUtil;

internal sealed class PushArguments
{
    private static readonly TimeSpan Silence = TimeSpan.FromSeconds(60);

    private readonly Option<bool> isTargetZero = new("--target-is-zero") { Description = "NBD: DST is zeros already; send no zeros" };
    private readonly Option<bool> hasNoDigest = new("--no-digest") { Description = "NBD: do not digest on the way" };
    private readonly Option<bool> hasNoZeroScan = new("--no-zero-scan") { Description = "NBD: send what is allocated, zeros too" };
    private readonly Option<string?> fingerprint = new("--fingerprint") { Description = "nbds: SHA-256 of the server's certificate" };

    public void AddTo(Command command)
    {
        command.Add(isTargetZero);
        command.Add(hasNoDigest);
        command.Add(hasNoZeroScan);
        command.Add(fingerprint);
    }

    public async Task<PushResult> RunAsync(
        ParseResult result, string source, NbdUri target, int connections, TransferProgress progress, CancellationToken cancellationToken)
    {
        NbdClientOptions client = new()
        {
            RequestTimeout = Silence,
            Tls = result.GetValue(fingerprint) is { } pinned ? NbdTls.ForClient(pinned) : null,
        };
        List<NbdPusher> pushers = [await NbdPusher.ConnectAsync(target, client, cancellationToken)];
        try
        {
            // A second connection where the server says that it sees what the first one wrote.
            while (pushers[0].IsMultiConnection && pushers.Count < connections)
                pushers.Add(await NbdPusher.ConnectAsync(target, client, cancellationToken));
            PushOptions options = new()
            {
                IsTargetZero = result.GetValue(isTargetZero),
                HasDigest = !result.GetValue(hasNoDigest),
                HasZeroScan = !result.GetValue(hasNoZeroScan),
                Progress = progress,
            };
            return DiskPush.Run(source, pushers, options, cancellationToken);
        }
        finally
        {
            foreach (NbdPusher pusher in pushers)
                await pusher.DisposeAsync();
        }
    }
}
