// When a command may be issued at all: the capability that the driver must claim, whether it changes the SR's metadata and so runs on the
// pool's coordinator only, and whether it may touch an SR that a disaster recovery task brought (research/storage.md 3.2, 3.6).
using StorageAccess;

namespace SmapiV1Adapter;

internal static class SmCommands
{
    private static readonly Dictionary<string, Rule> Rules = new()
    {
        ["sr_create"] = new(),
        ["sr_delete"] = new(),
        ["sr_attach"] = new() { IsForDr = true },
        ["sr_detach"] = new() { IsForDr = true },
        ["sr_probe"] = new("SR_PROBE") { IsForDr = true },
        ["sr_scan"] = new() { OnMaster = true, IsForDr = true },
        ["sr_content_type"] = new() { IsForDr = true },
        ["sr_update"] = new("SR_UPDATE"),
        ["vdi_create"] = new("VDI_CREATE") { OnMaster = true },
        ["vdi_introduce"] = new("VDI_INTRODUCE"),
        ["vdi_update"] = new("VDI_UPDATE"),
        ["vdi_delete"] = new("VDI_DELETE") { OnMaster = true },
        ["vdi_attach"] = new("VDI_ATTACH") { IsForDr = true },
        ["vdi_detach"] = new() { IsForDr = true },
        ["vdi_activate"] = new("VDI_ACTIVATE") { IsForDr = true },
        ["vdi_deactivate"] = new("VDI_DEACTIVATE") { IsForDr = true },
        ["vdi_snapshot"] = new("VDI_SNAPSHOT") { OnMaster = true },
        ["vdi_clone"] = new("VDI_CLONE") { OnMaster = true },
        ["vdi_resize"] = new("VDI_RESIZE") { OnMaster = true },
        ["vdi_generate_config"] = new("VDI_GENERATE_CONFIG"),
        // The field's drivers compose at the end of every mirror and claim only that one.
        ["vdi_compose"] = new("VDI_COMPOSE", "VDI_MIRROR") { OnMaster = true },
        ["vdi_epoch_begin"] = new("VDI_RESET_ON_BOOT"),
        ["vdi_epoch_end"] = new("VDI_RESET_ON_BOOT"),
        ["vdi_enable_cbt"] = new("VDI_CONFIG_CBT") { OnMaster = true },
        ["vdi_disable_cbt"] = new("VDI_CONFIG_CBT") { OnMaster = true },
        ["vdi_data_destroy"] = new("VDI_CONFIG_CBT") { OnMaster = true },
        ["vdi_list_changed_blocks"] = new("VDI_CONFIG_CBT") { OnMaster = true },
        ["vdi_revert"] = new("VDI_REVERT"),
    };

    /// <summary>Whether the driver claims what the command needs.</summary>
    public static bool IsClaimed(SmDriver driver, string command) =>
        Rules[command].AnyOf is not { Length: > 0 } wanted || wanted.Any(driver.Capabilities.ContainsKey);

    /// <summary>Before a process is started.</summary>
    /// <exception cref="StorageException">Unimplemented, Redirect to the coordinator, or OPERATION_NOT_ALLOWED.</exception>
    public static void Check(SmDriver driver, SmCall call)
    {
        Rule rule = Rules[call.Command];
        if (!IsClaimed(driver, call.Command))
            throw StorageException.Unimplemented(call.Command);
        if (call.Sr is not { } sr)
            return;
        if (sr.IsIntroducedByDr && !rule.IsForDr)
            throw new StorageException("OPERATION_NOT_ALLOWED", $"{call.Command} on an SR that a disaster recovery task introduced");
        if (rule.OnMaster && !sr.IsMaster)
            throw StorageException.FromWire("Redirect", "HOST_IS_SLAVE", sr.MasterAddress is { } address ? [address] : []);
    }

    private sealed class Rule(params string[] anyOf)
    {
        /// <summary>Empty: every driver has it.</summary>
        public string[] AnyOf => anyOf;

        public bool OnMaster { get; init; }

        public bool IsForDr { get; init; }
    }
}
