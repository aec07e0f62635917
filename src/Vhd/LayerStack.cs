// Images under one another, read-only, as one disk: the first that holds a sector serves it. A smaller image ends the view: past its end
// the disk under its child is zeros, whatever deeper images hold. So that a deep chain costs no more than a short one, each block that is read
// gets a map of owners, one byte for 4 KiB; the images never change, so a map is never wrong, and readers take no lock.
namespace Vhd;

/// <summary>A run of the stack: held by the image at <see cref="Depth"/>, or by none (-1).</summary>
internal readonly record struct StackRun(int Depth, long EndBytes, long FileOffsetBytes, bool IsPastEnd)
{
    public bool IsPresent => Depth >= 0;
}

internal sealed class LayerStack
{
    private const int GroupBytes = 4096;
    private const byte Nobody = 0; // Otherwise the depth plus one.
    private const byte Mixed = byte.MaxValue;

    // With their objects under 5 MiB for a chain, whatever its size and depth; the next block in a slot evicts the one before.
    private const int MapBytesPerChain = 4 << 20;

    private readonly VhdLayer[] layers;
    private readonly long[] visibleEnds;
    private readonly OwnerMap?[] maps = [];
    private readonly int blockBytes;

    public LayerStack(ReadOnlySpan<VhdLayer> layers)
    {
        this.layers = layers.ToArray();
        visibleEnds = new long[layers.Length];
        long end = long.MaxValue;
        for (int depth = 0; depth < layers.Length; depth++)
            visibleEnds[depth] = end = Math.Min(end, layers[depth].SizeBytes);
        VhdLayer[] sparse = Array.FindAll(this.layers, static layer => !layer.IsFlat);
        // One image needs no map, and blocks of different sizes have none in common.
        if (layers.Length < 2 || sparse.Length == 0 || Array.Exists(sparse, layer => layer.BlockBytes != sparse[0].BlockBytes))
            return;
        blockBytes = sparse[0].BlockBytes;
        int most = MapBytesPerChain / (blockBytes / GroupBytes);
        maps = new OwnerMap?[(int)Math.Clamp((visibleEnds[0] + blockBytes - 1) / blockBytes, 1, most)];
    }

    public void Read(long offsetBytes, Span<byte> destination)
    {
        while (!destination.IsEmpty)
        {
            StackRun run = Find(offsetBytes, offsetBytes + destination.Length);
            int length = (int)(run.EndBytes - offsetBytes);
            if (run.IsPresent)
                layers[run.Depth].ReadExactly(run.FileOffsetBytes, destination[..length]);
            else
                destination[..length].Clear();
            destination = destination[length..];
            offsetBytes += length;
        }
    }

    public bool HoldsAny(long fromBytes, long toBytes)
    {
        while (fromBytes < toBytes)
        {
            StackRun run = Find(fromBytes, toBytes);
            if (run.IsPresent)
                return true;
            fromBytes = run.EndBytes;
        }

        return false;
    }

    /// <summary>The run that starts at an offset, by the maps; it may end where another run of the same owner begins.</summary>
    public StackRun Find(long offsetBytes, long endBytes)
    {
        if (maps.Length == 0 || offsetBytes >= visibleEnds[0])
            return Walk(offsetBytes, endBytes);
        int block = (int)(offsetBytes / blockBytes);
        OwnerMap? map = Volatile.Read(ref maps[block % maps.Length]);
        if (map is null || map.Block != block)
        {
            map = MapOf(block);
            Volatile.Write(ref maps[block % maps.Length], map);
        }

        long blockStart = (long)block * blockBytes;
        int inBlock = (int)(offsetBytes - blockStart);
        int limit = (int)Math.Min(endBytes - blockStart, blockBytes);
        int group = inBlock / GroupBytes;
        byte owner = map.Owners[group];
        if (owner == Mixed)
            return Walk(offsetBytes, Math.Min(endBytes, blockStart + (group + 1) * (long)GroupBytes));
        int last = (limit + GroupBytes - 1) / GroupBytes;
        int same = map.Owners.AsSpan(group, last - group).IndexOfAnyExcept(owner);
        long end = blockStart + Math.Min(limit, same < 0 ? limit : (group + same) * GroupBytes);
        return owner == Nobody
            ? new StackRun(-1, end, 0, false)
            : new StackRun(owner - 1, end, layers[owner - 1].FileOffsetOf(block, offsetBytes), false);
    }

    /// <summary>The same from the images themselves, with the whole length of a hole.</summary>
    public StackRun Walk(long offsetBytes, long endBytes)
    {
        for (int depth = 0; depth < layers.Length; depth++)
        {
            if (offsetBytes >= visibleEnds[depth])
                return new StackRun(-1, endBytes, 0, true);
            LayerRun run = layers[depth].Find(offsetBytes, Math.Min(endBytes, visibleEnds[depth]));
            if (run.IsPresent)
                return new StackRun(depth, run.EndBytes, run.FileOffsetBytes, false);
            endBytes = run.EndBytes;
        }

        return new StackRun(-1, endBytes, 0, false);
    }

    private OwnerMap MapOf(int block)
    {
        byte[] owners = new byte[blockBytes / GroupBytes];
        long blockStart = (long)block * blockBytes;
        for (int depth = 0; depth < layers.Length && visibleEnds[depth] > blockStart; depth++)
        {
            VhdLayer layer = layers[depth];
            long visible = Math.Min(visibleEnds[depth] - blockStart, blockBytes);
            int whole = (int)(visible / GroupBytes);
            // Half a group is visible: the walk knows which half.
            if (visible % GroupBytes != 0 && owners[whole] == Nobody)
                owners[whole] = Mixed;
            if (layer.IsFlat)
            {
                owners.AsSpan(0, whole).Replace(Nobody, (byte)(depth + 1));
                break;
            }

            if (layer.IsAllocated(block))
                layer.BitmapOf(block).OwnGroups(owners.AsSpan(0, whole), (byte)(depth + 1), Nobody, Mixed);
        }

        return new OwnerMap(block, owners);
    }

    private sealed record OwnerMap(int Block, byte[] Owners);
}
