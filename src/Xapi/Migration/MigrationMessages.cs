// What an operator asks of migrations and orders: status in words that decide (who owns the VM, where may it run, what to do next), cancel, limits, and the
// words that only a person can say (a dead peer, bring it back).
using System.Text.Json.Nodes;
using Migration;
using Xapi.Database;
using Xapi.Rpc;
using StorageAccess.Wire;

namespace Xapi.Migration;

public sealed class MigrationMessages(MigrationStore store, MigrationJobs jobs, PeerEndpoint peers, PoolDatabase database)
{
    private const int EvidenceLimit = 4096;

    public void AddTo(MessageTable messages)
    {
        messages.Declare("migration.get_all_records", "()", "map(string->string)", isAsync: false, (_, _) => Task.FromResult<RpcValue>(RpcValue.Map(All())));
        messages.Declare("migration.get_status", "(uuid:string)", "string", isAsync: false, (_, a) => Task.FromResult<RpcValue>(Status(a[0].AsString())));
        messages.Declare("migration.cancel", "(uuid:string)", "void", isAsync: false, (_, a) => Cancel(a[0].AsString()));
        messages.Declare("migration.set_bandwidth", "(uuid:string, bytes_per_second:int)", "void", isAsync: false, async (context, a) =>
        {
            RequireRunner(a[0].AsString());
            await jobs.LimitAsync(a[0].AsString(), Limit(a[1].AsLong()), context.CancellationToken);
            return "";
        });
        messages.Declare("pool.set_migration_bandwidth", "(self:ref pool, bytes_per_second:int)", "void", isAsync: false, async (context, a) =>
        {
            if (!database.Exists("pool", a[0].AsString()))
                throw new XapiException("HANDLE_INVALID", "pool", a[0].AsString());
            await jobs.LimitPoolAsync(a[0].AsString(), Limit(a[1].AsLong()), context.CancellationToken);
            return "";
        });
        messages.Declare("migration.assert_peer_dead", "(uuid:string, operator:string, evidence:string)", "void", isAsync: false, AssertPeerDeadAsync);
        messages.Declare("migration.undo", "(uuid:string, evidence:string=\"\")", "void", isAsync: false, async (context, a) =>
        {
            await SaidAsync(() => RequireRunner(a[0].AsString()).RecallAsync("an operator", Text("evidence", a[1].AsString(), 0), context.CancellationToken));
            return "";
        });
    }

    private Dictionary<string, string> All()
    {
        Dictionary<string, string> all = store.Destinations().ToDictionary(static d => d.Plan.Migration, static d => Of(d).ToJsonString());
        foreach (SourceState state in store.Sources())
            all[state.Plan.Migration] = Of(state).ToJsonString();
        return all;
    }

    private string Status(string uuid) =>
        store.Source(uuid) is { } source ? Of(source).ToJsonString()
        : store.Destination(uuid) is { } destination ? Of(destination).ToJsonString()
        : throw Unknown(uuid);

    private JsonObject Of(SourceState state)
    {
        string migration = state.Plan.Migration;
        JsonObject answer = Head(state.Plan, "source", state.Phase, state.Attempt);
        (answer["owner"], answer["may_run"], answer["next"]) = Words(state);
        if (jobs.LastSeen(migration) is { } progress)
            answer["progress"] = JsonNode.Parse(TaskProgress.Json(progress));
        answer["waiting"] = jobs.Find(migration)?.Waiting;
        answer["rate_limit_bytes_per_second"] = state.RateBytesPerSecond;
        answer["receipt"] = PeerProtocol.Node(state.Last<SourceRecord.ReceiptStored>()?.Receipt);
        answer["failure"] = PeerProtocol.Node(state.Last<SourceRecord.Aborting>()?.Failure);
        answer["held_until"] = state.IsHolding ? PeerProtocol.Node(state.Last<SourceRecord.Holding>()!.Until) : null;
        return answer;
    }

