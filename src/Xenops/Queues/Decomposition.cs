// The decomposition of each operation on a VM into atomics (research: xenopsd.md 2.5). Pure: what a VM has goes in, what is to be done comes
// out. Order rules: disks that are written before those that are only read (storage cannot make a reader a writer), network interfaces by
// position, PCI devices by position and one after the other.
namespace Xenops.Queues;

public sealed record VbdShape(string Id, bool IsReadOnly = false, bool HasDisk = true, bool IsPersistent = true, bool CanAttachEarly = false);

public sealed record VifShape(string Id, int Position);

/// <param name="IsVirtualFunction">One of a GPU that is plugged without QMP.</param>
public sealed record PciShape(string Id, int Position, bool IsVirtualFunction = false);

/// <param name="PhysicalFunction">Given back to the host by a dequarantine first; null for those that need none.</param>
public sealed record VgpuShape(string Id, string? PhysicalFunction = null);

/// <summary>What a VM has.</summary>
/// <param name="PlugIsSplit">Attach and activate are atomics of their own.</param>
public sealed record VmShape(
    string Id, IReadOnlyList<VbdShape> Vbds, IReadOnlyList<VifShape> Vifs, IReadOnlyList<PciShape> Pcis, IReadOnlyList<VgpuShape> Vgpus,
    IReadOnlyList<string> Vusbs, bool PlugIsSplit = false);

public static class Decomposition
{
    /// <summary>Of a halted VM; it is paused afterwards.</summary>
    public static IReadOnlyList<Atomic> Start(VmShape vm, bool force) =>
    [
        .. Dequarantine(vm),
        Hook(vm, "vm-pre-start", "none"),
        new Step("VM_create", vm.Id),
        new Step("VM_build", vm.Id, Text(force)),
        .. Group.Of(GroupKind.Parallel, "Devices.plug (no qemu)",
        [
            .. Group.Of(GroupKind.Serial, "VBDs",
            [
                .. Nested("VBDs.activate_epoch_and_plug RW", Writers(vm).SelectMany(v => Group.Of(GroupKind.Serial, "", PlugFirst(vm, v)))),
                .. Nested("VBDs.activate_epoch_and_plug RO", Readers(vm).SelectMany(v => Group.Of(GroupKind.Serial, "", PlugFirst(vm, v)))),
            ]),
            .. Vifs(vm).Select(static v => new Group(GroupKind.Serial, "VIF.activate_and_plug", VifHotplug(v.Id))),
            .. Group.Of(GroupKind.Serial, "VGPUs",
            [
                .. Nested("VGPUs.activate", vm.Vgpus.Select(static g => new Step("VGPU_set_active", g.Id, "true"))),
                .. Nested("PCIs.plug (virtual functions)", Pcis(vm, isVirtualFunction: true)),
            ]),
        ]),
        new Step("VM_create_device_model", vm.Id, "false"),
        .. Pcis(vm, isVirtualFunction: false),
        .. vm.Vusbs.Select(static u => new Step("VUSB_plug", u)),
        new Step("VM_set_domain_action_request", vm.Id, "none"), // From here a restarted daemon adopts it instead of killing it.
    ];

    /// <param name="timeout">The guest is asked and has so long; null cuts its power.</param>
    public static IReadOnlyList<Atomic> Shutdown(VmShape vm, TimeSpan? timeout) =>
    [
        .. ShutdownDomain(vm, "PowerOff", timeout),
        .. Group.Of(GroupKind.Parallel, "VUSBs.unplug", vm.Vusbs.Select(static u => new Step("VUSB_unplug", u))),
        new Group(GroupKind.BestEffort, "", [new Step("VM_pause", vm.Id)]), // At best: memory is no more written while it goes.
        new Step("VM_destroy_device_model", vm.Id),
        .. Group.Of(GroupKind.Parallel, "Devices.unplug",
        [
            .. vm.Vbds.SelectMany(v => Unplug(vm, v.Id, force: true)),
            .. Vifs(vm).Select(static v => new Step("VIF_unplug", v.Id, "true")),
            .. vm.Pcis.OrderBy(static p => p.Position).Select(static p => new Step("PCI_unplug", p.Id)),
        ]),
        new Step("VM_destroy", vm.Id),
    ];

