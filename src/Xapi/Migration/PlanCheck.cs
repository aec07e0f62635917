// Whether this pool could take a VM: everything in the way that can be known before the first thing is made, all of it at once.
using Migration;
using StorageAccess;
using Xapi.Database;

namespace Xapi.Migration;

/// <param name="statOfSr">Free space of an SR, by its uuid.</param>
/// <param name="certificateExpiresAt">This pool's own.</param>
public sealed class PlanCheck(
    PoolDatabase database, Func<string, SrId, CancellationToken, Task<SrInfo>> statOfSr, MigrationStore store, string poolRef, string fingerprint,
    DateTimeOffset certificateExpiresAt, TimeProvider time) : IPlanCheck
{
    public async Task<PlanAnswer> CheckAsync(IssuedToken token, PlanQuestion question, CancellationToken cancellationToken)
    {
        List<Obstacle> found = [];
        CheckPool(question, token, found);
        CheckHost(question, token, found);
        Dictionary<string, string> storages = [];
        foreach (DiskPlan disk in question.Disks)
        {
            if (StorageOf(token, disk, found) is { } sr)
                storages[disk.Device] = sr;
        }

        foreach (IGrouping<string, DiskPlan> disks in question.Disks.Where(d => storages.ContainsKey(d.Device)).GroupBy(d => storages[d.Device]))
            await CheckSpaceAsync(token, disks, found, cancellationToken);
        foreach (NetworkWish wish in question.Networks ?? [])
            CheckNetwork(wish, found);
        if (Obstacle.OfCertificate(certificateExpiresAt, time.GetUtcNow(), MigrationSide.Destination) is { } certificate)
            found.Add(certificate);
        return new PlanAnswer(storages, token.Host) { Obstacles = found, Version = PeerProtocol.Version, At = time.GetUtcNow(), TokenExpiresAt = token.ExpiresAt };
    }

    private void CheckPool(PlanQuestion question, IssuedToken token, List<Obstacle> found)
    {
        if (question.SourceFingerprint == fingerprint)
            found.Add(Error("OPERATION_NOT_ALLOWED", ["source and destination are the same pool"], "source and destination are the same pool"));
        if (question.Version != PeerProtocol.Version)
        {
            found.Add(Error(
                "VM_HOST_INCOMPATIBLE_VERSION_MIGRATE", [token.Host, question.Vm],
                $"the source speaks version {question.Version} of the migration protocol, the destination {PeerProtocol.Version}"));
        }

        if (database.FindByUuid("VM", question.Vm) is { } there)
            found.Add(Error("DUPLICATE_VM", [there], $"the destination has a VM with the uuid {question.Vm} already"));
        if (store.OwnershipOf(question.Vm) is { Owner: Owner.InDoubt } ownership)
            found.Add(Error("OPERATION_NOT_ALLOWED", [$"migration {ownership.Migration} of this VM is in doubt here"], "an earlier migration is in doubt"));
    }

    private void CheckHost(PlanQuestion question, IssuedToken token, List<Obstacle> found)
    {
        if (!database.Exists("host", token.Host))
        {
            found.Add(Error("HANDLE_INVALID", ["host", token.Host], "the host of the token is no member of the destination any more"));
            return;
        }

        if (!database.GetBool("host", token.Host, "enabled"))
            found.Add(Error("HOST_DISABLED", [token.Host], "the destination host is disabled"));
        string metrics = database.GetRef("host", token.Host, "metrics");
        long freeBytes = database.Exists("host_metrics", metrics) ? database.GetLong("host_metrics", metrics, "memory_free") : 0;
        if (question.MemoryBytes > freeBytes)
        {
            found.Add(Error(
                "HOST_NOT_ENOUGH_FREE_MEMORY", [$"{question.MemoryBytes}", $"{freeBytes}"],
                $"the destination host has {freeBytes} bytes of memory free; the VM needs {question.MemoryBytes}"));
        }
    }

    /// <summary>The SR of the map, else the token's, else the pool's default one.</summary>
    private string? StorageOf(IssuedToken token, DiskPlan disk, List<Obstacle> found)
    {
        string[] wishes = [disk.DestinationStorage, token.Sr, database.GetRef("pool", poolRef, "default_SR")];
        string? sr = wishes.FirstOrDefault(static wish => wish.Length != 0 && wish != "OpaqueRef:NULL");
        Obstacle? obstacle = sr is null
                ? Error("VDI_NOT_IN_MAP", [disk.SourceDisk], $"no storage is named for disk {disk.Device} and the destination has no default one")
            : !database.Exists("SR", sr)
                ? Error("HANDLE_INVALID", ["SR", sr], $"the destination has no storage {sr}")
            : !database.GetSet("SR", sr, "PBDs").Any(pbd => database.GetBool("PBD", pbd, "currently_attached"))
                ? Error("SR_HAS_NO_PBDS", [sr], $"the destination's storage {database.GetString("SR", sr, "name_label")} is not plugged")
            : null;
        if (obstacle is null)
            return database.GetString("SR", sr!, "uuid");
        if (!found.Any(o => o.Code == obstacle.Code && o.Parameters.SequenceEqual(obstacle.Parameters)))
            found.Add(obstacle); // One storage is one obstacle, however many disks want it.
        return null;
    }

    private async Task CheckSpaceAsync(IssuedToken token, IGrouping<string, DiskPlan> disks, List<Obstacle> found, CancellationToken cancellationToken)
    {
        try
        {
            SrInfo info = await statOfSr(token.Migration, new SrId(disks.Key), cancellationToken);
            long neededBytes = disks.Sum(static d => d.AllocatedBytes);
            if (neededBytes > info.FreeSpaceBytes)
            {
                found.Add(Error(
                    "SR_FULL", [$"{neededBytes}", $"{info.FreeSpaceBytes}"],
                    $"the destination's storage {info.NameLabel} has {info.FreeSpaceBytes} bytes free; the VM's disks hold {neededBytes}"));
            }
        }
        catch (StorageException e)
        {
            found.Add(Error("VM_MIGRATE_FAILED", [], $"the destination's storage {disks.Key} does not tell its free space: {e.Message}"));
        }
    }

    private void CheckNetwork(NetworkWish wish, List<Obstacle> found)
    {
        if (wish.DestinationNetwork.Length != 0)
        {
            if (!database.Exists("network", wish.DestinationNetwork))
                found.Add(Error("HANDLE_INVALID", ["network", wish.DestinationNetwork], $"the destination has no network {wish.DestinationNetwork}"));
        }
        else if (database.ByNameLabel("network", wish.NetworkName).Count == 0)
        {
            found.Add(Error(
                "VIF_NOT_IN_MAP", [wish.Vif],
                $"VIF {wish.Device} is on network \"{wish.NetworkName}\"; the map names no other one, and the destination has none of that name"));
        }
    }

    private static Obstacle Error(string code, IReadOnlyList<string> parameters, string message) =>
        new(code, parameters, MigrationSide.Destination, message, ObstacleSeverity.Error);
}
