// Runs the source's saga: asks it for the next effect, writes the intent, does it, writes what came of it, until it is over. No decision is made here.
using Platform;

namespace Migration;

public sealed class SourceRunner
{
    private const int ReleaseTries = 5;
    private static readonly TimeSpan HeartbeatInterval = TimeSpan.FromSeconds(2);
    private static readonly TimeSpan StatusInterval = TimeSpan.FromMilliseconds(100);

    private readonly IJournal<SourceRecord> journal;
    private readonly ISourceStorage storage;
    private readonly ISourceDomain domain;
    private readonly IPeer peer;
    private readonly TimeProvider time;
    private readonly Action<MigrationProgress> report;
    private readonly List<(string Part, double Ms)> blackout = [];
    private readonly TaskCompletionSource<string> stuck = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private long stopOrderedAt;
    private double blackoutMs;

    public SourceRunner(
        SourceState state, IJournal<SourceRecord> journal, ISourceStorage storage, ISourceDomain domain, IPeer peer, TimeProvider time,
        Action<MigrationProgress> report)
    {
        State = state;
        this.journal = journal;
        this.storage = storage;
        this.domain = domain;
        this.peer = peer;
        this.time = time;
        this.report = report;
    }

    public SourceState State { get; private set; }

    /// <summary>Completes with a reason when the VM has moved and something of it at the source will not go; it is tried on and on.</summary>
    public Task<string> Stuck => stuck.Task;

    /// <summary>
    /// Drives the migration to its end and returns the receipt. After a failure everything is undone first; then the cause is thrown.
    /// </summary>
    /// <param name="cancel">Unwinds the job; without effect once the switch-over began.</param>
    /// <param name="shutdown">Leaves the job where it stands in the journal; a restart goes on with it.</param>
    /// <exception cref="MigrationException">The VM did not move; it runs at the source.</exception>
    public async Task<Receipt> RunAsync(CancellationToken cancel, CancellationToken shutdown)
    {
        int tries = 0;
        while (SourceSaga.Next(State) is { } effect)
        {
            shutdown.ThrowIfCancellationRequested();
            if (cancel.IsCancellationRequested && !State.IsPastCancel && !State.IsAborting && !State.IsOwnedByDestination)
            {
                Record(new SourceRecord.Aborting(Cancelled()));
                continue;
            }

            if (SourceSaga.Intent(State, effect) is { } intent && State.Records[^1] != intent)
                Record(intent);
            Report();
            try
            {
                using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(
                    shutdown, State.IsPastCancel || State.IsAborting ? CancellationToken.None : cancel);
                Record(await RunAsync(effect, either.Token));
                tries = 0;
            }
            catch (Exception e) when (e is not InvariantException && !shutdown.IsCancellationRequested)
            {
                MigrationFailure failure = cancel.IsCancellationRequested && e is OperationCanceledException ? Cancelled() : FailureOf(e);
                if (SourceSaga.Failed(State, effect, failure) is { } record)
                    Record(record);
                else if (++tries >= ReleaseTries && GiveUp(effect, failure) is { } giveUp)
                    Record(giveUp);
                else
                {
                    if (tries >= ReleaseTries && State.Has<SourceRecord.ReceiptStored>())
                        stuck.TrySetResult($"{effect.GetType().Name}: {failure.Message}");
                    await Task.Delay(TimeSpan.FromMilliseconds(Math.Min(5_000, 100 << Math.Min(tries, 6))), time, shutdown);
                }
            }
        }

        Report();
        return State.Last<SourceRecord.ReceiptStored>()?.Receipt ?? throw Cause();
    }

    /// <summary>The first cause of an unwound migration, with what could not be undone.</summary>
    private MigrationException Cause()
    {
        MigrationFailure failure = State.Last<SourceRecord.Aborting>()?.Failure
            ?? new MigrationFailure(
                "VM_MIGRATE_FAILED", [], MigrationSide.Destination, "hand-over", State.Last<SourceRecord.Refused>()?.Reason ?? "refused");
        string left = string.Join("; ", State.Records.OfType<SourceRecord.Undone>()
            .Where(static u => u.Failure is not null)
            .Select(static u => $"{u.What}: {u.Failure}"));
        return (left.Length == 0 ? failure : failure with { Message = $"{failure.Message}; could not be undone: {left}" }).ToException();
    }

