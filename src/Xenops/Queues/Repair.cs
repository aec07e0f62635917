// What is done when something is not as it should be: the domain asks for attention, or an operation failed in the middle (research: xenopsd.md
// 1.8, 2.5 "VM_check_state", 2.6). There is no log of undoing: reality is looked at, and what it needs is done.
namespace Xenops.Queues;

/// <summary>What a domain asks for; a domain that is not there asks for <see cref="PowerOff"/>.</summary>
public enum ActionRequest
{
    None,
    PowerOff,
    Reboot,
    Suspend,
    CrashDump,
    SoftReset,
}

public enum VmAction
{
    Coredump,
    Shutdown,
    Start,
    Pause,
    SoftReboot,
}

/// <summary>What a VM's record says is to be done.</summary>
public sealed record VmActions(IReadOnlyList<VmAction> OnShutdown, IReadOnlyList<VmAction> OnReboot, IReadOnlyList<VmAction> OnCrash);

public static class Repair
{
    /// <summary>A guest that crashes sooner after its start is not started again: it would crash for ever.</summary>
    public static readonly TimeSpan CrashLoopLimit = TimeSpan.FromSeconds(120);

    /// <summary>A guest that reboots sooner waits first.</summary>
    public static readonly TimeSpan MinimumRebootDelay = TimeSpan.FromSeconds(120);

    private const int RebootDelaySeconds = 15;

    /// <summary>Operations after which the VM itself is looked at.</summary>
    private static readonly HashSet<string> Lifecycle =
    [
        "VM_start", "VM_poweroff", "VM_shutdown", "VM_reboot", "VM_suspend", "VM_resume", "VM_restore_vifs", "VM_restore_devices", "VM_check_state",
    ];

    /// <summary>After what nothing is looked at.</summary>
    private static readonly HashSet<string> WithoutRepair = ["VM_import_metadata", "PCI_dequarantine"];

    /// <summary>VM_check_state: what the domain needs now.</summary>
    public static IReadOnlyList<Atomic> CheckState(VmShape vm, VmActions actions, ActionRequest request, TimeSpan uptime) =>
        [.. ActionsFor(actions, request, uptime).SelectMany(action => Do(vm, action, uptime))];

    /// <summary>A device of a VM that is up is unplugged when the backend asks for it; of one that is down it cannot be in use.</summary>
    public static IReadOnlyList<Atomic> CheckDevice(string kind, string device, bool isVmUp, bool wantsUnplug, bool wantsQos) =>
        !isVmUp || wantsUnplug ? [kind is "PCI" or "VUSB" ? new Step($"{kind}_unplug", device) : new Step($"{kind}_unplug", device, "true")]
        : wantsQos && kind == "VBD" ? [new Step("VBD_set_qos", device)]
        : [];

    /// <summary>What is looked at after a failure: the names of the checks and their targets.</summary>
    /// <param name="other">Of a migration: the VM's name on the way.</param>
    public static IReadOnlyList<Step> After(string operation, string target, string? other = null) => operation switch
    {
        "VM_receive_memory" => [new Step("VM_check_state", other ?? target), new Step("VM_check_state", target)],
        "VM_migrate" => other is null ? [new Step("VM_check_state", target)] : [new Step("VM_check_state", target), new Step("VM_check_state", other)],
        _ when WithoutRepair.Contains(operation) => [],
        _ when Lifecycle.Contains(operation) => [new Step("VM_check_state", target)],
        _ => [new Step($"{operation[..operation.IndexOf('_', StringComparison.Ordinal)]}_check_state", target)],
    };

    /// <summary>Of a group each member's, once.</summary>
    public static IReadOnlyList<Step> After(Atomic failed) => [.. failed.Steps.SelectMany(static s => After(s.Verb, s.Target)).Distinct()];

    private static IEnumerable<VmAction> ActionsFor(VmActions actions, ActionRequest request, TimeSpan uptime) => request switch
    {
        ActionRequest.None => [],
        ActionRequest.PowerOff => actions.OnShutdown,
        ActionRequest.Reboot => actions.OnReboot,
        ActionRequest.CrashDump => uptime < CrashLoopLimit
            ? actions.OnCrash.Select(static a => a == VmAction.Start ? VmAction.Shutdown : a)
            : actions.OnCrash,
        ActionRequest.Suspend => [VmAction.Shutdown], // Nobody asked it to: a domain that suspended by itself cannot go on.
        _ => [VmAction.SoftReboot],
    };

    private static IEnumerable<Atomic> Do(VmShape vm, VmAction action, TimeSpan uptime) => action switch
    {
        VmAction.Coredump => [],
        VmAction.Shutdown => Decomposition.Shutdown(vm, timeout: null),
        VmAction.Pause => [new Step("VM_pause", vm.Id)],
        VmAction.SoftReboot => [new Step("VM_softreboot", vm.Id)],
        _ =>
        [
            .. uptime < MinimumRebootDelay ? [new Step("VM_delay", vm.Id, $"{RebootDelaySeconds}")] : Array.Empty<Step>(),
            .. Decomposition.Reboot(vm, timeout: null),
        ],
    };
}
