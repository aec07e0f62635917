using Platform;
using Replication;
using StorageAccess.Tap;
using Support;

namespace Unit.ReplicationTests;

public sealed class MirrorDeviceTests
{
    private const int LengthBytes = 4 * ChunkMap.ChunkBytes;
    private static readonly MirrorOptions Options = new(TimeSpan.FromSeconds(5), 0);

    [Fact]
    public void A_stalled_target_is_seen_within_a_second_and_given_up_at_the_limit() => SeededContext.Run(1, static async context =>
    {
        ModelDevice source = new(LengthBytes, context.Random);
        ModelDevice target = new(LengthBytes, context.Random);
        await using MirrorDevice mirror = new(source, target.NewConnection(), Options, context.Time);
        while (mirror.Status.Phase != MirrorPhase.Synced)
            await Task.Yield();
        target.Stall();
        DateTimeOffset begun = context.Time.GetUtcNow();
        Task write = mirror.WriteAsync(0, new byte[512], WriteFlags.None, default).AsTask();
        while (mirror.Status.Phase == MirrorPhase.Synced)
            await Task.Delay(TimeSpan.FromMilliseconds(10), context.Time);
        Assert.Equal(MirrorPhase.Stalled, mirror.Status.Phase);
        Assert.InRange(context.Time.GetUtcNow() - begun, TimeSpan.FromSeconds(0.7), TimeSpan.FromSeconds(0.8));
        await mirror.ReadAsync(0, new byte[512], default);
        Assert.False(write.IsCompleted);
        await write;
        Assert.InRange(context.Time.GetUtcNow() - begun, Options.StallLimit, Options.StallLimit + TimeSpan.FromSeconds(0.5));
        Assert.Equal(MirrorPhase.Failed, mirror.Status.Phase);
        Assert.Equal(ChunkMap.ChunkState.Dirty, mirror.Map.StateOf(0));
    });

    [Fact]
    public async Task A_target_of_another_size_is_refused()
    {
        MemoryBlockDevice source = new(LengthBytes);
        BlockIoException refused = Assert.Throws<BlockIoException>(
            () => new MirrorDevice(source, new MemoryBlockDevice(LengthBytes + 512), Options, TimeProvider.System));
        Assert.Equal(Errno.EINVAL, refused.Errno);
        await using MirrorDevice mirror = new(source, new MemoryBlockDevice(LengthBytes), Options, TimeProvider.System);
        await Assert.ThrowsAsync<BlockIoException>(() => mirror.ResumeAsync(new MemoryBlockDevice(LengthBytes), Options));
    }

    [Fact]
    public async Task A_target_of_which_nothing_is_known_ends_equal_also_where_the_source_has_nothing()
    {
        MemoryBlockDevice source = new(LengthBytes), target = new(LengthBytes);
        byte[] mine = new byte[LengthBytes], theirs = new byte[LengthBytes];
        new Random(5).NextBytes(theirs);
        theirs.AsSpan(0, ChunkMap.ChunkBytes / 2).CopyTo(mine);
        await source.WriteAsync(0, mine.AsMemory(0, ChunkMap.ChunkBytes / 2), WriteFlags.None, default);
        await target.WriteAsync(0, theirs, WriteFlags.None, default);
        await using MirrorDevice mirror = new(source, target, Options with { IsTargetUnknown = true }, TimeProvider.System);
        await mirror.PhaseOtherThanAsync(MirrorPhase.Copying, default);
        await mirror.FinishAsync();
        byte[] there = new byte[LengthBytes];
        await target.ReadAsync(0, there, default);
        Assert.True(mine.AsSpan().SequenceEqual(there));
    }

