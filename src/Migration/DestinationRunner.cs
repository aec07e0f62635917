// Runs the destination's saga: answers the source's requests one at a time, and gives up by itself when the source was silent too long.
using Platform;

namespace Migration;

public sealed class DestinationRunner : IDisposable
{
    /// <summary>
    /// How long a source may be silent before this side refuses and tidies up, when it was never heard after the answer to PREPARE; one that was is
    /// waited for as long as the plan says. Never used after a grant (I9).
    /// </summary>
    public static readonly TimeSpan FirstPatience = TimeSpan.FromSeconds(120);

    private const int UndoTries = 4;

    /// <summary>What failed for a reason that may pass is tried again after this, also when nobody asks.</summary>
    private static readonly TimeSpan RetryInterval = TimeSpan.FromSeconds(5);

    private readonly IJournal<DestinationRecord> journal;
    private readonly IDestinationResources resources;
    private readonly IWitness? witness;
    private readonly TimeProvider time;
    private readonly Turn one = new();
    private readonly Lock gate = new();
    private CancellationTokenSource forward = new();
    private readonly ITimer watchdog;

    /// <param name="witness">The plan's; null exactly when it names none.</param>
    public DestinationRunner(
        DestinationState state, IJournal<DestinationRecord> journal, IDestinationResources resources, IWitness? witness, TimeProvider time)
    {
        Invariant.Holds(witness is null == state.Plan.Options.Witness is null, "a plan that names a witness is never decided without it");
        State = state;
        this.journal = journal;
        this.resources = resources;
        this.witness = witness;
        this.time = time;
        watchdog = time.CreateTimer(_ => OnTime(), null, Patience, Timeout.InfiniteTimeSpan);
    }

    public DestinationState State { get; private set; }

    private TimeSpan Patience =>
        State.Has<DestinationRecord.Engaged>() ? State.Plan.Options.ResumeWindow + FirstPatience : FirstPatience;

    /// <summary>What a restarted daemon does: an owner's guest runs; what was being refused is refused; for the rest the source is waited for.</summary>
    public Task RecoverAsync(CancellationToken cancellationToken) => AloneAsync(
        async () =>
        {
            if (State.IsRefusing && !State.IsClosed)
                await RefuseAsync(State.Last<DestinationRecord.Refusing>()!.Reason);
            else if (State.IsOwner && !State.IsRunning)
                await RunGuestAsync();
        },
        cancellationToken);

    /// <summary>
    /// Makes everything that is not there. On a failure of the first attempt everything made is destroyed again, then the cause is thrown; in a later one
    /// the disks hold what the source need not send again, and stay.
    /// </summary>
    /// <param name="attempt">The source's; one that is over is answered with an error.</param>
    public async Task<PreparedDestination> PrepareAsync(int attempt, CancellationToken cancellationToken)
    {
        if (attempt > State.Attempt && !State.IsOwner)
        {
            // Whatever an earlier attempt still waits for will not come.
            CancellationTokenSource before = Interlocked.Exchange(ref forward, new CancellationTokenSource());
            Cancel(before);
        }

        try
        {
            return await ForwardAsync(token => MakeAllAsync(attempt, token), cancellationToken);
        }
        catch (Exception e) when (e is not InvariantException && attempt == 0 && State.Attempt == 0 && !State.IsOwner)
        {
            await AbortAsync($"it could not be prepared: {e.Message}", CancellationToken.None);
            throw;
        }
    }

    /// <exception cref="MigrationException">This migration was refused; the message says why.</exception>
    public void Heartbeat()
    {
        ThrowIfRefused();
        if (State.Prepared is not null && !State.Has<DestinationRecord.Engaged>())
            Record(new DestinationRecord.Engaged());
        Touch();
    }

    public Task<DiskDigest[]> DigestAsync(CancellationToken cancellationToken) => ForwardAsync(DigestDisksAsync, cancellationToken);

    public Task<string> RangeDigestAsync(string device, DigestRange range, CancellationToken cancellationToken) => ForwardAsync(
        token => resources.RangeDigestAsync(State.Plan.Disks.Single(d => d.Device == device), range, State, token), cancellationToken);

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
    /// <exception cref="MigrationException">Nothing is decided: the witness did not answer, or the VM will not run yet although it is this side's.
    /// Asked again, it goes on.</exception>
    public Task<GrantAnswer> GrantAsync(long epoch, ContentDigests digests) => AloneAsync(
        async () =>
        {
            if (!State.IsOwner)
            {
                if (DestinationSaga.WhyNotAccept(State, epoch, digests) is { } why)
                    return await RefuseAsync(why);
                if (await BecomeOwnerAsync() is { } refusal)
                    return refusal;
            }

            return await RunGuestAsync();
        },
        CancellationToken.None);

