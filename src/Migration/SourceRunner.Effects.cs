// How each effect is run: what is asked of the ports, and the record that comes of it.
using Platform;

namespace Migration;

public sealed partial class SourceRunner
{
    private static readonly TimeSpan HeartbeatInterval = TimeSpan.FromSeconds(2);
    private static readonly TimeSpan HeartbeatLimit = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan StatusInterval = TimeSpan.FromMilliseconds(100);

    private async Task<SourceRecord?> RunAsync(SourceEffect effect, CancellationToken cancellationToken)
    {
        MigrationPlan plan = State.Plan;
        switch (effect)
        {
            case SourceEffect.PrepareDestination:
                return new SourceRecord.Prepared(await peer.PrepareAsync(plan, State.Attempt, cancellationToken));
            case SourceEffect.StartMirror e:
                await StartMirrorAsync(Disk(e.Device), cancellationToken);
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
                meter.StopOrdered();
                return new SourceRecord.Stopped(await meter.TimedAsync("stop", domain.StopAsync(plan, cancellationToken)));
            case SourceEffect.FinishMirrors:
                return await FinishMirrorsAsync(cancellationToken);
            case SourceEffect.SendMemory:
                return await meter.TimedAsync("memory", SendMemoryAsync(cancellationToken));
            case SourceEffect.FreezeDomain:
                await meter.TimedAsync("hand-over", domain.FreezeAsync(plan, cancellationToken));
                return new SourceRecord.Frozen();
            case SourceEffect.SendGrant:
                return await meter.TimedAsync("hand-over", SendGrantAsync(cancellationToken));
            default:
                return await AfterwardsAsync(effect, cancellationToken);
        }
    }

    private async Task<SourceRecord?> AfterwardsAsync(SourceEffect effect, CancellationToken cancellationToken)
    {
        MigrationPlan plan = State.Plan;
        switch (effect)
        {
            case SourceEffect.StoreReceipt:
                return new SourceRecord.ReceiptStored(MakeReceipt());
            case SourceEffect.ReleaseDomain:
                await domain.ReleaseAsync(plan, cancellationToken);
                return new SourceRecord.Released(SourceSaga.DomainName);
            case SourceEffect.ConfirmDestination:
                await peer.ConfirmAsync(plan, State.Last<SourceRecord.ReceiptStored>()!.Receipt, cancellationToken);
                return new SourceRecord.Confirmed();
            case SourceEffect.HoldDisks:
                DateTimeOffset until = time.GetUtcNow() + plan.Options.KeepSourceFor;
                await Task.WhenAll(plan.Disks.Select(d => storage.HoldAsync(d, until, cancellationToken)));
                return new SourceRecord.Holding(until);
            case SourceEffect.AwaitHoldEnd e:
                return await AwaitAsync(e.Until, cancellationToken) ? new SourceRecord.Released(SourceSaga.HoldName) : null;
            case SourceEffect.AskBack:
                await peer.RelinquishAsync(plan, plan.Epoch + 2, cancellationToken);
                return SourceSaga.Recall(State);
            case SourceEffect.ReleaseDisk e:
                await storage.DestroyAsync(Disk(e.Device), cancellationToken);
                return new SourceRecord.Released(e.Device);
            case SourceEffect.RestoreVm:
                await domain.RestoreAsync(plan, cancellationToken);
                return new SourceRecord.Restored();
            case SourceEffect.Close:
                return new SourceRecord.Closed();
            case SourceEffect.ResumeDomain:
                await domain.ResumeAsync(plan, cancellationToken);
                return new SourceRecord.Resumed();
            case SourceEffect.StopMirror e:
                await storage.StopMirrorAsync(Disk(e.Device), cancellationToken);
                return new SourceRecord.Undone(SourceSaga.MirrorName(e.Device), null);
            case SourceEffect.AbortDestination:
                await peer.AbortAsync(plan, Cause().Message, cancellationToken);
                return new SourceRecord.Undone(SourceSaga.DestinationName, null);
            case SourceEffect.TellAborted:
                return new SourceRecord.Aborted();
            default:
                throw new InvariantException($"{effect} has no runner");
        }
    }