    public static IReadOnlyList<Atomic> PowerOff(VmShape vm, TimeSpan? timeout) =>
    [
        Hook(vm, "vm-pre-shutdown", timeout is null ? "hard-shutdown" : "clean-shutdown"),
        .. Shutdown(vm, timeout),
        .. Group.Of(GroupKind.Parallel, "Devices.deactivate",
        [
            .. vm.Vbds.SelectMany(static v => Group.Of(
                GroupKind.Serial, "VBD.epoch_end_and_deactivate", [.. EpochEnd(v), new Step("VBD_set_active", v.Id, "false")])),
            .. Vifs(vm).Select(static v => new Step("VIF_set_active", v.Id, "false")),
            .. vm.Vgpus.Select(static g => new Step("VGPU_set_active", g.Id, "false")),
        ]),
        Hook(vm, "vm-post-destroy", timeout is null ? "hard-shutdown" : "clean-shutdown"),
    ];

    public static IReadOnlyList<Atomic> Reboot(VmShape vm, TimeSpan? timeout)
    {
        string reason = timeout is null ? "hard-reboot" : "clean-reboot";
        return
        [
            .. ShutdownDomain(vm, "Reboot", timeout),
            Hook(vm, "vm-pre-shutdown", reason),
            .. Shutdown(vm, timeout: null),
            .. Group.Of(GroupKind.Parallel, "VBDs.epoch_end", vm.Vbds.SelectMany(EpochEnd)),
            Hook(vm, "vm-post-destroy", reason),
            Hook(vm, "vm-pre-reboot", "none"),
            .. Start(vm, force: false),
            new Step("VM_unpause", vm.Id),
        ];
    }

    public static IReadOnlyList<Atomic> Suspend(VmShape vm, string disk) =>
    [
        Hook(vm, "vm-pre-suspend", "suspend"),
        new Step("VM_save", vm.Id, vm.Vgpus.Count > 0 ? $"{disk} vgpu={disk}" : disk), // Returns when the image is durable; only then is anything ended.
        Hook(vm, "vm-pre-shutdown", "suspend"),
        .. Shutdown(vm, timeout: null),
        Hook(vm, "vm-post-destroy", "suspend"),
    ];

    /// <summary>Of a suspended or halted VM; it is paused afterwards.</summary>
    public static IReadOnlyList<Atomic> Resume(VmShape vm, string disk) =>
    [
        .. Dequarantine(vm),
        new Step("VM_create", vm.Id),
        Hook(vm, "vm-pre-resume", "none"),
        .. Pcis(vm, isVirtualFunction: true),
        .. vm.Vgpus.Count > 0 ? [new Step("VGPU_start", string.Join(',', vm.Vgpus.Select(static g => g.Id)), "true")] : Array.Empty<Step>(),
        new Step("VM_restore", vm.Id, vm.Vgpus.Count > 0 ? $"{disk} vgpu={disk}" : disk),
        .. RestoreDevices(vm, isMigration: false),
        new Step("VM_set_domain_action_request", vm.Id, "none"),
        Hook(vm, "vm-post-resume", "none"),
    ];

    public static IReadOnlyList<Atomic> RestoreVifs(VmShape vm) =>
        [.. Group.Of(GroupKind.Parallel, "VIFs.activate_and_plug", Vifs(vm).Select(static v => new Group(GroupKind.Serial, "VIF.activate_and_plug", VifHotplug(v.Id))))];

    /// <param name="isMigration">The interfaces were plugged before the memory came, and so were the disks that allow it: those need only be activated.</param>
    public static IReadOnlyList<Atomic> RestoreDevices(VmShape vm, bool isMigration)
    {
        IEnumerable<Atomic> Disks(IEnumerable<VbdShape> disks) => disks.SelectMany(v => isMigration && vm.PlugIsSplit && v.CanAttachEarly
            ? [new Step("VBD_activate", v.Id)]
            : Group.Of(GroupKind.Serial, "VBD.activate_and_plug", VbdHotplug(vm, v.Id)));
        return
        [
            .. Group.Of(GroupKind.Parallel, "VBDs.activate_and_plug RW", Disks(Writers(vm))),
            .. Group.Of(GroupKind.Parallel, "VBDs.activate_and_plug RO", Disks(Readers(vm))),
            .. isMigration ? [] : RestoreVifs(vm),
            .. Group.Of(GroupKind.Parallel, "VGPUs.activate", vm.Vgpus.Select(static g => new Step("VGPU_set_active", g.Id, "true"))),
            new Step("VM_create_device_model", vm.Id, "true"),
            .. Pcis(vm, isVirtualFunction: false),
        ];
    }

