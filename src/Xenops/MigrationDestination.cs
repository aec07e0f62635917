// The verbs that a saga uses on the side that a VM comes to. Order: receive, loaded, run; discard undoes receive. An incoming domain
// holds its disks open and its memory loaded, and runs only by run, which the saga calls when the VM is owned here.
using System.Net;
using System.Security.Cryptography.X509Certificates;
using Xenops.Streaming;

namespace Xenops;

/// <summary>Where the source must send to.</summary>
public sealed record ReceiveEndpoint(int Port, string Secret, string Fingerprint);

public sealed class MigrationDestination(Domains domains, IPAddress listen, X509Certificate2 certificate)
{
    private static readonly TimeSpan LoadedLimit = TimeSpan.FromMinutes(10);

    /// <summary>Makes everything that running needs, except the permission.</summary>
    public async Task<ReceiveEndpoint> ReceiveAsync(string dbg, string migration, Vm vm, CancellationToken cancellationToken)
    {
        if (migration.Length is 0 or > StreamHello.TextLimitBytes || !migration.All(char.IsAscii))
            throw XenopsException.Internal($"the migration's id is not 1 to {StreamHello.TextLimitBytes} ASCII characters");
        if (Find(migration) is not null)
            throw XenopsException.AlreadyExists("migration", migration);
        Domain domain = domains.AddDomain(vm, DomainState.Incoming);
        return await domain.InTurnAsync("MIGRATE.receive", async () =>
        {
            try
            {
                domain.Disks = await domains.Storage.AttachAsync(dbg, vm, cancellationToken);
                domain.Guest = await domains.BackendOf(vm).CreateAsync(vm, domain.Disks.Served, cancellationToken);
                IncomingMigration incoming = IncomingMigration.Start(migration, vm, domain.Guest, listen, certificate, domains.Time);
                domain.Incoming = incoming;
                return new ReceiveEndpoint(incoming.Port, incoming.Secret.Reveal(), StreamTls.FingerprintOf(certificate));
            }
            catch
            {
                foreach (string failure in await domain.TearDownAsync(dbg))
                    domains.Log($"VM {vm.Id}: undoing a failed receive: {failure}");
                domains.Forget(domain);
                throw;
            }
        }, cancellationToken);
    }

    /// <summary>Waits until the stream has ended and passed every check; says why not when it did not.</summary>
    public async Task<ImageSummary> LoadedAsync(string migration, TimeSpan timeout, CancellationToken cancellationToken)
    {
        IncomingMigration incoming = Get(migration).Incoming!;
        try
        {
            return await incoming.Loading.WaitAsync(timeout < LoadedLimit ? timeout : LoadedLimit, domains.Time, cancellationToken);
        }
        catch (TimeoutException)
        {
            throw XenopsException.Internal(
                $"migration {migration} is not loaded after {timeout.TotalMilliseconds:0} ms: {incoming.Progress}");
        }
    }

    /// <summary>Lets a loaded guest run. The same answer when it runs already.</summary>
    /// <returns>When its first step was done.</returns>
    public Task<string> RunAsync(string migration, CancellationToken cancellationToken)
    {
        Domain domain = Get(migration);
        return domain.InTurnAsync("MIGRATE.run", async () =>
        {
            IncomingMigration incoming = domain.Incoming!;
            if (incoming.RunningAt is { } already)
                return already;
            domain.Require(DomainState.Incoming);
            if (!incoming.Loading.IsCompleted)
                throw XenopsException.Internal($"migration {migration} is not loaded: {incoming.Progress}");
            await incoming.Loading;
            if (domain.Guest!.PanicReason is { } reason)
            {
                domains.Log($"VM {domain.Vm.Id}: the guest of migration {migration} is gone before it ran here: {reason}");
                throw XenopsException.DoesNotExist("guest of migration", migration);
            }

            await Domains.RunGuestAsync(domain, cancellationToken);
            incoming.RunningAt = domain.Guest.Status.RunningAt!;
            domains.Log($"VM {domain.Vm.Id} ({domain.Vm.Name}) runs here (migration {migration})");
            return incoming.RunningAt;
        }, cancellationToken);
    }

    /// <summary>Destroys an incoming domain and gives its disks back; nothing to do when there is none. Refused once it runs.</summary>
    public async Task DiscardAsync(string dbg, string migration, CancellationToken cancellationToken)
    {
        if (Find(migration) is not { } domain)
            return;
        await domain.InTurnAsync("MIGRATE.discard", async () =>
        {
            if (domain.Incoming!.RunningAt is not null)
                throw XenopsException.BadPowerState(domain.State.ToString(), nameof(DomainState.Incoming));
            await domain.Incoming.DisposeAsync();
            IReadOnlyList<string> failures = await domain.TearDownAsync(dbg);
            if (failures.Count > 0)
            {
                domain.State = DomainState.Incoming; // Found again by the next discard.
                throw XenopsException.Internal(
                    $"migration {migration} is destroyed, but its disks are not all given back: {string.Join("; ", failures)}");
            }

            domains.Forget(domain);
            return true;
        }, cancellationToken);
    }

    private Domain? Find(string migration) => domains.All.FirstOrDefault(d => d.Incoming?.Id == migration);

    private Domain Get(string migration) => Find(migration) ?? throw XenopsException.DoesNotExist("migration", migration);
}
