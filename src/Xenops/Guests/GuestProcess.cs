// A guest in a process of its own, as xenopsd sees it: calls on its socket, and its memory mapped here too, so that a pre-copy reads pages and
// dirty marks without asking.
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess.Wire;
using Xenops.Simulator;

namespace Xenops.Guests;

internal sealed class GuestProcess : IGuest
{
    private const int Sigkill = 9;

    /// <summary>Longer than a clean shutdown may take.</summary>
    private static readonly TimeSpan CallDeadline = TimeSpan.FromSeconds(90);
    private static readonly TimeSpan DeathDeadline = TimeSpan.FromSeconds(10);

    private readonly GuestFiles files;
    private readonly JsonRpcClient rpc;
    private readonly int processId;

    private GuestProcess(GuestFiles files, JsonRpcClient rpc, GuestReply first, GuestMemory memory)
    {
        this.files = files;
        this.rpc = rpc;
        processId = first.ProcessId;
        Memory = memory;
        Status = first.Status;
    }

    public GuestMemory Memory { get; }

    public GuestStatus Status { get; private set; }

    public string? PanicReason =>
        GuestImage.Look(Memory).PanicReason ?? (ProcessTable.IsAlive(processId) ? null : $"its process ({processId}) ended");

    public GuestStatistics Statistics => GuestImage.Look(Memory).Statistics with { PanicReason = PanicReason };

    /// <exception cref="IOException">Nobody answers on its socket, or its memory is not what its record says.</exception>
    public static async Task<GuestProcess> ConnectAsync(GuestFiles files, Vm vm, CancellationToken cancellationToken)
    {
        JsonRpcClient rpc = new(files.Socket, CallDeadline);
        try
        {
            GuestReply first = await CallAsync(rpc, "status", [], cancellationToken);
            return new GuestProcess(files, rpc, first, GuestMemory.Open(vm.MemoryBytes, first.MemoryPath));
        }
        catch
        {
            rpc.Dispose();
            throw;
        }
    }

    /// <summary>Opens its disks.</summary>
    public Task CreateAsync(CancellationToken cancellationToken) => CallAsync("create", [], cancellationToken);

    public Task BootAsync(CancellationToken cancellationToken) => CallAsync("boot", [], cancellationToken);

    public Task LoadAsync(ReadOnlyMemory<byte> deviceState, string migration, ImageSummary image, CancellationToken cancellationToken) =>
        CallAsync("load", new()
        {
            ["device_state"] = Convert.ToBase64String(deviceState.Span),
            ["migration"] = migration,
            ["image"] = JsonSerializer.SerializeToNode(image, Json.Options),
        }, cancellationToken);

    public Task RunAsync(CancellationToken cancellationToken) => CallAsync("run", [], cancellationToken);

    public async Task<bool> TryPauseAsync(TimeSpan drainDeadline, string? migration, CancellationToken cancellationToken) =>
        (await CallAsync("pause", new() { ["deadline_ms"] = (int)drainDeadline.TotalMilliseconds, ["migration"] = migration }, cancellationToken)).Drained;

    public Task ShutDownAsync(CancellationToken cancellationToken) => CallAsync("shutdown", [], cancellationToken);

    public async Task<ReadOnlyMemory<byte>> SaveDeviceStateAsync(CancellationToken cancellationToken) =>
        (await CallAsync("save", [], cancellationToken)).DeviceState ?? throw new IOException("the guest gave no device state");

    public Task FreezeAsync(CancellationToken cancellationToken) => CallAsync("freeze", [], cancellationToken);

    public Task ThawAsync(IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken)
    {
        // First: were we to die in between, the next one must know where its disks are.
        files.WriteRecord(files.ReadRecord() with { Disks = disks });
        return CallAsync("thaw", new() { ["disks"] = JsonSerializer.SerializeToNode(disks, Json.Options) }, cancellationToken);
    }

    /// <exception cref="IOException">The process does not die: its disks are not free.</exception>
    public async ValueTask DisposeAsync()
    {
        await EndAsync(files, processId);
        rpc.Dispose();
    }

    /// <summary>Kills a guest's process, waits until it is gone, and deletes its files.</summary>
    public static async Task EndAsync(GuestFiles files, int processId)
    {
        using CancellationTokenSource limit = new(DeathDeadline);
        while (files.IsAlive)
        {
            if (processId != 0)
                Posix.TryKill(processId, Sigkill);
            if (limit.IsCancellationRequested)
                throw new IOException($"the guest's process {processId} did not end within {DeathDeadline.TotalSeconds:0} s of SIGKILL");
            await Task.Delay(2, CancellationToken.None);
        }

        files.Delete();
    }

    private async Task<GuestReply> CallAsync(string method, JsonObject parameters, CancellationToken cancellationToken)
    {
        GuestReply reply = await CallAsync(rpc, method, parameters, cancellationToken);
        Status = reply.Status;
        return reply;
    }

    private static async Task<GuestReply> CallAsync(JsonRpcClient rpc, string method, JsonObject parameters, CancellationToken cancellationToken)
    {
        try
        {
            JsonNode? answer = await rpc.CallAsync(method, parameters, cancellationToken);
            return answer.Deserialize<GuestReply>(Json.Options) ?? throw new IOException($"the guest answered {method} with null");
        }
        catch (JsonRpcException e)
        {
            throw XenopsException.FromWire(e);
        }
        catch (JsonException e)
        {
            throw new IOException($"the guest answered {method} with something else than was expected: {e.Message}", e);
        }
    }
}
