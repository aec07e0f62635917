// Which disks of an SR are near in content: the tree of snapshots and clones, by the parents that drivers record, the disk a snapshot is of,
// and equal content ids (research/storage.md 2.7).
namespace StorageAccess;

public static class SimilarContent
{
    private const string ParentKey = "vhd-parent";

    /// <returns>All disks that edges lead to, by the number of edges, then by location; the disk itself comes first.</returns>
    /// <exception cref="StorageException">Vdi_does_not_exist.</exception>
    public static IReadOnlyList<VdiInfo> Of(VdiId vdi, IReadOnlyList<VdiInfo> all)
    {
        List<VdiInfo> disks = all.Where(static disk => disk.Type != "cbt_metadata").OrderBy(static disk => disk.Vdi.Value, StringComparer.Ordinal).ToList();
        if (disks.All(disk => disk.Vdi != vdi))
            throw StorageException.VdiDoesNotExist(vdi);
        Dictionary<string, HashSet<string>> edges = [];
        foreach (VdiInfo disk in disks)
        {
            // A parent that is no disk of its own, a hidden base, still joins its children.
            if (disk.SmConfig.GetValueOrDefault(ParentKey) is { Length: > 0 } parent)
                Join("key:" + NameOf(disk), "key:" + parent);
            if (disk.SnapshotOf.Length != 0)
                Join("key:" + NameOf(disk), "key:" + disk.SnapshotOf);
            if (disk.ContentId.Length != 0)
                Join("key:" + NameOf(disk), "content:" + disk.ContentId);
            Join("key:" + NameOf(disk), "key:" + disk.Vdi.Value); // A parent is named by uuid or by location.
        }

        Dictionary<string, int> distance = new() { ["key:" + NameOf(disks.First(disk => disk.Vdi == vdi))] = 0 };
        Queue<string> queue = new(distance.Keys);
        while (queue.TryDequeue(out string? at))
        {
            foreach (string next in edges[at].Where(next => !distance.ContainsKey(next)))
            {
                distance[next] = distance[at] + 1;
                queue.Enqueue(next);
            }
        }

        return disks.Where(disk => distance.ContainsKey("key:" + NameOf(disk))).OrderBy(disk => distance["key:" + NameOf(disk)]).ToList();

        void Join(string one, string other)
        {
            (edges.TryGetValue(one, out HashSet<string>? ones) ? ones : edges[one] = []).Add(other);
            (edges.TryGetValue(other, out HashSet<string>? others) ? others : edges[other] = []).Add(one);
        }
    }

    private static string NameOf(VdiInfo disk) => disk.Uuid.Length != 0 ? disk.Uuid : disk.Vdi.Value;
}
