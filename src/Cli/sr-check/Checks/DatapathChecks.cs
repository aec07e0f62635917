// The states of a disk and the way between them. The orders are not written down here: they come from the automaton that the storage access
// layer runs (StorageAccess.VdiAutomaton), every state with every operation, and every repair after a call that got no answer.
using Platform;
using SrCheck.Plugins;
using StorageAccess;

namespace SrCheck.Checks;

internal static class DatapathChecks
{
    private const string Fix = "attach, activate, deactivate and detach may each be repeated, and each leaves the state that its name says";

    private static readonly VdiState[] States =
    [
        VdiState.Detached, new(VdiPhase.Attached, VdiAccess.ReadOnly), new(VdiPhase.Attached, VdiAccess.ReadWrite),
        new(VdiPhase.Activated, VdiAccess.ReadOnly), new(VdiPhase.Activated, VdiAccess.ReadWrite),
    ];

    public static IEnumerable<Check> All(bool isV1) => [.. StepChecks(), .. Repairs(), .. Addresses(isV1), .. Use(isV1)];

    private static IReadOnlyList<Check> StepChecks()
    {
        CheckList list = new("datapath", Level.Bronze, "2.3");
        foreach (VdiState state in States)
        {
            foreach (DatapathOperation operation in Enum.GetValues<DatapathOperation>())
            {
                VdiState? after = After(state, operation);
                string reason = after is { } legal
                    ? $"{operation} leads from {state} to {legal}"
                    : $"the layer never asks for {operation} of {state}; if it comes all the same, a repair must lead out of it";
                list.Must($"step.{Name(state)}.{Name($"{operation}")}", reason, Fix, w => StepAsync(w, state, operation, after));
            }
        }

        return list.All;
    }

    private static IReadOnlyList<Check> Repairs()
    {
        CheckList list = new("datapath", Level.Silver, "2.3, 2.5");
        foreach (VdiState state in States)
        {
            foreach (VdiPhase phase in Enum.GetValues<VdiPhase>())
            {
                VdiAccess access = state.Phase == VdiPhase.Detached ? VdiAccess.ReadWrite : state.Access;
                VdiState to = phase == VdiPhase.Detached ? VdiState.Detached : new(phase, access);
                list.Must($"repair.{Name(state)}.to-{Name(to)}",
                    "after a call without an answer the layer repeats what leads to a known state", Fix,
                    async w =>
                    {
                        Steps steps = await Steps.ToAsync(w, state);
                        foreach (BackendOperation operation in VdiAutomaton.Repair(to))
                            await steps.RunAsync(operation, to.Phase == VdiPhase.Detached ? VdiAccess.ReadWrite : to.Access);
                        await steps.ExpectAsync(to);
                        await steps.LeaveAsync(to);
                    });
            }
        }

        return list.All;
    }

    private static async Task StepAsync(World w, VdiState state, DatapathOperation operation, VdiState? after)
    {
        Steps steps = await Steps.ToAsync(w, state);
        (BackendOperation call, VdiAccess access) = CallOf(operation, state);
        if (after is { } legal)
        {
            await steps.RunAsync(call, access);
            await steps.ExpectAsync(legal);
            await steps.LeaveAsync(legal);
            return;
        }

        await World.AnsweredAsync(() => steps.RunAsync(call, access));
        foreach (BackendOperation repair in VdiAutomaton.Repair(VdiState.Detached))
            await steps.RunAsync(repair, access);
        await steps.ExpectAsync(VdiState.Detached);
    }

    /// <summary>Null where the layer never makes a plugin do it.</summary>
    private static VdiState? After(VdiState state, DatapathOperation operation)
    {
        try
        {
            VdiState after = VdiAutomaton.Apply(state, operation);
            bool isOtherAccess = operation is DatapathOperation.AttachReadOnly && after.Access == VdiAccess.ReadWrite;
            return isOtherAccess || (operation == DatapathOperation.AttachReadOnly && state.Phase == VdiPhase.Activated) ? null : after;
        }
        catch (StorageException)
        {
            return null;
        }
    }

