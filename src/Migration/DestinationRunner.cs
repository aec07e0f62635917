// Runs the destination's saga: answers the source's requests one at a time, and gives up by itself when the source was silent too long.
using Platform;

namespace Migration;

public sealed class DestinationRunner : IDisposable
{
    /// <summary>How long a source may be silent before this side refuses and tidies up. Never used after a grant (I9).</summary>
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(120);

    private const int UndoTries = 4;

    private readonly IJournal<DestinationRecord> journal;
    private readonly IDestinationResources resources;
    private readonly TimeProvider time;
    private readonly SemaphoreSlim one = new(1, 1);
    private readonly CancellationTokenSource forward = new();
    private readonly ITimer watchdog;

    public DestinationRunner(
        DestinationState state, IJournal<DestinationRecord> journal, IDestinationResources resources, TimeProvider time)
    {
        State = state;
        this.journal = journal;
        this.resources = resources;
        this.time = time;
        watchdog = time.CreateTimer(_ => GiveUp(), null, Patience, Timeout.InfiniteTimeSpan);
    }

    public DestinationState State { get; private set; }

    /// <summary>The source is there.</summary>
    public void Touch() => watchdog.Change(Patience, Timeout.InfiniteTimeSpan);

    /// <summary>Makes everything that is not made yet. On a failure everything made is destroyed again, then the cause is thrown.</summary>
    public async Task<PreparedDestination> PrepareAsync(CancellationToken cancellationToken)
    {
        try
        {
            return await ForwardAsync(MakeAllAsync, cancellationToken);
        }
        catch (Exception e) when (e is not InvariantException)
        {
            await AbortAsync($"it could not be prepared: {e.Message}", CancellationToken.None);
            throw;
        }
    }

    /// <exception cref="MigrationException">This migration was refused; the message says why.</exception>
    public void Heartbeat()
    {
        Touch();
        ThrowIfRefused();
    }

    public Task<DiskDigest[]> DigestAsync(CancellationToken cancellationToken) => ForwardAsync(DigestDisksAsync, cancellationToken);

    public Task<bool> ProbeAsync(CancellationToken cancellationToken) => ForwardAsync(
        async token =>
        {
            await resources.ProbeAsync(State, token);
            return true;
        },
        cancellationToken);

    /// <summary>Waits for the memory stream's verified end and hashes the disks: after this only the permission is missing.</summary>
    public Task<ContentDigests> LoadedAsync(CancellationToken cancellationToken) => ForwardAsync(
        async token =>
        {
            MemoryDigest memory = await resources.LoadedAsync(State, token);
            ContentDigests digests = new(memory, await DigestDisksAsync(token));
            Record(new DestinationRecord.Loaded(digests));
            return digests;
        },
        cancellationToken);

    /// <summary>
    /// The commit point: the Accepting record. Asked again, it answers the same. A refusal is durable before it is answered.
    /// </summary>
    public async Task<GrantAnswer> GrantAsync(long epoch, ContentDigests digests)
    {
        await one.WaitAsync();
        try
        {
            if (State.Last<DestinationRecord.Running>() is { } running)
                return new GrantAnswer(running.At, null);
            if (!State.IsOwner)
            {
                if (DestinationSaga.WhyNotAccept(State, epoch, digests) is { } why)
                    return await RefuseAsync(why);
                try
                {
                    await resources.CloseExportsAsync(State, CancellationToken.None);
                }
                catch (Exception e) when (e is not InvariantException)
                {
                    return await RefuseAsync($"the source's way into the disks could not be closed: {e.Message}");
                }

                Record(new DestinationRecord.Accepting(epoch));
            }

            DateTimeOffset at = await resources.RunAsync(State, CancellationToken.None);
            Record(new DestinationRecord.Running(at));
            return new GrantAnswer(at, null);
        }
        finally
        {
            one.Release();
        }
    }

