// A simulated guest in this process: its memory, its open disks, and the engine that runs between them. Not thread-safe: one call at a time.
namespace Xenops.Simulator;

internal sealed class LocalGuest : IGuest
{
    private static readonly TimeSpan CloseDeadline = TimeSpan.FromSeconds(5);

    private readonly SimulatorBackend backend;
    private readonly Vm vm;
    private readonly TimeProvider time;
    private readonly List<OpenDisk> open = [];
    private SimulatedGuest? engine;

    private LocalGuest(SimulatorBackend backend, Vm vm, GuestMemory memory, TimeProvider time)
    {
        this.backend = backend;
        this.vm = vm;
        this.time = time;
        Memory = memory;
    }

    public GuestMemory Memory { get; }

    public GuestStatus Status { get; private set; } = new(GuestPhase.Created);

    public string? PanicReason => GuestImage.Look(Memory).PanicReason;

    public GuestStatistics Statistics => GuestImage.Look(Memory).Statistics;

    private SimulatedGuest Engine => engine ?? throw XenopsException.BadPowerState(nameof(GuestPhase.Created), nameof(GuestPhase.Paused));

    public static async Task<LocalGuest> CreateAsync(
        SimulatorBackend backend, Vm vm, GuestMemory memory, IReadOnlyList<GuestDisk> disks, TimeProvider time, CancellationToken cancellationToken)
    {
        LocalGuest guest = new(backend, vm, memory, time);
        try
        {
            await guest.OpenAsync(disks, cancellationToken);
            return guest;
        }
        catch
        {
            await guest.DisposeAsync();
            throw;
        }
    }

    public Task BootAsync(CancellationToken cancellationToken)
    {
        Require(GuestPhase.Created);
        engine = backend.Boot(vm, Memory, open);
        Status = new GuestStatus(GuestPhase.Paused);
        return Task.CompletedTask;
    }

    public Task LoadAsync(ReadOnlyMemory<byte> deviceState, string migration, ImageSummary image, CancellationToken cancellationToken)
    {
        Require(GuestPhase.Created);
        engine = backend.Restore(vm, Memory, deviceState, open);
        Status = new GuestStatus(GuestPhase.Loaded, migration, image);
        return Task.CompletedTask;
    }

    public async Task RunAsync(CancellationToken cancellationToken)
    {
        Require(GuestPhase.Paused, GuestPhase.Loaded);
        await Engine.Run();
        string? migration = Status.Phase == GuestPhase.Loaded ? Status.Migration : null;
        Status = Status with { Phase = GuestPhase.Running, Migration = migration, RunningAt = Status.RunningAt ?? time.GetUtcNow().ToString("O") };
    }

    public async Task<bool> TryPauseAsync(TimeSpan drainDeadline, string? migration, CancellationToken cancellationToken)
    {
        Require(GuestPhase.Running);
        if (!await Engine.TryPauseAsync(drainDeadline))
            return false;
        Status = Status with { Phase = GuestPhase.Paused, Migration = migration };
        return true;
    }

    public async Task ShutDownAsync(CancellationToken cancellationToken)
    {
        Require(GuestPhase.Running);
        try
        {
            await Engine.ShutDownAsync(cancellationToken);
            Status = Status with { Phase = GuestPhase.Paused, Migration = null };
        }
        catch
        {
            _ = Engine.Run();
            throw;
        }
    }

    public Task<ReadOnlyMemory<byte>> SaveDeviceStateAsync(CancellationToken cancellationToken)
    {
        Require(GuestPhase.Paused);
        return Task.FromResult(Engine.SaveDeviceState());
    }

    public async Task FreezeAsync(CancellationToken cancellationToken)
    {
        Require(GuestPhase.Paused, GuestPhase.Frozen);
        Status = Status with { Phase = GuestPhase.Frozen }; // First: from here on it cannot run, whatever becomes of its disks.
        await CloseAsync(cancellationToken);
    }

    public async Task ThawAsync(IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken)
    {
        Require(GuestPhase.Frozen);
        await CloseAsync(cancellationToken); // What an earlier freeze or thaw could not.
        await OpenAsync(disks, cancellationToken);
        Engine.ReplaceDisks(open);
        Status = Status with { Phase = GuestPhase.Paused };
    }

    public async ValueTask DisposeAsync()
    {
        if (engine is not null)
            await engine.DisposeAsync();
        using CancellationTokenSource deadline = new(CloseDeadline);
        try
        {
            await CloseAsync(deadline.Token);
        }
        catch (OperationCanceledException)
        {
            // A disk that does not let go; its datapath is destroyed next.
        }
    }

    private void Require(params ReadOnlySpan<GuestPhase> expected)
    {
        if (!expected.Contains(Status.Phase))
            throw XenopsException.BadPowerState(Status.Phase.ToString(), expected[0].ToString());
    }

    private async Task OpenAsync(IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken)
    {
        foreach (GuestDisk disk in disks)
            open.Add(new OpenDisk(disk.Vbd, await backend.Open(disk.Uri, cancellationToken)));
    }

    private async Task CloseAsync(CancellationToken cancellationToken)
    {
        while (open.Count > 0)
        {
            await open[^1].Device.DisposeAsync().AsTask().WaitAsync(cancellationToken);
            open.RemoveAt(open.Count - 1);
        }
    }
}
