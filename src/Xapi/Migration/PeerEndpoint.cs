// The destination's ear: one request of a source in, one answer out. Checks the token, finds or makes the migration's runner, lets it answer.
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.Extensions.Logging;
using Migration;
using Platform;
using StorageAccess;

namespace Xapi.Migration;

/// <summary>Whether this pool could take a VM, and where its disks would go. Makes nothing.</summary>
public interface IPlanCheck
{
    /// <returns>With everything that is in the way.</returns>
    Task<PlanAnswer> CheckAsync(IssuedToken token, PlanQuestion question, CancellationToken cancellationToken);
}

public sealed partial class PeerEndpoint : IDisposable
{
    /// <summary>Those that need a migration which was prepared.</summary>
    private static readonly HashSet<string> Verbs =
        ["heartbeat", "digest", "digest_range", "relinquish", "probe", "loaded", "grant", "abort", "confirm"];

    private readonly MigrationStore store;
    private readonly IDestinationResources resources;
    private readonly IPlanCheck check;
    private readonly Func<MigrationPlan, IWitness?> witnessOf;
    private readonly TimeProvider time;
    private readonly ILogger log;
    private readonly Dictionary<string, DestinationRunner> runners = [];
    private readonly Lock gate = new();

    public PeerEndpoint(MigrationStore store, IDestinationResources resources, IPlanCheck check, Func<MigrationPlan, IWitness?> witnessOf, TimeProvider time,
        ILogger log)
    {
        this.store = store;
        this.resources = resources;
        this.check = check;
        this.witnessOf = witnessOf;
        this.time = time;
        this.log = log;
    }

    /// <summary>Takes up what a restarted daemon finds open: what was accepted runs, for what was not the source is waited for.</summary>
    public async Task RecoverAsync(CancellationToken cancellationToken)
    {
        foreach (DestinationState state in store.OpenDestinations())
        {
            DestinationRunner runner = Find(state.Plan.Migration)!;
            LogRecover(state.Plan.Migration, state.Plan.VmName, state.Name);
            await runner.RecoverAsync(cancellationToken);
        }
    }

    /// <summary>Answers one request; never throws for a bad one.</summary>
    public async Task<string> HandleAsync(string? bearer, string body, CancellationToken cancellationToken)
    {
        try
        {
            JsonObject request = JsonNode.Parse(body, documentOptions: new JsonDocumentOptions { MaxDepth = 64 })?.AsObject()
                ?? throw new JsonException("the request is null");
            string verb = (string?)request["verb"] ?? "";
            string migration = (string?)request["migration"] ?? "";
            IssuedToken token = store.FindToken(migration, bearer ?? "") ?? throw (store.ExpiryOf(migration) is not null
                ? Refuse("VM_MIGRATE_FAILED", "the token was altered: its secret is not this migration's; call migrate_receive again")
                : Refuse(MigrationException.Amnesia, $"the destination knows nothing of migration {migration}: it never gave out this token, or it lost its memory"));
            return PeerProtocol.Result(await AnswerAsync(verb, token, request["body"], cancellationToken));
        }
        catch (MigrationException e)
        {
            LogRefused(e.Message);
            return PeerProtocol.Error(e.ToFailure("request"));
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException)
        {
            return PeerProtocol.Error(new MigrationFailure("INTERNAL_ERROR", [e.Message], MigrationSide.Destination, "request", "the request is malformed"));
        }
        catch (StorageException e)
        {
            LogFailed(e);
            return PeerProtocol.Error(new MigrationFailure(e.Code, e.Parameters, MigrationSide.Destination, "request", e.Message));
        }
        catch (InvariantException e)
        {
            throw Invariant.Stop(e);
        }
        catch (Exception e)
        {
            LogFailed(e);
            return PeerProtocol.Error(new MigrationFailure("INTERNAL_ERROR", [e.Message], MigrationSide.Destination, "request", e.Message));
        }
    }

    /// <summary>An operator's word in place of a dead source's grant.</summary>
    /// <exception cref="MigrationException">Why not; also when this pool is no destination of that migration.</exception>
    public Task<GrantAnswer> PromoteAsync(string migration, string operatorName, string evidence) =>
        (Find(migration) ?? throw Refuse("VM_MIGRATE_FAILED", $"this pool is not the destination of a migration {migration}"))
            .PromoteAsync(operatorName, evidence);

    public void Dispose()
    {
        foreach (DestinationRunner runner in runners.Values)
            runner.Dispose();
    }

