using System.Text.Json;
using System.Text.Json.Nodes;
using StorageAccess.Wire;

namespace Xenops;

/// <summary>
/// What <c>VM.stat</c> tells. State: Halted, Incoming, Running, Paused, Crashed or Frozen. Guest is null while there is none.
/// </summary>
public sealed record DomainStat(string State, long MemoryBytes, GuestStatistics? Guest, string? Migration);

/// <summary>Which xenopsd answers; the instance is another one after each start.</summary>
public sealed record XenopsIdentity(string Name, string Version, string InstanceId, int ProcessId);

/// <summary>
/// xenopsd's socket, typed. Every call throws <see cref="XenopsException"/> when it is refused and <see cref="IOException"/> when
/// xenopsd is not there or
/// does not answer before the deadline (a pre-copy takes as long as its rounds: give that client minutes).
/// </summary>
public sealed class XenopsClient(string socketPath, TimeSpan deadline) : IDisposable
{
    private readonly JsonRpcClient rpc = new(socketPath, deadline);

    public Task<XenopsIdentity> QueryAsync(CancellationToken cancellationToken) =>
        CallAsync<XenopsIdentity>("query", "", [], cancellationToken);

    public Task VmAddAsync(string dbg, Vm vm, CancellationToken cancellationToken) =>
        CallAsync("VM.add", dbg, new() { ["vm"] = vm.ToJson() }, cancellationToken);

    public Task VmRemoveAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync("VM.remove", dbg, Id(id), cancellationToken);

    public Task VmStartAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync("VM.start", dbg, Id(id), cancellationToken);

    public Task VmShutdownAsync(string dbg, string id, bool clean, CancellationToken cancellationToken) =>
        CallAsync("VM.shutdown", dbg, new() { ["id"] = id, ["clean"] = clean }, cancellationToken);

    public Task VmPauseAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync("VM.pause", dbg, Id(id), cancellationToken);

    public Task VmUnpauseAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync("VM.unpause", dbg, Id(id), cancellationToken);

    public Task<DomainStat> VmStatAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync<DomainStat>("VM.stat", dbg, Id(id), cancellationToken);

    public Task<IReadOnlyList<Vm>> VmListAsync(string dbg, CancellationToken cancellationToken) =>
        CallAsync<IReadOnlyList<Vm>>("VM.list", dbg, [], cancellationToken);

    public Task<PrecopyStats> PrecopyAsync(
        string dbg, string id, StreamTarget target, TimeSpan downtimeLimit, CancellationToken cancellationToken) =>
        CallAsync<PrecopyStats>("MIGRATE.precopy", dbg, new()
        {
            ["id"] = id,
            ["migration"] = target.Migration,
            ["host"] = target.Host,
            ["port"] = target.Port,
            ["secret"] = target.Secret.Reveal(),
            ["fingerprint"] = target.Fingerprint,
            ["downtime_limit_ms"] = (int)downtimeLimit.TotalMilliseconds,
        }, cancellationToken);

    public Task<PrecopyStats> ProgressAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync<PrecopyStats>("MIGRATE.progress", dbg, Id(id), cancellationToken);

    /// <returns>When the vCPUs were stopped and the last I/O was done, UTC.</returns>
    public async Task<DateTimeOffset> StopAsync(string dbg, string id, CancellationToken cancellationToken) =>
        TimeIn(await CallAsync("MIGRATE.stop", dbg, Id(id), cancellationToken), "stopped_at");

    public Task<ImageSummary> TransferAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync<ImageSummary>("MIGRATE.transfer", dbg, Id(id), cancellationToken);

    public Task FreezeAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync("MIGRATE.freeze", dbg, Id(id), cancellationToken);

    /// <param name="reattach">This host owns the VM (again); needed once it is frozen.</param>
    /// <returns>Whether a guest runs. False: there is none that could (it died with its host's xenopsd, or crashed), and the VM is halted or
    /// crashed with its disks intact.</returns>
    public async Task<bool> ResumeAsync(string dbg, string id, bool reattach, CancellationToken cancellationToken) =>
        (await CallAsync("MIGRATE.resume", dbg, new() { ["id"] = id, ["reattach"] = reattach }, cancellationToken))?["runs"]?.GetValueKind()
        == JsonValueKind.True;

    public Task AbortStreamAsync(string dbg, string id, CancellationToken cancellationToken) =>
        CallAsync("MIGRATE.abort_stream", dbg, Id(id), cancellationToken);

    public Task<ReceiveEndpoint> ReceiveAsync(string dbg, string migration, Vm vm, CancellationToken cancellationToken) =>
        CallAsync<ReceiveEndpoint>("MIGRATE.receive", dbg, new() { ["migration"] = migration, ["vm"] = vm.ToJson() }, cancellationToken);

    public Task<ImageSummary> LoadedAsync(string dbg, string migration, TimeSpan timeout, CancellationToken cancellationToken) =>
        CallAsync<ImageSummary>(
            "MIGRATE.loaded", dbg, new() { ["migration"] = migration, ["timeout_ms"] = (int)timeout.TotalMilliseconds }, cancellationToken);

    /// <returns>When the first step of a vCPU was done, UTC.</returns>
    public async Task<DateTimeOffset> RunAsync(string dbg, string migration, CancellationToken cancellationToken) =>
        TimeIn(await CallAsync("MIGRATE.run", dbg, new() { ["migration"] = migration }, cancellationToken), "running_at");

    public Task DiscardAsync(string dbg, string migration, CancellationToken cancellationToken) =>
        CallAsync("MIGRATE.discard", dbg, new() { ["migration"] = migration }, cancellationToken);

    public void Dispose() => rpc.Dispose();

    private static JsonObject Id(string id) => new() { ["id"] = id };

    private static DateTimeOffset TimeIn(JsonNode? answer, string member) =>
        DateTimeOffset.TryParse(answer?[member]?.ToString(), out DateTimeOffset time)
            ? time
            : throw new IOException($"xenopsd answered {answer?.ToJsonString() ?? "null"}, without \"{member}\"");

    private async Task<T> CallAsync<T>(string method, string dbg, JsonObject parameters, CancellationToken cancellationToken)
    {
        JsonNode? answer = await CallAsync(method, dbg, parameters, cancellationToken);
        try
        {
            return answer.Deserialize<T>(Json.Options) ?? throw new IOException($"xenopsd answered {method} with null");
        }
        catch (JsonException e)
        {
            throw new IOException($"xenopsd answered {method} with something else than was expected: {e.Message}", e);
        }
    }

    private async Task<JsonNode?> CallAsync(string method, string dbg, JsonObject parameters, CancellationToken cancellationToken)
    {
        parameters["dbg"] = dbg;
        try
        {
            return await rpc.CallAsync(method, parameters, cancellationToken);
        }
        catch (JsonRpcException e)
        {
            throw XenopsException.FromWire(e);
        }
    }
}