    /// <summary>Where trying again for ever would only hide the trouble: recorded as not done, and told.</summary>
    private SourceRecord? GiveUp(SourceEffect effect, MigrationFailure failure) => effect switch
    {
        SourceEffect.ResumeDomain => new SourceRecord.Undone(SourceSaga.DomainName, failure.Message),
        _ => null,
    };

    private async Task<SourceRecord> RunAsync(SourceEffect effect, CancellationToken cancellationToken)
    {
        MigrationPlan plan = State.Plan;
        switch (effect)
        {
            case SourceEffect.PrepareDestination:
                return new SourceRecord.Prepared(await peer.PrepareAsync(plan, cancellationToken));
            case SourceEffect.StartMirror e:
                await storage.StartMirrorAsync(Disk(e.Device), Target(e.Device), plan.Options, cancellationToken);
                return new SourceRecord.MirrorStarted(e.Device);
            case SourceEffect.AwaitMirrors:
                return await AwaitMirrorsAsync(cancellationToken);
            case SourceEffect.Precopy:
                await WithHeartbeatAsync(domain.PrecopyAsync(plan, Prepared.Memory, cancellationToken), cancellationToken);
                return new SourceRecord.Precopied();
            case SourceEffect.ProbeDestination:
                // The last look before the guest stops: both sides hash now what they would otherwise hash in the pause.
                await Task.WhenAll(DigestAsync(cancellationToken), peer.DigestAsync(plan, cancellationToken));
                await SentBytesAsync(cancellationToken);
                await peer.ProbeAsync(plan, cancellationToken);
                return new SourceRecord.PreSwitch();
            case SourceEffect.StopDomain:
                blackout.Clear();
                stopOrderedAt = time.GetTimestamp();
                return new SourceRecord.Stopped(await TimedAsync("stop", domain.StopAsync(plan, cancellationToken)));
            case SourceEffect.FinishMirrors:
                return await FinishMirrorsAsync(cancellationToken);
            case SourceEffect.SendMemory:
                return await TimedAsync("memory", SendMemoryAsync(cancellationToken));
            case SourceEffect.FreezeDomain:
                await TimedAsync("hand-over", VoidAsync(domain.FreezeAsync(plan, cancellationToken)));
                return new SourceRecord.Frozen();
            case SourceEffect.SendGrant:
                return await TimedAsync("hand-over", SendGrantAsync(cancellationToken));
            default:
                return await AfterwardsAsync(effect, cancellationToken);
        }
    }

    private async Task<SourceRecord> AfterwardsAsync(SourceEffect effect, CancellationToken cancellationToken)
    {
        MigrationPlan plan = State.Plan;
        switch (effect)
        {
            case SourceEffect.StoreReceipt:
                return new SourceRecord.ReceiptStored(MakeReceipt());
            case SourceEffect.ReleaseDomain:
                await domain.ReleaseAsync(plan, cancellationToken);
                return new SourceRecord.Released(SourceSaga.DomainName);
            case SourceEffect.ReleaseDisk e:
                await storage.DestroyAsync(Disk(e.Device), cancellationToken);
                return new SourceRecord.Released(e.Device);
            case SourceEffect.CloseDestination:
                await peer.ConfirmAsync(plan, State.Last<SourceRecord.ReceiptStored>()!.Receipt, cancellationToken);
                return new SourceRecord.Closed();
            case SourceEffect.ResumeDomain:
                if (State.Has<SourceRecord.Refused>() && !State.Has<SourceRecord.Reclaimed>())
                    Record(new SourceRecord.Reclaimed(plan.Epoch + 2));
                await domain.ResumeAsync(plan, cancellationToken);
                return new SourceRecord.Undone(SourceSaga.DomainName, null);
            case SourceEffect.StopMirror e:
                await storage.StopMirrorAsync(Disk(e.Device), cancellationToken);
                return new SourceRecord.Undone(SourceSaga.MirrorName(e.Device), null);
            case SourceEffect.AbortDestination:
                string reason = State.Last<SourceRecord.Aborting>()?.Failure.Message ?? State.Last<SourceRecord.Refused>()!.Reason;
                await peer.AbortAsync(plan, reason, cancellationToken);
                return new SourceRecord.Undone(SourceSaga.DestinationName, null);
            case SourceEffect.TellAborted:
                return new SourceRecord.Aborted();
            default:
                throw new InvariantException($"{effect} has no runner");
        }
    }