    /// <summary>An operator makes this side the owner without a grant: the source is fenced for good, and what was loaded here is whole.</summary>
    /// <exception cref="MigrationException">Why not.</exception>
    public Task<GrantAnswer> PromoteAsync(string operatorName, string evidence) => AloneAsync(
        async () =>
        {
            if (DestinationSaga.WhyNotPromote(State) is { } why)
                throw new MigrationException("OPERATION_NOT_ALLOWED", [why], MigrationSide.Destination, why);
            Record(new DestinationRecord.Promoted(operatorName, evidence));
            return await BecomeOwnerAsync() ?? await RunGuestAsync();
        },
        CancellationToken.None);

    /// <summary>Gives a VM that does not run here back to the source; durable before it is answered. Any number of times.</summary>
    public Task RelinquishAsync(long epoch, CancellationToken cancellationToken) => AloneAsync(
        async () =>
        {
            if (State.Has<DestinationRecord.Relinquished>())
                return;
            if (!State.IsOwner || epoch != State.Plan.Epoch + 2)
            {
                throw new MigrationException(
                    "OPERATION_NOT_ALLOWED", [$"migration {State.Plan.Migration} is {State.Name} here"], MigrationSide.Destination,
                    $"there is nothing to give back in epoch {epoch}: the migration is {State.Name} here");
            }

            await resources.CheckStoppedAsync(State, cancellationToken);
            if (!State.Has<DestinationRecord.Confirmed>())
                await resources.ReleaseAsync(State, cancellationToken); // Nobody will confirm any more.
            Record(new DestinationRecord.Relinquished(epoch));
        },
        cancellationToken);

