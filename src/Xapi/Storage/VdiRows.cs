// VDI rows as the storage layer knows them: found by SR and location, made from and brought up to date with what a scan or a call returned.
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Storage;

public static class VdiRows
{
    public static string? Find(PoolDatabase database, string sr, string location) =>
        database.GetSet("SR", sr, "VDIs").FirstOrDefault(vdi => database.GetString("VDI", vdi, "location") == location);

    /// <summary>The row of a VDI that a storage call returned: a driver may have introduced it by its call-back already.</summary>
    public static string Ensure(PoolDatabase database, string sr, VdiInfo info) => database.Transaction(() =>
    {
        string? known = Find(database, sr, info.Vdi.Value);
        if (known is not null)
        {
            Refresh(database, known, info);
            return known;
        }

        List<(string, RpcValue)> fields =
        [
            ("name_label", info.NameLabel), ("name_description", info.NameDescription), ("SR", sr), ("location", info.Vdi.Value),
            ("type", info.Type.Length == 0 ? "user" : info.Type), ("sharable", info.Sharable), ("read_only", info.ReadOnly), ("managed", true),
            ("virtual_size", new RpcInt(info.VirtualSizeBytes)), ("physical_utilisation", new RpcInt(info.PhysicalUtilisationBytes)),
            ("is_a_snapshot", info.IsASnapshot), ("sm_config", RpcValue.Map(info.SmConfig)),
        ];
        if (info.Uuid.Length != 0)
            fields.Add(("uuid", info.Uuid));
        return database.Create("VDI", fields);
    });

    /// <summary>The rows of an SR as they are now: reference to location.</summary>
    public static IReadOnlyDictionary<string, string> Locations(PoolDatabase database, string sr) => database.Transaction(() =>
        database.GetSet("SR", sr, "VDIs").ToDictionary(static vdi => vdi, vdi => database.GetString("VDI", vdi, "location")));

    /// <summary>
    /// After a scan: rows for new volumes, none for gone ones, the rest brought up to date (research: storage.md 2.8). A SMAPIv1 driver did this
    /// itself by its call-backs; then nothing is left to change. Others create and destroy VDIs while a scan runs: a row that came meanwhile
    /// stays although the scan has not seen its volume, one that went meanwhile does not come back. Nobody's sm_config is touched.
    /// </summary>
    /// <param name="before"><see cref="Locations"/> before the scan began.</param>
    public static void Reconcile(PoolDatabase database, string sr, IReadOnlyDictionary<string, string> before, SrScan scan) =>
        database.Transaction(() =>
        {
            HashSet<string> found = [.. scan.Vdis.Select(static v => v.Vdi.Value)];
            HashSet<string> now = [.. Locations(database, sr).Values];
            HashSet<string> wentMeanwhile = [.. before.Values.Where(location => !now.Contains(location))];
            foreach ((string vdi, string location) in before)
            {
                if (!found.Contains(location) && database.Exists("VDI", vdi))
                    database.Destroy("VDI", vdi);
            }

            foreach (VdiInfo info in scan.Vdis.Where(v => !wentMeanwhile.Contains(v.Vdi.Value)))
                Ensure(database, sr, info);
            RecordSpace(database, sr, scan.Info);
            database.Set("SR", sr, "virtual_allocation", new RpcInt(scan.Vdis.Sum(static v => v.VirtualSizeBytes)));
        });

    public static void RecordSpace(PoolDatabase database, string sr, SrInfo info)
    {
        database.Set("SR", sr, "physical_size", new RpcInt(info.TotalSpaceBytes));
        database.Set("SR", sr, "physical_utilisation", new RpcInt(info.TotalSpaceBytes - info.FreeSpaceBytes));
    }

    private static void Refresh(PoolDatabase database, string vdi, VdiInfo info)
    {
        database.Set("VDI", vdi, "virtual_size", new RpcInt(info.VirtualSizeBytes));
        database.Set("VDI", vdi, "physical_utilisation", new RpcInt(info.PhysicalUtilisationBytes));
        database.Set("VDI", vdi, "read_only", info.ReadOnly);
        if (info.NameLabel.Length != 0)
            database.Set("VDI", vdi, "name_label", info.NameLabel);
    }
}
