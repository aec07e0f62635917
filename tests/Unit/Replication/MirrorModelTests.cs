// The mirror against plain arrays under seeded schedules: several guests, the copy pass, failing writes of the source, a target that
// fails, stalls, or loses power with whatever it had not flushed.
using Platform;
using Replication;
using StorageAccess.Tap;
using Support;

namespace Unit.ReplicationTests;

public sealed class MirrorModelTests
{
    private const int LengthBytes = (4 * ChunkMap.ChunkBytes) + (5 * 4096);
    private const int GuestCount = 4;
    private static readonly MirrorOptions Options = new(TimeSpan.FromSeconds(5), 0);

    public static TheoryData<int> Seeds => [.. Enumerable.Range(0, 8)];

    [Theory]
    [MemberData(nameof(Seeds))]
    public void Synced_sides_are_equal_failed_ones_know_their_difference_and_resume_heals(int group)
    {
        for (int seed = group * 4; seed < (group * 4) + 4; seed++)
            SeededContext.Run(seed, static context => new World(context).RunAsync());
    }

    private sealed class World(SeededContext context)
    {
        private readonly ModelDevice source = new(LengthBytes, context.Random) { FailingWritesPercent = 1 };
        private readonly ModelDevice target = new(LengthBytes, context.Random);
        private readonly Random random = context.Random;
        private MirrorDevice mirror = null!;

        public async Task RunAsync()
        {
            source.Fill();
            mirror = new MirrorDevice(source, target.NewConnection(), Options, context.Time);
            for (int round = 0; round < 4; round++)
            {
                Task[] guests = [.. Enumerable.Range(0, GuestCount).Select(GuestAsync)];
                if (random.Next(2) == 0)
                    await BreakTargetAsync();
                await Task.WhenAll(guests);
                if (mirror.Status.Phase == MirrorPhase.Failed)
                {
                    AssertDifferencesAreKnown();
                    Task[] meanwhile = [.. Enumerable.Range(0, random.Next(3)).Select(GuestAsync)];
                    await mirror.ResumeAsync(target.NewConnection(), Options);
                    await Task.WhenAll(meanwhile);
                }

                // A target that broke while nobody asked it anything is noticed by the flush.
                do
                {
                    await UntilAsync(MirrorPhase.Synced);
                    await mirror.FlushAsync(default);
                }
                while (mirror.Status.Phase != MirrorPhase.Synced);
                Assert.True(source.Bytes.AsSpan().SequenceEqual(target.Bytes), "synced, but the sides differ");
            }

            source.FailingWritesPercent = 0;
            await mirror.FinishAsync();
            Assert.Equal(MirrorPhase.Finished, mirror.Status.Phase);
            target.LosePower();
            Assert.True(source.Bytes.AsSpan().SequenceEqual(target.Bytes), "finished, but the sides differ after a power cut");
        }

        private byte[] Pattern(int length)
        {
            byte[] data = new byte[length];
            random.NextBytes(data);
            return data;
        }

        private async Task GuestAsync(int _)
        {
            for (int step = 0; step < 12; step++)
            {
                long offset = random.Next(LengthBytes / 512) * 512L;
                int length = (int)Math.Min((1 + random.Next(random.Next(8) == 0 ? 1200 : 24)) * 512L, LengthBytes - offset);
                byte[] data = Pattern(length);
                try
                {
                    await (random.Next(10) switch
                    {
                        0 => mirror.FlushAsync(default),
                        1 => mirror.WriteZeroesAsync(offset, length, WriteFlags.None, default),
                        2 => mirror.TrimAsync(offset, length, WriteFlags.None, default),
                        3 => mirror.WriteAsync(offset, data, WriteFlags.Fua, default),
                        4 => mirror.WriteAsync(0, Pattern(LengthBytes / 2), WriteFlags.None, default),
                        _ => mirror.WriteAsync(offset, data, WriteFlags.None, default),
                    });
                }
                catch (BlockIoException e) when (e.Message.StartsWith("injected", StringComparison.Ordinal))
                {
                    continue;
                }
            }
        }

        private async Task BreakTargetAsync()
        {
            for (int pause = random.Next(200); pause > 0; pause--)
                await Task.Yield();
            if (random.Next(2) == 0)
                target.Break();
            else
                target.Stall();
            if (random.Next(2) == 0)
                target.LosePower();
        }

        private void AssertDifferencesAreKnown()
        {
            for (int at = 0; at < LengthBytes; at++)
            {
                if (source.Bytes[at] != target.Bytes[at])
                {
                    int chunk = at / ChunkMap.ChunkBytes;
                    Assert.True(mirror.Map.StateOf(chunk) != ChunkMap.ChunkState.Clean, $"byte {at} differs and chunk {chunk} is clean");
                    at = ((chunk + 1) * ChunkMap.ChunkBytes) - 1;
                }
            }
        }

        private async Task UntilAsync(MirrorPhase wanted)
        {
            for (int step = 0; mirror.Status.Phase != wanted; step++)
            {
                if (step > 100_000 || mirror.Status.Phase == MirrorPhase.Failed)
                {
                    // A break that came after the guests were done shows itself only now.
                    Assert.True(mirror.Status.Phase == MirrorPhase.Failed && step < 100_000, $"waited for {wanted}, is {mirror.Status}");
                    AssertDifferencesAreKnown();
                    await mirror.ResumeAsync(target.NewConnection(), Options);
                }

                await Task.Yield();
                if (step % 1000 == 999)
                    await Task.Delay(TimeSpan.FromMilliseconds(10), context.Time);
            }
        }
    }
}
