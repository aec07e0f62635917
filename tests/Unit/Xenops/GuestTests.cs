using Nbd;
using Platform;
using Support;
using Xenops;
using Xenops.Simulator;
using static Unit.XenopsTests.Rig;

namespace Unit.XenopsTests;

public sealed class GuestTests : IAsyncDisposable
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);

    private readonly TemporaryDirectory folder = new();
    private readonly MemoryBlockDevice disk = new(4 << 20);
    private readonly List<SimulatedGuest> guests = [];

    public GuestTests() => new Random(3).NextBytes(disk.Bytes);

    public async ValueTask DisposeAsync()
    {
        foreach (SimulatedGuest guest in guests)
            await guest.DisposeAsync();
        folder.Dispose();
    }

    [Fact]
    public async Task Two_guests_of_one_seed_write_the_same_blocks_in_the_same_order_and_another_seed_does_not()
    {
        string[] first = await IssuedLinesAsync("one", NewVm());
        string[] second = await IssuedLinesAsync("two", NewVm());
        Vm other = NewVm() with { Platform = new Dictionary<string, string>(NewVm().Platform) { ["simulator.seed"] = "43" } };
        string[] third = await IssuedLinesAsync("three", other);
        Assert.Equal(first, second);
        Assert.NotEqual(first, third);
    }

    [Fact]
    public async Task A_guests_memory_is_the_whole_guest()
    {
        SimulatedGuest before = Boot("a", NewVm());
        await WriteAsync(before, 300);
        Assert.True(await before.TryPauseAsync(Patience));
        GuestMemory copy = CopyOf(before.Memory);
        SimulatedGuest after = Keep(
            Backend("b").Restore(NewVm(), copy, before.SaveDeviceState(), DisksOf(disk)));
        Assert.Equal(before.Statistics, after.Statistics);
        await WriteAsync(after, before.Statistics.WritesAcknowledged + 300);
        await after.ShutDownAsync(CancellationToken.None);
        Assert.Null(after.PanicReason);
        Assert.True(after.Statistics.ReadsVerified > before.Statistics.ReadsVerified);
        byte[] original = new byte[disk.Bytes.Length];
        new Random(3).NextBytes(original);
        Assert.Equal(original, disk.Bytes);
    }

    [Theory]
    [InlineData("empty", "no simulated guest")]
    [InlineData("other VM", "is that of VM")]
    [InlineData("other disks", "was sent with the disks")]
    [InlineData("slot outside", "lies outside")]
    public void A_memory_that_is_not_this_guest_is_refused(string what, string why)
    {
        SimulatedGuest guest = Boot("a", NewVm());
        GuestMemory memory = what == "empty" ? new GuestMemory(4 << 20) : guest.Memory;
        if (what == "slot outside")
            memory.WriteWord(1, 0, disk.LengthBytes);
        Vm vm = NewVm(id: what == "other VM" ? Guid.NewGuid().ToString() : Id);
        IReadOnlyList<OpenDisk> disks = DisksOf(what == "other disks" ? new MemoryBlockDevice(1 << 20) : disk);
        XenopsException e = Assert.Throws<XenopsException>(
            () => Backend("b").Restore(vm, memory, guest.SaveDeviceState(), disks));
        Assert.Contains(why, e.Message);
    }

    [Fact]
    public async Task A_guest_writes_through_NBD_and_gives_the_disk_back()
    {
        byte[] original = disk.Bytes.ToArray();
        await using NbdExport export = new("disk", disk);
        await using NbdListener listener = NbdListener.ListenUnix(
            folder.File("nbd"), new NbdServerOptions { Find = name => name == "disk" ? export : null }, maxConnections: 2);
        await using (IBlockDevice device =
            await Daemon.OpenDiskAsync($"nbd:unix:{folder.File("nbd")}:exportname=disk", CancellationToken.None))
        {
            SimulatedGuest guest = Keep(Backend("a").Boot(NewVm(), new GuestMemory(NewVm().MemoryBytes), DisksOf(device)));
            await WriteAsync(guest, 200);
            Assert.NotEqual(original, disk.Bytes);
            await guest.ShutDownAsync(CancellationToken.None);
            Assert.Equal(0, guest.Statistics.IoErrors);
        }

        Assert.Equal(original, disk.Bytes);
        await Assert.ThrowsAsync<XenopsException>(() => Daemon.OpenDiskAsync("file:///etc/passwd", CancellationToken.None));
    }

    [Fact]
    public async Task A_lost_write_is_a_panic()
    {
        SimulatedGuest guest = Boot("a", NewVm());
        await WriteAsync(guest, 300);
        Assert.True(await guest.TryPauseAsync(Patience));
        disk.Bytes.AsSpan().Clear();
        _ = guest.Run();
        await UntilAsync(() => guest.PanicReason is not null, "the guest reads what was lost");
        Assert.Contains("which was acknowledged", guest.PanicReason);
        Assert.Equal(1, guest.Statistics.Panics);
    }

    [Fact]
    public async Task A_changed_memory_page_is_a_panic()
    {
        SimulatedGuest guest = Boot("a", NewVm());
        for (int page = guest.Memory.PageCount - 400; page < guest.Memory.PageCount; page++)
            guest.Memory.Write(page, "x"u8, 4000);
        _ = guest.Run();
        await UntilAsync(() => guest.PanicReason is not null, "the guest looks at its memory");
        Assert.Contains("memory page", guest.PanicReason);
    }

    [Fact]
    public async Task A_changed_original_is_not_written_back()
    {
        SimulatedGuest guest = Boot("a", NewVm());
        await WriteAsync(guest, 200);
        Assert.True(await guest.TryPauseAsync(Patience));
        for (int page = 2; page < 2 + 128; page++) // After page 0 and one page of slots.
            guest.Memory.Write(page, new byte[8]);
        await Assert.ThrowsAnyAsync<Exception>(() => guest.ShutDownAsync(CancellationToken.None));
        Assert.Contains("original", guest.PanicReason);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4096)]
    [InlineData(17 * 4096)]
    [InlineData(24 * 4096 + 512)]
    [InlineData(1 << 20)]
    [InlineData(4 << 20)]
    public void The_working_set_is_inside_the_disk_and_no_block_is_in_it_twice(int diskBytes)
    {
        for (ulong seed = 0; seed < 50; seed++)
        {
            GuestImage image = GuestImage.Create(
                new GuestMemory(1 << 20), Guid.NewGuid(), new SimulatorSettings(seed, 0, 0, 2048), [diskBytes, diskBytes]);
            (int, long)[] slots = Enumerable.Range(0, image.SlotCount).Select(s => (image.DiskOf(s), image.OffsetOf(s))).ToArray();
            Assert.Equal(slots.Length, slots.Distinct().Count());
            Assert.All(slots, s => Assert.InRange(s.Item2, 0, diskBytes - 4096));
            Assert.InRange(slots.Length, Math.Min(2, diskBytes / 4096 * 2), 64);
        }
    }

    [Fact]
    public void The_dirty_log_holds_every_page_written_since_it_was_taken()
    {
        GuestMemory memory = new(200 * GuestMemory.PageSizeBytes);
        memory.Write(0, "x"u8);
        memory.WriteWord(63, 1, 1);
        memory.AddToWord(64, 1, 1);
        memory.Write(199, "x"u8, 4095);
        Assert.Equal(4, memory.DirtyCount);
        Assert.Equal([0, 63, 64, 199], memory.TakeDirty());
        Assert.Empty(memory.TakeDirty());
        memory.MarkAll();
        Assert.Equal(Enumerable.Range(0, 200), memory.TakeDirty());
    }

    private async Task<string[]> IssuedLinesAsync(string name, Vm vm)
    {
        SimulatedGuest guest = Boot(name, vm);
        await WriteAsync(guest, 250);
        Assert.True(await guest.TryPauseAsync(Patience));
        Oracle oracle = new(File.ReadAllLines(folder.File($"{name}/{Id}.log")));
        return oracle.IssuedLines.OrderBy(static l => long.Parse(l.Split(' ')[1])).Take(250).ToArray();
    }

    private static async Task WriteAsync(SimulatedGuest guest, long writes)
    {
        await guest.Run();
        await UntilAsync(() => guest.Statistics.WritesAcknowledged >= writes || guest.PanicReason is not null, $"{writes} writes");
        Assert.Null(guest.PanicReason);
    }

    private static GuestMemory CopyOf(GuestMemory memory)
    {
        GuestMemory copy = new(memory.PageCount * (long)GuestMemory.PageSizeBytes);
        for (int page = 0; page < memory.PageCount; page++)
            copy.Write(page, memory.Page(page));
        return copy;
    }

    private static OpenDisk[] DisksOf(IBlockDevice device) => [new OpenDisk(NewVm().Vbds[0], device)];

    private SimulatedGuest Boot(string name, Vm vm) => Keep(Backend(name).Boot(vm, new GuestMemory(vm.MemoryBytes), DisksOf(disk)));

    private SimulatorBackend Backend(string name) =>
        new(folder.File(name), Daemon.OpenDiskAsync, static bytes => new GuestMemory(bytes), TimeProvider.System);

    private SimulatedGuest Keep(SimulatedGuest guest)
    {
        guests.Add(guest);
        return guest;
    }
}
