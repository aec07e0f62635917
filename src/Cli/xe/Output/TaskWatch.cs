// A task of the pool, from its start to its end. An interrupt asks the pool to cancel it, and what became of it is told; a second one
// leaves the task to itself and tells its uuid. A pool that cannot be reached for a while does not end the watch: the work goes on there.
using System.Diagnostics;
using System.Text.Json.Nodes;
using Xe.Api;
using Xe.Grammar;

namespace Xe.Output;

internal sealed class TaskWatch(PoolClient pool, Interrupts interrupts, TextWriter notes, ProgressView view)
{
    private static readonly TimeSpan Shortest = TimeSpan.FromMilliseconds(50);
    private static readonly TimeSpan Longest = TimeSpan.FromMilliseconds(500);
    private static readonly TimeSpan SilenceLimit = TimeSpan.FromSeconds(60);

    private bool isCancelAsked;

    /// <returns>The task's result, null when it has none; and its other_config.</returns>
    /// <exception cref="XeException">1: it failed; 3: its pool went away; 130: it was cancelled, or left.</exception>
    public async Task<(JsonNode? Result, JsonObject Told)> RunAsync(string method, string what, IReadOnlyList<JsonNode?> arguments)
    {
        string task = await pool.TextAsync($"Async.{method}", interrupts.Insisted, [.. arguments]);
        JsonObject record = await view.RunAsync(show => AwaitEndAsync(task, what, show));
        await ForgetAsync(task);
        JsonObject config = record["other_config"] as JsonObject ?? [];
        if (config["leftover"] is { } leftover)
            notes.WriteLine($"{what} is done, and something of it could not be cleaned up yet; the pool goes on trying: {leftover}");
        string detail = RecordOf(config["error_detail"]);
        switch (RecordOf(record["status"]))
        {
            case "success":
                if (isCancelAsked)
                    notes.WriteLine($"{what} was past the point where it could be cancelled: it is done");
                return (XmlRpc.ReadValue(RecordOf(record["result"])), config);
            case "cancelled":
                throw new XeException(ExitCodes.Interrupted, "TASK_CANCELLED", [task], $"{what} was cancelled; what it had begun is undone");
            default:
                throw XeException.Refused([.. (record["error_info"] as JsonArray ?? []).Select(RecordOf)], detail);
        }
    }

    private async Task<JsonObject> AwaitEndAsync(string task, string what, Action<TaskProgress> show)
    {
        TimeSpan interval = Shortest;
        Stopwatch silence = new();
        string uuid = "";
        while (true)
        {
            if (interrupts.Insisted.IsCancellationRequested)
                throw Left(what, uuid);
            try
            {
                JsonObject record = await pool.RecordAsync("task", task, interrupts.Insisted);
                silence.Reset();
                uuid = RecordOf(record["uuid"]);
                show(TaskProgress.Of(record));
                if (RecordOf(record["status"]) is not ("pending" or "cancelling"))
                    return record;
                if (interrupts.Asked.IsCancellationRequested && !isCancelAsked)
                    await CancelAsync(task, what);
            }
            catch (XeException e) when (e.ExitCode == ExitCodes.Unreachable && e.Code == "CANNOT_REACH")
            {
                silence.Start();
                if (silence.Elapsed > SilenceLimit)
                    throw XeException.Unreachable(pool.Name, $"{what} was begun, and its pool does not answer any more ({e.Detail}); its task is {uuid}");
            }
            catch (XeException e) when (e.Code is "SESSION_INVALID" or "HANDLE_INVALID")
            {
                throw XeException.Unreachable(
                    pool.Name, $"the pool's daemon was started again while {what} was under way, and knows its task {uuid} no more; xe migration-list and xe vm-list say what became of it");
            }
            catch (OperationCanceledException)
            {
                throw Left(what, uuid);
            }

            await Task.WhenAny(Task.Delay(interval, interrupts.Insisted));
            interval = interval < Longest ? interval * 1.2 : Longest;
        }
    }

    private async Task CancelAsync(string task, string what)
    {
        isCancelAsked = true;
        notes.WriteLine($"cancelling {what}; interrupt once more to leave it running");
        try
        {
            await pool.CallAsync("task.cancel", interrupts.Insisted, task);
        }
        catch (XeException e) when (e.ExitCode == ExitCodes.Refused)
        {
            notes.WriteLine($"{what} cannot be cancelled any more ({e.Code}); it goes on to its end");
        }
    }

    /// <summary>The row has said all it had to say.</summary>
    private async Task ForgetAsync(string task)
    {
        try
        {
            await pool.CallAsync("task.destroy", interrupts.Insisted, task);
        }
        catch (Exception e) when (e is XeException or OperationCanceledException)
        {
            // The pool collects it later.
        }
    }

    private static XeException Left(string what, string uuid) => new(
        ExitCodes.Interrupted, "INTERRUPTED", [uuid], $"{what} goes on without this command; its task is {uuid}: xe task-list uuid={uuid}, xe task-cancel uuid={uuid}");

    private static string RecordOf(JsonNode? node) => Objects.RecordView.Text(node);
}
