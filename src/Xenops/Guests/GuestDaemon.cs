// The process of one simulated guest: `xenopsd guest RECORD ORACLE-FOLDER`. It holds the guest's memory (shared with xenopsd, which reads
// and fills it without asking), its disks' connections and its virtual processors, and does what xenopsd tells it by JSON-RPC on its socket.
// It lives until it is killed. The power state is here and nowhere else: whoever finds the process asks it.
using System.Globalization;
using System.Net.Sockets;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.Hosting;
using Platform;
using StorageAccess.Wire;
using Xenops.Simulator;

namespace Xenops.Guests;

/// <summary>What every call answers.</summary>
/// <param name="MemoryPath">Where the guest's memory can be opened.</param>
/// <param name="Drained">Of a pause.</param>
internal sealed record GuestReply(int ProcessId, string MemoryPath, GuestStatus Status, bool Drained = true, byte[]? DeviceState = null);

internal sealed class GuestDaemon : IAsyncDisposable
{
    /// <summary>Whoever started us must open our disks by then; if xenopsd died in between, nobody will.</summary>
    private static readonly TimeSpan CreateLimit = TimeSpan.FromSeconds(30);

    private readonly GuestRecord record;
    private readonly GuestMemory memory;
    private readonly SimulatorBackend backend;
    private readonly JsonRpcDispatcher dispatcher;
    private readonly SemaphoreSlim turn = new(1, 1);
    private readonly TaskCompletionSource created = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private IGuest? guest;

    private GuestDaemon(GuestRecord record, string oracleFolder)
    {
        this.record = record;
        memory = GuestMemory.Share(record.Vm.MemoryBytes, $"guest {record.Vm.Id}");
        backend = new SimulatorBackend(oracleFolder, Daemon.OpenDiskAsync, _ => memory, TimeProvider.System);
        dispatcher = new JsonRpcDispatcher(Methods(), XenopsException.VariantOf);
    }

    private IGuest Guest => guest ?? throw XenopsException.Internal("the guest is not created");

    public static async Task<int> RunAsync(string[] args)
    {
        try
        {
            if (args is not [string recordPath, string oracleFolder])
                throw new ArgumentException("usage: xenopsd guest RECORD ORACLE-FOLDER");
            Posix.Detach();
            GuestFiles files = GuestFiles.OfRecord(recordPath);
            using FileLock only = FileLock.TryTake(files.Lock, isExclusive: true)
                ?? throw new IOException($"another guest of VM {files.Id} is alive");
            only.Write(Environment.ProcessId.ToString(CultureInfo.InvariantCulture));
            await using GuestDaemon daemon = new(files.ReadRecord(), oracleFolder);
            await daemon.ServeAsync(files.Socket);
            return 0;
        }
        catch (Exception e) when (e is ArgumentException or IOException or UnauthorizedAccessException or SocketException)
        {
            await Console.Error.WriteLineAsync($"xenopsd guest: {e.Message}");
            return 2;
        }
    }

    public async ValueTask DisposeAsync()
    {
        if (guest is not null)
            await guest.DisposeAsync();
        turn.Dispose();
    }

    private async Task ServeAsync(string socket)
    {
        SocketFile.RemoveStale(socket);
        await using WebApplication web = RpcSocket.Build(socket, dispatcher.HandleAsync);
        await web.StartAsync();
        RpcSocket.Protect(socket);
        Task ended = web.WaitForShutdownAsync();
        if (await Task.WhenAny(ended, created.Task, Task.Delay(CreateLimit)) is { } first && first != ended && first != created.Task)
            throw new IOException($"nobody asked for the guest within {CreateLimit.TotalSeconds:0} s");
        await ended;
    }

    private Dictionary<string, JsonRpcHandler> Methods() => new()
    {
        ["status"] = (_, _) => Task.FromResult(Reply()),
        ["create"] = Turn(async (_, token) =>
        {
            guest ??= await backend.CreateAsync(record.Vm, record.Disks, token);
            created.TrySetResult();
        }),
        ["boot"] = Turn((_, token) => Guest.BootAsync(token)),
        ["load"] = Turn((p, token) => Guest.LoadAsync(
            Member<byte[]>(p, "device_state"), Member<string>(p, "migration"), Member<ImageSummary>(p, "image"), token)),
        ["run"] = Turn((_, token) => Guest.RunAsync(token)),
        ["pause"] = async (p, token) => await InTurnAsync(
            async () => Reply(await Guest.TryPauseAsync(TimeSpan.FromMilliseconds(Member<int>(p, "deadline_ms")), (string?)p["migration"], token)), token),
        ["shutdown"] = Turn((_, token) => Guest.ShutDownAsync(token)),
        ["save"] = async (_, token) => await InTurnAsync(
            async () => Reply(deviceState: (await Guest.SaveDeviceStateAsync(token)).ToArray()), token),
        ["freeze"] = Turn((_, token) => Guest.FreezeAsync(token)),
        ["thaw"] = Turn((p, token) => Guest.ThawAsync(Member<IReadOnlyList<GuestDisk>>(p, "disks"), token)),
    };

    private JsonRpcHandler Turn(Func<JsonObject, CancellationToken, Task> action) => (parameters, token) => InTurnAsync(async () =>
    {
        await action(parameters, token);
        return Reply();
    }, token);

    private async Task<JsonNode?> InTurnAsync(Func<Task<JsonNode?>> action, CancellationToken cancellationToken)
    {
        await turn.WaitAsync(cancellationToken);
        try
        {
            return await action();
        }
        finally
        {
            turn.Release();
        }
    }

    private JsonNode? Reply(bool drained = true, byte[]? deviceState = null) => JsonSerializer.SerializeToNode(
        new GuestReply(Environment.ProcessId, memory.Path, guest?.Status ?? new GuestStatus(GuestPhase.Created), drained, deviceState), Json.Options);

    private static T Member<T>(JsonObject parameters, string name)
    {
        try
        {
            JsonNode node = parameters[name] ?? throw XenopsException.Internal($"the parameter \"{name}\" is missing");
            return node.Deserialize<T>(Json.Options)!;
        }
        catch (JsonException e)
        {
            throw XenopsException.Internal($"the parameter \"{name}\" is malformed: {e.Message}");
        }
    }
}
