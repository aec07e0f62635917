// What the session of an SM driver may call: everything that the field's drivers do (research: storage.md 3.3, 4.1), on the SR that the
// session was made for, and nothing else. It reads whatever a client may read, except sessions (their references are secrets) and the list
// of secrets.
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;

namespace Xapi.Rpc;

public static class StorageRole
{
    /// <summary>Changes of what belongs to no SR.</summary>
    private static readonly HashSet<string> OfThePool =
    [
        "session.logout",
        "task.create", "task.set_progress", "task.set_status", "task.set_other_config", "task.cancel", "task.destroy",
        "message.create", "message.destroy", "secret.create", "host.call_plugin",
        "host.add_to_other_config", "host.remove_from_other_config",
    ];

    /// <summary>Changes of an object of the session's own SR; the first parameter is the object.</summary>
    private static readonly HashSet<string> OfTheSr =
    [
        "SR.set_virtual_allocation", "SR.set_physical_size", "SR.set_physical_utilisation", "SR.set_sm_config", "SR.add_to_sm_config",
        "SR.remove_from_sm_config", "SR.add_to_other_config", "SR.remove_from_other_config", "SR.update",
        "VDI.db_forget", "VDI.forget", "VDI.set_managed", "VDI.set_read_only", "VDI.set_virtual_size", "VDI.set_physical_utilisation",
        "VDI.set_sm_config", "VDI.add_to_sm_config", "VDI.remove_from_sm_config", "VDI.add_to_other_config", "VDI.remove_from_other_config",
        "VDI.set_is_a_snapshot", "VDI.set_snapshot_of", "VDI.set_snapshot_time", "VDI.set_metadata_of_pool", "VDI.set_cbt_enabled",
        "VDI.set_missing", "VDI.set_sharable", "VDI.set_name_label", "VDI.set_name_description", "VDI.snapshot",
        "PBD.set_device_config", "PBD.add_to_other_config", "PBD.remove_from_other_config",
    ];

    private static readonly HashSet<string> SecretReads = ["get_by_uuid", "get_uuid", "get_value"];

    /// <exception cref="XapiException">PERMISSION_DENIED: it is no driver's call, or about another SR's object.</exception>
    public static void Check(MessageModel message, Session session, IReadOnlyList<RpcValue> arguments, PoolDatabase database)
    {
        if (session.StorageSr is not { } own || OfThePool.Contains(message.WireName) || IsRead(message))
            return;
        string? sr = message.WireName == "VDI.db_introduce" ? arguments[3].AsString()
            : OfTheSr.Contains(message.WireName) ? SrOf(database, message.ClassName, arguments[0].AsString())
            : throw new XapiException("PERMISSION_DENIED", $"{message.WireName} is no call of an SM driver");
        if (sr != own)
            throw new XapiException("PERMISSION_DENIED", $"{message.WireName} is for the SM driver of the object's SR");
    }

    /// <summary>The SR that an SR, VDI or PBD belongs to.</summary>
    /// <exception cref="XapiException">HANDLE_INVALID.</exception>
    public static string SrOf(PoolDatabase database, string className, string reference) =>
        className == "SR" ? reference : database.GetRef(className, reference, "SR");

    private static bool IsRead(MessageModel message) =>
        message.Name.StartsWith("get_", StringComparison.Ordinal) && message.ClassName switch
        {
            "session" => false,
            "secret" => SecretReads.Contains(message.Name),
            _ => true,
        };
}
