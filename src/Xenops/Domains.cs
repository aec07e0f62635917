// The VMs of this host and their life without migration. Every verb takes its VM's turn, so one VM never does two things; a verb that
// fails leaves the VM in the state that its error and VM.stat tell.
using System.Collections.Concurrent;
using System.Text.Json.Nodes;
using StorageAccess;

namespace Xenops;

/// <param name="backends">By the name that a VM's record uses.</param>
/// <param name="log">Takes one line, what a human would tell of this host.</param>
public sealed class Domains(
    IReadOnlyDictionary<string, IDomainBackend> backends, DiskSource storage, TimeProvider time, Action<string> log) : IAsyncDisposable
{
    private static readonly TimeSpan DrainDeadline = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan ShutdownDeadline = TimeSpan.FromSeconds(60);

    private readonly ConcurrentDictionary<string, Domain> domains = new(StringComparer.OrdinalIgnoreCase);

    internal DiskSource Storage => storage;

    internal TimeProvider Time => time;

    internal Action<string> Log => log;

    internal IEnumerable<Domain> All => domains.Values;

    public void Add(Vm vm) => AddDomain(vm, DomainState.Halted);

    /// <summary>Forgets a halted VM; destroys a frozen one.</summary>
    public Task RemoveAsync(string dbg, string id, CancellationToken cancellationToken)
    {
        Domain domain = Find(id);
        return domain.InTurnAsync("VM.remove", async () =>
        {
            domain.Require(DomainState.Halted, DomainState.Frozen);
            if (domain.Outgoing is { } outgoing)
                await outgoing.DisposeAsync();
            bool isFrozen = domain.State == DomainState.Frozen;
            IReadOnlyList<string> failures = await domain.TearDownAsync(dbg);
            if (isFrozen && failures.Count > 0)
                domain.State = DomainState.Frozen; // Its owner is elsewhere: it must not look like a VM that could be started.
            ThrowIfLeft(domain, failures);
            Forget(domain);
            return true;
        }, cancellationToken);
    }

    public Task StartAsync(string dbg, string id, CancellationToken cancellationToken)
    {
        Domain domain = Find(id);
        return domain.InTurnAsync("VM.start", async () =>
        {
            domain.Require(DomainState.Halted);
            ThrowIfLeft(domain, await domain.TearDownAsync(dbg)); // What an earlier shutdown could not give back.
            domain.Disks = await storage.AttachAsync(dbg, domain.Vm, cancellationToken);
            try
            {
                domain.Guest = await BackendOf(domain.Vm).CreateAsync(domain.Vm, domain.Disks.Served, cancellationToken);
                await domain.Guest.BootAsync(cancellationToken);
                await RunGuestAsync(domain, cancellationToken);
            }
            catch
            {
                foreach (string failure in await domain.TearDownAsync(dbg))
                    log($"VM {id}: undoing a failed start: {failure}");
                throw;
            }

            log($"VM {id} ({domain.Vm.Name}) runs");
            return true;
        }, cancellationToken);
    }

    /// <param name="clean">The guest shuts itself down; when it cannot, it runs on. Otherwise its power is cut.</param>
    public Task ShutdownAsync(string dbg, string id, bool clean, CancellationToken cancellationToken)
    {
        Domain domain = Find(id);
        return domain.InTurnAsync("VM.shutdown", async () =>
        {
            if (clean)
                domain.Require(DomainState.Running);
            else
                domain.Require(DomainState.Running, DomainState.Paused, DomainState.Crashed);
            domain.RequireNoMigration();
            if (clean)
                await ShutDownGuestAsync(domain, cancellationToken);
            IReadOnlyList<string> failures = await domain.TearDownAsync(dbg);
            log($"VM {id} is halted");
            ThrowIfLeft(domain, failures);
            return true;
        }, cancellationToken);
    }

    public Task PauseAsync(string id, CancellationToken cancellationToken)
    {
        Domain domain = Find(id);
        return domain.InTurnAsync("VM.pause", async () =>
        {
            domain.Require(DomainState.Running);
            domain.RequireNoMigration();
            await PauseGuestAsync(domain, null, cancellationToken);
            return true;
        }, cancellationToken);
    }

    public Task UnpauseAsync(string id, CancellationToken cancellationToken)
    {
        Domain domain = Find(id);
        return domain.InTurnAsync("VM.unpause", async () =>
        {
            domain.Require(DomainState.Paused);
            domain.RequireNoMigration();
            await RunGuestAsync(domain, cancellationToken);
            return true;
        }, cancellationToken);
    }

    /// <summary><c>{"state","memory_bytes","guest":{…}|null,"migration"}</c>.</summary>
    public JsonObject Stat(string id) => Find(id).Stat();

    /// <summary>The records of all VMs, by id.</summary>
    public IReadOnlyList<Vm> List() => domains.Values.Select(static d => d.Vm).OrderBy(static v => v.Id, StringComparer.Ordinal).ToArray();

    /// <summary>
    /// Takes the guests that outlived an earlier xenopsd, and destroys the datapaths of those that did not. A stream that was under way has
    /// ended: its guest is what it was, running or stopped, and its migration says what becomes of it. A guest that was being received and
    /// is not complete is destroyed; a complete one waits for its migration.
    /// </summary>
    /// <returns>What could not be destroyed yet.</returns>
    public async Task<IReadOnlyList<string>> AdoptAsync(CancellationToken cancellationToken)
    {
        HashSet<DatapathId> kept = [];
        foreach (IDomainBackend backend in backends.Values)
        {
            foreach (GuestFound found in await backend.FindAsync(cancellationToken))
            {
                GuestPhase phase = found.Guest.Status.Phase;
                if (phase == GuestPhase.Created)
                {
                    log($"VM {found.Vm.Id}: a guest that was not complete is destroyed");
                    await found.Guest.DisposeAsync();
                    continue;
                }

                Adopt(found, phase);
                kept.UnionWith(found.Vm.Vbds.Select(found.Vm.DatapathOf));
                log($"VM {found.Vm.Id} ({found.Vm.Name}) is adopted: {phase}");
            }
        }

        return await storage.DestroyLeftoversAsync(kept, cancellationToken);
    }

    /// <summary>The host goes down: guests are powered off, incoming ones discarded, disks given back.</summary>
    public async ValueTask DisposeAsync()
    {
        await Parallel.ForEachAsync(domains.Values, async (domain, _) =>
        {
            if (domain.Outgoing is { } outgoing)
                await outgoing.DisposeAsync();
            if (domain.Incoming is { } incoming)
                await incoming.DisposeAsync();
            foreach (string failure in await domain.TearDownAsync("exit"))
                log($"VM {domain.Vm.Id}: {failure}");
        });
        domains.Clear();
    }

    private void Adopt(GuestFound found, GuestPhase phase)
    {
        Domain domain = AddDomain(found.Vm, phase switch
        {
            GuestPhase.Loaded => DomainState.Incoming,
            GuestPhase.Running => DomainState.Running,
            GuestPhase.Paused => DomainState.Paused,
            _ => DomainState.Frozen,
        });
        domain.Guest = found.Guest;
        domain.Disks = storage.Adopt(found.Vm, found.Disks);
        if (found.Guest.Status is { Image: { } image, Migration: { } migration } status && phase is GuestPhase.Loaded or GuestPhase.Running)
            domain.Incoming = IncomingMigration.Loaded(migration, image, status.RunningAt);
    }

    internal Domain Find(string id) =>
        domains.TryGetValue(id, out Domain? domain) ? domain : throw XenopsException.DoesNotExist("VM", id);

    internal Domain? TryFind(string id) => domains.GetValueOrDefault(id);

    internal Domain AddDomain(Vm vm, DomainState state)
    {
        BackendOf(vm);
        Domain domain = new(vm, time) { State = state };
        return domains.TryAdd(vm.Id, domain) ? domain : throw XenopsException.AlreadyExists("VM", vm.Id);
    }

    internal void Forget(Domain domain)
    {
        domain.IsRemoved = true;
        domains.TryRemove(KeyValuePair.Create(domain.Vm.Id, domain));
    }

    internal IDomainBackend BackendOf(Vm vm) => backends.TryGetValue(vm.Domain, out IDomainBackend? backend)
        ? backend
        : throw XenopsException.Unimplemented($"a domain of type \"{vm.Domain}\"; there is {string.Join(", ", backends.Keys)}");

    /// <param name="migration">The one that it is stopped for, if any.</param>
    internal static async Task PauseGuestAsync(Domain domain, string? migration, CancellationToken cancellationToken)
    {
        if (!await domain.Guest!.TryPauseAsync(DrainDeadline, migration, cancellationToken))
            throw XenopsException.FailedToSuspend(domain.Vm.Id, DrainDeadline);
        domain.State = DomainState.Paused;
    }

    internal static async Task RunGuestAsync(Domain domain, CancellationToken cancellationToken)
    {
        await domain.Guest!.RunAsync(cancellationToken);
        domain.State = DomainState.Running;
    }

    private static async Task ShutDownGuestAsync(Domain domain, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(ShutdownDeadline);
        try
        {
            await domain.Guest!.ShutDownAsync(limit.Token);
        }
        catch (Exception e)
        {
            throw e is OperationCanceledException && !cancellationToken.IsCancellationRequested
                ? XenopsException.FailedToShutDown(domain.Vm.Id, ShutdownDeadline)
                : XenopsException.Internal($"the guest of VM {domain.Vm.Id} could not shut down and runs on: {e.Message}");
        }
    }

    private static void ThrowIfLeft(Domain domain, IReadOnlyList<string> failures)
    {
        if (failures.Count > 0)
            throw XenopsException.Internal(
                $"VM {domain.Vm.Id} is halted, but its disks are not all given back: {string.Join("; ", failures)}");
    }
}
