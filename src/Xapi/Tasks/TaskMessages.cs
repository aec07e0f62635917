using Xapi.Rpc;

namespace Xapi.Tasks;

/// <summary>The messages of class task that are more than a field (research: xapi.md 4).</summary>
public static class TaskMessages
{
    public static void AddTo(MessageTable messages, TaskTable tasks)
    {
        messages.Add("task.create", (context, a) =>
            tasks.CreateExternal(a[0].AsString(), a[1].AsString(), context.Session, context.Origin.SubtaskOf));
        messages.Add("task.cancel", (_, a) =>
        {
            tasks.Cancel(a[0].AsString());
            return "";
        });
        messages.Add("task.destroy", (context, a) =>
        {
            // A row that is not there is an error for the client, while the collector may well have been faster than we.
            _ = context.Database.Get("task", a[0].AsString(), "status");
            tasks.Destroy(a[0].AsString());
            return "";
        });
        messages.Add("task.set_status", (_, a) =>
        {
            tasks.SetStatus(a[0].AsString(), a[1].AsString());
            return "";
        });
        foreach (string field in (string[])["progress", "result", "error_info"])
        {
            messages.Add($"task.set_{field}", (_, a) =>
            {
                tasks.SetField(a[0].AsString(), field, a[1]);
                return "";
            });
        }
    }
}
