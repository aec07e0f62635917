using System.Diagnostics;
using Nbd;
using Platform;

namespace Conformance.TapdiskTests;

/// <summary>
/// A guest: writes random blocks one after the other until told to stop, remembers what it wrote, and how long the longest write took.
/// </summary>
internal sealed class GuestWriter : IAsyncDisposable
{
    private readonly NbdClient disk;
    private readonly CancellationTokenSource stop = new();
    private readonly Dictionary<long, byte[]> written = [];
    private readonly Task running;

    public GuestWriter(NbdClient disk, int seed)
    {
        this.disk = disk;
        running = Task.Run(() => RunAsync(new Random(seed)));
    }

    public int Count { get; private set; }

    public TimeSpan LongestWrite { get; private set; }

    /// <summary>Ends it; a write that failed is thrown here.</summary>
    public async Task StopAsync()
    {
        await stop.CancelAsync();
        await running;
    }

    public async Task VerifyAsync(IBlockDevice device)
    {
        byte[] read = new byte[4096];
        foreach ((long offset, byte[] bytes) in written)
        {
            await device.ReadAsync(offset, read, default);
            Assert.True(read.AsSpan().SequenceEqual(bytes), $"the block at {offset} is not what was acknowledged");
        }
    }

    public async ValueTask DisposeAsync()
    {
        await stop.CancelAsync();
        await running.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        await disk.DisposeAsync();
        stop.Dispose();
    }

    private async Task RunAsync(Random random)
    {
        while (!stop.IsCancellationRequested)
        {
            long offset = random.NextInt64(disk.LengthBytes / 4096) * 4096;
            byte[] bytes = new byte[4096];
            random.NextBytes(bytes);
            long begun = Stopwatch.GetTimestamp();
            await disk.WriteAsync(offset, bytes, WriteFlags.None, default);
            TimeSpan took = Stopwatch.GetElapsedTime(begun);
            LongestWrite = took > LongestWrite ? took : LongestWrite;
            written[offset] = bytes;
            Count++;
        }
    }
}
