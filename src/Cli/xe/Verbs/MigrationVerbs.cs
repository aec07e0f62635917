// What is under way, what was left, and what an operator may do about it. Each is one message of the daemon; its struct is printed.
using System.Globalization;
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
        OnMigration("migration-cancel", "migration.cancel", "Cancel a migration; the answer says in which state that found it."),
        OnMigration("migration-resume", "migration.resume", "Go on with a migration that was cut."),
        OnMigration("migration-undo", "migration.undo", "Bring the VM back, with what it wrote since."),
        new("migration-throttle", ["uuid", "bandwidth"], "uuid= bandwidth=", "Change a migration's limit while it runs (bytes per second; 0 for none).", static async c =>
            Reply.OfNode(await c.Pool.CallAsync("migration.set_bandwidth", c.Cancel, c.Arguments.Get("uuid"), Bandwidth(c))))
        {
            Example = "xe migration-throttle uuid=UUID bandwidth=20MiB",
        },
        new("pool-migration-bandwidth", ["bandwidth"], "bandwidth=", "Change the limit of all migrations of this pool together.", static async c =>
            Reply.OfNode(await c.Pool.CallAsync("migration.set_bandwidth", c.Cancel, "", Bandwidth(c)))),
        new("migration-assert-peer-dead", ["uuid", "force"], "uuid= force=true",
            "Swear that the other pool is gone for good, so that the VM may run here.", AssertPeerDeadAsync),
        new("orphans-list", [], "", "What a migration left behind, with the job that made it.", static async c =>
            Reply.OfNode(await c.Pool.CallAsync("orphans.list", c.Cancel))),
        OnOrphan("orphans-adopt", "orphans.adopt", "Keep something that was left behind."),
        OnOrphan("orphans-remove", "orphans.remove", "Remove something that was left behind."),
    ];

    private static async Task<Reply> ListAsync(Call call)
    {
        JsonNode? records = await call.Pool.CallAsync("migration.get_all_records", call.Cancel);
        return call.IsMinimal && records is JsonObject map ? Reply.OfMany([.. map.Select(static m => m.Key)], isMinimal: true) : Reply.OfNode(records);
    }

    private static Verb OnMigration(string name, string message, string summary) => new(name, ["uuid"], "uuid=", summary, async c =>
        Reply.OfNode(await c.Pool.CallAsync(message, c.Cancel, c.Arguments.Get("uuid"))))
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
        return Reply.OfNode(await call.Pool.CallAsync("migration.assert_peer_dead", call.Cancel, call.Arguments.Get("uuid")));
    }

    private static string Bandwidth(Call call) => call.Arguments.Bytes("bandwidth").ToString(CultureInfo.InvariantCulture);
}
