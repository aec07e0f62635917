// The verbs that a saga uses on the side that a VM leaves. Order: precopy, stop, transfer, freeze, then VM.remove; resume takes it back
// from anywhere. The one rule of this file: a frozen guest runs again only when the caller says that it may (he holds the ownership
// record), by reattach.
namespace Xenops;

public sealed class MigrationSource(Domains domains)
{
    /// <summary>Sends memory while the guest runs, and goes on keeping the rest small after it has returned.</summary>
    public async Task<PrecopyStats> PrecopyAsync(
        string id, StreamTarget target, TimeSpan downtimeLimit, CancellationToken cancellationToken)
    {
        Domain domain = domains.Find(id);
        OutgoingMigration migration = await domain.InTurnAsync("MIGRATE.precopy", () =>
        {
            domain.Require(DomainState.Running);
            domain.RequireNoMigration();
            return Task.FromResult(domain.Outgoing = new OutgoingMigration(domain, target, downtimeLimit, domains.Time));
        }, cancellationToken);
        try
        {
            return await migration.ConvergeAsync(cancellationToken);
        }
        catch
        {
            await EndAsync(domain, migration);
            throw;
        }
    }

    /// <exception cref="XenopsException">No migration of this VM is under way.</exception>
    public PrecopyStats Progress(string id) => MigrationOf(domains.Find(id)).Progress;

    public Task<StoppedAt> StopAsync(string id, CancellationToken cancellationToken) =>
        InTurnAsync("MIGRATE.stop", id, async (_, migration) =>
        {
            Require(migration, OutgoingPhase.Ready, OutgoingPhase.Stopped);
            if (migration.Phase == OutgoingPhase.Ready)
                await migration.StopAsync(cancellationToken);
            return migration.Stopped!;
        }, cancellationToken);

    public Task<ImageSummary> TransferAsync(string id, CancellationToken cancellationToken) =>
        InTurnAsync("MIGRATE.transfer", id, async (_, migration) =>
        {
            Require(migration, OutgoingPhase.Stopped, OutgoingPhase.Sent);
            if (migration.Phase == OutgoingPhase.Stopped)
                await migration.TransferAsync(cancellationToken);
            return migration.Sent!;
        }, cancellationToken);

    /// <summary>
    /// Makes this copy unable to run and to write: its disks are closed. Giving their datapaths back takes driver calls, so it waits for VM.remove
    /// (or resume): the guest's pause is not longer for it. May be repeated.
    /// </summary>
    public Task FreezeAsync(string dbg, string id, CancellationToken cancellationToken) =>
        InTurnAsync("MIGRATE.freeze", id, async (domain, migration) =>
        {
            Require(migration, OutgoingPhase.Sent);
            domain.State = DomainState.Frozen; // First: from here on it cannot run, whatever becomes of its disks.
            await domain.Guest!.FreezeAsync(cancellationToken);
            domains.Log($"VM {id} is frozen (migration {migration.Id})");
            return true;
        }, cancellationToken);

    /// <summary>The guest runs here again. Nothing to do when it does, or when there is no guest any more: whoever gives up a migration must come
    /// to an end, also when the guest did not survive it.</summary>
    /// <param name="reattach">The caller holds the VM's ownership; required once it is frozen.</param>
    /// <returns>Whether a guest runs.</returns>
    public async Task<bool> ResumeAsync(string dbg, string id, bool reattach, CancellationToken cancellationToken)
    {
        if (domains.TryFind(id) is not { } domain)
            return false;
        return await domain.InTurnAsync("MIGRATE.resume", async () =>
        {
            if (domain.State is DomainState.Halted or DomainState.Crashed)
            {
                await (domain.Outgoing?.DisposeAsync() ?? ValueTask.CompletedTask);
                domain.Outgoing = null;
                return false;
            }

            if (domain.State == DomainState.Frozen && (!reattach || domain.Guest is null))
                throw XenopsException.BadPowerState(nameof(DomainState.Frozen), nameof(DomainState.Paused));
            domain.Require(DomainState.Running, DomainState.Paused, DomainState.Frozen);
            bool isStoppedForIt = domain.Outgoing is not null || domain.Guest!.Status.Migration is not null;
            if (domain.State == DomainState.Paused && !isStoppedForIt)
                throw XenopsException.BadPowerState(nameof(DomainState.Paused), nameof(DomainState.Running));
            if (domain.Outgoing is null && domain.State == DomainState.Running)
                return true;
            await (domain.Outgoing?.DisposeAsync() ?? ValueTask.CompletedTask);
            if (domain.State == DomainState.Frozen)
            {
                await ReleaseDisksAsync(dbg, domain);
                domain.Disks = await domains.Storage.AttachAsync(dbg, domain.Vm, cancellationToken);
                await domain.Guest!.ThawAsync(domain.Disks.Served, cancellationToken);
            }

            domain.Outgoing = null;
            if (domain.State is DomainState.Frozen or DomainState.Paused)
                await Domains.RunGuestAsync(domain, cancellationToken);
            domains.Log($"VM {id} runs on here");
            return true;
        }, cancellationToken);
    }

    /// <summary>
    /// Closes the stream. A running guest has no migration afterwards; a stopped one waits for resume. Nothing to do when there is
    /// none.
    /// </summary>
    public Task AbortStreamAsync(string id, CancellationToken cancellationToken)
    {
        Domain domain = domains.Find(id);
        return domain.InTurnAsync("MIGRATE.abort_stream", async () =>
        {
            if (domain.Outgoing is not { } migration)
                return true;
            await migration.DisposeAsync();
            if (migration.Phase is OutgoingPhase.Precopy or OutgoingPhase.Ready)
                domain.Outgoing = null;
            return true;
        }, cancellationToken);
    }

    private static OutgoingMigration MigrationOf(Domain domain) =>
        domain.Outgoing ?? throw XenopsException.DoesNotExist("migration of VM", domain.Vm.Id);

    private static void Require(OutgoingMigration migration, params ReadOnlySpan<OutgoingPhase> expected)
    {
        if (!expected.Contains(migration.Phase))
            throw XenopsException.BadPowerState($"Migrating ({migration.Phase})", $"Migrating ({expected[0]})");
    }

    private static async Task ReleaseDisksAsync(string dbg, Domain domain)
    {
        IReadOnlyList<string> failures = await (domain.Disks?.ReleaseAsync(dbg) ?? Task.FromResult<IReadOnlyList<string>>([]));
        if (failures.Count > 0)
            throw XenopsException.Internal(
                $"VM {domain.Vm.Id} is frozen, but its disks are not all given back: {string.Join("; ", failures)}");
        domain.Disks = null;
    }

    private Task<T> InTurnAsync<T>(
        string verb, string id, Func<Domain, OutgoingMigration, Task<T>> action, CancellationToken cancellationToken)
    {
        Domain domain = domains.Find(id);
        return domain.InTurnAsync(verb, () => action(domain, MigrationOf(domain)), cancellationToken);
    }

    /// <summary>After a failed pre-copy, which an abort may have cleaned up already.</summary>
    private static Task EndAsync(Domain domain, OutgoingMigration migration) =>
        domain.InTurnAsync("the end of MIGRATE.precopy", async () =>
        {
            await migration.DisposeAsync();
            if (ReferenceEquals(domain.Outgoing, migration))
                domain.Outgoing = null;
            return true;
        }, CancellationToken.None);
}
