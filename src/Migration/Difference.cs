namespace Migration;

/// <summary>Finds the first leaf in which two disks differ, by halving: both sides hash a part of what they have hashed already.</summary>
internal sealed class Difference(ISourceStorage storage, IPeer peer, MigrationPlan plan)
{
    /// <returns>For a message: where the first disk that differs does so. Empty when it cannot be found; then the roots must say enough.</returns>
    public async Task<string> WhereAsync(IReadOnlyList<DiskDigest> here, IReadOnlyList<DiskDigest> there, CancellationToken cancellationToken)
    {
        try
        {
            foreach (DiskPlan disk in plan.Disks)
            {
                DiskDigest mine = here.Single(d => d.Device == disk.Device);
                if (there.FirstOrDefault(d => d.Device == disk.Device) is { } theirs && theirs.Root != mine.Root && theirs.LengthBytes == mine.LengthBytes)
                    return $", first at offset {await FindAsync(disk, mine.LengthBytes, cancellationToken)}";
            }
        }
        catch (Exception e) when (e is IOException or MigrationException or OperationCanceledException)
        {
            // The sides differ whether the place is found or not.
        }

        return "";
    }

    private async Task<long> FindAsync(DiskPlan disk, long lengthBytes, CancellationToken cancellationToken)
    {
        long from = 0, to = (lengthBytes + DigestRange.LeafBytes - 1) / DigestRange.LeafBytes; // In leaves; the first difference is in between.
        while (to - from > 1)
        {
            long middle = from + ((to - from) / 2);
            DigestRange lower = new(from * DigestRange.LeafBytes, (middle - from) * DigestRange.LeafBytes);
            Task<string> mine = storage.RangeDigestAsync(disk, lower, cancellationToken);
            Task<string> theirs = peer.RangeDigestAsync(plan, disk.Device, lower, cancellationToken);
            if (await mine == await theirs)
                from = middle;
            else
                to = middle;
        }

        return from * DigestRange.LeafBytes;
    }
}
