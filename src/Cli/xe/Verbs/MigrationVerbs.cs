// What is under way, what was left, and what an operator may do about it. Each is one message of the daemon, which answers JSON in texts: that is printed.
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Xe.Grammar;
using Xe.Objects;
using Xe.Output;

namespace Xe.Verbs;

internal static class MigrationVerbs
{
    public static IEnumerable<Verb> All() =>
    [
        new("migration-list", [], "", "Every migration that this pool's journals know.", ListAsync) { IsCommon = true, Example = "xe migration-list --json" },
        OnMigration("migration-status", "migration.get_status", "Where a migration stands, who owns the VM, and whether it may run."),
        OnMigration("migration-cancel", "migration.cancel", "Cancel a migration; refused, with the reason, once the switch-over has begun."),
        new("migration-undo", ["uuid", "evidence"], "uuid= [evidence=]",
            "Bring the VM back, halted, as it was at the switch-over, from disks that were kept (keep-source-for); it must be halted at the other pool.", static async c =>
            Reply.OfNode(await c.Pool.CallAsync("migration.undo", c.Cancel, c.Arguments.Get("uuid"), c.Arguments.Find("evidence") ?? "")))
        {
            Example = "xe migration-undo uuid=UUID",
        },
        new("migration-throttle", ["uuid", "bandwidth"], "uuid= bandwidth=", "Change a migration's limit while it runs (bytes per second; 0 for none).", static async c =>
            Reply.OfNode(await c.Pool.CallAsync("migration.set_bandwidth", c.Cancel, c.Arguments.Get("uuid"), Bandwidth(c))))
        {
            Example = "xe migration-throttle uuid=UUID bandwidth=20MiB",
        },
        new("pool-migration-bandwidth", ["bandwidth"], "bandwidth=", "Change the limit of all migrations of this pool together.", static async c =>
            Reply.OfNode(await c.Pool.CallAsync("pool.set_migration_bandwidth", c.Cancel, await PoolAsync(c), Bandwidth(c)))),
        new("migration-assert-peer-dead", ["uuid", "evidence", "operator", "force"], "uuid= evidence= [operator=] force=true",
            "Swear that the other pool is gone for good, so that the VM may run here.", AssertPeerDeadAsync)
        {
            Example = "xe migration-assert-peer-dead uuid=UUID evidence=\"its rack was switched off, ticket 4711\" force=true",
        },
        new("orphans-list", [], "", "What a migration left behind, with the job that made it.", static async c =>
            Reply.OfNode(Read(await c.Pool.CallAsync("orphans.list", c.Cancel)))),
        OnOrphan("orphans-adopt", "orphans.adopt", "Keep something that was left behind."),
        OnOrphan("orphans-remove", "orphans.remove", "Remove something that was left behind."),
    ];

    private static async Task<Reply> ListAsync(Call call)
    {
        JsonNode? records = Read(await call.Pool.CallAsync("migration.get_all_records", call.Cancel));
        return call.IsMinimal && records is JsonObject map ? Reply.OfMany([.. map.Select(static m => m.Key)], isMinimal: true) : Reply.OfNode(records);
    }

    private static Verb OnMigration(string name, string message, string summary) => new(name, ["uuid"], "uuid=", summary, async c =>
        Reply.OfNode(Read(await c.Pool.CallAsync(message, c.Cancel, c.Arguments.Get("uuid")))))
    {
        IsCommon = name is "migration-status" or "migration-cancel",
        Example = $"xe {name} uuid=UUID",
    };

    private static Verb OnOrphan(string name, string message, string summary) => new(name, ["uuid"], "uuid=", summary, async c =>
        Reply.OfNode(await c.Pool.CallAsync(message, c.Cancel, c.Arguments.Get("uuid"))));

    /// <summary>A false oath lets the VM run twice: it has to be said in so many words.</summary>
    private static async Task<Reply> AssertPeerDeadAsync(Call call)
    {
        if (!call.Arguments.Is("force"))
            throw XeException.BadCommandLine("if the other pool is alive after all, the VM may run in both and its disks are lost. Say force=true when the other pool is gone for good");
        return Reply.OfNode(await call.Pool.CallAsync(
            "migration.assert_peer_dead", call.Cancel, call.Arguments.Get("uuid"), call.Arguments.Find("operator") ?? Environment.UserName,
            call.Arguments.Get("evidence")));
    }

    private static async Task<string> PoolAsync(Call call) =>
        await call.Pool.CallAsync("pool.get_all", call.Cancel) is JsonArray { Count: > 0 } pools
            ? Api.PoolClient.Text(pools[0])
            : throw XeException.Unreachable(call.Pool.Name, "it names no pool");

    /// <summary>JSON in a text, or in each text of a map, as what it is; everything else stays.</summary>
    private static JsonNode? Read(JsonNode? node)
    {
        if (node is JsonObject map)
            return new JsonObject(map.Select(static m => KeyValuePair.Create(m.Key, Read(m.Value))));
        if (node is not JsonValue value || !value.TryGetValue(out string? text) || !text.StartsWith('{'))
            return node?.DeepClone();
        try
        {
            return JsonNode.Parse(text, documentOptions: new JsonDocumentOptions { MaxDepth = 64 });
        }
        catch (JsonException)
        {
            return node.DeepClone();
        }
    }

    private static string Bandwidth(Call call) => call.Arguments.Bytes("bandwidth").ToString(CultureInfo.InvariantCulture);
}
