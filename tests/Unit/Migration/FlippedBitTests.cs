// One bit that changes on the way, or on the destination's disk: the real mirror and the real digests, under the real saga from the guest's stop on.
using System.Globalization;
using Migration;
using Platform;
using Replication;
using Support;
using Xunit.Abstractions;
using DiskDigest = Migration.DiskDigest;
using MirrorOptions = Replication.MirrorOptions;

namespace Unit.MigrationTests;

public class FlippedBitTests(ITestOutputHelper output)
{
    private const int DiskBytes = (2 << 20) + (5 * DigestRange.LeafBytes) + 4096; // More than a block, and a last leaf that is cut short.

    [Fact]
    public async Task One_flipped_bit_is_refused_with_the_disk_and_the_place_named_and_the_guest_runs_on_at_the_source()
    {
        int flips = int.Parse(Environment.GetEnvironmentVariable("MIGRATION_FLIPS") ?? "25", CultureInfo.InvariantCulture);
        Random random = new(42);
        int inTransit = 0;
        for (int flip = 0; flip < flips; flip++)
        {
            long bit = random.NextInt64(DiskBytes * 8L);
            bool isInTransit = flip % 2 == 0;
            inTransit += isInTransit ? 1 : 0;
            await using FlipWorld world = await FlipWorld.MirrorAsync(random, bit, isInTransit);
            using SourceRunner runner = new(new SourceState(world.Records), world, world, world, world, null, TimeProvider.System, static _ => { });

            Assert.Equal(bit / 8, world.FirstDifference); // The flip was made, and made once.
            MigrationException e = await Assert.ThrowsAsync<MigrationException>(() => runner.RunAsync(CancellationToken.None, CancellationToken.None));

            long leaf = bit / 8 / DigestRange.LeafBytes * DigestRange.LeafBytes;
            Assert.Contains("disk xvda", e.Message, StringComparison.Ordinal);
            Assert.Contains($"first at offset {leaf} ", e.Message + " ", StringComparison.Ordinal);
            Assert.True(world.HasResumed);
        }

        output.WriteLine($"{flips} flipped bits ({inTransit} in transit, {flips - inTransit} on the disk): {flips} refused, each with its disk and offset");
    }

    [Fact]
    public async Task Without_a_flip_the_same_world_hands_over()
    {
        await using FlipWorld world = await FlipWorld.MirrorAsync(new Random(1), bit: -1, isInTransit: false);
        using SourceRunner runner = new(new SourceState(world.Records), world, world, world, world, null, TimeProvider.System, static _ => { });
        await runner.RunAsync(CancellationToken.None, CancellationToken.None);
        Assert.Contains(world.Records, static r => r is SourceRecord.MirrorsFinished);
    }

    /// <summary>A stopped guest's disk, mirrored by the real mirror onto a disk of which one bit is wrong.</summary>
    private sealed class FlipWorld : ISourceStorage, ISourceDomain, IPeer, IJournal<SourceRecord>, IAsyncDisposable
    {
        private readonly MemoryBlockDevice source = new(DiskBytes), target = new(DiskBytes);
        private readonly DigestMap here = new(DiskBytes), there = new(DiskBytes);

        public List<SourceRecord> Records { get; } = [];

        public bool HasResumed { get; private set; }

        public long FirstDifference => source.Bytes.AsSpan().CommonPrefixLength(target.Bytes);

        /// <param name="bit">-1: none.</param>
        public static async Task<FlipWorld> MirrorAsync(Random random, long bit, bool isInTransit)
        {
            FlipWorld world = new();
            byte[] content = new byte[DiskBytes];
            random.NextBytes(content);
            await world.source.WriteAsync(0, content, WriteFlags.None, CancellationToken.None);
            Flipping wire = new(world.target, isInTransit ? bit : -1);
            await using (MirrorDevice mirror = new(world.source, wire, new MirrorOptions(TimeSpan.FromSeconds(10), 0), TimeProvider.System))
            {
                await mirror.PhaseOtherThanAsync(StorageAccess.Tap.MirrorPhase.Copying, CancellationToken.None);
                await mirror.FinishAsync();
            }

            if (!isInTransit && bit >= 0)
                world.target.Bytes[bit / 8] ^= (byte)(1 << (int)(bit % 8));
            MigrationPlan plan = new MigrationWorld().Plan with { Disks = [new DiskPlan("xvda", "srA", "d1", "srB", "root", "", DiskBytes, DiskBytes, false)] };
            world.Records.AddRange(
            [
                new SourceRecord.Begun(plan, DateTimeOffset.UnixEpoch), new SourceRecord.Preparing(),
                new SourceRecord.Prepared(new PreparedDestination([new DiskTarget("xvda", "b", 1, "n", "f", "new")], new MemoryTarget("b", 2, "s", "f"), "vm")),
                new SourceRecord.MirrorStarting("xvda"), new SourceRecord.MirrorStarted("xvda"), new SourceRecord.MirrorsReady(1), new SourceRecord.Precopying(),
                new SourceRecord.Precopied(), new SourceRecord.PreSwitch(), new SourceRecord.Stopping(), new SourceRecord.Stopped(DateTimeOffset.UnixEpoch),
            ]);
            return world;
        }

