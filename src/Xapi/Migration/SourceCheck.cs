// The source's look at a VM before it goes: what moves, and what here is in the way.
using Migration;
using StorageAccess;
using Xapi.Database;
using Xapi.Storage;
using Xapi.Vms;

namespace Xapi.Migration;

/// <param name="ChainDepths">By device: images from the disk to its oldest parent; only of disks whose storage tells it.</param>
public sealed record SourceLook(
    PlanQuestion Question, long Epoch, IReadOnlyDictionary<string, int> ChainDepths, IReadOnlyList<Obstacle> Obstacles);

/// <param name="statOfVdi">What the storage says of a disk.</param>
public sealed class SourceCheck(
    PoolDatabase database, MigrationStore store, Func<string, SrId, VdiId, CancellationToken, Task<VdiInfo>> statOfVdi, Func<PoolIdentity> identity,
    DateTimeOffset certificateExpiresAt, TimeProvider time)
{
    /// <summary>VHD readers of the field give up on chains of 30; a coalesce that lags is seen before (research: smapiv1.md).</summary>
    private const int DeepestChain = 30;
    private const int DeepChain = 25;

    /// <summary>In sm_config: the location of the disk's parent.</summary>
    private const string ParentKey = "vhd-parent";

    /// <summary>What moves, with everything that stands in its way however the VM is just now.</summary>
    public async Task<SourceLook> LookAsync(
        string vm, string migration, Dictionary<string, string> vdiMap, Dictionary<string, string> vifMap, CancellationToken cancellationToken)
    {
        List<Obstacle> found = [];
        string uuid = database.GetString("VM", vm, "uuid");
        Ownership ownership = store.OwnershipOf(uuid);
        if (ownership.Owner != Owner.Here)
            found.Add(Error("OPERATION_NOT_ALLOWED", [$"VM {uuid} is not this pool's"], $"the VM is not this pool's: {ownership.Owner} by migration {ownership.Migration}"));
        if (store.Source(migration) is { } used)
            found.Add(Error("VM_MIGRATE_FAILED", [], $"the token was used already (for VM {used.Plan.VmName}: {used.Phase}); call migrate_receive again"));
        if (Obstacle.OfCertificate(certificateExpiresAt, time.GetUtcNow(), MigrationSide.Source) is { } certificate)
            found.Add(certificate);

        List<DiskPlan> disks = [];
        Dictionary<string, int> depths = [];
        foreach (VmDisk disk in VmRows.Disks(database, vm))
        {
            try
            {
                string srRef = VmRows.SrOf(database, disk);
                SrId sr = new(database.GetString("SR", srRef, "uuid"));
                VdiId vdi = new(database.GetString("VDI", disk.Vdi, "location"));
                VdiInfo info = await statOfVdi(migration, sr, vdi, cancellationToken);
                disks.Add(new DiskPlan(
                    disk.Device, sr.Value, vdi.Value, vdiMap.GetValueOrDefault(disk.Vdi, ""), database.GetString("VDI", disk.Vdi, "name_label"),
                    database.GetString("VDI", disk.Vdi, "name_description"), info.VirtualSizeBytes, info.PhysicalUtilisationBytes, disk.IsReadOnly));
                if (DepthOf(srRef, info) is not { } depth)
                    continue;
                depths[disk.Device] = depth;
                if (OfDepth(disk.Device, depth) is { } deep)
                    found.Add(deep);
            }
            catch (XapiException e)
            {
                found.Add(Error(e.Code, e.Parameters, $"disk {disk.Device} cannot be read: {e.Message}"));
            }
            catch (StorageException e)
            {
                found.Add(Error("VDI_NOT_AVAILABLE", [disk.Vdi], $"disk {disk.Device} cannot be read: {e.Message}"));
            }
        }

        PlanQuestion question = new(
            uuid, database.GetString("VM", vm, "name_label"), disks, database.GetLong("VM", vm, "memory_static_max"), identity().Fingerprint,
            [.. database.GetSet("VM", vm, "VIFs").Select(vif => WishOf(vif, vifMap))], PeerProtocol.Version);
        return new SourceLook(question, ownership.Epoch, depths, found);
    }

    /// <summary>What is in the way only now: a plan tells it, VM.migrate finds it by taking the VM.</summary>
    public IEnumerable<Obstacle> InTheMoment(string vm)
    {
        string state = database.GetString("VM", vm, "power_state");
        if (state != "Running")
            yield return Error("VM_BAD_POWER_STATE", [vm, "running", state.ToLowerInvariant()], $"the VM is {state.ToLowerInvariant()}; only a running one moves");
        foreach (string operation in database.GetMap("VM", vm, "current_operations").Values.Distinct(StringComparer.Ordinal))
            yield return Error("OTHER_OPERATION_IN_PROGRESS", ["VM", vm, operation, vm], $"{operation} of the VM is in progress");
    }

    private NetworkWish WishOf(string vif, Dictionary<string, string> vifMap)
    {
        string network = database.GetRef("VIF", vif, "network");
        return new NetworkWish(
            vif, database.GetString("VIF", vif, "device"), database.Exists("network", network) ? database.GetString("network", network, "name_label") : "",
            vifMap.GetValueOrDefault(vif, ""));
    }

    /// <summary>Null when the storage does not say what the disk's parent is. A parent without a row ends the walk: it is that deep at least.</summary>
    private int? DepthOf(string sr, VdiInfo info)
    {
        if (!info.SmConfig.TryGetValue(ParentKey, out string? parent))
            return null;
        int depth = 1;
        while (!string.IsNullOrEmpty(parent) && depth <= DeepestChain) // A loop of parents ends here too.
        {
            depth++;
            parent = VdiRows.Find(database, sr, parent) is { } row ? database.GetMap("VDI", row, "sm_config").GetValueOrDefault(ParentKey) : null;
        }

        return depth;
    }

    private static Obstacle? OfDepth(string device, int depth) => depth >= DeepestChain
            ? Error("SR_BACKEND_FAILURE_109", ["", "The snapshot chain is too long", device], $"disk {device} is a chain of at least {depth} images; the limit is {DeepestChain}")
        : depth > DeepChain
            ? new Obstacle(
                "VDI_CHAIN_DEEP", [device, $"{depth}"], MigrationSide.Source, $"disk {device} is a chain of {depth} images; {DeepestChain} is the limit",
                ObstacleSeverity.Warning)
        : null;

    private static Obstacle Error(string code, IReadOnlyList<string> parameters, string message) =>
        new(code, parameters, MigrationSide.Source, message, ObstacleSeverity.Error);
}