    private static JsonObject Of(DestinationState state)
    {
        JsonObject answer = Head(state.Plan, "destination", state.Name, state.Attempt);
        (answer["owner"], answer["may_run"], answer["next"]) =
            state.Has<DestinationRecord.Relinquished>() ? ("source", "at the source", "nothing: the VM was given back; its halted copy here can be destroyed")
            : state.IsOwner ? ("destination", "here", state.IsClosed ? "nothing" : "wait for the source to let go of what only the transfer needed")
            : state.IsRefusing ? ("source", "at the source", "nothing")
            : ("source", "at the source", state.Loaded is null ? "wait for the source" : "wait for the source; if it is known dead: migration.assert_peer_dead");
        answer["receipt"] = PeerProtocol.Node(state.Last<DestinationRecord.Confirmed>()?.Receipt);
        return answer;
    }

    private static JsonObject Head(MigrationPlan plan, string role, string phase, int attempt) => new()
    {
        ["uuid"] = plan.Migration,
        ["role"] = role,
        ["vm"] = plan.Vm,
        ["vm_name"] = plan.VmName,
        ["peer"] = role == "source" ? plan.Destination.Url : plan.Source.Url,
        ["phase"] = phase,
        ["attempt"] = attempt,
    };

    private static (string Owner, string MayRun, string Next) Words(SourceState state) =>
        state.IsInDoubt ? (
            "in doubt", "nowhere here: the destination may run it",
            "wait for the destination's answer; when it is known dead and fenced: migration.assert_peer_dead")
        : state.IsHolding ? ("destination", "at the destination", "nothing; until the disks here go, migration.undo brings the VM back as it was at the switch-over")
        : state.IsOwnedByDestination ? ("destination", "at the destination", state.IsClosed ? "nothing" : "wait: what is left here is being released")
        : state.Has<SourceRecord.Recalled>() ? ("source", "here", state.IsClosed ? "start the VM" : "wait: the VM's record is being made again")
        : state.IsClosed ? ("source", "here", "start the migration again with a new token")
        : state.IsAborting || state.IsGivenBack ? ("source", "here", "wait: what was made is being taken away")
        : ("source", "here", state.IsPastCancel ? "wait: the switch-over has begun" : "wait; migration.cancel ends it and leaves the VM here");

    private Task<RpcValue> Cancel(string uuid)
    {
        if (jobs.TryLeaveQueue(uuid))
            return Task.FromResult<RpcValue>("");
        if (RequireRunner(uuid).Cancel() is { } why)
            throw new XapiException("OPERATION_NOT_ALLOWED", why);
        return Task.FromResult<RpcValue>("");
    }

    private async Task<RpcValue> AssertPeerDeadAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string uuid = a[0].AsString(), name = Text("operator", a[1].AsString(), 1), evidence = Text("evidence", a[2].AsString(), 1);
        await SaidAsync(async () =>
        {
            if (jobs.Find(uuid) is { } runner)
                runner.DeclarePeerDead(name, evidence);
            else if (store.Destination(uuid) is null)
                throw Unknown(uuid);
            else if (await peers.PromoteAsync(uuid, name, evidence) is { Refusal: { } refusal })
                throw new XapiException("OPERATION_NOT_ALLOWED", refusal);
        });
        return "";
    }

    private static async Task SaidAsync(Func<Task> work)
    {
        try
        {
            await work();
        }
        catch (MigrationException e)
        {
            throw new XapiException(e.Code, e.Parameters.Count > 0 ? e.Parameters : [e.Message]);
        }
        catch (IOException e)
        {
            throw new XapiException("CANNOT_CONTACT_HOST", e.Message);
        }
    }

    private SourceRunner RequireRunner(string uuid) => jobs.Find(uuid)
        ?? throw (store.Source(uuid) is { } state ? new XapiException("OPERATION_NOT_ALLOWED", $"migration {uuid} is over: {state.Phase}")
            : store.Destination(uuid) is { } here ? new XapiException("OPERATION_NOT_ALLOWED", $"this pool is the destination of migration {uuid} ({here.Name}); ask its source")
            : Unknown(uuid));

    private static long Limit(long bytesPerSecond) =>
        bytesPerSecond >= 0 ? bytesPerSecond : throw new XapiException("INVALID_VALUE", "bytes_per_second", $"{bytesPerSecond}");

    private static string Text(string key, string text, int leastLength) =>
        text.Trim().Length >= leastLength && text.Length <= EvidenceLimit ? text.Trim() : throw new XapiException("INVALID_VALUE", key, text);

    private static XapiException Unknown(string uuid) => new("UUID_INVALID", "migration", uuid);
}
