// Disks that a migration left behind and keeps for a while (keep_source_for): stale, of the epoch before, and in nobody's hands. The mark is in the VDI's
// row, so it outlives the daemon; every message that would attach, change, copy or destroy such a disk is refused. The job itself goes around the messages.
using System.Globalization;
using System.Text.Json;
using Migration;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;
using Xapi.Vms;

namespace Xapi.Migration;

public static class HeldDisks
{
    /// <summary>In the VDI's other_config.</summary>
    public const string Key = "migration:held";

    private static readonly string[] VdiMessages =
    [
        "VDI.destroy", "VDI.forget", "VDI.snapshot", "VDI.clone", "VDI.copy", "VDI.resize", "VDI.resize_online", "VDI.pool_migrate", "VDI.data_destroy",
        "VDI.enable_cbt", "VDI.disable_cbt", "VDI.set_other_config", "VDI.remove_from_other_config", "VDI.set_on_boot",
    ];

    private static readonly string[] VmMessages = ["VM.start", "VM.start_on", "VM.resume", "VM.resume_on", "VM.snapshot", "VM.clone", "VM.copy"];

    private sealed record Mark(string Migration, string Vm, long Epoch, DateTimeOffset Until);

    public static void Hold(PoolDatabase database, string vdi, MigrationPlan plan, DateTimeOffset until) => database.SetInMap(
        "VDI", vdi, "other_config", Key, JsonSerializer.Serialize(new Mark(plan.Migration, plan.VmName, plan.Epoch, until), MigrationJson.Options));

    public static void Release(PoolDatabase database, string vdi) => database.RemoveFromMap("VDI", vdi, "other_config", Key);

    /// <summary>The migration that holds the disk; null when none does, empty when its mark cannot be read.</summary>
    public static string? MigrationOf(PoolDatabase database, string vdi)
    {
        if (database.GetMap("VDI", vdi, "other_config").GetValueOrDefault(Key) is not { } text)
            return null;
        try
        {
            return JsonSerializer.Deserialize<Mark>(text, MigrationJson.Options)?.Migration ?? "";
        }
        catch (JsonException)
        {
            return "";
        }
    }

    /// <summary>Puts the check before the messages' handlers; called when all of them are there.</summary>
    public static void Guard(MessageTable messages, PoolDatabase database)
    {
        foreach (string name in VdiMessages)
            Put(messages, name, (vdi, what) => Check(database, vdi, what));
        Put(messages, "VBD.plug", (vbd, what) =>
        {
            if (database.Exists("VBD", vbd))
                Check(database, database.GetRef("VBD", vbd, "VDI"), what);
        });
        foreach (string name in VmMessages)
        {
            Put(messages, name, (vm, what) =>
            {
                foreach (VmDisk disk in database.Exists("VM", vm) ? VmRows.Disks(database, vm) : [])
                    Check(database, disk.Vdi, what);
            });
        }
    }

    private static void Put(MessageTable messages, string name, Action<string, string> check)
    {
        if (messages.Find(name) is not { Handler: { } handler } entry)
            return; // Not answered: nothing to guard.
        entry.Handler = (context, arguments) =>
        {
            check(arguments[0].AsString(), name);
            return handler(context, arguments);
        };
    }

    /// <exception cref="XapiException">The disk is held; the parameter says by whom, until when, and what brings it back.</exception>
    private static void Check(PoolDatabase database, string vdi, string what)
    {
        if (!database.Exists("VDI", vdi) || database.GetMap("VDI", vdi, "other_config").GetValueOrDefault(Key) is not { } text)
            return;
        string why;
        try
        {
            Mark mark = JsonSerializer.Deserialize<Mark>(text, MigrationJson.Options)!;
            why = string.Create(
                CultureInfo.InvariantCulture,
                $"{what}: VDI {vdi} is the stale copy (epoch {mark.Epoch}) of a disk of VM {mark.Vm}, which migration {mark.Migration} moved away; it is kept until {mark.Until:u}; migration.undo brings the VM back");
        }
        catch (JsonException)
        {
            why = $"{what}: VDI {vdi} is held by a migration, and its mark cannot be read: {text}";
        }

        throw new XapiException("OPERATION_NOT_ALLOWED", why);
    }
}
