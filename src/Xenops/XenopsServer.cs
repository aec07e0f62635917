// The method table of xenopsd's socket: named parameters in, JSON out, errors as variants. What each method means is in the class that
// it calls.
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess.Wire;

namespace Xenops;

public sealed class XenopsServer
{
    private static readonly TimeSpan DefaultDowntimeLimit = TimeSpan.FromMilliseconds(50);

    private readonly string instance = Guid.NewGuid().ToString();
    private readonly Domains domains;
    private readonly MigrationSource source;
    private readonly MigrationDestination destination;
    private readonly JsonRpcDispatcher dispatcher;

    public XenopsServer(Domains domains, MigrationSource source, MigrationDestination destination)
    {
        this.domains = domains;
        this.source = source;
        this.destination = destination;
        dispatcher = new JsonRpcDispatcher(Methods(), XenopsException.VariantOf);
    }

    /// <summary>One JSON-RPC request; always answers.</summary>
    public Task<string> HandleAsync(string request, CancellationToken cancellationToken) =>
        dispatcher.HandleAsync(request, cancellationToken);

    private Dictionary<string, JsonRpcHandler> Methods() => new()
    {
        ["query"] = (_, _) => Task.FromResult(ToJson(new XenopsIdentity("xenops", "1.0", instance, Environment.ProcessId))),
        ["VM.add"] = (p, _) =>
        {
            Vm vm = Vm.Parse(p["vm"]);
            domains.Add(vm);
            return Task.FromResult<JsonNode?>(vm.Id);
        },
        ["VM.remove"] = Done((p, token) => domains.RemoveAsync(Dbg(p), Text(p, "id"), token)),
        ["VM.start"] = Done((p, token) => domains.StartAsync(Dbg(p), Text(p, "id"), token)),
        ["VM.shutdown"] = Done((p, token) => domains.ShutdownAsync(Dbg(p), Text(p, "id"), Flag(p, "clean"), token)),
        ["VM.pause"] = Done((p, token) => domains.PauseAsync(Text(p, "id"), token)),
        ["VM.unpause"] = Done((p, token) => domains.UnpauseAsync(Text(p, "id"), token)),
        ["VM.stat"] = (p, _) => Task.FromResult<JsonNode?>(domains.Stat(Text(p, "id"))),
        ["VM.list"] = (_, _) => Task.FromResult<JsonNode?>(new JsonArray(domains.List().Select(static v => v.ToJson()).ToArray())),
        ["MIGRATE.precopy"] = async (p, token) => ToJson(await source.PrecopyAsync(
            Text(p, "id"),
            new StreamTarget(Text(p, "migration"), Text(p, "host"), Port(p), new Secret(Text(p, "secret")), Text(p, "fingerprint")),
            Milliseconds(p, "downtime_limit_ms", DefaultDowntimeLimit),
            token)),
        ["MIGRATE.progress"] = (p, _) => Task.FromResult(ToJson(source.Progress(Text(p, "id")))),
        ["MIGRATE.stop"] = async (p, token) =>
        {
            StoppedAt stopped = await source.StopAsync(Text(p, "id"), token);
            return new JsonObject { ["stopped_at"] = stopped.StoppedAtUtc, ["in_flight"] = stopped.InFlight };
        },
        ["MIGRATE.transfer"] = async (p, token) => ToJson(await source.TransferAsync(Text(p, "id"), token)),
        ["MIGRATE.freeze"] = Done((p, token) => source.FreezeAsync(Dbg(p), Text(p, "id"), token)),
        ["MIGRATE.resume"] = async (p, token) => new JsonObject
        {
            ["runs"] = await source.ResumeAsync(Dbg(p), Text(p, "id"), p["reattach"] is not null && Flag(p, "reattach"), token),
        },
        ["MIGRATE.abort_stream"] = Done((p, token) => source.AbortStreamAsync(Text(p, "id"), token)),
        ["MIGRATE.receive"] = async (p, token) =>
            ToJson(await destination.ReceiveAsync(Dbg(p), Text(p, "migration"), Vm.Parse(p["vm"]), token)),
        ["MIGRATE.loaded"] = async (p, token) => ToJson(
            await destination.LoadedAsync(Text(p, "migration"), Milliseconds(p, "timeout_ms", TimeSpan.FromSeconds(30)), token)),
        ["MIGRATE.run"] = async (p, token) => new JsonObject { ["running_at"] = await destination.RunAsync(Text(p, "migration"), token) },
        ["MIGRATE.discard"] = Done((p, token) => destination.DiscardAsync(Dbg(p), Text(p, "migration"), token)),
    };

    private static JsonRpcHandler Done(Func<JsonObject, CancellationToken, Task> action) => async (p, token) =>
    {
        await action(p, token);
        return null;
    };

    private static JsonNode? ToJson<T>(T record) => JsonSerializer.SerializeToNode(record, Json.Options);

    private static string Dbg(JsonObject parameters) => parameters["dbg"] is null ? "" : Text(parameters, "dbg");

    private static string Text(JsonObject parameters, string name) =>
        parameters[name] is JsonValue value && value.TryGetValue(out string? text)
            ? text
            : throw XenopsException.Internal($"the parameter \"{name}\" is missing or is no string");

    private static bool Flag(JsonObject parameters, string name) =>
        parameters[name] is JsonValue value && value.TryGetValue(out bool flag)
            ? flag
            : throw XenopsException.Internal($"the parameter \"{name}\" is missing or is no boolean");

    private static int Port(JsonObject parameters) =>
        parameters["port"] is JsonValue value && value.TryGetValue(out int port) && port is > 0 and < 65536
            ? port
            : throw XenopsException.Internal("the parameter \"port\" is missing or is no port number");

    private static TimeSpan Milliseconds(JsonObject parameters, string name, TimeSpan otherwise)
    {
        if (parameters[name] is null)
            return otherwise;
        return parameters[name] is JsonValue value && value.TryGetValue(out int milliseconds) && milliseconds >= 0
            ? TimeSpan.FromMilliseconds(milliseconds)
            : throw XenopsException.Internal($"the parameter \"{name}\" is no number of milliseconds");
    }
}
