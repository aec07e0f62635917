using Platform;
using Replication;

namespace Unit.ReplicationTests;

/// <summary>
/// A disk with a volatile cache whose requests take effect in pieces, at moments that the test's context picks. A connection to it can
/// break or stall, and it can lose power: then each sector that was not flushed keeps its old or its new content.
/// </summary>
internal sealed class ModelDevice(int lengthBytes, Random random) : IBlockDevice
{
    private readonly byte[] durable = new byte[lengthBytes];
    private readonly bool[] allocated = new bool[lengthBytes / 512];
    private Connection? connection;

    public byte[] Bytes { get; } = new byte[lengthBytes];

    public int FailingWritesPercent { get; set; }

    public long LengthBytes => lengthBytes;

    public int BlockSizeBytes => 512;

    public bool IsReadOnly => false;

    /// <summary>Random data in about half of the disk.</summary>
    public void Fill()
    {
        for (int sector = 0; sector < allocated.Length; sector++)
        {
            if (random.Next(64) == 0 && sector + 64 < allocated.Length)
            {
                random.NextBytes(Bytes.AsSpan(sector * 512, 64 * 512));
                allocated.AsSpan(sector, 64).Fill(true);
            }
        }
    }

    /// <summary>A new way in; requests of the one before it never reach the disk again.</summary>
    public IBlockDevice NewConnection()
    {
        connection?.End();
        return connection = new Connection(this);
    }

    public void Break() => connection?.End();

    public void Stall() => connection?.Stall();

    public void LosePower()
    {
        for (int at = 0; at < lengthBytes; at += 512)
        {
            if (random.Next(2) == 0)
                durable.AsSpan(at, 512).CopyTo(Bytes.AsSpan(at));
        }

        Bytes.CopyTo(durable, 0);
    }

    public async ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken)
    {
        await PauseAsync();
        Bytes.AsMemory((int)offsetBytes, destination.Length).CopyTo(destination);
    }

    public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken) =>
        ApplyAsync(offsetBytes, source, flags, static () => true);

    public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        ApplyAsync(offsetBytes, new byte[lengthBytes], flags, static () => true);

    public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
        ValueTask.CompletedTask;

    public async ValueTask FlushAsync(CancellationToken cancellationToken)
    {
        Bytes.CopyTo(durable, 0); // What was acknowledged before the flush began; nothing that comes later.
        await PauseAsync();
    }

    public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        bool isData = allocated[offsetBytes / 512];
        long end = offsetBytes;
        while (end < offsetBytes + lengthBytes && allocated[end / 512] == isData)
            end += 512;
        BlockExtent extent = new(offsetBytes, end - offsetBytes, isData ? ExtentKind.Data : ExtentKind.Hole);
        return ValueTask.FromResult<IReadOnlyList<BlockExtent>>([extent]);
    }

    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    private async ValueTask ApplyAsync(long offsetBytes, ReadOnlyMemory<byte> data, WriteFlags flags, Func<bool> isConnected)
    {
        int half = data.Length / 1024 * 512;
        bool fails = random.Next(100) < FailingWritesPercent;
        await PauseAsync();
        Put(offsetBytes, data[..half], isConnected);
        await PauseAsync();
        if (fails)
            throw new BlockIoException(Errno.EIO, "injected failure");
        Put(offsetBytes + half, data[half..], isConnected);
        await PauseAsync();
        if (flags.HasFlag(WriteFlags.Fua) && isConnected())
            Bytes.AsSpan((int)offsetBytes, data.Length).CopyTo(durable.AsSpan((int)offsetBytes));
    }

    private void Put(long offsetBytes, ReadOnlyMemory<byte> data, Func<bool> isConnected)
    {
        if (!isConnected())
            return;
        data.Span.CopyTo(Bytes.AsSpan((int)offsetBytes));
        allocated.AsSpan((int)(offsetBytes / 512), data.Length / 512).Fill(true);
    }

    private async Task PauseAsync()
    {
        for (int pause = random.Next(6); pause > 0; pause--)
            await Task.Yield();
    }

    private sealed class Connection(ModelDevice disk) : IBlockDevice
    {
        private readonly TaskCompletionSource stalled = new();
        private bool isEnded;
        private bool isStalled;

        public long LengthBytes => disk.LengthBytes;

        public int BlockSizeBytes => disk.BlockSizeBytes;

        public bool IsReadOnly => false;

        public void End()
        {
            isEnded = true;
            stalled.TrySetResult();
        }

        public void Stall() => isStalled = true;

        public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) =>
            throw new InvalidOperationException("a mirror never reads its target");

        public ValueTask WriteAsync(long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken) =>
            RunAsync(disk.ApplyAsync(offsetBytes, source.ToArray(), flags, IsConnected), cancellationToken);

        public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            RunAsync(disk.ApplyAsync(offsetBytes, new byte[lengthBytes], flags, IsConnected), cancellationToken);

        public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            throw new InvalidOperationException("a mirror never trims its target");

        public ValueTask FlushAsync(CancellationToken cancellationToken) =>
            RunAsync(IsConnected() ? disk.FlushAsync(cancellationToken) : ValueTask.CompletedTask, cancellationToken);

        public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(
            long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
            throw new InvalidOperationException("a mirror never asks its target");

        public ValueTask DisposeAsync()
        {
            End();
            return ValueTask.CompletedTask;
        }

        private bool IsConnected() => !isEnded && !isStalled;

        private async ValueTask RunAsync(ValueTask request, CancellationToken cancellationToken)
        {
            await request;
            if (isStalled)
                await stalled.Task.WaitAsync(cancellationToken);
            if (isEnded)
                throw new BlockIoException(Errno.ESHUTDOWN, "the connection is gone");
        }
    }
}