    private async Task<SourceRecord> AwaitMirrorsAsync(CancellationToken cancellationToken)
    {
        long nextHeartbeat = 0;
        while (true)
        {
            MirrorProgress[] mirrors = await StatusAsync(cancellationToken);
            Report(mirrors);
            if (mirrors.All(static m => m.IsSynced))
            {
                // Most of the hashing happens while the guest runs.
                await WithHeartbeatAsync(
                    Task.WhenAll(DigestAsync(cancellationToken), peer.DigestAsync(State.Plan, cancellationToken)), cancellationToken);
                return new SourceRecord.MirrorsReady(mirrors.Sum(static m => m.SentBytes));
            }

            if (time.GetTimestamp() >= nextHeartbeat)
            {
                await peer.HeartbeatAsync(State.Plan, cancellationToken);
                nextHeartbeat = time.GetTimestamp() + (long)(HeartbeatInterval.TotalSeconds * time.TimestampFrequency);
            }

            await Task.Delay(StatusInterval, time, cancellationToken);
        }
    }

    private async Task<SourceRecord> FinishMirrorsAsync(CancellationToken cancellationToken)
    {
        long sent = await SentBytesAsync(cancellationToken);
        await TimedAsync("mirror", VoidAsync(Task.WhenAll(State.Plan.Disks.Select(d => storage.FinishMirrorAsync(d, cancellationToken)))));
        Task<DiskDigest[]> here = DigestAsync(cancellationToken);
        Task<IReadOnlyList<DiskDigest>> there = peer.DigestAsync(State.Plan, cancellationToken);
        await TimedAsync("digest", VoidAsync(Task.WhenAll(here, there)));
        MemoryDigest none = new("", 0);
        if (new ContentDigests(none, await here).DifferenceFrom(new ContentDigests(none, await there)) is { } difference)
            throw Differ(difference);
        return new SourceRecord.MirrorsFinished(await here, sent);
    }

    private async Task<SourceRecord> SendMemoryAsync(CancellationToken cancellationToken)
    {
        MemoryDigest memory = await domain.TransferAsync(State.Plan, cancellationToken);
        ContentDigests here = new(memory, State.Last<SourceRecord.MirrorsFinished>()!.Digests);
        ContentDigests there = await peer.LoadedAsync(State.Plan, cancellationToken);
        if (here.DifferenceFrom(there) is { } difference)
            throw Differ(difference);
        return new SourceRecord.Sent(here);
    }

    /// <summary>The one wait without an end of its own (I7): the answer decides who owns the VM, so it is asked for until it is known.</summary>
    private async Task<SourceRecord> SendGrantAsync(CancellationToken cancellationToken)
    {
        GrantAnswer answer = await peer.GrantAsync(
            State.Plan, State.Plan.Epoch + 1, State.Last<SourceRecord.Sent>()!.Digests, cancellationToken);
        blackoutMs = time.GetElapsedTime(stopOrderedAt).TotalMilliseconds;
        return answer.RunningAt is { } at ? new SourceRecord.Accepted(at) : new SourceRecord.Refused(answer.Refusal ?? "refused");
    }

    private Receipt MakeReceipt()
    {
        MigrationPlan plan = State.Plan;
        double Ms(string part) => Math.Round(blackout.Where(b => b.Part == part).Sum(static b => b.Ms), 2);
        ContentDigests digests = State.Last<SourceRecord.Sent>()!.Digests;
        return new Receipt(
            plan.Migration,
            plan.Vm,
            plan.VmName,
            plan.Epoch + 1,
            plan.Source,
            plan.Destination,
            digests,
            Prepared.Disks.ToDictionary(static d => d.Device, static d => d.DestinationDisk),
            plan.Disks.Sum(static d => d.LengthBytes),
            State.Last<SourceRecord.MirrorsFinished>()!.SentBytes + digests.Memory.Bytes,
            State.Last<SourceRecord.Begun>()!.At,
            State.Last<SourceRecord.Stopped>()!.At,
            State.Last<SourceRecord.Accepted>()!.RunningAt,
            new Blackout(Math.Round(blackoutMs, 2), Ms("stop"), Ms("mirror"), Ms("digest"), Ms("memory"), Ms("hand-over")));
    }

