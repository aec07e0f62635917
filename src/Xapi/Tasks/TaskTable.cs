// Tasks (research: xapi.md 4): the rows that clients watch, and the work behind them. Work belongs to the daemon, not to the session that
// asked for it. Rows are in memory only. Bounds: 200 rows; a completed one stays 65 minutes, or until its place is needed; a pending one
// that nobody runs and nobody touches stays 24 hours.
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;

namespace Xapi.Tasks;

public sealed class TaskTable : IAsyncDisposable
{
    private const int RowLimit = 200;
    private static readonly TimeSpan CompletedLife = TimeSpan.FromMinutes(65);
    private static readonly TimeSpan AbandonedLife = TimeSpan.FromHours(24);
    private static readonly TimeSpan StopDeadline = TimeSpan.FromSeconds(20);

    private readonly Lock gate = new();
    private readonly Dictionary<string, TaskRun> running = [];
    private readonly Dictionary<string, Task> started = [];
    private readonly HashSet<string> toDestroy = [];
    private readonly Dictionary<string, DateTimeOffset> touched = []; // Every row: its completion, or its last sign of life.
    private readonly PoolDatabase database;
    private readonly TimeProvider time;
    private readonly string hostRef;
    private readonly ITimer sweep;

    public TaskTable(PoolDatabase database, TimeProvider time, string hostRef)
    {
        this.database = database;
        this.time = time;
        this.hostRef = hostRef;
        sweep = time.CreateTimer(_ => Collect(), null, TimeSpan.FromMinutes(1), TimeSpan.FromMinutes(1));
    }

    /// <summary>Makes the row for work that is about to run; <see cref="RunAsync"/> or <see cref="Start"/> follows.</summary>
    /// <exception cref="XapiException">TOO_MANY_PENDING_TASKS.</exception>
    public TaskRun Begin(string label, Session? session, string subtaskOf)
    {
        lock (gate)
        {
            TaskRun run = new(database, Create(label, "", session, subtaskOf));
            running.Add(run.Ref, run);
            return run;
        }
    }

    /// <summary>A row whose work is somebody else's: a client or a driver reports its progress and its end.</summary>
    /// <exception cref="XapiException">TOO_MANY_PENDING_TASKS.</exception>
    public string CreateExternal(string label, string description, Session session, string subtaskOf)
    {
        lock (gate)
            return Create(label, description, session, subtaskOf);
    }

    /// <summary>Runs work to its end for a caller who waits; the row goes with it.</summary>
    public async Task<RpcValue> RunAsync(TaskRun run, FieldType resultType, Func<Task<RpcValue>> work)
    {
        try
        {
            return await CompleteAsync(run, resultType, work);
        }
        finally
        {
            Destroy(run.Ref);
        }
    }

    /// <summary>Runs work on its own; the row tells how it ended.</summary>
    public void Start(TaskRun run, FieldType resultType, Func<Task<RpcValue>> work)
    {
        lock (gate)
            started.Add(run.Ref, Task.Run(RunToEndAsync));

        async Task RunToEndAsync()
        {
            try
            {
                await CompleteAsync(run, resultType, work);
            }
            catch (XapiException)
            {
                // The row says so.
            }
            finally
            {
                lock (gate)
                    started.Remove(run.Ref);
            }
        }
    }

    /// <summary>Asks the work behind a task to stop. What does not look at its token runs to its end.</summary>
    /// <exception cref="XapiException">HANDLE_INVALID, or OPERATION_NOT_ALLOWED: it is finished or past its point of no return.</exception>
    public void Cancel(string reference)
    {
        TaskRun? run;
        lock (gate)
        {
            if (!database.GetSet("task", reference, "allowed_operations").Contains("cancel"))
                throw new XapiException("OPERATION_NOT_ALLOWED", $"the task {reference} cannot be cancelled (any more)");
            running.TryGetValue(reference, out run);
            database.SetInMap("task", reference, "current_operations", reference, "cancel");
        }

        if (run is not null && !run.TryCancel())
            throw new XapiException("OPERATION_NOT_ALLOWED", $"the task {reference} cannot be cancelled any more");
    }

    /// <summary>Removes the row, if it is there; of running work when it ends.</summary>
    public void Destroy(string reference)
    {
        lock (gate)
        {
            if (running.ContainsKey(reference))
            {
                toDestroy.Add(reference);
                database.SetInMap("task", reference, "current_operations", reference, "destroy");
                return;
            }

            if (database.Exists("task", reference))
                database.Destroy("task", reference);
            touched.Remove(reference);
            toDestroy.Remove(reference);
        }
    }

