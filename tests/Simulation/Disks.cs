// Block devices that forget what was not flushed, and the mirror between two of them (the contract of src/Replication, docs/formats/tapdisk-control.md):
// an acknowledged write is on the source; in "synced" it is also on the target; a flush makes it durable there; what was not flushed when the
// connection was lost may differ.
using Migration;

namespace Simulation;

internal sealed class BlockDisk
{
    public const int Blocks = 8;

    /// <summary>Each block holds the number of the write that wrote it; 0 reads as zeros.</summary>
    public int[] Now { get; } = new int[Blocks];

    public int[] Durable { get; } = new int[Blocks];

    public bool IsDestroyed { get; set; }

    public bool IsHeld { get; set; }

    public void Flush() => Now.CopyTo(Durable, 0);

    /// <summary>The host loses power: of what was not flushed some is there and some is not, in no order.</summary>
    public void LosePower(Rng rng)
    {
        for (int b = 0; b < Blocks; b++)
        {
            if (Now[b] != Durable[b] && rng.OneIn(2))
                Now[b] = Durable[b];
            Durable[b] = Now[b];
        }
    }

    public string Digest(int from = 0, int to = Blocks)
    {
        ulong hash = 14695981039346656037;
        for (int b = from; b < to; b++)
            hash = (hash ^ (ulong)Now[b]) * 1099511628211;
        return hash.ToString("x16");
    }

    public DiskDigest Digest(DiskPlan plan) => new(plan.Device, Digest(), plan.LengthBytes);

    public string Digest(DigestRange range) =>
        Digest((int)(range.OffsetBytes / DigestRange.LeafBytes), (int)((range.OffsetBytes + range.LengthBytes) / DigestRange.LeafBytes));
}

internal enum MirrorState
{
    Copying,
    Synced,
    Failed,
    Finished,
}

/// <param name="isTargetUnknown">An earlier mirror may have left anything there.</param>
internal sealed class Mirror(World world, int disk, BlockDisk source, bool isTargetUnknown)
{
    private const int CopiesAtOnce = 2;
    private readonly List<Action<bool>> pending = [];
    private readonly int[] answered = new int[BlockDisk.Blocks];
    private readonly bool[] unflushed = new bool[BlockDisk.Blocks];
    private int connection;
    private int answers;
    private int copies;
    private bool isFlushing;

    public bool[] Dirty { get; } = [.. source.Now.Select(v => isTargetUnknown || v != 0)];

    public bool[] Busy { get; } = new bool[BlockDisk.Blocks];

    public string Export { get; private set; } = "";

    public MirrorState State { get; private set; }

    public string? Failure { get; private set; }

    public bool IsLost { get; private set; }

    public long RateBytesPerSecond { get; set; }

    public int SentBlocks { get; private set; }

    public int DirtyBlocks => Dirty.Count(static d => d);

    public bool IsIdle => pending.Count == 0;

    public void Connect(string name)
    {
        Break("a new connection", isLost: true);
        Export = name;
        Failure = null;
        State = MirrorState.Copying;
        Pump();
    }

    public void Write(int block, int version, Action acknowledge)
    {
        if (State is MirrorState.Failed or MirrorState.Finished)
        {
            Dirty[block] = true;
            acknowledge();
            return;
        }

        Send(block, version, acknowledge);
    }

    /// <summary>With the guest stopped. True when both sides are flushed and equal.</summary>
    public bool Finish()
    {
        if (State == MirrorState.Finished)
            return true;
        bool isWhole = State == MirrorState.Synced && DirtyBlocks == 0 && (IsIdle || world.Breaks == Breakage.StopDoesNotDrain);
        if (!isWhole && world.Breaks != Breakage.DirtyIsSynced)
            return false;
        source.Flush();
        if (world.Breaks != Breakage.FinishedWithoutAFlush && world.B.FlushThrough(Export) is { } error)
        {
            Break(error, isLost: true);
            return false;
        }

        Array.Clear(unflushed);
        State = MirrorState.Finished;
        return true;
    }

    public void Break(string why, bool isLost)
    {
        connection++;
        copies = 0;
        isFlushing = false;
        if (world.Breaks != Breakage.UnflushedForgotten)
        {
            for (int b = 0; b < BlockDisk.Blocks; b++)
                Dirty[b] |= unflushed[b];
        }

        Array.Clear(unflushed);
        if (State != MirrorState.Finished)
        {
            State = MirrorState.Failed;
            Failure = why;
            IsLost = isLost;
        }

        Action<bool>[] waiting = [.. pending];
        pending.Clear();
        foreach (Action<bool> end in waiting)
            end(false);
    }

    private void Pump()
    {
        if (State is MirrorState.Failed or MirrorState.Finished)
            return;
        for (int b = 0; b < BlockDisk.Blocks && copies < CopiesAtOnce; b++)
        {
            if (!Dirty[b] || Busy[b])
                continue;
            copies++;
            Send(b, source.Now[b], () =>
            {
                copies = Math.Max(0, copies - 1);
                Pump();
            });
        }

        if (State == MirrorState.Copying && copies == 0 && IsIdle && DirtyBlocks == 0)
            State = MirrorState.Synced;
        if (!isFlushing && answers % 5 == 4)
            Flush();
    }

    private void Send(int block, int version, Action done)
    {
        int mine = connection;
        bool isOver = false;
        Busy[block] = true;
        SentBlocks++;
        void End(bool isThere)
        {
            if (isOver)
                return;
            isOver = true;
            pending.Remove(End);
            Busy[block] = false;
            Dirty[block] = !isThere; // Before the guest is answered.
            if (isThere)
            {
                unflushed[block] = true;
                answered[block] = ++answers;
            }

            done();
        }

        pending.Add(End);
        string name = Export; // What is late goes where it was sent to.
        Exchange(mine, () => world.B.WriteThrough(name, disk, block, version), () =>
        {
            if (mine != connection)
                return;
            End(true);
            Pump();
        });
    }

    private void Flush()
    {
        int mine = connection, upTo = answers;
        isFlushing = true;
        string name = Export;
        Exchange(mine, () => world.B.FlushThrough(name), () =>
        {
            if (mine != connection)
                return;
            isFlushing = false;
            answers++;
            for (int b = 0; b < BlockDisk.Blocks; b++)
            {
                if (answered[b] <= upTo)
                    unflushed[b] = false;
            }
        });
    }

    /// <summary>A request over the data link and its answer. A link that is down gives it up at the stall limit; it may arrive for all that, much later.</summary>
    private void Exchange(int mine, Func<string?> atTarget, Action answered) => world.Network.Send(world.Network.Peers, isControl: false, isDelivered =>
    {
        if (!isDelivered)
            return;
        if (atTarget() is { } error)
        {
            if (mine == connection)
                Break(error, isLost: error.StartsWith("lost", StringComparison.Ordinal));
            return;
        }

        world.Network.Send(world.Network.Peers, isControl: false, isAnswered =>
        {
            if (isAnswered)
                answered();
        }, () => Stalled(mine));
    }, () => Stalled(mine));

    private void Stalled(int mine)
    {
        if (mine == connection)
            Break("the target did not answer within the stall limit", isLost: true);
    }
}
