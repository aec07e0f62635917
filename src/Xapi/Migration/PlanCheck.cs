// Whether this pool could take a VM: every refusal that can be known before the first thing is made.
using Migration;
using StorageAccess;
using Xapi.Database;
using Xapi.Storage;

namespace Xapi.Migration;

public sealed class PlanCheck(PoolDatabase database, StorageHost storage, MigrationStore store, string poolRef, string fingerprint) : IPlanCheck
{
    public async Task<PlanAnswer> CheckAsync(IssuedToken token, PlanQuestion question, CancellationToken cancellationToken)
    {
        if (question.SourceFingerprint == fingerprint)
            throw Refuse("OPERATION_NOT_ALLOWED", ["source and destination are the same pool"], "source and destination are the same pool");
        if (!database.GetBool("host", token.Host, "enabled"))
            throw Refuse("HOST_DISABLED", [token.Host], "the destination host is disabled");
        if (database.FindByUuid("VM", question.Vm) is { } there)
            throw Refuse("DUPLICATE_VM", [there], $"the destination has a VM with the uuid {question.Vm} already");
        if (store.OwnershipOf(question.Vm) is { Owner: Owner.InDoubt } ownership)
            throw Refuse("OPERATION_NOT_ALLOWED", [$"migration {ownership.Migration} of this VM is in doubt here"], "an earlier migration is in doubt");
        string metrics = database.GetRef("host", token.Host, "metrics");
        long freeBytes = database.GetLong("host_metrics", metrics, "memory_free");
        if (question.MemoryBytes > freeBytes)
            throw Refuse("HOST_NOT_ENOUGH_FREE_MEMORY", [$"{question.MemoryBytes}", $"{freeBytes}"], "the destination host has too little free memory");

        Dictionary<string, string> storages = question.Disks.ToDictionary(static d => d.Device, d => StorageOf(token, d));
        foreach (IGrouping<string, DiskPlan> disks in question.Disks.GroupBy(d => storages[d.Device]))
        {
            SrInfo info = await storage.Layer.SrStatAsync(token.Migration, new SrId(disks.Key), cancellationToken);
            long neededBytes = disks.Sum(static d => d.AllocatedBytes);
            if (neededBytes > info.FreeSpaceBytes)
            {
                throw Refuse(
                    "SR_FULL", [$"{neededBytes}", $"{info.FreeSpaceBytes}"],
                    $"the destination's storage {info.NameLabel} has {info.FreeSpaceBytes} bytes free; the VM's disks hold {neededBytes}");
            }
        }

        return new PlanAnswer(storages, token.Host);
    }

    /// <summary>The SR of the map, else the token's, else the pool's default one.</summary>
    private string StorageOf(IssuedToken token, DiskPlan disk)
    {
        string[] wishes = [disk.DestinationStorage, token.Sr, database.GetRef("pool", poolRef, "default_SR")];
        string sr = wishes.FirstOrDefault(wish => wish.Length != 0 && wish != "OpaqueRef:NULL")
            ?? throw Refuse("VDI_NOT_IN_MAP", [disk.SourceDisk], $"no storage is named for disk {disk.Device} and the destination has no default one");
        if (!database.Exists("SR", sr))
            throw Refuse("HANDLE_INVALID", ["SR", sr], $"the destination has no storage {sr}");
        if (!database.GetSet("SR", sr, "PBDs").Any(pbd => database.GetBool("PBD", pbd, "currently_attached")))
            throw Refuse("SR_HAS_NO_PBDS", [sr], $"the destination's storage {database.GetString("SR", sr, "name_label")} is not plugged");
        return database.GetString("SR", sr, "uuid");
    }

    private static MigrationException Refuse(string code, IReadOnlyList<string> parameters, string message) =>
        new(code, parameters, MigrationSide.Destination, message);
}