    /// <summary>An external worker reports; anything but pending and cancelling ends the task.</summary>
    public void SetStatus(string reference, string status)
    {
        lock (gate)
        {
            if (running.ContainsKey(reference))
                throw new XapiException("OPERATION_NOT_ALLOWED", $"the task {reference} is the server's own");
            if (status is "pending" or "cancelling")
            {
                database.Set("task", reference, "status", status);
                touched[reference] = time.GetUtcNow();
            }
            else
            {
                End(reference, status, "result", database.Get("task", reference, "result"));
            }
        }
    }

    /// <summary>An external worker reports progress or a result.</summary>
    public void SetField(string reference, string field, RpcValue value)
    {
        lock (gate)
        {
            database.Set("task", reference, field, value);
            touched[reference] = time.GetUtcNow();
        }
    }

    /// <summary>Removes the rows that have outlived their use.</summary>
    public void Collect()
    {
        lock (gate)
        {
            DateTimeOffset now = time.GetUtcNow();
            foreach ((string reference, DateTimeOffset at) in touched.Where(t => !running.ContainsKey(t.Key)).ToList())
            {
                if (now - at > (IsCompleted(reference) ? CompletedLife : AbandonedLife))
                    Destroy(reference);
            }
        }
    }

    /// <summary>Cancels all work and waits for it, up to a deadline.</summary>
    public async ValueTask DisposeAsync()
    {
        await sweep.DisposeAsync();
        List<TaskRun> runs;
        List<Task> ends;
        lock (gate)
        {
            runs = [.. running.Values];
            ends = [.. started.Values];
        }

        runs.ForEach(static r => r.Stop());
        await Task.WhenAny(Task.WhenAll(ends), Task.Delay(StopDeadline));
    }

    private async Task<RpcValue> CompleteAsync(TaskRun run, FieldType resultType, Func<Task<RpcValue>> work)
    {
        try
        {
            RpcValue result = await work();
            Finish(run, "success", "result", resultType is VoidType ? "" : XmlRpc.WriteValue(result));
            return result;
        }
        catch (OperationCanceledException) when (run.IsCancelRequested)
        {
            throw Fail(run, "cancelled", new XapiException("TASK_CANCELLED", run.Ref));
        }
        catch (XapiException e)
        {
            throw Fail(run, "failure", e);
        }
        catch (Exception e) // The work's boundary: whatever it was, the task ends and its watcher learns why.
        {
            throw Fail(run, "failure", new XapiException("INTERNAL_ERROR", $"{e.GetType().Name}: {e.Message}"));
        }
    }

    private XapiException Fail(TaskRun run, string status, XapiException error)
    {
        Finish(run, status, "error_info", RpcValue.Strings(error.Description));
        return error;
    }

    private void Finish(TaskRun run, string status, string field, RpcValue value)
    {
        lock (gate)
        {
            running.Remove(run.Ref);
            End(run.Ref, status, field, value);
        }

        run.Dispose();
    }

    private void End(string reference, string status, string field, RpcValue value)
    {
        DateTimeOffset now = time.GetUtcNow();
        touched[reference] = now;
        database.Transaction(() =>
        {
            database.Set("task", reference, field, value);
            database.Set("task", reference, "progress", new RpcDouble(1));
            database.Set("task", reference, "finished", DateTimeType.Of(now));
            database.Set("task", reference, "allowed_operations", RpcValue.Strings(["destroy"]));
            database.Set("task", reference, "current_operations", new RpcStruct([]));
            database.Set("task", reference, "status", status);
        });
        if (toDestroy.Contains(reference))
            Destroy(reference);
    }

    private string Create(string label, string description, Session? session, string subtaskOf)
    {
        MakeRoom();
        DateTimeOffset now = time.GetUtcNow();
        string reference = database.Create(
            "task",
            ("name_label", label),
            ("name_description", description),
            ("created", DateTimeType.Of(now)),
            ("status", "pending"),
            ("type", "<none/>"),
            ("session", session?.Ref ?? Ref.Null),
            ("resident_on", hostRef),
            ("subtask_of", subtaskOf.Length != 0 && database.Exists("task", subtaskOf) ? subtaskOf : Ref.Null),
            ("allowed_operations", RpcValue.Strings(["cancel", "destroy"])));
        touched[reference] = now;
        return reference;
    }

    private void MakeRoom()
    {
        if (touched.Count < RowLimit)
            return;
        string oldest = touched.Where(t => IsCompleted(t.Key)).OrderBy(static t => t.Value).Select(static t => t.Key).FirstOrDefault()
            ?? throw new XapiException("TOO_MANY_PENDING_TASKS");
        Destroy(oldest);
    }

    private bool IsCompleted(string reference) =>
        database.GetString("task", reference, "status") is "success" or "failure" or "cancelled";
}