    private async Task<MirrorProgress[]> StatusAsync(CancellationToken cancellationToken)
    {
        MirrorProgress[] mirrors = await Task.WhenAll(State.Plan.Disks.Select(d => storage.MirrorStatusAsync(d, cancellationToken)));
        for (int i = 0; i < mirrors.Length; i++)
        {
            if (mirrors[i].Failure is { } failure)
            {
                string disk = State.Plan.Disks[i].SourceDisk;
                throw new MigrationException(
                    "MIRROR_FAILED", [disk], MigrationSide.Destination, $"the mirror of disk {State.Plan.Disks[i].Device} failed: {failure}");
            }
        }

        return mirrors;
    }

    private async Task<long> SentBytesAsync(CancellationToken cancellationToken) =>
        (await StatusAsync(cancellationToken)).Sum(static m => m.SentBytes);

    private Task<DiskDigest[]> DigestAsync(CancellationToken cancellationToken) =>
        Task.WhenAll(State.Plan.Disks.Select(d => storage.DigestAsync(d, cancellationToken)));

    private async Task WithHeartbeatAsync(Task work, CancellationToken cancellationToken)
    {
        while (await Task.WhenAny(work, Task.Delay(HeartbeatInterval, time, cancellationToken)) != work)
        {
            Report(await StatusAsync(cancellationToken));
            await peer.HeartbeatAsync(State.Plan, cancellationToken);
        }

        await work;
    }

    private async Task<T> TimedAsync<T>(string part, Task<T> work)
    {
        long start = time.GetTimestamp();
        T result = await work;
        blackout.Add((part, time.GetElapsedTime(start).TotalMilliseconds));
        return result;
    }

    private static async Task<bool> VoidAsync(Task work)
    {
        await work;
        return true;
    }

    private void Record(SourceRecord record)
    {
        journal.Append(State.Plan.Migration, record);
        State = State.With(record);
    }

    private void Report(MirrorProgress[]? mirrors = null)
    {
        DiskProgress[] disks = mirrors is null
            ? []
            : [.. State.Plan.Disks.Zip(mirrors, static (d, m) =>
                new DiskProgress(d.Device, m.TotalBytes, m.CopiedBytes, m.SentBytes, m.IsSynced, m.IsStalled))];
        long total = disks.Sum(static d => d.TotalBytes);
        double copied = total == 0 ? 0 : Math.Min(1, (double)disks.Sum(static d => d.CopiedBytes) / total);
        double fraction = State.Phase switch
        {
            "prepare" => 0.02,
            "mirror" => 0.05 + (0.75 * copied),
            "memory" => 0.85,
            "switch-over" => 0.92,
            "hand-over" => 0.95,
            "confirm" => 0.97,
            _ => 1.0,
        };
        report(new MigrationProgress(State.Phase, fraction, !State.IsPastCancel && !State.IsAborting, disks));
    }

    private DiskPlan Disk(string device) => State.Plan.Disks.Single(d => d.Device == device);

    private DiskTarget Target(string device) => Prepared.Disks.Single(d => d.Device == device);

    private PreparedDestination Prepared => State.Last<SourceRecord.Prepared>()!.Destination;

    private MigrationFailure Cancelled() => new("TASK_CANCELLED", [], MigrationSide.Source, State.Phase, "cancelled by its caller");

    private MigrationFailure FailureOf(Exception e) => e is MigrationException m
        ? m.ToFailure(State.Phase)
        : new MigrationFailure("VM_MIGRATE_FAILED", [], MigrationSide.Source, State.Phase, e.Message);

    private static MigrationException Differ(string difference) =>
        new("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the two sides' contents differ, nothing was handed over: {difference}");
}
