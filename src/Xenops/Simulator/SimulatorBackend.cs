// The backend that needs no hypervisor. Device state (not in memory pages): {"disks":[{"device":"xvda","length_bytes":n}]}, the disks
// that the guest writes, in the order of the VM's record; the other side must offer the same.
using System.Text;
using System.Text.Json;

namespace Xenops.Simulator;

/// <param name="oracleFolder">Where the oracle logs go.</param>
/// <param name="makeMemory">Of so many bytes.</param>
public sealed class SimulatorBackend(string oracleFolder, DiskOpener open, Func<long, GuestMemory> makeMemory, TimeProvider time) : IDomainBackend
{
    internal DiskOpener Open => open;

    public async Task<IGuest> CreateAsync(Vm vm, IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken) =>
        await LocalGuest.CreateAsync(this, vm, makeMemory(vm.MemoryBytes), disks, time, cancellationToken);

    /// <summary>None: a guest in this process ends with it.</summary>
    public Task<IReadOnlyList<GuestFound>> FindAsync(CancellationToken cancellationToken) => Task.FromResult<IReadOnlyList<GuestFound>>([]);

    internal SimulatedGuest Boot(Vm vm, GuestMemory memory, IReadOnlyList<OpenDisk> disks)
    {
        SimulatorSettings settings = SimulatorSettings.Of(vm);
        IReadOnlyList<OpenDisk> written = WrittenOf(disks);
        GuestImage image = GuestImage.Create(memory, Guid.Parse(vm.Id), settings, LengthsOf(written));
        OracleLog oracle = OpenOracle(vm);
        oracle.Booted(settings.Seed);
        return new SimulatedGuest(image, oracle, written, time);
    }

    internal SimulatedGuest Restore(Vm vm, GuestMemory memory, ReadOnlyMemory<byte> deviceState, IReadOnlyList<OpenDisk> disks)
    {
        IReadOnlyList<OpenDisk> written = WrittenOf(disks);
        byte[] offered = DeviceStateOf(written);
        if (!deviceState.Span.SequenceEqual(offered))
        {
            throw XenopsException.Internal(
                $"the guest was sent with the disks {Encoding.UTF8.GetString(deviceState.Span)}, " +
                $"here are {Encoding.UTF8.GetString(offered)}");
        }

        GuestImage image = GuestImage.Open(memory, Guid.Parse(vm.Id), LengthsOf(written));
        return new SimulatedGuest(image, OpenOracle(vm), written, time);
    }

    internal static byte[] DeviceStateOf(IReadOnlyList<OpenDisk> disks) => JsonSerializer.SerializeToUtf8Bytes(
        new DeviceState(disks.Select(static d => new DiskState(d.Vbd.Device, d.Device.LengthBytes)).ToArray()), Json.Options);

    internal static IReadOnlyList<OpenDisk> WrittenOf(IReadOnlyList<OpenDisk> disks)
    {
        foreach (OpenDisk disk in disks)
        {
            if (GuestBlock.SizeBytes % disk.Device.BlockSizeBytes != 0)
                throw XenopsException.Internal(
                    $"the disk {disk.Vbd.Device} has blocks of {disk.Device.BlockSizeBytes} bytes; the guest writes 4096");
            if (disk.Vbd.Access == StorageAccess.VdiAccess.ReadWrite && disk.Device.IsReadOnly)
                throw XenopsException.Internal($"the disk {disk.Vbd.Device} is served read-only, but the VBD says RW");
        }

        return disks.Where(static d => d.Vbd.Access == StorageAccess.VdiAccess.ReadWrite).ToArray();
    }

    private static long[] LengthsOf(IReadOnlyList<OpenDisk> disks) => disks.Select(static d => d.Device.LengthBytes).ToArray();

    private OracleLog OpenOracle(Vm vm) => new(Path.Combine(oracleFolder, $"{vm.Id}.log"));

    private sealed record DeviceState(IReadOnlyList<DiskState> Disks);

    private sealed record DiskState(string Device, long LengthBytes);
}
