using StorageAccess.Wire;
using Xapi;
using Xapi.Rpc;
using Xapi.Tasks;

namespace Unit.XapiTests;

public sealed class TaskTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();
    private readonly TaskCompletionSource<RpcValue> work = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly TaskCompletionSource<CallContext> begun = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public TaskTests() => world.Messages.Declare("VM.work", "(label:string)", "ref VM", isAsync: true, async (context, _) =>
    {
        begun.TrySetResult(context);
        return await work.Task.WaitAsync(context.CancellationToken);
    });

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public async Task An_asynchronous_call_answers_at_once_and_its_row_tells_the_rest()
    {
        string task = world.Call("Async.VM.work", "x").AsString();
        CallContext context = await begun.Task;
        RpcStruct pending = world.Call("task.get_record", task).AsStruct();
        Assert.Equal("Async.VM.work", pending.Get("name_label"));
        Assert.Equal("pending", pending.Get("status"));
        Assert.Equal(new RpcDateTime("19700101T00:00:00Z"), pending.Get("finished"));
        Assert.Equal(RpcValue.Strings(["cancel", "destroy"]), pending.Get("allowed_operations"));
        context.Task.SetProgress(0.5);
        context.Task.SetOtherConfig("k", "v");
        context.Task.SetOtherConfig("k", "w");
        Assert.Equal(new RpcDouble(0.5), world.Call("task.get_progress", task));
        work.SetResult("OpaqueRef:a&b");
        await EndAsync(task);
        RpcStruct done = world.Call("task.get_record", task).AsStruct();
        Assert.Equal("success", done.Get("status"));
        Assert.Equal("<value>OpaqueRef:a&amp;b</value>", done.Get("result"));
        Assert.Equal(new RpcDouble(1), done.Get("progress"));
        Assert.NotEqual(pending.Get("finished"), done.Get("finished"));
        Assert.Equal(RpcValue.Struct(("k", "w")), done.Get("other_config"));
        Assert.Equal(RpcValue.Strings(["destroy"]), done.Get("allowed_operations"));
    }

    [Fact]
    public async Task A_void_message_leaves_an_empty_result()
    {
        world.Messages.Add("SR.scan", static (_, _) => "");
        string task = world.Call("Async.SR.scan", "x").AsString();
        await EndAsync(task);
        Assert.Equal("", world.Call("task.get_result", task));
    }

    [Fact]
    public async Task A_failure_is_in_error_info()
    {
        string task = world.Call("Async.VM.work", "x").AsString();
        work.SetException(new XapiException("SR_BACKEND_FAILURE_44", "", "full", ""));
        await EndAsync(task);
        Assert.Equal("failure", world.Call("task.get_status", task));
        Assert.Equal(RpcValue.Strings(["SR_BACKEND_FAILURE_44", "", "full", ""]), world.Call("task.get_error_info", task));
    }

    [Fact]
    public async Task A_cancelled_task_says_so()
    {
        string task = world.Call("Async.VM.work", "x").AsString();
        await begun.Task;
        world.Call("task.cancel", task);
        await EndAsync(task);
        Assert.Equal("cancelled", world.Call("task.get_status", task));
        Assert.Equal(RpcValue.Strings(["TASK_CANCELLED", task]), world.Call("task.get_error_info", task));
        Assert.StartsWith("OPERATION_NOT_ALLOWED", world.Refusal("task.cancel", task), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Beyond_its_point_of_no_return_a_task_cannot_be_cancelled_and_before_it_not_passed_once_cancelled()
    {
        string task = world.Call("Async.VM.work", "x").AsString();
        CallContext context = await begun.Task;
        context.Task.ForbidCancel();
        Assert.StartsWith("OPERATION_NOT_ALLOWED", world.Refusal("task.cancel", task), StringComparison.Ordinal);
        Assert.False(context.CancellationToken.IsCancellationRequested);
        work.SetResult("x");
        await EndAsync(task);
        Assert.Equal("success", world.Call("task.get_status", task));

        TaskRun cancelled = world.Tasks.Begin("x", null, "");
        world.Tasks.Cancel(cancelled.Ref);
        Assert.Throws<OperationCanceledException>(cancelled.ForbidCancel);
    }

    [Fact]
    public async Task Work_goes_on_when_its_session_logs_out()
    {
        string session = world.Call("session.login_with_password", ApiWorld.Local, "root", "").AsString();
        string task = world.Call("Async.VM.work", ApiWorld.Tcp, session, "x").AsString();
        CallContext context = await begun.Task;
        world.Call("session.logout", ApiWorld.Tcp, session);
        context.Task.SetProgress(0.9);
        work.SetResult("x");
        await EndAsync(task);
        Assert.Equal("success", world.Call("task.get_status", task));
    }

    [Fact]
    public async Task A_synchronous_call_has_a_row_while_it_runs()
    {
        CallOrigin child = new(false, "", world.Call("task.create", "parent", "").AsString());
        Task<RpcValue> call = world.CallAsync("VM.work", child, world.User, "x");
        CallContext context = await begun.Task;
        string parent = world.Database.GetRef("task", context.Task.Ref, "subtask_of");
        Assert.Equal("parent", world.Call("task.get_name_label", parent));
        Assert.Equal([context.Task.Ref], world.Database.GetSet("task", parent, "subtasks"));
        work.SetResult("done");
        Assert.Equal("done", await call);
        Assert.False(world.Database.Exists("task", context.Task.Ref));
    }

    [Fact]
    public async Task Destroying_a_running_task_waits_for_its_end()
    {
        string task = world.Call("Async.VM.work", "x").AsString();
        await begun.Task;
        world.Call("task.destroy", task);
        Assert.Equal("pending", world.Call("task.get_status", task));
        work.SetResult("x");
        await ApiWorld.UntilAsync(() => !world.Database.Exists("task", task), "the row is gone");
        Assert.Equal($"HANDLE_INVALID task {task}", world.Refusal("task.destroy", task));
    }

    [Fact]
    public void An_external_worker_reports_through_messages()
    {
        string task = world.Call("task.create", "gc", "").AsString();
        world.Call("task.set_progress", task, new RpcDouble(0.25));
        world.Call("task.cancel", task);
        Assert.Equal("cancel", world.Call("task.get_current_operations", task).AsMap()[task]);
        world.Call("task.set_error_info", task, RpcValue.Strings(["A", "b"]));
        world.Call("task.set_result", task, "r");
        world.Call("task.set_status", task, "failure");
        RpcStruct record = world.Call("task.get_record", task).AsStruct();
        Assert.Equal(("r", "failure"), (record.Get("result").AsString(), record.Get("status").AsString()));
        Assert.Equal(new RpcDouble(1), record.Get("progress"));
        Assert.Equal("INVALID_VALUE value done", world.Refusal("task.set_status", task, "done"));
    }

    [Fact]
    public void Completed_rows_go_after_65_minutes_and_abandoned_ones_after_24_hours()
    {
        string done = world.Call("task.create", "done", "").AsString();
        string pending = world.Call("task.create", "pending", "").AsString();
        world.Call("task.set_status", done, "success");
        world.Time.Advance(TimeSpan.FromMinutes(64));
        Assert.True(world.Database.Exists("task", done));
        world.Time.Advance(TimeSpan.FromMinutes(2));
        Assert.False(world.Database.Exists("task", done));
        world.Time.Advance(TimeSpan.FromHours(20));
        world.Call("task.set_progress", pending, new RpcDouble(0.5));
        world.Time.Advance(TimeSpan.FromHours(23));
        Assert.True(world.Database.Exists("task", pending));
        world.Time.Advance(TimeSpan.FromHours(2));
        Assert.False(world.Database.Exists("task", pending));
    }

    [Fact]
    public void Rows_are_bounded_completed_ones_make_room()
    {
        List<string> tasks = Enumerable.Range(0, 200).Select(i => world.Call("task.create", $"{i}", "").AsString()).ToList();
        Assert.Equal("TOO_MANY_PENDING_TASKS", world.Refusal("task.create", "201", ""));
        world.Call("task.set_status", tasks[7], "success");
        world.Call("task.create", "201", "");
        Assert.False(world.Database.Exists("task", tasks[7]));
        Assert.Equal(200, world.Database.All("task").Count);
    }

    [Fact]
    public async Task The_daemons_end_cancels_all_work()
    {
        string task = world.Call("Async.VM.work", "x").AsString();
        await begun.Task;
        await world.Tasks.DisposeAsync();
        Assert.Equal("cancelled", world.Database.GetString("task", task, "status"));
    }

    private Task EndAsync(string task) =>
        ApiWorld.UntilAsync(() => world.Database.GetString("task", task, "status") != "pending", "the task ends");
}