    private async Task<JsonNode?> AnswerAsync(string verb, IssuedToken token, JsonNode? body, CancellationToken cancellationToken)
    {
        if (verb == "plan")
        {
            PlanAnswer answer = await check.CheckAsync(token, PeerProtocol.Read<PlanQuestion>(body), cancellationToken);
            if (WhyNotFresh(token) is { } why)
                answer = answer with { Obstacles = [Obstacle.Of(Refuse("VM_MIGRATE_FAILED", why)), .. answer.Obstacles] };
            return PeerProtocol.Node(answer);
        }

        switch (verb)
        {
            case "ping":
                return null;
            case "probe_link":
                return JsonValue.Create(PeerProtocol.Read<string>(body).Length);
            case "renew":
                return PeerProtocol.Node(Renew(token));
        }

        // What a request began goes on when its connection is gone: only the saga decides what is undone.
        if (verb == "prepare")
        {
            PrepareRequest prepare = PeerProtocol.Read<PrepareRequest>(body);
            return PeerProtocol.Node(await Claim(token, prepare.Plan).PrepareAsync(prepare.Attempt, CancellationToken.None));
        }

        if (Find(token.Migration) is not { } runner)
        {
            if (!Verbs.Contains(verb))
                throw Unknown(verb);
            if (verb == "abort" && TrySpend(token))
                return null;
            throw Refuse(MigrationException.Amnesia, $"the destination holds nothing of migration {token.Migration}");
        }

        switch (verb)
        {
            case "heartbeat":
                runner.Heartbeat();
                return null;
            case "digest":
                return PeerProtocol.Node(await runner.DigestAsync(cancellationToken));
            case "digest_range":
                RangeRequest range = PeerProtocol.Read<RangeRequest>(body);
                return JsonValue.Create(await runner.RangeDigestAsync(range.Device, range.Range, cancellationToken));
            case "relinquish":
                await runner.RelinquishAsync(PeerProtocol.Read<long>(body), CancellationToken.None);
                return null;
            case "probe":
                await runner.ProbeAsync(cancellationToken);
                return null;
            case "loaded":
                return PeerProtocol.Node(await runner.LoadedAsync(cancellationToken));
            case "grant":
                GrantRequest grant = PeerProtocol.Read<GrantRequest>(body);
                return PeerProtocol.Node(await runner.GrantAsync(grant.Epoch, grant.Digests));
            case "abort":
                if (await runner.AbortAsync(PeerProtocol.Read<string>(body), CancellationToken.None) is { } left)
                    throw Refuse("VM_MIGRATE_FAILED", $"the destination refused, and could not take everything away: {left}");
                return null;
            case "confirm":
                await runner.ConfirmAsync(PeerProtocol.Read<Receipt>(body), CancellationToken.None);
                return null;
            default:
                throw Unknown(verb);
        }
    }

    /// <summary>
    /// A decision that is durable is answered for ever: also one that an earlier daemon wrote, when the answer was lost on its way to a source that
    /// still waits for it.
    /// </summary>
    private DestinationRunner? Find(string migration)
    {
        lock (gate)
        {
            if (!runners.TryGetValue(migration, out DestinationRunner? runner) && store.Destination(migration) is { } state)
                runners[migration] = runner = new DestinationRunner(state, store, resources, witnessOf(store.Destination(migration)!.Plan), time);
            return runner;
        }
    }

    /// <summary>A token is for one migration: the first plan that comes with it claims it for good.</summary>
    private DestinationRunner Claim(IssuedToken token, MigrationPlan plan)
    {
        if (plan.Migration != token.Migration)
            throw Refuse("VM_MIGRATE_FAILED", "the plan is not this token's");
        lock (gate)
        {
            if (runners.TryGetValue(token.Migration, out DestinationRunner? runner)
                && runner.State.Plan.Source == plan.Source && runner.State.Plan.Vm == plan.Vm && !runner.State.IsClosed)
                return runner;
            CheckFresh(token);
            store.Append(token.Migration, new DestinationRecord.Claimed(plan, time.GetUtcNow()));
            return runners[token.Migration] = new DestinationRunner(store.Destination(token.Migration)!, store, resources, witnessOf(plan), time);
        }
    }

    /// <summary>Nothing was begun: a PREPARE that comes late must begin nothing either.</summary>
    /// <returns>False when one was quicker; its migration is to be aborted then.</returns>
    private bool TrySpend(IssuedToken token)
    {
        lock (gate)
        {
            if (store.Destination(token.Migration) is not null)
                return false;
            store.Spend(token.Migration);
            return true;
        }
    }

    /// <summary>A source that waits for its turn keeps its token: it is good for this much longer from now, never for less than before.</summary>
    private DateTimeOffset Renew(IssuedToken token)
    {
        lock (gate)
        {
            CheckFresh(token);
            DateTimeOffset expiresAt = time.GetUtcNow() + MigrationToken.Life;
            if (expiresAt <= token.ExpiresAt)
                return token.ExpiresAt;
            store.Extend(token.Migration, expiresAt);
            return expiresAt;
        }
    }

    private void CheckFresh(IssuedToken token)
    {
        if (WhyNotFresh(token) is { } why)
            throw Refuse("VM_MIGRATE_FAILED", why);
    }

    /// <summary>Null when a migration may begin with the token.</summary>
    private string? WhyNotFresh(IssuedToken token) =>
        store.Destination(token.Migration) is { } used
            ? $"the token was used already (for VM {used.Plan.VmName}: {used.Name}); call migrate_receive again"
        : store.ExpiryOf(token.Migration) is not { } expiresAt || expiresAt == DateTimeOffset.UnixEpoch
            ? "the token was spent: its migration was aborted before it began; call migrate_receive again"
        : time.GetUtcNow() > expiresAt ? $"the token expired at {expiresAt:u}; call migrate_receive again"
        : null;

    private static MigrationException Unknown(string verb) => Refuse("VM_MIGRATE_FAILED", $"the destination does not know the request \"{verb}\"");

    private static MigrationException Refuse(string code, string message) => new(code, [], MigrationSide.Destination, message);

    [LoggerMessage(Level = LogLevel.Information, Message = "migration {Migration} of VM {Name}: found {State} after a restart")]
    private partial void LogRecover(string migration, string name, string state);

    [LoggerMessage(Level = LogLevel.Warning, Message = "a source's request was refused: {Reason}")]
    private partial void LogRefused(string reason);

    [LoggerMessage(Level = LogLevel.Error, Message = "a source's request failed")]
    private partial void LogFailed(Exception e);
}
