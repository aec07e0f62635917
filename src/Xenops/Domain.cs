// One VM as xenopsd knows it. Its fields belong to whoever holds its turn; operations on one VM take turns, those of different VMs do
// not meet.
using System.Diagnostics.CodeAnalysis;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Xenops;

internal enum DomainState
{
    Halted,

    /// <summary>Receives another host's guest; only the migration's permission makes it run.</summary>
    Incoming,
    Running,
    Paused,

    /// <summary>The guest panicked; it holds its memory and disks until a hard shutdown.</summary>
    Crashed,

    /// <summary>
    /// Migrated away, or about to be: memory is kept, disks are gone, and it cannot run unless it is given its disks back.
    /// </summary>
    Frozen,
}

[SuppressMessage("Reliability", "CA1001", Justification = "The semaphore makes no handle, and waiters may outlive the domain's removal.")]
internal sealed class Domain(Vm vm, TimeProvider time)
{
    private static readonly TimeSpan TurnDeadline = TimeSpan.FromSeconds(60);

    private readonly SemaphoreSlim turn = new(1, 1);
    private DomainState state = DomainState.Halted;
    private volatile string busyWith = "nothing";

    public Vm Vm => vm;

    public IGuest? Guest { get; set; }

    public DomainDisks? Disks { get; set; }

    public OutgoingMigration? Outgoing { get; set; }

    /// <summary>How it came here, if it did; kept as long as the domain, so that the migration's questions can be asked again.</summary>
    public IncomingMigration? Incoming { get; set; }

    /// <summary>Set when the record was taken out of the table, so that whoever waited for a turn does not use it.</summary>
    public bool IsRemoved { get; set; }

    public DomainState State
    {
        get => state is DomainState.Running or DomainState.Paused && Guest?.PanicReason is not null ? DomainState.Crashed : state;
        set => state = value;
    }

    public async Task<T> InTurnAsync<T>(string operation, Func<Task<T>> action, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        using ITimer timer = time.CreateTimer(_ => limit.Cancel(), null, TurnDeadline, Timeout.InfiniteTimeSpan);
        try
        {
            await turn.WaitAsync(limit.Token);
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw XenopsException.Internal(
                $"VM {vm.Id} has been busy with {busyWith} for {TurnDeadline.TotalSeconds:0} s; {operation} was not started");
        }

        try
        {
            busyWith = operation;
            if (IsRemoved)
                throw XenopsException.DoesNotExist("VM", vm.Id);
            return await action();
        }
        finally
        {
            turn.Release();
        }
    }

    public void Require(params ReadOnlySpan<DomainState> expected)
    {
        if (!expected.Contains(State))
            throw XenopsException.BadPowerState(State.ToString(), expected[0].ToString());
    }

    /// <summary>Only the migration's own verbs may touch a VM that is on its way.</summary>
    public void RequireNoMigration()
    {
        if (Outgoing is not null && State != DomainState.Frozen)
            throw XenopsException.BadPowerState("Migrating", State.ToString());
    }

    /// <summary>Powers the guest off and gives its disks back. The domain is halted whatever fails.</summary>
    /// <returns>What could not be given back.</returns>
    public async Task<IReadOnlyList<string>> TearDownAsync(string dbg)
    {
        if (Guest is { } guest)
            await guest.DisposeAsync();
        Guest = null;
        state = DomainState.Halted;
        if (Disks is not { } disks)
            return [];
        IReadOnlyList<string> failures = await disks.ReleaseAsync(dbg);
        if (failures.Count == 0)
            Disks = null;
        return failures;
    }

    public JsonObject Stat() => new()
    {
        ["state"] = State.ToString(),
        ["memory_bytes"] = vm.MemoryBytes,
        ["guest"] = Guest is { } guest && State != DomainState.Incoming ? JsonSerializer.SerializeToNode(guest.Statistics, Json.Options) : null,
        ["migration"] = Outgoing?.Phase.ToString() ?? (State == DomainState.Incoming ? Incoming?.Id : null),
    };
}
