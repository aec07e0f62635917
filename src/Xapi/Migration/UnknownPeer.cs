using Migration;

namespace Xapi.Migration;

/// <summary>A destination of which only the journal speaks: what is needed to reach it was lost. To the saga it is one that never answers.</summary>
public sealed class UnknownPeer(string url) : IClosablePeer
{
    public Task<PreparedDestination> PrepareAsync(MigrationPlan plan, int attempt, CancellationToken cancellationToken) => throw Silent();

    public Task HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken) => throw Silent();

    public Task<IReadOnlyList<DiskDigest>> DigestAsync(MigrationPlan plan, CancellationToken cancellationToken) => throw Silent();

    public Task<string> RangeDigestAsync(MigrationPlan plan, string device, DigestRange range, CancellationToken cancellationToken) => throw Silent();

    public Task ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken) => throw Silent();

    public Task<ContentDigests> LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken) => throw Silent();

    public Task<GrantAnswer> GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken) => throw Silent();

    public Task AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken) => throw Silent();

    public Task ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken) => throw Silent();

    public Task RelinquishAsync(MigrationPlan plan, long epoch, CancellationToken cancellationToken) => throw Silent();

    public void Dispose()
    {
    }

    private IOException Silent() => new($"how to reach the destination {url} is not known any more");
}