    public static IReadOnlyList<Atomic> VbdHotplug(VmShape vm, string vbd) => [new Step("VBD_set_active", vbd, "true"), .. Plug(vm, vbd)];

    public static IReadOnlyList<Atomic> VbdHotunplug(VmShape vm, string vbd, bool force) =>
        [.. Unplug(vm, vbd, force), new Step("VBD_set_active", vbd, "false")];

    public static IReadOnlyList<Atomic> VifHotplug(string vif) => [new Step("VIF_set_active", vif, "true"), new Step("VIF_plug", vif)];

    public static IReadOnlyList<Atomic> VifHotunplug(string vif, bool force) =>
        [new Step("VIF_unplug", vif, Text(force)), new Step("VIF_set_active", vif, "false")];

    private static IEnumerable<Atomic> PlugFirst(VmShape vm, VbdShape vbd) =>
    [
        new Step("VBD_set_active", vbd.Id, "true"),
        .. vbd.HasDisk ? [new Step("VBD_epoch_begin", vbd.Id, Text(vbd.IsPersistent))] : Array.Empty<Step>(),
        .. Plug(vm, vbd.Id),
    ];

    private static IEnumerable<Atomic> Plug(VmShape vm, string vbd) => vm.PlugIsSplit
        ? [new Group(GroupKind.Serial, "VBD.attach_and_activate", [new Step("VBD_attach", vbd), new Step("VBD_activate", vbd)])]
        : [new Step("VBD_plug", vbd)];

    private static IEnumerable<Atomic> Unplug(VmShape vm, string vbd, bool force) => vm.PlugIsSplit
        ? [new Group(GroupKind.Serial, "VBD.deactivate_and_detach", [new Step("VBD_deactivate", vbd, Text(force)), new Step("VBD_detach", vbd)])]
        : [new Step("VBD_unplug", vbd, Text(force))];

    private static IEnumerable<Atomic> EpochEnd(VbdShape vbd) => vbd.HasDisk ? [new Step("VBD_epoch_end", vbd.Id)] : [];

    private static IEnumerable<Atomic> ShutdownDomain(VmShape vm, string reason, TimeSpan? timeout) =>
        timeout is { } limit ? [new Step("VM_shutdown_domain", vm.Id, $"{reason} {limit.TotalSeconds:0}")] : [];

    private static IEnumerable<Atomic> Dequarantine(VmShape vm) =>
        vm.Vgpus.Where(static g => g.PhysicalFunction is not null).Select(static g => new Step("PCI_dequarantine", g.PhysicalFunction!));

    /// <summary>One after the other; those that are no virtual functions through QMP, so the device model must be there.</summary>
    private static IEnumerable<Atomic> Pcis(VmShape vm, bool isVirtualFunction) =>
        vm.Pcis.Where(p => p.IsVirtualFunction == isVirtualFunction).OrderBy(static p => p.Position)
            .Select(p => new Step("PCI_plug", p.Id, Text(!isVirtualFunction)));

    private static IEnumerable<Atomic> Nested(string description, IEnumerable<Atomic> members) =>
        Group.Of(GroupKind.NestedParallel, description, members);

    private static IEnumerable<VbdShape> Writers(VmShape vm) => vm.Vbds.Where(static v => !v.IsReadOnly);

    private static IEnumerable<VbdShape> Readers(VmShape vm) => vm.Vbds.Where(static v => v.IsReadOnly);

    private static IEnumerable<VifShape> Vifs(VmShape vm) => vm.Vifs.OrderBy(static v => v.Position);

    private static Step Hook(VmShape vm, string script, string reason) => new("VM_hook_script", vm.Id, $"{script} {reason}");

    private static string Text(bool flag) => flag ? "true" : "false";
}
