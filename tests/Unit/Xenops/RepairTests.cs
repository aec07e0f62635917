using Xenops.Queues;

namespace Unit.XenopsTests;

public class RepairTests
{
    private static readonly VmShape Vm = new("vm", [new VbdShape("vm.xvda")], [], [], [], []);
    private static readonly VmActions Actions = new([VmAction.Shutdown], [VmAction.Start], [VmAction.Coredump, VmAction.Start]);
    private static readonly TimeSpan Long = TimeSpan.FromHours(1);
    private static readonly TimeSpan Short = TimeSpan.FromSeconds(119);

    [Fact]
    public void A_domain_that_asks_for_nothing_gets_nothing_and_one_that_is_off_or_suspended_itself_is_shut_down()
    {
        Assert.Empty(Repair.CheckState(Vm, Actions, ActionRequest.None, Long));
        Assert.Equal(Decomposition.Shutdown(Vm, null).SelectMany(static a => a.Steps), Steps(ActionRequest.PowerOff, Long));
        Assert.Equal(Decomposition.Shutdown(Vm, null).SelectMany(static a => a.Steps), Steps(ActionRequest.Suspend, Long));
        Assert.Equal([new Step("VM_softreboot", "vm")], Steps(ActionRequest.SoftReset, Long));
    }

    [Fact]
    public void A_guest_that_reboots_soon_after_its_start_waits_first_and_one_that_crashes_soon_is_not_started_again()
    {
        Step[] reboot = [.. Decomposition.Reboot(Vm, null).SelectMany(static a => a.Steps)];
        Assert.Equal(reboot, Steps(ActionRequest.Reboot, Long));
        Assert.Equal([new Step("VM_delay", "vm", "15"), .. reboot], Steps(ActionRequest.Reboot, Short));
        Assert.Equal(reboot, Steps(ActionRequest.CrashDump, Long));
        Assert.Equal(Decomposition.Shutdown(Vm, null).SelectMany(static a => a.Steps), Steps(ActionRequest.CrashDump, Short));
    }

    [Theory]
    [InlineData("VM_start", "vm", null, "VM_check_state vm")]
    [InlineData("VM_receive_memory", "vm", "tmp", "VM_check_state tmp, VM_check_state vm")]
    [InlineData("VM_migrate", "vm", "tmp", "VM_check_state vm, VM_check_state tmp")]
    [InlineData("VBD_plug", "vm.xvda", null, "VBD_check_state vm.xvda")]
    [InlineData("VIF_move", "vm.0", null, "VIF_check_state vm.0")]
    [InlineData("PCI_dequarantine", "0000:3b:00.0", null, "")]
    [InlineData("VM_import_metadata", "vm", null, "")]
    public void After_a_failure_what_it_was_about_is_looked_at(string operation, string target, string? other, string expected) =>
        Assert.Equal(expected, string.Join(", ", Repair.After(operation, target, other).Select(static s => $"{s.Verb} {s.Target}")));

    [Fact]
    public void After_a_group_each_member_is_looked_at_once() => Assert.Equal(
        ["vm.xvda", "vm.xvdb"],
        Repair.After(new Group(GroupKind.Parallel, "", [new Step("VBD_set_active", "vm.xvda"), new Step("VBD_plug", "vm.xvda"), new Step("VBD_plug", "vm.xvdb")]))
            .Select(static s => s.Target));

    [Fact]
    public void A_device_of_a_VM_that_is_down_is_unplugged_and_of_one_that_is_up_only_when_it_is_asked_for()
    {
        Assert.Equal([new Step("VBD_unplug", "vm.xvda", "true")], Repair.CheckDevice("VBD", "vm.xvda", isVmUp: false, wantsUnplug: false, wantsQos: false));
        Assert.Empty(Repair.CheckDevice("VIF", "vm.0", isVmUp: true, wantsUnplug: false, wantsQos: true));
        Assert.Equal([new Step("VBD_set_qos", "vm.xvda")], Repair.CheckDevice("VBD", "vm.xvda", isVmUp: true, wantsUnplug: false, wantsQos: true));
        Assert.Equal([new Step("PCI_unplug", "vm.p0")], Repair.CheckDevice("PCI", "vm.p0", isVmUp: true, wantsUnplug: true, wantsQos: false));
    }

    private static IEnumerable<Step> Steps(ActionRequest request, TimeSpan uptime) =>
        Repair.CheckState(Vm, Actions, request, uptime).SelectMany(static a => a.Steps);
}
