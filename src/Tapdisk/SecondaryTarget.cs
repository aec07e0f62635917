// The field's mirror: "-2 nbd:NAME" on open and unpause (research: storage.md 6.4). From then on every write also goes to the target;
// nothing is copied, what was there before counts as equal. A target that cannot be reached or fails never stops the guest: the
// statistics' nbd_mirror_failed tells. Beyond the original: a stall limit, and what a failed target missed is remembered and sent when
// another is given.
using System.Globalization;
using System.Net.Sockets;
using Nbd;
using Platform;
using Replication;
using StorageAccess.Tap;

namespace Tapdisk;

/// <param name="Name">As it was told, without <c>nbd:</c>.</param>
/// <param name="Device">The target, or why there is none.</param>
/// <param name="IsPassed">It came as a descriptor: another one than before, even under the same name.</param>
internal sealed record SecondaryTarget(string Name, IBlockDevice Device, string? Failure, bool IsPassed)
{
    /// <summary>What <c>unpause -2</c> ends a mirror with.</summary>
    public const string None = "null";

    private const string Prefix = "nbd:";

    /// <summary>The guest waits meanwhile; and what a target may stall it for later.</summary>
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(5);

    /// <summary>Connects. A target that is not there is an answer too; one of another size is not.</summary>
    /// <exception cref="TapException">EINVAL: the sizes differ. ENOTSUP: not an NBD target.</exception>
    public static async Task<SecondaryTarget> ReachAsync(string secondary, PassedConnections passed, long lengthBytes)
    {
        if (!secondary.StartsWith(Prefix, StringComparison.Ordinal))
            throw new TapException((int)Errno.ENOTSUP, $"a secondary is nbd:NAME, not '{secondary}'; nothing was changed");
        string name = secondary[Prefix.Length..];
        Socket? connection = passed.Take(name);
        try
        {
            NbdClient client = await ConnectAsync(name, connection);
            if (client.LengthBytes == lengthBytes && !client.IsReadOnly && client.BlockSizeBytes <= 512)
                return new SecondaryTarget(name, client, null, connection is not null);
            await client.DisposeAsync();
            if (client.LengthBytes != lengthBytes)
            {
                throw new TapException(
                    (int)Errno.EINVAL, $"the secondary has {client.LengthBytes} bytes, the disk {lengthBytes}; nothing was changed");
            }

            throw new BlockIoException(Errno.EINVAL, "the secondary is read-only, or its blocks are larger than 512 bytes");
        }
        catch (IOException e) when (e is not TapException)
        {
            Log.Write($"secondary {name} cannot be used: {e.Message}");
            return new SecondaryTarget(name, new AbsentDevice(lengthBytes), e.Message, connection is not null);
        }
    }

    /// <summary>Makes the disk mirror onto it. No request of the guest is on its way, and the image is open.</summary>
    public async Task ApplyAsync(OpenDisk disk, TimeProvider time)
    {
        MirrorOptions options = new(Limit, 0) { IsTargetEqual = true };
        if (disk.Mirror is { Status.Phase: MirrorPhase.Failed } failed)
        {
            // Requests of the lost connection may still be in the queues of a target that only stalled.
            if (Name == disk.SecondaryName && !IsPassed)
            {
                Log.Write($"secondary {Name} failed and is not used again; end it with -2 null, or give another");
                await Device.DisposeAsync();
                return;
            }

            await failed.ResumeAsync(Device, options);
        }
        else
        {
            if (disk.Mirror is { } former)
                await former.DisposeAsync();
            disk.Mirror = new MirrorDevice(disk.Plain, Device, options, time);
        }

        disk.TakeLease(disk.Image.TakeLease());
        disk.SecondaryName = Name;
        if (Failure is not null)
            disk.Mirror.GiveUp(Failure);
    }

    private static async Task<NbdClient> ConnectAsync(string name, Socket? connection)
    {
        NbdClientOptions options = new() { ConnectTimeout = Limit, MaxRequestsInFlight = 128, AcceptsOldStyle = true };
        if (connection is not null)
            return await NbdClient.ConnectAsync(connection, "", options, CancellationToken.None);

        return await NbdClient.ConnectAsync(AddressOf(name), options, CancellationToken.None);
    }

    private static NbdUri AddressOf(string name)
    {
        if (name.StartsWith('/'))
            return NbdUri.Unix(name, "");
        int colon = name.LastIndexOf(':');
        return colon > 0 && ushort.TryParse(name[(colon + 1)..], NumberStyles.None, CultureInfo.InvariantCulture, out ushort port)
            ? NbdUri.Tcp(name[..colon].Trim('[', ']'), port, "", isTls: false)
            : throw new BlockIoException(Errno.ENOENT, "it is no path and no host:port, and no connection was handed over under this name");
    }

    /// <summary>In the place of a target that could not be reached: the mirror over it has failed from the beginning.</summary>
    private sealed class AbsentDevice(long lengthBytes) : IBlockDevice
    {
        public long LengthBytes => lengthBytes;

        public int BlockSizeBytes => 512;

        public bool IsReadOnly => false;

        public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) => throw Absent();

        public ValueTask WriteAsync(
            long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken) => throw Absent();

        public ValueTask WriteZeroesAsync(
            long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) => throw Absent();

        public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            throw Absent();

        public ValueTask FlushAsync(CancellationToken cancellationToken) => throw Absent();

        public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(
            long offsetBytes, long lengthBytes, CancellationToken cancellationToken) => throw Absent();

        public ValueTask DisposeAsync() => ValueTask.CompletedTask;

        private static BlockIoException Absent() => new(Errno.ESHUTDOWN, "the target was never there");
    }
}