    /// <summary>Refuses for good and destroys what was made. Nothing to do when it is done; an error when this side owns the VM.</summary>
    /// <returns>What could not be destroyed and why; null when nothing is left.</returns>
    public async Task<string?> AbortAsync(string reason, CancellationToken cancellationToken)
    {
        if (!State.IsOwner)
            Cancel(forward);
        return await AloneAsync(
            async () =>
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
            },
            cancellationToken);
    }

    /// <summary>The source let go: keeps the receipt and gives up what only the transfer needed.</summary>
    public Task ConfirmAsync(Receipt receipt, CancellationToken cancellationToken) => AloneAsync(
        async () =>
        {
            if (State.Has<DestinationRecord.Confirmed>())
                return;
            Invariant.Holds(State.IsRunning, "a source confirms only what was accepted");
            await resources.ReleaseAsync(State, cancellationToken);
            Record(new DestinationRecord.Confirmed(receipt));
        },
        cancellationToken);

    public void Dispose()
    {
        watchdog.Dispose();
        forward.Dispose();
    }

    // Not CancelAsync, which runs what was waiting on a thread of the pool (see Turn).
    private static void Cancel(CancellationTokenSource source) => source.Cancel();

    private Task AloneAsync(Func<Task> work, CancellationToken cancellationToken) => AloneAsync(
        async () =>
        {
            await work();
            return true;
        },
        cancellationToken);

    private async Task<T> AloneAsync<T>(Func<Task<T>> work, CancellationToken cancellationToken)
    {
        await one.WaitAsync(cancellationToken);
        try
        {
            return await work();
        }
        finally
        {
            one.Release();
        }
    }

    private async Task<T> ForwardAsync<T>(Func<CancellationToken, Task<T>> work, CancellationToken cancellationToken)
    {
        Touch();
        ThrowIfRefused();
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, Volatile.Read(ref forward).Token);
        try
        {
            return await AloneAsync(
                () =>
                {
                    ThrowIfRefused();
                    return work(either.Token);
                },
                either.Token);
        }
        finally
        {
            Touch();
        }
    }

    private async Task<PreparedDestination> MakeAllAsync(int attempt, CancellationToken cancellationToken)
    {
        if (State.IsOwner || attempt < State.Attempt)
        {
            string why = State.IsOwner ? "the destination owns the VM" : $"attempt {attempt} is over, {State.Attempt} came after it";
            throw new MigrationException("OPERATION_NOT_ALLOWED", [why], MigrationSide.Destination, why);
        }

        if (attempt == State.Attempt && State.Prepared is { } answered)
            return answered.Destination;
        if (attempt > State.Attempt)
            Record(new DestinationRecord.Reattempt(attempt));
        await DropWhatIsOverAsync(attempt, cancellationToken);
        while (DestinationSaga.NextToMake(State) is { } resource)
        {
            Record(new DestinationRecord.Making(resource));
            Record(new DestinationRecord.Made(resource, await resources.MakeAsync(resource, State, cancellationToken)));
        }

        PreparedDestination prepared = resources.Describe(State);
        Record(new DestinationRecord.Prepared(prepared, attempt));
        return prepared;
    }

    /// <summary>
    /// What a crash left half made, what belongs to an attempt that is over, and what is not there any more: destroyed, so that it is made anew. Disks that
    /// hold what was sent stay.
    /// </summary>
    private async Task DropWhatIsOverAsync(int attempt, CancellationToken cancellationToken)
    {
        foreach (Resource resource in DestinationSaga.Resources(State.Plan).Reverse())
        {
            string? id = State.IdOf(resource);
            bool isOver = State.LastOf(resource) switch
            {
                DestinationRecord.Making => true,
                DestinationRecord.Undone { Failure: not null } => true,
                DestinationRecord.Made => (attempt > 0 && DestinationSaga.BelongsToAttempt(resource))
                    || !await resources.IsThereAsync(resource, id!, State, cancellationToken),
                _ => false,
            };
            if (!isOver)
                continue;
            if (resource.Kind == ResourceKind.Disk && id is not null)
            {
                throw new MigrationException(
                    "VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the disk {resource.Device} that was being filled is not there any more");
            }

            string? failure = await TryDestroyAsync(resource);
            Record(new DestinationRecord.Undone(resource, failure));
            if (failure is not null)
                throw new MigrationException(
                    "VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"{resource} of the attempt before will not go: {failure}", isTransient: true);
        }
    }

    /// <returns>Null when this side owns the VM now, which is durable; otherwise the refusal, durable too.</returns>
    private async Task<GrantAnswer?> BecomeOwnerAsync()
    {
        try
        {
            // The guest must still be there, and nobody else may write to its disks.
            MemoryDigest memory = await resources.LoadedAsync(State, CancellationToken.None);
            if (memory != State.Loaded!.Digests.Memory)
                return await RefuseAsync("the loaded guest is not the one that was announced");
            await resources.CloseExportsAsync(State, CancellationToken.None);
        }
        catch (Exception e) when (e is not InvariantException)
        {
            return await RefuseAsync($"the guest or the source's way into its disks is not as it must be: {e.Message}");
        }

        if (witness is not null)
        {
            Verdict verdict;
            try
            {
                verdict = await witness.DecideAsync(State.Plan.Migration, Verdict.Destination, CancellationToken.None);
            }
            catch (Exception e) when (e is not InvariantException)
            {
                throw new MigrationException(
                    "VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the witness cannot be asked: {e.Message}; nothing is decided", e, isTransient: true);
            }

            if (verdict != Verdict.Destination)
                return await RefuseAsync("the witness gave the VM to the source");
        }

        Record(new DestinationRecord.Accepting(State.Plan.Epoch + 1));
        watchdog.Change(RetryInterval, Timeout.InfiniteTimeSpan); // Until it runs, whoever asks or does not.
        return null;
    }

    /// <summary>The owner's guest runs: from the memory that was loaded, or, when that is lost and never ran, from its disks.</summary>
    private async Task<GrantAnswer> RunGuestAsync()
    {
        if (State.Last<DestinationRecord.Running>() is { } running)
            return new GrantAnswer(running.At, null);
        DateTimeOffset at;
        bool isRebooted = false;
        try
        {
            at = await resources.RunAsync(State, CancellationToken.None);
        }
        catch (MigrationException e) when (e.Code == MigrationException.DomainVanished)
        {
            at = await resources.BootAsync(State, CancellationToken.None);
            isRebooted = true;
        }

        Record(new DestinationRecord.Running(at, isRebooted));
        return new GrantAnswer(at, null);
    }

    private Task<DiskDigest[]> DigestDisksAsync(CancellationToken cancellationToken) =>
        Task.WhenAll(State.Plan.Disks.Select(disk => resources.DigestAsync(disk, State, cancellationToken)));

    private async Task<GrantAnswer> RefuseAsync(string reason)
    {
        if (!State.IsRefusing)
            Record(new DestinationRecord.Refusing(reason));
        while (DestinationSaga.NextToUndo(State) is { } resource)
            Record(new DestinationRecord.Undone(resource, await TryDestroyAsync(resource)));

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

    /// <summary>
    /// The source was silent for too long, or something is left to be done that failed: a guest that is this side's must run, a refusal must be written
    /// and done. What does not get done now is tried again.
    /// </summary>
    private async void OnTime()
    {
        try
        {
            if (State.IsOwner || State.IsRefusing)
                await RecoverAsync(CancellationToken.None);
            else
                await AbortAsync($"the source was silent for {Patience.TotalMinutes:0} min", CancellationToken.None);
        }
        catch (Exception e) when (e is not InvariantException)
        {
            // Told by the state, which stays what it was.
        }

        if ((State.IsOwner && !State.IsRunning) || (!State.IsOwner && !State.IsClosed))
            watchdog.Change(RetryInterval, Timeout.InfiniteTimeSpan);
    }

    /// <summary>The source is there.</summary>
    private void Touch() => watchdog.Change(Patience, Timeout.InfiniteTimeSpan);

    private void ThrowIfRefused()
    {
        if (State.IsRefusing)
        {
            string reason = State.Last<DestinationRecord.Refusing>()!.Reason;
            throw new MigrationException("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the destination gave this migration up: {reason}");
        }
    }

    // A heartbeat does not wait for its turn: without the lock its record could put a state in place that does not know of a refusal just written.
    private void Record(DestinationRecord record)
    {
        lock (gate)
        {
            journal.Append(State.Plan.Migration, record);
            State = State.With(record);
        }
    }
}
