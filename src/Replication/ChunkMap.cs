// What a mirror knows about each chunk of a disk, and who may touch which bytes now.
//
// A chunk is 256 KiB. Its state is one byte: Clean (both sides hold the same), Pending (never copied; where nobody wrote, the target
// reads as zeros), Dirty (the sides may differ in any byte), Copying (the copy pass holds it). A lease is a range of bytes. Leases that
// overlap are granted in the order in which they were asked for, one at a time: otherwise two overlapping guest writes could reach the
// two sides in different order, or a copy could put old bytes over new ones. Leases that do not overlap never wait for each other.
//
// Unflushed: chunks written to the target since its last flush. A target that is lost may have lost them, so they become Dirty with it.
using System.Runtime.InteropServices;
using Platform;

namespace Replication;

/// <summary>See the head of the file. Thread-safe; one lock, held for short and bounded work only.</summary>
public sealed class ChunkMap
{
    public const int ChunkBytes = 256 * 1024;

    /// <summary>More unflushed chunks than this, and the copy pass flushes the target: it bounds what a lost target costs.</summary>
    public const int UnflushedLimit = 1024;

    private readonly Lock gate = new();
    private readonly ChunkState[] states;
    private readonly int[] counts = new int[4];
    private readonly LinkedList<Lease> leases = [];
    private HashSet<int> unflushed = [];
    private bool HasWork => counts[(int)ChunkState.Pending] + counts[(int)ChunkState.Dirty] > 0 || unflushed.Count > UnflushedLimit;
    private int searchFrom;

    /// <summary>A map of a disk that has not been copied: every chunk is Pending.</summary>
    public ChunkMap(long lengthBytes)
    {
        LengthBytes = lengthBytes;
        states = new ChunkState[(lengthBytes + ChunkBytes - 1) / ChunkBytes];
        Array.Fill(states, ChunkState.Pending);
        counts[(int)ChunkState.Pending] = states.Length;
    }

    public enum ChunkState : byte
    {
        Clean,
        Pending,
        Dirty,
        Copying,
    }

    public long LengthBytes { get; }

    public int ChunkCount => states.Length;

    /// <summary>Counts the target's lives: what was written under one epoch proves nothing under another.</summary>
    public int Epoch { get; private set; }

    /// <summary>Chunks that are not known to be the same on both sides.</summary>
    public int UnequalChunks
    {
        get
        {
            lock (gate)
                return states.Length - counts[(int)ChunkState.Clean];
        }
    }

    public int UnflushedChunks
    {
        get
        {
            lock (gate)
                return unflushed.Count;
        }
    }

    /// <summary>True while a guest's write holds or awaits a lease.</summary>
    public bool HasGuestLeases
    {
        get
        {
            lock (gate)
                return leases.Any(static lease => lease.CopiedChunk < 0);
        }
    }

    /// <summary>How many writes the guest has begun: the copy pass steps back when it moves.</summary>
    public long GuestLeases { get; private set; }

    /// <summary>Raised, outside the lock, when a chunk may have become copyable, or when much is unflushed.</summary>
    public event Action? WorkAppeared;

    public ChunkState StateOf(int chunk)
    {
        lock (gate)
            return states[chunk];
    }

    /// <summary>The bytes that are not known to be the same on both sides.</summary>
    public long UnequalBytes
    {
        get
        {
            lock (gate)
            {
                long bytes = (long)(states.Length - counts[(int)ChunkState.Clean]) * ChunkBytes;
                bool lastIsShort = LengthBytes % ChunkBytes != 0 && states[^1] != ChunkState.Clean;
                return lastIsShort ? bytes - ChunkBytes + (LengthBytes % ChunkBytes) : bytes;
            }
        }
    }

    /// <summary>The bytes in which the sides may differ although they were copied or written before.</summary>
    public long DirtyBytes
    {
        get
        {
            lock (gate)
                return Math.Min(LengthBytes, (long)counts[(int)ChunkState.Dirty] * ChunkBytes);
        }
    }