        public void Append(string migration, SourceRecord record) => Records.Add(record);

        public Task StartMirrorAsync(
            DiskPlan disk, DiskTarget target, bool wasMirrored, long bytesPerSecond, MigrationOptions options, CancellationToken cancellationToken) =>
            Task.CompletedTask;

        public Task SetRateAsync(DiskPlan disk, long bytesPerSecond, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task<MirrorProgress> MirrorStatusAsync(DiskPlan disk, CancellationToken cancellationToken) =>
            Task.FromResult(new MirrorProgress(true, false, null, DiskBytes, DiskBytes, DiskBytes));

        public Task FinishMirrorAsync(DiskPlan disk, CancellationToken cancellationToken) => Task.CompletedTask; // It was finished above.

        public Task StopMirrorAsync(DiskPlan disk, CancellationToken cancellationToken) => Task.CompletedTask;

        public async Task<DiskDigest> DigestAsync(DiskPlan disk, CancellationToken cancellationToken) =>
            new("xvda", (await here.ComputeAsync(source, cancellationToken)).Root, DiskBytes);

        public async Task<IReadOnlyList<DiskDigest>> DigestAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
            [new("xvda", (await there.ComputeAsync(target, cancellationToken)).Root, DiskBytes)];

        public Task<string> RangeDigestAsync(DiskPlan disk, DigestRange range, CancellationToken cancellationToken) =>
            here.RangeAsync(source, range.OffsetBytes, range.LengthBytes, cancellationToken);

        public Task<string> RangeDigestAsync(MigrationPlan plan, string device, DigestRange range, CancellationToken cancellationToken) =>
            there.RangeAsync(target, range.OffsetBytes, range.LengthBytes, cancellationToken);

        public Task HoldAsync(DiskPlan disk, DateTimeOffset until, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task DestroyAsync(DiskPlan disk, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task PrecopyAsync(MigrationPlan plan, MemoryTarget target, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task<DateTimeOffset> StopAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.FromResult(DateTimeOffset.UnixEpoch);

        public Task<MemoryDigest> TransferAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.FromResult(new MemoryDigest("m", 1));

        public Task FreezeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task ResumeAsync(MigrationPlan plan, CancellationToken cancellationToken)
        {
            HasResumed = true;
            return Task.CompletedTask;
        }

        public Task ReleaseAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task RestoreAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task<PreparedDestination> PrepareAsync(MigrationPlan plan, int attempt, CancellationToken cancellationToken) =>
            throw new InvariantException("it is prepared");

        public Task HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Task.CompletedTask;

        public async Task<ContentDigests> LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken) =>
            new(new MemoryDigest("m", 1), await DigestAsync(plan, cancellationToken));

        public Task<GrantAnswer> GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken) =>
            Task.FromResult(new GrantAnswer(DateTimeOffset.UnixEpoch, null));

        public Task AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task RelinquishAsync(MigrationPlan plan, long epoch, CancellationToken cancellationToken) => Task.CompletedTask;

        public async ValueTask DisposeAsync()
        {
            here.Dispose();
            there.Dispose();
            await source.DisposeAsync();
        }
    }

    /// <summary>A wire that turns one bit of what is written through it.</summary>
    private sealed class Flipping(IBlockDevice inner, long bit) : IBlockDevice
    {
        public long LengthBytes => inner.LengthBytes;

        public int BlockSizeBytes => inner.BlockSizeBytes;

        public bool IsReadOnly => false;

        public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) =>
            inner.ReadAsync(offsetBytes, destination, cancellationToken);

        public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
        {
            long at = (bit / 8) - offsetBytes;
            if (bit < 0 || at < 0 || at >= source.Length)
                return inner.WriteAsync(offsetBytes, source, flags, cancellationToken);
            byte[] altered = source.ToArray();
            altered[at] ^= (byte)(1 << (int)(bit % 8));
            return inner.WriteAsync(offsetBytes, altered, flags, cancellationToken);
        }

        public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            inner.WriteZeroesAsync(offsetBytes, lengthBytes, flags, cancellationToken);

        public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            inner.TrimAsync(offsetBytes, lengthBytes, flags, cancellationToken);

        public ValueTask FlushAsync(CancellationToken cancellationToken) => inner.FlushAsync(cancellationToken);

        public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
            inner.ExtentsAsync(offsetBytes, lengthBytes, cancellationToken);

        public ValueTask DisposeAsync() => inner.DisposeAsync();
    }
}
