// The decompositions against a file of what they must be, checked by hand against the field's (research: xenopsd.md 2.5).
using System.Text;
using Xenops.Queues;

namespace Unit.XenopsTests;

public class DecompositionTests
{
    private static readonly TimeSpan Minute = TimeSpan.FromMinutes(1);

    private static readonly VmShape Small = new("vm", [new VbdShape("vm.xvda")], [], [], [], []);

    private static readonly VmShape Full = new(
        "vm",
        [new VbdShape("vm.xvdb", IsReadOnly: true), new VbdShape("vm.xvda"), new VbdShape("vm.xvdc", IsPersistent: false, CanAttachEarly: true), new VbdShape("vm.xvdd", IsReadOnly: true, HasDisk: false)],
        [new VifShape("vm.1", 1), new VifShape("vm.0", 0)],
        [new PciShape("vm.p1", 1), new PciShape("vm.p0", 0), new PciShape("vm.vf", 2, IsVirtualFunction: true)],
        [new VgpuShape("vm.g0", "0000:3b:00.0"), new VgpuShape("vm.g1")],
        ["vm.u0", "vm.u1"]);

    private static readonly VmShape Split = Full with { Pcis = [], Vgpus = [], Vusbs = [], Vifs = [], PlugIsSplit = true };

    private static readonly (string Name, IReadOnlyList<Atomic> Atomics)[] All =
    [
        ("VM_start, one disk", Decomposition.Start(Small, force: false)),
        ("VM_start", Decomposition.Start(Full, force: true)),
        ("VM_start, split plug", Decomposition.Start(Split, force: false)),
        ("VM_shutdown, one disk", Decomposition.Shutdown(Small, timeout: null)),
        ("VM_shutdown, timeout", Decomposition.Shutdown(Full, Minute)),
        ("VM_shutdown, split plug", Decomposition.Shutdown(Split, timeout: null)),
        ("VM_poweroff", Decomposition.PowerOff(Full, timeout: null)),
        ("VM_poweroff, timeout", Decomposition.PowerOff(Small, Minute)),
        ("VM_reboot", Decomposition.Reboot(Full, timeout: null)),
        ("VM_reboot, timeout", Decomposition.Reboot(Small, Minute)),
        ("VM_suspend", Decomposition.Suspend(Small, "sr/disk")),
        ("VM_suspend, vGPU", Decomposition.Suspend(Full, "sr/disk")),
        ("VM_resume", Decomposition.Resume(Full, "sr/disk")),
        ("VM_restore_vifs", Decomposition.RestoreVifs(Full)),
        ("VM_restore_devices", Decomposition.RestoreDevices(Full, isMigration: false)),
        ("VM_restore_devices, migration", Decomposition.RestoreDevices(Full, isMigration: true)),
        ("VM_restore_devices, migration, split plug", Decomposition.RestoreDevices(Split, isMigration: true)),
        ("VBD_hotplug", Decomposition.VbdHotplug(Full, "vm.xvda")),
        ("VBD_hotplug, split plug", Decomposition.VbdHotplug(Split, "vm.xvda")),
        ("VBD_hotunplug", Decomposition.VbdHotunplug(Full, "vm.xvda", force: false)),
        ("VIF_hotplug", Decomposition.VifHotplug("vm.0")),
        ("VIF_hotunplug", Decomposition.VifHotunplug("vm.0", force: true)),
    ];

    [Fact]
    public void Every_operation_decomposes_as_the_fields_does()
    {
        StringBuilder found = new();
        foreach ((string name, IReadOnlyList<Atomic> atomics) in All)
            found.Append($"== {name}\n{Atomic.Text(atomics)}");
        string golden = Path.Combine(Folder(), "decompositions.txt");
        if (Environment.GetEnvironmentVariable("GOLDEN_WRITE") is not null)
            File.WriteAllText(golden, found.ToString());
        Assert.Equal(File.ReadAllText(golden), found.ToString());
    }

    [Fact]
    public void No_group_has_fewer_than_two_members_and_none_is_nested_in_one_of_its_own_class()
    {
        foreach (Group group in All.SelectMany(static a => a.Atomics).SelectMany(Groups))
        {
            Assert.True(group.Members.Count > 1 || group.Kind == GroupKind.BestEffort);
            if (group.Kind is GroupKind.Parallel or GroupKind.NestedParallel)
                Assert.DoesNotContain(group.Members.SelectMany(Groups), g => g.Kind == group.Kind || g.Kind == GroupKind.Parallel);
        }
    }

    [Fact]
    public void What_a_shutdown_takes_down_is_what_a_start_put_up()
    {
        HashSet<string> up = [.. Decomposition.Start(Full, false).SelectMany(static a => a.Steps).Where(static s => s.Verb.EndsWith("_plug")).Select(static s => s.Target)];
        HashSet<string> down = [.. Decomposition.Shutdown(Full, null).SelectMany(static a => a.Steps).Where(static s => s.Verb.EndsWith("_unplug")).Select(static s => s.Target)];
        Assert.Equal(up.Order(), down.Order());
        Assert.Equal(11, up.Count);
    }

    [Fact]
    public void A_parallel_group_is_waited_for_ten_at_a_time()
    {
        Step step = new("VBD_plug", "vm.x");
        Assert.Equal(step.Expiry * 3, new Group(GroupKind.Parallel, "", Enumerable.Repeat<Atomic>(step, 21).ToArray()).Expiry);
        Assert.Equal(step.Expiry * 21, new Group(GroupKind.Serial, "", Enumerable.Repeat<Atomic>(step, 21).ToArray()).Expiry);
    }

    private static IEnumerable<Group> Groups(Atomic atomic) =>
        atomic is Group group ? group.Members.SelectMany(Groups).Prepend(group) : [];

    private static string Folder()
    {
        string folder = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(folder, "Storage.sln")))
            folder = Path.GetDirectoryName(folder)!;
        return Path.Combine(folder, "tests", "Unit", "Xenops", "Golden");
    }
}
