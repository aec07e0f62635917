// A guest without a hypervisor: one vCPU writes memory pages, the other writes numbered, checksummed blocks to disk, eight in flight,
// flushes every 128th and reads back every 8th. What it does is a function of its seed and of counters in its memory; only the timing
// is not. A wrong read, or a page of its heap that is not what it wrote, is a panic. It borrows blocks: the original is kept in memory
// before a block is first written, and put back by a clean shutdown, so that a disk comes back as it was, also when the guest has moved
// in between (which its memory must then have survived intact).
using Platform;

namespace Xenops.Simulator;

internal sealed class SimulatedGuest : IAsyncDisposable
{
    private const int Depth = 8;
    private const int ReadEvery = 8;
    private const int FlushEvery = 128;
    private static readonly TimeSpan Tick = TimeSpan.FromMilliseconds(5);
    private static readonly TimeSpan PowerOffDeadline = TimeSpan.FromSeconds(5);

    private readonly GuestImage image;
    private readonly OracleLog oracle;
    private readonly TimeProvider time;
    private readonly CancellationTokenSource powerOff = new();
    private IReadOnlyList<OpenDisk> disks;
    private CancellationTokenSource pause = new();
    private Task running = Task.CompletedTask;

    public SimulatedGuest(GuestImage image, OracleLog oracle, IReadOnlyList<OpenDisk> disks, TimeProvider time)
    {
        this.image = image;
        this.oracle = oracle;
        this.disks = disks;
        this.time = time;
    }

    public GuestMemory Memory => image.Memory;

    public string? PanicReason => image.PanicReason;

    public GuestStatistics Statistics => image.Statistics;

    public Task Run()
    {
        pause.Dispose();
        pause = new CancellationTokenSource();
        TaskCompletionSource firstStep = new(TaskCreationOptions.RunContinuationsAsynchronously);
        running = RunAsync(running, firstStep, pause.Token);
        return firstStep.Task;
    }

    public async Task<bool> TryPauseAsync(TimeSpan drainDeadline)
    {
        await pause.CancelAsync();
        try
        {
            await running.WaitAsync(drainDeadline, time);
            return true;
        }
        catch (TimeoutException)
        {
            _ = Run();
            return false;
        }
    }