    /// <summary>
    /// A guest's write asks for its bytes. Completes when nobody else holds any of them; the callers bound how many wait.
    /// </summary>
    public ValueTask<Lease> LeaseAsync(long offsetBytes, long lengthBytes)
    {
        lock (gate)
        {
            Lease lease = new(this, offsetBytes, offsetBytes + lengthBytes, copiedChunk: -1, wasDirty: false);
            lease.Node = leases.AddLast(lease);
            GuestLeases++;
            if (!OverlapsEarlier(lease.Node))
                return ValueTask.FromResult(lease);
            lease.Granted = new TaskCompletionSource<Lease>(TaskCreationOptions.RunContinuationsAsynchronously);
            return new ValueTask<Lease>(lease.Granted.Task);
        }
    }

    /// <summary>The copy pass asks for any chunk that needs copying and that nobody holds; null when there is none now.</summary>
    public Lease? TryLeaseForCopy()
    {
        lock (gate)
        {
            for (int step = 0; step < 2; step++)
            {
                int end = step == 0 ? states.Length : searchFrom;
                for (int chunk = NextUnequal(step == 0 ? searchFrom : 0, end); chunk >= 0; chunk = NextUnequal(chunk + 1, end))
                {
                    long start = (long)chunk * ChunkBytes;
                    Lease lease = new(this, start, Math.Min(start + ChunkBytes, LengthBytes), chunk, states[chunk] == ChunkState.Dirty);
                    lease.Node = leases.AddLast(lease);
                    if (OverlapsEarlier(lease.Node))
                    {
                        leases.Remove(lease.Node);
                        continue;
                    }

                    Set(chunk, ChunkState.Copying);
                    searchFrom = chunk + 1;
                    return lease;
                }
            }

            return null;
        }
    }

    /// <summary>
    /// What a guest's write did, told before the guest is answered. Both sides have it: a whole chunk becomes Clean, a part leaves the
    /// state. Otherwise (or when the target was lost since <paramref name="epoch"/>) its chunks become Dirty.
    /// </summary>
    /// <param name="isDurable">The target has it on its disk (FUA).</param>
    public void Wrote(long offsetBytes, long lengthBytes, bool onBothSides, bool isDurable, int epoch)
    {
        bool hasWork;
        lock (gate)
        {
            bool isEqual = onBothSides && epoch == Epoch;
            int cleanBefore = counts[(int)ChunkState.Clean];
            for (int chunk = (int)(offsetBytes / ChunkBytes); (long)chunk * ChunkBytes < offsetBytes + lengthBytes; chunk++)
            {
                Invariant.Holds(states[chunk] != ChunkState.Copying, "a chunk is never copied and written at once");
                if (!isEqual)
                    Set(chunk, ChunkState.Dirty);
                else if (Covers(offsetBytes, lengthBytes, chunk))
                    Set(chunk, ChunkState.Clean);
                if (isEqual && !isDurable)
                    unflushed.Add(chunk);
            }

            hasWork = HasWork || counts[(int)ChunkState.Clean] != cleanBefore;
        }

        if (hasWork)
            WorkAppeared?.Invoke();
    }

    /// <summary>What a copy did; the lease is still held.</summary>
    public void Copied(Lease lease, bool isOnTarget, int epoch)
    {
        lock (gate)
        {
            Invariant.Holds(lease.CopiedChunk >= 0 && states[lease.CopiedChunk] == ChunkState.Copying, "only the copy pass ends a copy");
            bool isEqual = isOnTarget && epoch == Epoch;
            Set(lease.CopiedChunk, isEqual ? ChunkState.Clean : ChunkState.Dirty);
            if (isEqual)
                unflushed.Add(lease.CopiedChunk);
        }
    }

    /// <summary>The source has nothing in this range: a chunk that is wholly inside and still Pending needs no copy.</summary>
    public void NothingToCopy(long offsetBytes, long lengthBytes)
    {
        lock (gate)
        {
            int first = (int)((offsetBytes + ChunkBytes - 1) / ChunkBytes);
            for (int chunk = first; chunk < states.Length && Covers(offsetBytes, lengthBytes, chunk); chunk++)
            {
                if (states[chunk] == ChunkState.Pending)
                    Set(chunk, ChunkState.Clean);
            }
        }
    }