    private static (BackendOperation Call, VdiAccess Access) CallOf(DatapathOperation operation, VdiState state) => operation switch
    {
        DatapathOperation.AttachReadOnly => (BackendOperation.Attach, VdiAccess.ReadOnly),
        DatapathOperation.AttachReadWrite => (BackendOperation.Attach, VdiAccess.ReadWrite),
        DatapathOperation.Activate => (BackendOperation.Activate, state.Access),
        DatapathOperation.Deactivate => (BackendOperation.Deactivate, state.Access),
        _ => (BackendOperation.Detach, state.Access),
    };

    private static string Name(VdiState state) => state.Phase == VdiPhase.Detached
        ? "detached"
        : $"{Name($"{state.Phase}")}-{(state.Access == VdiAccess.ReadOnly ? "ro" : "rw")}";

    private static string Name(string pascal) =>
        string.Concat(pascal.Select(static (c, i) => char.IsUpper(c) && i > 0 ? $"-{char.ToLowerInvariant(c)}"
            : $"{char.ToLowerInvariant(c)}"));

    private static IReadOnlyList<Check> Addresses(bool isV1)
    {
        CheckList list = new("datapath", Level.Bronze, isV1 ? "3.4, 3.8" : "5.4");
        const string fix = "answer the address of this disk's own server, file or device, and nothing that a shell or a user could bend";
        list.Must("address.openable", "the guest's device is what attach answered", fix, async static w =>
        {
            (Volume volume, DiskContent content) = await w.StandingAsync();
            await w.VerifyAsync(volume, content, "the attached disk");
        });
        list.Must("address.plain", "it ends up in command lines (155)", fix, async static w =>
        {
            foreach (Access access in await AttachedAsync(w))
                Seen.That(access.Address.IndexOfAny(['$', '`', ';', '|', '\n', '"', '\'']) < 0,
                    $"\"{access.Address}\" has characters of a shell's");
        });
        list.Must("address.absolute", "it is used from any folder", fix, async static w =>
        {
            foreach (Access access in await AttachedAsync(w))
            {
                string path = PathOf(access);
                Seen.That(path.Length == 0 || path[0] == '/', $"\"{access.Address}\" is not absolute");
                Seen.That(!path.Contains("/../", StringComparison.Ordinal), $"\"{access.Address}\" leads up");
            }
        });
        list.Must("address.no-folder", "a folder holds no disk", fix, async static w =>
        {
            foreach (Access access in await AttachedAsync(w))
                Seen.That(!Directory.Exists(PathOf(access)), $"\"{access.Address}\" is a folder");
        });
        list.Must("address.own", "two disks never share an address", fix, async static w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            Volume other = await w.VolumeAsync();
            IReadOnlyList<Access> one = await w.Plugin.AttachAsync(volume, isWritable: false);
            IReadOnlyList<Access> two = await w.Plugin.AttachAsync(other, isWritable: false);
            await w.Plugin.DetachAsync(volume);
            await w.Plugin.DetachAsync(other);
            Seen.That(!one.Any(two.Contains), $"two disks are both at {one.FirstOrDefault(two.Contains)?.Address}");
        });
        list.Must("address.repeats", "a repeated attach answers what the first did", fix, async static w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            IReadOnlyList<Access> one = await w.Plugin.AttachAsync(volume, isWritable: true);
            IReadOnlyList<Access> two = await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.DetachAsync(volume);
            Seen.That(one.SequenceEqual(two), $"{string.Join(", ", one)} became {string.Join(", ", two)}");
        });
        return list.All;
    }

    private static IReadOnlyList<Check> Use(bool isV1)
    {
        CheckList list = new("datapath", Level.Bronze, isV1 ? "2.3, 3.8" : "2.3, 5.5");
        list.Must("read-only.refuses-writes", "a disk that is activated read-only is somebody's evidence", "open it read-only",
            async static w =>
        {
            (Volume volume, DiskContent content) = await w.StandingAsync();
            if (!w.Plugin.Info.Has("VDI_ACTIVATE_READONLY") && !w.Plugin.IsV1)
                throw new NotApplicableException("VDI_ACTIVATE_READONLY is not claimed");
            await w.UseAsync(volume, isWritable: false, static async device =>
            {
                try
                {
                    await device.WriteAsync(0, new byte[4096], WriteFlags.None, CancellationToken.None);
                }
                catch (Exception e) when (e is IOException or UnauthorizedAccessException)
                {
                    return;
                }

                Seen.That(device.IsReadOnly, "a write to a read-only disk succeeds");
            });
            await w.VerifyAsync(volume, content, "after a refused write");
        });
        list.Must("two-at-once", "a VM has several disks", "one server for each", async static w =>
        {
            (Volume a, DiskContent first) = await w.StandingAsync();
            (Volume b, DiskContent second) = await w.FilledAsync();
            await w.UseAsync(a, isWritable: true, one => w.UseAsync(b, isWritable: true, async two =>
            {
                await first.VerifyAsync(one, "the first of two active disks");
                await second.VerifyAsync(two, "the second of two active disks");
            }));
        });
        list.Must("gone-after-deactivate", "whoever still has the old address must not reach the disk", "end the server in deactivate",
            async static w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            IReadOnlyList<Access> ways = await w.Plugin.AttachAsync(volume, isWritable: true);
            await w.Plugin.ActivateAsync(volume, isWritable: true);
            await w.Plugin.DeactivateAsync(volume);
            bool answers = ways.Any(static a => a.Kind == AccessKind.Nbd) && await AttachedDisk.AnswersAsync(ways);
            await w.Plugin.DetachAsync(volume);
            Seen.That(!answers, "the NBD server answers after deactivate");
        });
        list.Must("attach-starts-nothing", "between attach and activate another host may still write", "open the image in activate",
            async static w =>
        {
            Volume volume = (await w.StandingAsync()).Volume;
            IReadOnlyList<Access> ways = await w.Plugin.AttachAsync(volume, isWritable: true);
            bool answers = ways.Any(static a => a.Kind == AccessKind.Nbd) && await AttachedDisk.AnswersAsync(ways);
            await w.Plugin.DetachAsync(volume);
            Seen.That(!answers, "the NBD server answers before activate");
        });
        return list.All;
    }

    private static async Task<IReadOnlyList<Access>> AttachedAsync(World w)
    {
        Volume volume = (await w.StandingAsync()).Volume;
        IReadOnlyList<Access> ways = await w.Plugin.AttachAsync(volume, isWritable: false);
        await w.Plugin.DetachAsync(volume);
        return ways;
    }

    private static string PathOf(Access access) => access.Kind == AccessKind.Nbd
        ? Nbd.NbdUri.TryParse(access.Address)?.SocketPath ?? ""
        : access.Address;

    /// <summary>The standing disk, led from state to state. A failed check's world is thrown away whole: nothing is led back.</summary>
    private sealed class Steps
    {
        private readonly World world;
        private readonly Volume volume;
        private readonly DiskContent content;
        private IReadOnlyList<Access> ways = [];

        private Steps(World world, Volume volume, DiskContent content)
        {
            this.world = world;
            this.volume = volume;
            this.content = content;
        }

        public static async Task<Steps> ToAsync(World w, VdiState state)
        {
            (Volume volume, DiskContent content) = await w.StandingAsync();
            Steps steps = new(w, volume, content);
            foreach (BackendOperation operation in VdiAutomaton.Operations(VdiState.Detached, state)!)
                await steps.RunAsync(operation, state.Access);
            return steps;
        }

        public async Task RunAsync(BackendOperation operation, VdiAccess access)
        {
            bool isWritable = access == VdiAccess.ReadWrite;
            switch (operation)
            {
                case BackendOperation.Attach:
                    ways = await world.Plugin.AttachAsync(volume, isWritable);
                    break;
                case BackendOperation.Activate:
                    await world.Plugin.ActivateAsync(volume, isWritable);
                    break;
                case BackendOperation.Deactivate:
                    await world.Plugin.DeactivateAsync(volume);
                    break;
                default:
                    await world.Plugin.DetachAsync(volume);
                    break;
            }
        }

        public async Task ExpectAsync(VdiState state)
        {
            if (state.Phase == VdiPhase.Activated)
            {
                await using IBlockDevice device = await AttachedDisk.OpenAsync(ways, state.Access == VdiAccess.ReadWrite);
                await content.VerifyAsync(device, $"the disk, {state}");
                return;
            }

            if (ways.Any(static a => a.Kind == AccessKind.Nbd))
                Seen.That(!await AttachedDisk.AnswersAsync(ways), $"the disk is {state}, and its server answers");
        }

        public async Task LeaveAsync(VdiState state)
        {
            foreach (BackendOperation operation in VdiAutomaton.Operations(state, VdiState.Detached)!)
                await RunAsync(operation, VdiAccess.ReadWrite);
        }
    }
}