    private async Task StartMirrorAsync(DiskPlan disk, CancellationToken cancellationToken)
    {
        long rate = State.RateBytesPerSecond;
        await storage.StartMirrorAsync(disk, Target(disk.Device), State.WasMirrored(disk.Device), rate, State.Plan.Options, cancellationToken);
        while (rate != State.RateBytesPerSecond) // An operator came while it was started.
        {
            rate = State.RateBytesPerSecond;
            await storage.SetRateAsync(disk, rate, cancellationToken);
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
                await HeartbeatAsync(cancellationToken);
                nextHeartbeat = time.GetTimestamp() + (long)(HeartbeatInterval.TotalSeconds * time.TimestampFrequency);
            }

            await Task.Delay(StatusInterval, time, cancellationToken);
        }
    }

    private async Task<SourceRecord> FinishMirrorsAsync(CancellationToken cancellationToken)
    {
        long sent = await SentBytesAsync(cancellationToken);
        await meter.TimedAsync("mirror", Task.WhenAll(State.Plan.Disks.Select(d => storage.FinishMirrorAsync(d, cancellationToken))));
        Task<DiskDigest[]> here = DigestAsync(cancellationToken);
        Task<IReadOnlyList<DiskDigest>> there = peer.DigestAsync(State.Plan, cancellationToken);
        await meter.TimedAsync("digest", Task.WhenAll(here, there));
        MemoryDigest none = new("", 0);
        if (new ContentDigests(none, await here).DifferenceFrom(new ContentDigests(none, await there)) is { } difference)
            throw Differ($"{difference}{await new Difference(storage, peer, State.Plan).WhereAsync(await here, await there, cancellationToken)}");
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
        meter.Runs();
        return answer.RunningAt is { } at ? new SourceRecord.Accepted(at) : new SourceRecord.Refused(answer.Refusal ?? "refused");
    }

    /// <returns>The record of a verdict for this side; null when the destination has it, or nobody answered: then the destination is asked on.</returns>
    private async Task<SourceRecord?> AskWitnessAsync(CancellationToken cancellationToken)
    {
        try
        {
            return await witness!.DecideAsync(State.Plan.Migration, Verdict.Source, cancellationToken) == Verdict.Source
                ? new SourceRecord.Refused("the destination did not answer, and the witness gave the VM to the source")
                : null;
        }
        catch (IOException)
        {
            return null;
        }
    }

    private Receipt MakeReceipt()
    {
        MigrationPlan plan = State.Plan;
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
            ((SourceRecord.Begun)State.Records[0]).At,
            State.Last<SourceRecord.Stopped>()!.At,
            State.Last<SourceRecord.Accepted>()!.RunningAt,
            meter.Blackout());
    }

    private async Task<MirrorProgress[]> StatusAsync(CancellationToken cancellationToken)
    {
        MirrorProgress[] mirrors = await Task.WhenAll(State.Plan.Disks.Select(d => storage.MirrorStatusAsync(d, cancellationToken)));
        for (int i = 0; i < mirrors.Length; i++)
        {
            if (mirrors[i].Failure is { } failure)
            {
                DiskPlan disk = State.Plan.Disks[i];
                throw new MigrationException(
                    "MIRROR_FAILED", [disk.SourceDisk], MigrationSide.Destination, $"the mirror of disk {disk.Device} failed: {failure}",
                    isTransient: mirrors[i].IsLost);
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
        // The work hears the token; a delay that did would end this wait on a thread of the pool.
        while (await Task.WhenAny(work, Task.Delay(HeartbeatInterval, time, CancellationToken.None)) != work)
        {
            Report(await StatusAsync(cancellationToken));
            await HeartbeatAsync(cancellationToken);
        }

        await work;
    }

    /// <summary>A destination that cannot be reached for a moment is no reason to stop while its disks answer; one that gave up is.</summary>
    private async Task HeartbeatAsync(CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = new(HeartbeatLimit, time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, limit.Token);
        try
        {
            await peer.HeartbeatAsync(State.Plan, either.Token);
        }
        catch (Exception e) when (e is IOException or OperationCanceledException && !cancellationToken.IsCancellationRequested)
        {
            Waiting = "the destination's daemon does not answer; its disks do";
        }
    }

    private async Task<bool> AwaitAsync(DateTimeOffset until, CancellationToken cancellationToken)
    {
        // In steps: a timer of many days is not to be had, and the clock may be set. Delay cuts off what is less than a millisecond: without one more this
        // would spin to its end.
        while (until - time.GetUtcNow() is { } left && left > TimeSpan.Zero)
            await Task.Delay(left < TimeSpan.FromHours(1) ? left + TimeSpan.FromMilliseconds(1) : TimeSpan.FromHours(1), time, cancellationToken);
        return State.OpenRecall is null;
    }

    private DiskPlan Disk(string device) => State.Plan.Disks.Single(d => d.Device == device);

    private DiskTarget Target(string device) => Prepared.Disks.Single(d => d.Device == device);

    private PreparedDestination Prepared => State.Last<SourceRecord.Prepared>()!.Destination;

    private static MigrationException Differ(string difference) =>
        new("VM_MIGRATE_FAILED", [], MigrationSide.Destination, $"the two sides' contents differ, nothing was handed over: {difference}");
}
