// Every sequence of events on one chunk, up to a depth, against two booleans: does the target hold what the source holds, and does its
// disk.
using Replication;
using static Replication.ChunkMap;

namespace Unit.ReplicationTests;

public sealed class ChunkMapTests
{
    private const int Depth = 7;

    private enum Step
    {
        PartOnBoth,
        PartOnSourceOnly,
        WholeOnBoth,
        CopyDone,
        CopyFailed,
        FlushDone,
        FlushFailed,
        Lose,
        LoseWithPower,
        Gain,
    }

    [Fact]
    public void A_chunk_is_clean_only_when_the_target_holds_it_whatever_happened()
    {
        Step[] steps = Enum.GetValues<Step>();
        int cleanEnds = 0;
        int[] sequence = new int[Depth];
        for (long number = 0; number < (long)Math.Pow(steps.Length, Depth); number += 7) // A seventh of ten million, spread evenly.
        {
            long rest = number;
            for (int i = 0; i < Depth; i++, rest /= steps.Length)
                sequence[i] = (int)(rest % steps.Length);
            cleanEnds += RunSequence(sequence) ? 1 : 0;
        }

        Assert.True(cleanEnds > 1000, "the model never saw a clean chunk");
    }

    [Fact]
    public async Task Overlapping_writes_pass_in_order_and_others_do_not_wait()
    {
        ChunkMap map = new(4 * ChunkBytes);
        Lease first = await map.LeaseAsync(0, 8192);
        ValueTask<Lease> second = map.LeaseAsync(4096, 8192);
        ValueTask<Lease> third = map.LeaseAsync(8192, 8192);
        ValueTask<Lease> elsewhere = map.LeaseAsync(16384, 4096);
        Assert.False(second.IsCompleted);
        Assert.False(third.IsCompleted); // It overlaps the second, which came first.
        Assert.True(elsewhere.IsCompleted);
        first.Dispose();
        (await second).Dispose();
        (await third).Dispose();
        (await elsewhere).Dispose();
        Assert.False(map.HasGuestLeases);
    }

    [Fact]
    public async Task A_write_waits_for_the_copy_of_its_own_chunk_only_and_the_copy_steps_around_writes()
    {
        ChunkMap map = new((2 * ChunkBytes) + 4096);
        Lease copy = map.TryLeaseForCopy()!;
        Assert.Equal(0, copy.OffsetBytes);
        ValueTask<Lease> waiting = map.LeaseAsync(ChunkBytes - 512, 512);
        Lease write = await map.LeaseAsync(ChunkBytes, 512);
        Lease last = map.TryLeaseForCopy()!;
        Assert.Equal(2 * ChunkBytes, last.OffsetBytes); // The one in between is being written.
        Assert.Equal(4096, last.LengthBytes);
        Assert.Null(map.TryLeaseForCopy());
        Assert.False(waiting.IsCompleted);
        map.Copied(copy, isOnTarget: true, map.Epoch);
        copy.Dispose();
        (await waiting).Dispose();
        write.Dispose();
        map.Copied(last, isOnTarget: true, map.Epoch);
        last.Dispose();
        Assert.Equal(1, map.UnequalChunks);
    }

    private static bool RunSequence(int[] sequence)
    {
        ChunkMap map = new(ChunkBytes);
        (bool inCache, bool onDisk, bool isConnected) = (false, false, true);
        foreach (Step step in sequence.Cast<Step>())
        {
            switch (step)
            {
                case Step.PartOnBoth:
                    map.Wrote(0, 512, isConnected, isDurable: false, map.Epoch);
                    (inCache, onDisk) = (inCache && isConnected, false);
                    break;
                case Step.PartOnSourceOnly:
                    map.Wrote(0, 512, onBothSides: false, isDurable: false, map.Epoch);
                    (inCache, onDisk) = (false, false);
                    break;
                case Step.WholeOnBoth:
                    map.Wrote(0, ChunkBytes, isConnected, isDurable: false, map.Epoch);
                    (inCache, onDisk) = (isConnected, false);
                    break;
                case Step.CopyDone or Step.CopyFailed when map.TryLeaseForCopy() is { } lease:
                    bool works = step == Step.CopyDone && isConnected;
                    map.Copied(lease, works, map.Epoch);
                    lease.Dispose();
                    inCache |= works;
                    break;
                case Step.FlushDone when isConnected:
                    map.BeginFlush();
                    onDisk = inCache;
                    break;
                case Step.FlushFailed:
                    map.FlushFailed(map.BeginFlush());
                    break;
                case Step.Lose or Step.LoseWithPower when isConnected:
                    map.LoseTarget();
                    isConnected = false;
                    inCache &= step == Step.Lose || onDisk;
                    break;
                case Step.Gain when !isConnected:
                    map.GainTarget();
                    isConnected = true;
                    break;
            }

            bool isClean = map.StateOf(0) == ChunkState.Clean;
            if (isClean && !inCache)
                Assert.Fail($"clean, but the target lacks it, after {string.Join(", ", sequence.Cast<Step>())}");
        }

        return map.StateOf(0) == ChunkState.Clean;
    }
}
