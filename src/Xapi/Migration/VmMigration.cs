// VM.migrate_receive and VM.migrate (research: seed 004), and the names that shipped, host.migrate_receive and VM.migrate_send (xapi.md 7.1): from a call to a
// plan, from a plan to a running saga, from its end to the task. What was found open after a restart is taken up again.
using System.Collections.Concurrent;
using System.Globalization;
using Microsoft.Extensions.Logging;
using Migration;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;
using Xapi.Storage;
using Xapi.Tasks;
using Xapi.Vms;
using Xenops;

namespace Xapi.Migration;

/// <summary>This pool, as its peers know it.</summary>
/// <param name="Address">Host and port, for the token's field keys.</param>
public sealed record PoolIdentity(string Url, string Fingerprint, string HostRef, string Address);

public sealed partial class VmMigration(
    PoolDatabase database, MigrationStore store, StorageHost storage, StorageMessages vdis, XenopsHost xenops, VmOperations operations,
    PeerEndpoint peers, Witnesses witnesses, SourceCheck check, Func<PoolIdentity> identity, TimeProvider time, ILogger log) : IAsyncDisposable
{
    private static readonly TimeSpan TokenLifeLimit = TimeSpan.FromDays(7);
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(10);

    private readonly CancellationTokenSource shutdown = new();
    private readonly ConcurrentDictionary<string, Task> recoveries = new();
    private readonly MigrationJobs jobs = new(database);

    public void AddTo(MessageTable messages)
    {
        new MigrationMessages(store, jobs, peers, database).AddTo(messages);
        messages.Declare(
            "VM.migrate_receive", "(host:ref host, sr:ref SR, options:map(string->string)={})", "map(string->string)", isAsync: true,
            (context, a) => Task.FromResult(Receive(a[0].AsString(), a[1].AsString(), a[2].AsMap())));
        messages.Declare(
            "VM.migrate", "(vm:ref VM, dest:map(string->string), live:bool, options:map(string->string)={})", "ref VM", isAsync: true,
            (context, a) => MigrateAsync(context, a[0].AsString(), a[1].AsMap(), a[3].AsMap(), vdiMap: [], vifMap: []));
        messages.Declare(
            "VM.migrate_plan",
            "(vm:ref VM, dest:map(string->string), live:bool, vdi_map:map(ref VDI->ref SR)={}, vif_map:map(ref VIF->ref network)={}, "
            + "options:map(string->string)={})",
            "string", isAsync: true, async (context, a) =>
            {
                MigratePlan plan = await LookAheadAsync(
                    a[0].AsString(), a[1].AsMap(), a[5].AsMap(), a[3].AsMap(), a[4].AsMap(), measuresLink: true, context.CancellationToken);
                return plan.ToJson().ToJsonString();
            });
        messages.Add("VM.assert_can_migrate", async (context, a) =>
        {
            MigratePlan plan = await LookAheadAsync(
                a[0].AsString(), a[1].AsMap(), a[5].AsMap(), a[3].AsMap(), a[4].AsMap(), measuresLink: false, context.CancellationToken);
            if (plan.FirstError is { } error)
                throw Translate(a[0].AsString(), ParseToken(a[1].AsMap()), error.ToException(), context.Task);
            return "";
        });
        messages.Add("host.migrate_receive", (context, a) => Receive(a[0].AsString(), "", a[2].AsMap()));
        messages.Add("VM.migrate_send", (context, a) => MigrateAsync(context, a[0].AsString(), a[1].AsMap(), a[5].AsMap(), a[3].AsMap(), a[4].AsMap()));
    }

    /// <summary>Takes up the jobs that a dead daemon left, each in its own background task.</summary>
    public void Recover()
    {
        foreach (SourceState found in store.OpenSources())
        {
            string migration = found.Plan.Migration;
            if (SourceSaga.AfterRestart(found, time.GetUtcNow()) is { } record)
                store.Append(migration, record);
            LogRecover(migration, found.Plan.VmName, found.Phase);
            recoveries[migration] = RecoverAsync(store.Source(migration)!);
        }
    }

    public async ValueTask DisposeAsync()
    {
        await shutdown.CancelAsync();
        await Task.WhenAny(Task.WhenAll(recoveries.Values), Task.Delay(StopLimit, time));
        shutdown.Dispose();
        jobs.Dispose();
    }

    /// <summary>Options: <c>lifetime_seconds</c>, how long the token can be used to begin; a migration that began is not ended by it.</summary>
    private RpcValue Receive(string host, string sr, Dictionary<string, string> options)
    {
        if (!database.Exists("host", host))
            throw new XapiException("HANDLE_INVALID", "host", host);
        if (sr.Length != 0 && !database.Exists("SR", sr))
            throw new XapiException("HANDLE_INVALID", "SR", sr);
        TimeSpan life = MigrationToken.Life;
        if (options.TryGetValue("lifetime_seconds", out string? seconds))
        {
            bool isGood = int.TryParse(seconds, NumberStyles.None, CultureInfo.InvariantCulture, out int value) && value > 0
                && value <= TokenLifeLimit.TotalSeconds;
            life = isGood ? TimeSpan.FromSeconds(value) : throw new XapiException("INVALID_VALUE", "options:lifetime_seconds", seconds);
        }

        PoolIdentity here = identity();
        MigrationToken token = new(
            Guid.NewGuid().ToString(), new PeerAddress(here.Url, here.Fingerprint, host), time.GetUtcNow() + life, Secret.Create());
        store.Issue(token.Migration, token.Secret, host, sr, token.ExpiresAt);
        return RpcValue.Map(token.ToMap(here.Address));
    }

    private async Task<RpcValue> MigrateAsync(
        CallContext context, string vm, Dictionary<string, string> destination, Dictionary<string, string> options, Dictionary<string, string> vdiMap,
        Dictionary<string, string> vifMap)
    {
        using IDisposable held = operations.Take(vm, context.Task.Ref, "migrate_send");
        string powerState = database.GetString("VM", vm, "power_state");
        if (powerState != "Running")
            throw new XapiException("VM_BAD_POWER_STATE", vm, "running", powerState.ToLowerInvariant());
        MigrationToken token = ParseToken(destination);
        MigrationPlan plan;
        try
        {
            using PeerClient asked = new(token);
            plan = await PlanAsync(vm, token, asked, MigrationOptionsReader.Read(options, witnesses), vdiMap, vifMap, context.CancellationToken);
        }
        catch (MigrationException e)
        {
            throw Translate(vm, token, e, context.Task);
        }
        catch (IOException e)
        {
            context.Task.SetOtherConfig("error_detail", e.Message);
            throw new XapiException("CANNOT_CONTACT_HOST", token.Destination.Url);
        }

        using IDisposable place = await EnterAsync(token, plan, context.Task);
        store.RememberPeer(token);
        store.Append(plan.Migration, new SourceRecord.Begun(plan, time.GetUtcNow()));
        LogBegin(plan.Migration, plan.VmName, plan.Destination.Url);
        PeerClient peer = new(token);
        bool isWatched = true; // The task's row may go before the last of the work is done.
        TaskProgress told = new(context.Task, time);
        SourceRunner runner = Runner(
            store.Source(plan.Migration)!, peer, progress =>
            {
                if (Volatile.Read(ref isWatched))
                    told.Report(progress);
            });
        Task<Receipt> run = RunAsync(runner, peer, context.CancellationToken);
        try
        {
            if (await Task.WhenAny(run, runner.Settled) == runner.Settled && !run.IsCompleted)
            {
                // What was asked for is done, or is known not to be; what will not go yet is tried on in the background.
                Volatile.Write(ref isWatched, false);
                recoveries[plan.Migration] = run;
                if (await runner.Settled is { } leftover)
                {
                    context.Task.SetOtherConfig("leftover", leftover);
                    LogStuck(plan.Migration, plan.VmName, leftover);
                }

                if (!runner.State.Has<SourceRecord.ReceiptStored>())
                    throw runner.Cause();
            }
            else
            {
                await run;
            }

            Receipt receipt = runner.State.Last<SourceRecord.ReceiptStored>()!.Receipt;
            context.Task.SetOtherConfig("receipt", MigrationJson.Write(receipt));
            LogDone(plan.Migration, plan.VmName, receipt.Blackout.TotalMs);
            return runner.State.Last<SourceRecord.Prepared>()!.Destination.VmReference;
        }
        catch (MigrationException e) when (e.Code == "TASK_CANCELLED")
        {
            throw new OperationCanceledException(e.Message, e, context.CancellationToken);
        }
        catch (MigrationException e)
        {
            LogFailed(plan.Migration, plan.VmName, e.Message);
            throw Translate(vm, token, e, context.Task);
        }
    }

    /// <summary>The job's place among those that run; while it waits for it, its token does not run out.</summary>
    private async Task<IDisposable> EnterAsync(MigrationToken token, MigrationPlan plan, TaskRun task)
    {
        using CancellationTokenSource entered = new();
        Task renewing = Task.CompletedTask;
        try
        {
            Task<IDisposable> place = jobs.EnterAsync(plan.Migration, task);
            if (!place.IsCompleted)
                renewing = TokenRenewal.KeepAsync(new PeerClient(token), TokenLifeLimit, time, entered.Token);
            return await place;
        }
        finally
        {
            await entered.CancelAsync();
            await renewing;
        }
    }

    /// <exception cref="XapiException">What was given makes no sense; what is in the way of a sensible migration is in the plan.</exception>
    private async Task<MigratePlan> LookAheadAsync(
        string vm, Dictionary<string, string> destination, Dictionary<string, string> options, Dictionary<string, string> vdiMap,
        Dictionary<string, string> vifMap, bool measuresLink, CancellationToken cancellationToken)
    {
        if (!database.Exists("VM", vm))
            throw new XapiException("HANDLE_INVALID", "VM", vm);
        MigrationToken token = ParseToken(destination);
        MigrationOptions read = MigrationOptionsReader.Read(options, witnesses);
        SourceLook look = await check.LookAsync(vm, token.Migration, vdiMap, vifMap, cancellationToken);
        MigratePlan plan = new(look, check.InTheMoment(vm), token, read, time);
        using PeerClient peer = new(token);
        await plan.AskAsync(peer, measuresLink, cancellationToken);
        return plan;
    }

    private async Task<MigrationPlan> PlanAsync(
        string vm, MigrationToken token, PeerClient peer, MigrationOptions options, Dictionary<string, string> vdiMap, Dictionary<string, string> vifMap,
        CancellationToken cancellationToken)
    {
        SourceLook look = await check.LookAsync(vm, token.Migration, vdiMap, vifMap, cancellationToken);
        ThrowFirst(look.Obstacles);
        PlanAnswer answer = await peer.PlanAsync(look.Question, cancellationToken);
        ThrowFirst(answer.Obstacles);
        PoolIdentity here = identity();
        return new MigrationPlan(
            token.Migration, look.Question.Vm, look.Question.VmName, look.Epoch,
            [.. look.Question.Disks.Select(d => d with { DestinationStorage = answer.Storages[d.Device] })],
            new PeerAddress(here.Url, here.Fingerprint, here.HostRef), token.Destination, VmRows.Export(database, vm), options);
    }

    private static void ThrowFirst(IReadOnlyList<Obstacle> obstacles)
    {
        if (obstacles.FirstOrDefault(static o => o.Severity == ObstacleSeverity.Error) is { } error)
            throw error.ToException();
    }

    private SourceRunner Runner(SourceState state, IClosablePeer peer, Action<MigrationProgress> report)
    {
        SourceSide side = new(database, storage, vdis, xenops, state.Plan, identity().HostRef);
        return new SourceRunner(state, store, side, side, peer, witnesses.Of(state.Plan), time, progress =>
        {
            jobs.Seen(state.Plan.Migration, progress);
            report(progress);
        });
    }

    private async Task<Receipt> RunAsync(SourceRunner runner, IClosablePeer peer, CancellationToken cancel)
    {
        using (peer)
        using (runner)
        using (jobs.Run(runner))
            return await runner.RunAsync(cancel, shutdown.Token);
    }

    private async Task RecoverAsync(SourceState state)
    {
        // Without what is needed to reach it the destination counts as one that never answers: an operator can still decide.
        IClosablePeer peer = store.FindPeer(state.Plan.Migration) is { } token ? new PeerClient(token) : new UnknownPeer(state.Plan.Destination.Url);
        using IDisposable? held = TryHold(state.Plan);
        try
        {
            await RunAsync(Runner(state, peer, static _ => { }), peer, CancellationToken.None);
            LogDone(state.Plan.Migration, state.Plan.VmName, 0);
        }
        catch (MigrationException e)
        {
            LogFailed(state.Plan.Migration, state.Plan.VmName, e.Message);
        }
        catch (OperationCanceledException)
        {
            // The daemon stops; the journal has it.
        }
    }

    /// <summary>While the VM is here, nobody else changes its state meanwhile; null when its row is gone.</summary>
    private IDisposable? TryHold(MigrationPlan plan)
    {
        try
        {
            return database.FindByUuid("VM", plan.Vm) is { } vm ? operations.Take(vm, $"OpaqueRef:{plan.Migration}", "migrate_send") : null;
        }
        catch (XapiException)
        {
            return null; // A job that only tidies up is no hindrance to the next one.
        }
    }

    private static MigrationToken ParseToken(Dictionary<string, string> map)
    {
        try
        {
            return MigrationToken.Parse(map);
        }
        catch (FormatException e)
        {
            throw new XapiException("INVALID_VALUE", "dest", e.Message);
        }
    }

    /// <summary>The field's code with the field's parameters; what they cannot say stands in the task's other_config.</summary>
    private XapiException Translate(string vm, MigrationToken token, MigrationException e, TaskRun task)
    {
        task.SetOtherConfig("error_detail", e.Message);
        return e.Code switch
        {
            "VM_MIGRATE_FAILED" => new XapiException(e.Code, vm, identity().HostRef, token.Destination.Host, e.Message),
            "MIRROR_FAILED" => new XapiException(
                e.Code,
                database.Exists("VM", vm)
                    ? VmRows.Disks(database, vm).FirstOrDefault(d => database.GetString("VDI", d.Vdi, "location") == e.Parameters[0])?.Vdi ?? e.Parameters[0]
                    : e.Parameters[0]),
            _ => new XapiException(e.Code, e.Parameters),
        };
    }

    [LoggerMessage(Level = LogLevel.Information, Message = "migration {Migration} of VM {Name} to {Url} begins")]
    private partial void LogBegin(string migration, string name, string url);

    [LoggerMessage(Level = LogLevel.Information, Message = "migration {Migration} of VM {Name} is done; the guest paused for {Milliseconds} ms")]
    private partial void LogDone(string migration, string name, double milliseconds);

    [LoggerMessage(Level = LogLevel.Warning, Message = "migration {Migration} of VM {Name} did not happen, the VM stays: {Why}")]
    private partial void LogFailed(string migration, string name, string why);

    [LoggerMessage(Level = LogLevel.Warning, Message = "migration {Migration} of VM {Name} is done, but something of it will not go here: {Why}")]
    private partial void LogStuck(string migration, string name, string why);

    [LoggerMessage(Level = LogLevel.Warning, Message = "migration {Migration} of VM {Name} was left in phase {Phase}; taken up again")]
    private partial void LogRecover(string migration, string name, string phase);
}