    /// <summary>What the target holds is not known: every chunk is Dirty, also where the source has nothing.</summary>
    public void NothingIsKnown()
    {
        lock (gate)
        {
            for (int chunk = 0; chunk < states.Length; chunk++)
                Set(chunk, ChunkState.Dirty);
        }
    }

    /// <summary>The target is gone: what it had not flushed is Dirty, and so is everything written from now on.</summary>
    public void LoseTarget()
    {
        lock (gate)
        {
            Epoch++;
            MarkDirty(unflushed);
            unflushed = [];
        }
    }

    /// <summary>A target is there again: the same disk, behind a new connection.</summary>
    public int GainTarget()
    {
        lock (gate)
            return ++Epoch;
    }

    /// <summary>A flush of the target begins; what it will cover. One flush at a time.</summary>
    public IReadOnlyCollection<int> BeginFlush()
    {
        lock (gate)
        {
            HashSet<int> covered = unflushed;
            unflushed = [];
            return covered;
        }
    }

    /// <summary>The flush that covered these chunks failed, or its target was lost meanwhile.</summary>
    public void FlushFailed(IReadOnlyCollection<int> covered)
    {
        lock (gate)
            MarkDirty(covered);
    }

    private void MarkDirty(IEnumerable<int> chunks)
    {
        foreach (int chunk in chunks)
        {
            // A copy that is under way will end Dirty by itself: its epoch has passed.
            if (states[chunk] != ChunkState.Copying)
                Set(chunk, ChunkState.Dirty);
        }
    }

    private void Release(Lease lease)
    {
        bool hasWork;
        lock (gate)
        {
            hasWork = HasWork;
            LinkedListNode<Lease>? next = lease.Node!.Next;
            leases.Remove(lease.Node);
            for (; next is not null; next = next.Next)
            {
                if (next.Value is { Granted: { } granted } waiting && !OverlapsEarlier(next))
                {
                    waiting.Granted = null;
                    granted.SetResult(waiting);
                }
            }
        }

        if (hasWork)
            WorkAppeared?.Invoke();
    }

    private bool OverlapsEarlier(LinkedListNode<Lease> node)
    {
        for (LinkedListNode<Lease>? earlier = node.Previous; earlier is not null; earlier = earlier.Previous)
        {
            if (earlier.Value.OffsetBytes < node.Value.EndBytes && node.Value.OffsetBytes < earlier.Value.EndBytes)
                return true;
        }

        return false;
    }

    private int NextUnequal(int from, int end)
    {
        if (from >= end)
            return -1;
        Span<byte> range = MemoryMarshal.AsBytes(states.AsSpan(from, end - from));
        int found = range.IndexOfAny((byte)ChunkState.Pending, (byte)ChunkState.Dirty);
        return found < 0 ? -1 : from + found;
    }

    private bool Covers(long offsetBytes, long lengthBytes, int chunk)
    {
        long start = (long)chunk * ChunkBytes;
        return offsetBytes <= start && Math.Min(start + ChunkBytes, LengthBytes) <= offsetBytes + lengthBytes;
    }

    private void Set(int chunk, ChunkState state)
    {
        counts[(int)states[chunk]]--;
        counts[(int)state]++;
        states[chunk] = state;
    }

    /// <summary>The right to write a range of bytes to both sides, until disposed.</summary>
    public sealed class Lease : IDisposable
    {
        private readonly ChunkMap map;

        internal Lease(ChunkMap map, long offsetBytes, long endBytes, int copiedChunk, bool wasDirty)
        {
            this.map = map;
            OffsetBytes = offsetBytes;
            EndBytes = endBytes;
            CopiedChunk = copiedChunk;
            WasDirty = wasDirty;
        }

        public long OffsetBytes { get; }

        public long EndBytes { get; }

        public int LengthBytes => (int)(EndBytes - OffsetBytes);

        /// <summary>For the copy pass: zeros must be sent too, the target may hold something else.</summary>
        public bool WasDirty { get; }

        internal int CopiedChunk { get; }

        internal LinkedListNode<Lease>? Node { get; set; }

        internal TaskCompletionSource<Lease>? Granted { get; set; }

        public void Dispose() => map.Release(this);
    }
}