    /// <summary>Refuses for good and destroys what was made. Nothing to do when it is done; an error when this side owns the VM.</summary>
    /// <returns>What could not be destroyed and why; null when nothing is left.</returns>
    public async Task<string?> AbortAsync(string reason, CancellationToken cancellationToken)
    {
        if (!State.IsOwner)
            await forward.CancelAsync();
        await one.WaitAsync(cancellationToken);
        try
        {
            if (State.IsOwner)
            {
                throw new MigrationException(
                    "OPERATION_NOT_ALLOWED", [$"migration {State.Plan.Migration}: the destination owns the VM"], MigrationSide.Destination,
                    "it is too late to abort: the destination owns the VM");
            }

            await RefuseAsync(reason);
            string[] left = [.. State.Records.OfType<DestinationRecord.Undone>()
                .Where(static u => u.Failure is not null)
                .Select(static u => $"{u.Resource}: {u.Failure}")];
            return left.Length == 0 ? null : string.Join("; ", left);
        }
        finally
        {
            one.Release();
        }
    }

    /// <summary>The source let go: keeps the receipt and gives up what only the transfer needed.</summary>
    public async Task ConfirmAsync(Receipt receipt, CancellationToken cancellationToken)
    {
        await one.WaitAsync(cancellationToken);
        try
        {
            if (State.Has<DestinationRecord.Confirmed>())
                return;
            Invariant.Holds(State.IsRunning, "a source confirms only what was accepted");
            await resources.ReleaseAsync(State, cancellationToken);
            Record(new DestinationRecord.Confirmed(receipt));
        }
        finally
        {
            one.Release();
        }
    }

    public void Dispose()
    {
        watchdog.Dispose();
        forward.Dispose();
        one.Dispose();
    }

    private async Task<T> ForwardAsync<T>(Func<CancellationToken, Task<T>> work, CancellationToken cancellationToken)
    {
        Touch();
        ThrowIfRefused();
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, forward.Token);
        await one.WaitAsync(either.Token);
        try
        {
            ThrowIfRefused();
            return await work(either.Token);
        }
        finally
        {
            one.Release();
            Touch();
        }
    }

    private async Task<PreparedDestination> MakeAllAsync(CancellationToken cancellationToken)
    {
        while (DestinationSaga.NextToMake(State) is { } resource)
        {
            Record(new DestinationRecord.Making(resource));
            Record(new DestinationRecord.Made(resource, await resources.MakeAsync(resource, State, cancellationToken)));
        }

        PreparedDestination prepared = resources.Describe(State);
        if (!State.Has<DestinationRecord.Prepared>())
            Record(new DestinationRecord.Prepared(prepared));
        return prepared;
    }

    private Task<DiskDigest[]> DigestDisksAsync(CancellationToken cancellationToken) =>
        Task.WhenAll(State.Plan.Disks.Select(disk => resources.DigestAsync(disk, State, cancellationToken)));

    private async Task<GrantAnswer> RefuseAsync(string reason)
    {
        if (!State.IsRefusing)
            Record(new DestinationRecord.Refusing(reason));
        while (DestinationSaga.NextToUndo(State) is { } resource)
        {
            Record(new DestinationRecord.Undone(resource, await TryDestroyAsync(resource)));
        }

        if (!State.Has<DestinationRecord.Refused>())
            Record(new DestinationRecord.Refused());
        return new GrantAnswer(null, State.Last<DestinationRecord.Refusing>()!.Reason);
    }

    /// <returns>Null when it is gone; otherwise the failure, kept in the journal: the next thing is undone all the same.</returns>
    private async Task<string?> TryDestroyAsync(Resource resource)
    {
        for (int tried = 1; ; tried++)
        {
            try
            {
                await resources.DestroyAsync(resource, State.IdOf(resource), State, CancellationToken.None);
                return null;
            }
            catch (Exception e) when (e is not InvariantException)
            {
                if (tried == UndoTries)
                    return e.Message;
                await Task.Delay(TimeSpan.FromMilliseconds(100 << tried), time);
            }
        }
    }

    /// <summary>The undo that it starts belongs to the journal: what it does not get done is found there at the next start.</summary>
    private void GiveUp()
    {
        if (!State.IsOwner && !State.IsClosed)
            _ = AbortAsync($"the source was silent for {Patience.TotalSeconds:0} s", CancellationToken.None);
    }

    private void ThrowIfRefused()
    {
        if (State.IsRefusing)
        {
            string reason = State.Last<DestinationRecord.Refusing>()!.Reason;
            throw new MigrationException("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the destination gave this migration up: {reason}");
        }
    }

    private void Record(DestinationRecord record)
    {
        journal.Append(State.Plan.Migration, record);
        State = State.With(record);
    }
}