    public async Task ShutDownAsync(CancellationToken cancellationToken)
    {
        await pause.CancelAsync();
        await running.WaitAsync(cancellationToken);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, powerOff.Token);
        int restored = 0;
        ParallelOptions options = new() { MaxDegreeOfParallelism = Depth, CancellationToken = limit.Token };
        await Parallel.ForAsync(0, image.SlotCount, options, async (slot, token) =>
        {
            if (image.FlagsOf(slot).HasFlag(SlotFlags.OriginalKept))
            {
                await RestoreAsync(slot, token);
                Interlocked.Increment(ref restored);
            }
        });
        foreach (OpenDisk disk in disks)
            await disk.Device.FlushAsync(limit.Token);
        oracle.Restored(restored);
    }

    public ReadOnlyMemory<byte> SaveDeviceState() => SimulatorBackend.DeviceStateOf(disks);

    public void ReplaceDisks(IReadOnlyList<OpenDisk> disks)
    {
        Invariant.Holds(running.IsCompleted, "only a paused guest can be given other disks");
        this.disks = SimulatorBackend.WrittenOf(disks);
    }

    public async ValueTask DisposeAsync()
    {
        await pause.CancelAsync();
        await powerOff.CancelAsync();
        try
        {
            await running.WaitAsync(PowerOffDeadline, time);
        }
        catch (TimeoutException)
        {
            return; // A device that ignores cancellation; its task still uses the log and the tokens, so they are left to the collector.
        }

        oracle.Dispose();
        pause.Dispose();
        powerOff.Dispose();
    }

    private async Task RunAsync(Task before, TaskCompletionSource firstStep, CancellationToken pausing)
    {
        await before; // A guest that did not drain in time runs on; nothing runs twice.
        await Task.WhenAll(RunToPanicAsync(token =>
            WriteMemoryAsync(firstStep, token), pausing), RunToPanicAsync(WriteDisksAsync, pausing));
        firstStep.TrySetResult();
    }

    private async Task RunToPanicAsync(Func<CancellationToken, Task> vcpu, CancellationToken pausing)
    {
        await Task.Yield();
        try
        {
            if (PanicReason is null)
                await vcpu(pausing);
        }
        catch (OperationCanceledException) when (pausing.IsCancellationRequested || powerOff.IsCancellationRequested)
        {
            // Paused or powered off.
        }
        catch (Exception e)
        {
            // The boundary of a guest: whatever goes wrong inside is the guest's death, not the daemon's.
            image.Panic(e is GuestPanicException ? e.Message : $"the simulator failed: {e}");
        }
    }

    private async Task WriteMemoryAsync(TaskCompletionSource firstStep, CancellationToken pausing)
    {
        Pacer pacer = new(image[State.DirtyPagesPerSecond], time);
        byte[] scratch = new byte[GuestMemory.PageSizeBytes];
        while (!pausing.IsCancellationRequested && PanicReason is null)
        {
            for (int due = pacer.Take(); due > 0; due--)
            {
                ulong number = (ulong)image.Add(State.LastPageNumber);
                int page = (int)(GuestBlock.Mix(image.Seed, number) % (ulong)image.HeapPageCount);
                if (!image.IsHeapPageIntact(page, scratch))
                    throw new GuestPanicException($"memory page {image.FirstHeapPage + page} is not what was written to it");
                image.WriteHeapPage(page, number);
            }

            firstStep.TrySetResult();
            await Task.Delay(Tick, time, pausing);
        }
    }

    private async Task WriteDisksAsync(CancellationToken pausing)
    {
        Dictionary<int, Task> inFlight = new(Depth); // By slot: writes of one block must not overlap, for they would have no order.
        if (image.SlotCount == 0)
            return;
        try
        {
            Pacer pacer = new(image[State.WritesPerSecond], time);
            while (!pausing.IsCancellationRequested && PanicReason is null)
            {
                for (int due = pacer.Take(); due > 0 && !pausing.IsCancellationRequested && PanicReason is null; due--)
                    await StepAsync(inFlight);
                await Task.Delay(Tick, time, pausing);
            }
        }
        finally
        {
            await Task.WhenAll(inFlight.Values);
        }
    }

    private async Task StepAsync(Dictionary<int, Task> inFlight)
    {
        ulong sequence = (ulong)image.Add(State.LastSequence);
        int slot = (int)(GuestBlock.Mix(image.Seed ^ 0x77, sequence) % (ulong)image.SlotCount);
        await MakeRoomAsync(inFlight, slot);
        inFlight[slot] = WriteAsync(sequence, slot);
        if (sequence % ReadEvery == 0)
        {
            int readSlot = (int)(GuestBlock.Mix(image.Seed ^ 0x72, (ulong)image.Add(State.LastReadNumber)) % (ulong)image.SlotCount);
            await MakeRoomAsync(inFlight, readSlot);
            inFlight[readSlot] = VerifyAsync(readSlot);
        }

        if (sequence % FlushEvery == 0)
        {
            await Task.WhenAll(inFlight.Values);
            inFlight.Clear();
            await FlushAsync(sequence);
        }
    }

    private static async Task MakeRoomAsync(Dictionary<int, Task> inFlight, int slot)
    {
        while (inFlight.Count >= Depth || inFlight.ContainsKey(slot))
        {
            await (inFlight.TryGetValue(slot, out Task? same) ? same : Task.WhenAny(inFlight.Values));
            foreach ((int done, Task task) in inFlight.Where(static f => f.Value.IsCompleted).ToArray())
            {
                inFlight.Remove(done);
                await task;
            }
        }
    }

    private async Task WriteAsync(ulong sequence, int slot)
    {
        OpenDisk disk = disks[image.DiskOf(slot)];
        long offset = image.OffsetOf(slot);
        byte[] block = new byte[GuestBlock.SizeBytes];
        try
        {
            if (!image.FlagsOf(slot).HasFlag(SlotFlags.OriginalKept))
            {
                await disk.Device.ReadAsync(offset, block, powerOff.Token);
                image.KeepOriginal(slot, block);
            }

            GuestBlock.Write(block, image.VmId, image.Seed, sequence, (ulong)offset / GuestBlock.SizeBytes, image.DiskOf(slot));
            oracle.Issued(sequence, offset, block, disk.Vbd.Device);
            image.Add(State.WritesIssued);
            long started = time.GetTimestamp();
            image.SetFlags(slot, image.FlagsOf(slot) | SlotFlags.Uncertain);
            await disk.Device.WriteAsync(offset, block, WriteFlags.None, powerOff.Token);
            image.SetSequence(slot, sequence);
            image.SetFlags(slot, image.FlagsOf(slot) & ~SlotFlags.Uncertain);
            long microseconds = (long)time.GetElapsedTime(started).TotalMicroseconds;
            oracle.Acknowledged(sequence);
            image.Add(State.WritesAcknowledged);
            if (microseconds > image[State.LongestWriteMicroseconds])
                image[State.LongestWriteMicroseconds] = microseconds;
        }
        catch (BlockIoException e)
        {
            Failed(sequence, e);
        }
    }

    private async Task VerifyAsync(int slot)
    {
        ulong sequence = image.SequenceOf(slot);
        if (sequence == 0 || image.FlagsOf(slot).HasFlag(SlotFlags.Uncertain))
            return;
        OpenDisk disk = disks[image.DiskOf(slot)];
        long offset = image.OffsetOf(slot);
        byte[] found = new byte[GuestBlock.SizeBytes];
        try
        {
            await disk.Device.ReadAsync(offset, found, powerOff.Token);
        }
        catch (BlockIoException e)
        {
            Failed(sequence, e);
            return;
        }

        byte[] expected = new byte[GuestBlock.SizeBytes];
        GuestBlock.Write(expected, image.VmId, image.Seed, sequence, (ulong)offset / GuestBlock.SizeBytes, image.DiskOf(slot));
        if (!found.AsSpan().SequenceEqual(expected))
            throw new GuestPanicException(
                $"disk {disk.Vbd.Device} at byte {offset}: not the block of write {sequence}, which was acknowledged");
        image.Add(State.ReadsVerified);
    }

    private async Task FlushAsync(ulong sequence)
    {
        try
        {
            foreach (OpenDisk disk in disks)
                await disk.Device.FlushAsync(powerOff.Token);
            oracle.Flushed(sequence);
        }
        catch (BlockIoException e)
        {
            Failed(sequence, e);
        }
    }

    private async Task RestoreAsync(int slot, CancellationToken cancellationToken)
    {
        if (!image.IsOriginalIntact(slot))
        {
            image.Panic($"the original of slot {slot}, kept in memory, is not what was read");
            throw XenopsException.Internal($"the guest panicked: {PanicReason}");
        }

        byte[] original = image.OriginalOf(slot).ToArray();
        await disks[image.DiskOf(slot)].Device.WriteAsync(image.OffsetOf(slot), original, WriteFlags.None, cancellationToken);
        image.SetSequence(slot, 0);
        image.SetFlags(slot, SlotFlags.None);
    }

    private void Failed(ulong sequence, BlockIoException failure)
    {
        image.Add(State.IoErrors);
        oracle.Failed(sequence, failure.Errno, failure.Message);
    }

    /// <summary>
    /// How many events of a rate are due by now; a guest that was held up forgets what it did not do after a quarter of a second.
    /// </summary>
    private sealed class Pacer(long perSecond, TimeProvider time)
    {
        private readonly long limit = perSecond / 4 + 1;
        private long last = time.GetTimestamp();
        private double owed;

        public int Take()
        {
            long now = time.GetTimestamp();
            owed = Math.Min(owed + time.GetElapsedTime(last, now).TotalSeconds * perSecond, limit);
            last = now;
            int due = (int)owed;
            owed -= due;
            return due;
        }
    }

    private sealed class GuestPanicException(string message) : Exception(message);
}
