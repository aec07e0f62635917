// Messages of the model that are marked as hand-written although their whole effect is the row. The privileged ones belong to SM drivers:
// only the session that was made for an SR may call them, on that SR's objects (research: storage.md 3.3, 4.1).
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Rpc;

public static class RowMessages
{
    private static readonly string[] Plain =
    [
        "task.set_other_config", "task.add_to_other_config", "task.remove_from_other_config",
        "pool.set_ext_auth_cache_enabled", "pool.add_to_guest_agent_config", "pool.remove_from_guest_agent_config",
        "VM.set_other_config", "VM.add_to_other_config", "VM.remove_from_other_config",
        "VM.set_platform", "VM.add_to_platform", "VM.remove_from_platform",
        "VM.set_NVRAM", "VM.add_to_NVRAM", "VM.remove_from_NVRAM",
        "VM.set_blocked_operations", "VM.add_to_blocked_operations", "VM.remove_from_blocked_operations",
        "VM.set_start_delay", "VM.set_shutdown_delay", "VM.set_order", "VM.set_suspend_VDI", "VM.set_appliance", "VM.set_groups",
        "VM.set_actions_after_crash", "VM.set_bios_strings", "VM.set_HVM_boot_policy",
        "SR.set_name_label", "SR.set_name_description", "SR.set_shared",
        "VDI.set_name_label", "VDI.set_name_description", "VDI.set_on_boot", "VDI.set_allow_caching",
    ];

    private static readonly string[] Privileged =
    [
        "SR.set_virtual_allocation", "SR.set_physical_size", "SR.set_physical_utilisation",
        "VDI.set_sharable", "VDI.set_managed", "VDI.set_read_only", "VDI.set_missing", "VDI.set_virtual_size",
        "VDI.set_physical_utilisation", "VDI.set_is_a_snapshot", "VDI.set_snapshot_of", "VDI.set_snapshot_time",
        "VDI.set_metadata_of_pool", "VDI.set_cbt_enabled",
        "PBD.set_device_config",
    ];

    public static void AddTo(MessageTable messages, DataModel model)
    {
        foreach (string name in Plain)
            messages.Add(name, Setter(name));
        foreach (string name in Privileged)
        {
            string className = name[..name.IndexOf('.', StringComparison.Ordinal)];
            Func<CallContext, IReadOnlyList<RpcValue>, RpcValue> set = Setter(name);
            messages.Add(name, (context, a) =>
            {
                CheckStorageSession(context, StorageRole.SrOf(context.Database, className, a[0].AsString()));
                return set(context, a);
            });
        }

        messages.Add("VDI.db_introduce", Introduce);
        messages.Add("VDI.db_forget", (context, a) =>
        {
            CheckStorageSession(context, StorageRole.SrOf(context.Database, "VDI", a[0].AsString()));
            context.Database.Destroy("VDI", a[0].AsString());
            return "";
        });
        Func<CallContext, IReadOnlyList<RpcValue>, RpcValue> setSmConfig = Setter("VDI.set_sm_config");
        messages.Add("VDI.set_sm_config", (context, a) => context.Database.Transaction(() => setSmConfig(context, Guarded(context, a))));

        Func<CallContext, IReadOnlyList<RpcValue>, RpcValue> Setter(string name)
        {
            int dot = name.IndexOf('.', StringComparison.Ordinal);
            return GenericMessages.ForField(model[name[..dot]], name[(dot + 1)..])
                ?? throw new Platform.InvariantException($"{name} does not name a field");
        }
    }

    /// <exception cref="XapiException">PERMISSION_DENIED: the session was not made for this SR, and is not the pool's own.</exception>
    public static void CheckStorageSession(CallContext context, string sr)
    {
        if (!context.Session.IsPool && context.Session.StorageSr != sr)
            throw new XapiException("PERMISSION_DENIED", $"{context.Message.WireName} is for the SM driver of the object's SR");
    }

    /// <summary>
    /// A driver that writes a whole sm_config writes back what it read some time ago. The keys that others use as locks meanwhile stay as
    /// they are: they change by add_to_sm_config and remove_from_sm_config only.
    /// </summary>
    private static IReadOnlyList<RpcValue> Guarded(CallContext context, IReadOnlyList<RpcValue> a)
    {
        if (context.Session.StorageSr is null)
            return a;
        RpcStruct now = context.Database.Get("VDI", a[0].AsString(), "sm_config").AsStruct();
        IEnumerable<KeyValuePair<string, RpcValue>> given = a[1].AsStruct().Members.Where(static m => !IsLock(m.Key));
        return [a[0], new RpcStruct([.. given, .. now.Members.Where(static m => IsLock(m.Key))])];
    }

    private static bool IsLock(string key) =>
        key is "paused" or "activating" or "relinking" or "vhd-blocks" || key.StartsWith("host_", StringComparison.Ordinal);

    /// <summary>The parameters have the names of the fields that they set.</summary>
    private static RpcValue Introduce(CallContext context, IReadOnlyList<RpcValue> arguments)
    {
        List<(string, RpcValue)> fields = context.Message.Parameters.Select((p, i) => (p.Name, arguments[i])).ToList();
        string sr = fields.Find(static f => f.Item1 == "SR").Item2.AsString();
        CheckStorageSession(context, sr);
        if (!context.Database.Exists("SR", sr))
            throw new XapiException("HANDLE_INVALID", "SR", sr);
        return context.Database.Create("VDI", fields);
    }
}
