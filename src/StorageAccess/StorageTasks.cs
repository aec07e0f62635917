// TASK.*: the layer's own long work (DATA.copy), as the field's Task.t (research/storage.md 1.3, 1.5). Bounded: so many run at once, and the
// oldest finished ones are forgotten.
using System.Globalization;
using System.Text.Json.Nodes;

namespace StorageAccess;

/// <summary>Work with progress that can be cancelled. Thread-safe; disposing cancels what runs and waits for it.</summary>
public sealed class StorageTasks(StorageUpdates updates, TimeProvider time) : IAsyncDisposable
{
    private const int RunningLimit = 16;
    private const int KeptLimit = 256;

    private readonly Dictionary<string, Entry> entries = [];
    private readonly Lock gate = new();
    private long last;

    /// <returns>The task's id.</returns>
    /// <param name="work">Answers the task's result, an <c>async_result</c>.</param>
    internal string Start(string dbg, Func<IProgress<double>, CancellationToken, Task<JsonNode>> work)
    {
        Entry entry;
        lock (gate)
        {
            if (entries.Values.Count(static e => e.State is Pending) >= RunningLimit)
                throw StorageException.Internal($"{RunningLimit} storage tasks run already; wait for one of them");
            foreach (Entry old in entries.Values.Where(static e => e.State is not Pending).OrderBy(static e => e.Number)
                .Take(Math.Max(0, entries.Count - KeptLimit)).ToList())
            {
                entries.Remove(old.Id);
                old.Cancel.Dispose();
            }

            entry = new Entry(++last, dbg, time.GetUtcNow());
            entries.Add(entry.Id, entry);
            entry.Running = RunAsync(entry, work);
        }

        return entry.Id;
    }

    internal JsonNode Stat(string id) => Write(Find(id));

    internal JsonArray List()
    {
        lock (gate)
            return new JsonArray([.. entries.Values.OrderBy(static e => e.Number).Select(Write)]);
    }

    /// <summary>Asks it to end; nothing to do when it has ended.</summary>
    internal void Cancel(string id) => Find(id).Cancel.Cancel();

    /// <summary>Forgets it; one that still runs is cancelled first.</summary>
    internal async Task DestroyAsync(string id)
    {
        Entry entry = Find(id);
        await entry.Cancel.CancelAsync();
        await entry.Running;
        lock (gate)
            entries.Remove(id);
        entry.Cancel.Dispose();
    }

    public async ValueTask DisposeAsync()
    {
        List<Entry> all;
        lock (gate)
            all = [.. entries.Values];
        foreach (Entry entry in all)
            await entry.Cancel.CancelAsync();
        await Task.WhenAll(all.Select(static entry => entry.Running));
        all.ForEach(static entry => entry.Cancel.Dispose());
    }

    private async Task RunAsync(Entry entry, Func<IProgress<double>, CancellationToken, Task<JsonNode>> work)
    {
        await Task.Yield(); // The caller gets the id first.
        try
        {
            JsonNode result = await work(new Steps(this, entry), entry.Cancel.Token);
            Set(entry, new Completed((time.GetUtcNow() - entry.Created).TotalSeconds, result));
        }
        catch (Exception e)
        {
            Set(entry, new Failed(StorageWire.WriteError(e is OperationCanceledException ? StorageException.Cancelled(entry.Id) : e)));
        }
    }

    private void Set(Entry entry, TaskState state)
    {
        lock (gate)
            entry.State = state;
        updates.Add(Changed.Task(entry.Id));
    }

    private Entry Find(string id)
    {
        lock (gate)
            return entries.TryGetValue(id, out Entry? entry) ? entry : throw StorageException.DoesNotExist("task", id);
    }

    private static JsonNode Write(Entry entry) => new JsonObject
    {
        ["id"] = entry.Id,
        ["dbg"] = entry.Dbg,
        ["ctime"] = entry.Created.ToUnixTimeMilliseconds() / 1000.0,
        ["state"] = entry.State switch
        {
            Pending pending => new JsonArray("Pending", pending.Progress),
            Completed completed => new JsonArray(
                "Completed", new JsonObject { ["duration"] = completed.DurationSeconds, ["result"] = completed.Result.DeepClone() }),
            Failed failed => new JsonArray("Failed", failed.Error.DeepClone()),
            _ => throw new ArgumentOutOfRangeException(nameof(entry)),
        },
        ["subtasks"] = new JsonArray(),
        ["debug_info"] = new JsonArray(),
        ["backtrace"] = "",
        ["cancellable"] = true,
    };

    private abstract record TaskState;

    private sealed record Pending(double Progress) : TaskState;

    private sealed record Completed(double DurationSeconds, JsonNode Result) : TaskState;

    private sealed record Failed(JsonNode Error) : TaskState;

    private sealed class Entry(long number, string dbg, DateTimeOffset created)
    {
        public long Number => number;

        public string Id { get; } = number.ToString(CultureInfo.InvariantCulture);

        public string Dbg => dbg;

        public DateTimeOffset Created => created;

        public CancellationTokenSource Cancel { get; } = new();

        public TaskState State { get; set; } = new Pending(0);

        public Task Running { get; set; } = Task.CompletedTask;
    }

    private sealed class Steps(StorageTasks owner, Entry entry) : IProgress<double>
    {
        private const double Step = 0.01; // News for every per cent, not for every chunk.
        private double told;

        public void Report(double value)
        {
            if (value < told + Step)
                return;
            told = value;
            owner.Set(entry, new Pending(value));
        }
    }
}