    [Fact]
    public void A_rate_limit_holds_the_copy_and_can_be_lifted_while_it_waits() => SeededContext.Run(2, static async context =>
    {
        ModelDevice source = new(LengthBytes, context.Random);
        byte[] data = new byte[LengthBytes];
        context.Random.NextBytes(data);
        await source.WriteAsync(0, data, WriteFlags.None, default);
        ModelDevice target = new(LengthBytes, context.Random);
        MirrorOptions limited = Options with { RateLimitBytesPerSecond = 1024 };
        await using MirrorDevice mirror = new(source, target.NewConnection(), limited, context.Time);
        await Task.Delay(TimeSpan.FromSeconds(20), context.Time);
        Assert.InRange(mirror.Status.CopiedBytes, 1, LengthBytes - 1);
        mirror.SetRate(0);
        await Task.Delay(TimeSpan.FromSeconds(1), context.Time);
        Assert.Equal(MirrorPhase.Synced, mirror.Status.Phase);
    });

    [Fact]
    public void What_the_source_does_not_hold_is_not_sent() => SeededContext.Run(3, static async context =>
    {
        ModelDevice source = new(LengthBytes, context.Random);
        await source.WriteAsync(ChunkMap.ChunkBytes, new byte[] { 1 }.Concat(new byte[8191]).ToArray(), WriteFlags.None, default);
        ModelDevice target = new(LengthBytes, context.Random);
        await using MirrorDevice mirror = new(source, target.NewConnection(), Options, context.Time);
        while (mirror.Status.Phase != MirrorPhase.Synced)
            await Task.Yield();
        Assert.Equal(4096, mirror.Status.SentBytes);
        Assert.Equal(ChunkMap.ChunkBytes, mirror.Status.TotalBytes);
    });

    [Fact]
    public async Task What_is_written_after_a_finish_that_led_to_nothing_is_remembered_and_a_resume_sends_it_alone()
    {
        MemoryBlockDevice source = new(LengthBytes), target = new(LengthBytes);
        byte[] data = new byte[LengthBytes];
        new Random(4).NextBytes(data);
        await source.WriteAsync(0, data, WriteFlags.None, default);
        await using MirrorDevice mirror = new(source, target, Options, TimeProvider.System);
        await SyncedAsync(mirror);
        await mirror.FinishAsync();
        await mirror.WriteAsync(ChunkMap.ChunkBytes, new byte[512], WriteFlags.None, default);
        Assert.Equal(ChunkMap.ChunkBytes, mirror.Status.DirtyBytes);

        await mirror.ResumeAsync(target, Options);
        await SyncedAsync(mirror);
        Assert.Equal(source.Bytes, target.Bytes);
        Assert.InRange(mirror.Status.SentBytes, LengthBytes + 1L, LengthBytes + ChunkMap.ChunkBytes);
        Assert.Equal((LengthBytes, LengthBytes), (mirror.Status.TotalBytes, mirror.Status.CopiedBytes)); // Of the whole, not of the resume.
    }

    [Theory]
    [InlineData(Errno.ESHUTDOWN, true)]
    [InlineData(Errno.ENOSPC, false)]
    [InlineData(Errno.EIO, false)]
    public async Task A_lost_link_is_told_from_an_error_of_the_targets_disk(Errno errno, bool isLost)
    {
        await using MirrorDevice mirror = new(new MemoryBlockDevice(LengthBytes), new FailingTarget(errno), Options, TimeProvider.System);
        await mirror.WriteAsync(0, new byte[512], WriteFlags.None, default);
        Assert.Equal((MirrorPhase.Failed, isLost), (mirror.Status.Phase, mirror.Status.IsLost));
    }

    private static async Task SyncedAsync(MirrorDevice mirror)
    {
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        for (MirrorPhase phase = MirrorPhase.Copying; phase != MirrorPhase.Synced;)
            phase = (await mirror.PhaseOtherThanAsync(phase, limit.Token)).Phase;
    }

    private sealed class FailingTarget(Errno errno) : IBlockDevice
    {
        public long LengthBytes => MirrorDeviceTests.LengthBytes;

        public int BlockSizeBytes => 512;

        public bool IsReadOnly => false;

        public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) => throw Fails();

        public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken) =>
            throw Fails();

        public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => throw Fails();

        public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => throw Fails();

        public ValueTask FlushAsync(CancellationToken cancellationToken) => throw Fails();

        public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) => throw Fails();

        public ValueTask DisposeAsync() => ValueTask.CompletedTask;

        private BlockIoException Fails() => new(errno, "ordered");
    }
}
