using Support;
using Xenops;
using Xenops.Queues;

namespace Unit.XenopsTests;

public class QueueTests
{
    private static readonly CancellationToken None = CancellationToken.None;

    private readonly WorkQueues<string> queues = new(limit: 8, static item => item.EndsWith("check_state", StringComparison.Ordinal));

    [Fact]
    public void Tags_take_turns_and_within_one_the_first_is_first()
    {
        foreach ((string tag, string item) in (ReadOnlySpan<(string, string)>)[("a", "a1"), ("a", "a2"), ("c", "c1"), ("b", "b1")])
            queues.Push(tag, item);
        Assert.Equal(["a1", "b1", "c1", "a2"], Drain());
    }

    [Fact]
    public void Nothing_of_a_tag_is_handed_out_while_something_is_done_for_it()
    {
        queues.Push("a", "a1");
        queues.Push("a", "a2");
        Assert.True(queues.TryTake(out string tag, out _));
        Assert.False(queues.TryTake(out _, out _));
        queues.Finished(tag);
        Assert.Equal(["a2"], Drain());
    }

    [Fact]
    public void Of_equal_checks_that_wait_one_is_kept_and_of_operations_all()
    {
        foreach (string item in (ReadOnlySpan<string>)["VM_check_state", "VM_start", "VM_check_state", "VM_start"])
            queues.Push("a", item);
        Assert.Equal(["VM_check_state", "VM_start", "VM_start"], Drain());
    }

    [Fact]
    public void Another_name_means_the_tag_while_it_is_served_and_itself_afterwards()
    {
        queues.Alias("tmp", "vm"); // Nothing is done for it: nothing happens.
        queues.Push("tmp", "receive");
        Assert.True(queues.TryTake(out string tag, out _));
        queues.Alias("tmp", "vm");
        queues.Push("vm", "pause");
        Assert.False(queues.TryTake(out _, out _));
        queues.Finished(tag);
        Assert.True(queues.TryTake(out tag, out string item));
        Assert.Equal(("tmp", "pause"), (tag, item));
        queues.Push("vm", "start");
        Assert.True(queues.TryTake(out string other, out _));
        Assert.Equal("vm", other);
    }

    [Fact]
    public void A_full_queue_refuses()
    {
        for (int i = 0; i < 8; i++)
            queues.Push("a", $"a{i}");
        Assert.Contains("wait already", Assert.Throws<XenopsException>(() => queues.Push("b", "b1")).Message);
    }

    [Fact]
    public async Task Updates_tell_each_id_once_in_the_order_of_its_last_change_and_a_removed_one_not_at_all()
    {
        Updates<string> updates = new(TimeProvider.System);
        foreach (string id in (ReadOnlySpan<string>)["a", "b", "c", "a"])
            updates.Add(id);
        updates.Remove("b");
        Changes<string> changes = await updates.GetAsync(0, TimeSpan.Zero, None);
        Assert.Equal(["c", "a"], changes.Changed);
        Changes<string> nothing = await updates.GetAsync(changes.Next, TimeSpan.Zero, None);
        Assert.Equal((0, 0, changes.Next), (nothing.Changed.Count, nothing.Barriers.Count, nothing.Next));
    }

    [Fact]
    public async Task A_barrier_tells_what_changed_before_it_and_is_told_until_it_is_removed()
    {
        Updates<string> updates = new(TimeProvider.System);
        updates.Add("vm/1");
        updates.Add("task/1");
        updates.InjectBarrier(7, static id => id.StartsWith("vm/", StringComparison.Ordinal));
        updates.Add("vm/1");
        Changes<string> changes = await updates.GetAsync(0, TimeSpan.Zero, None);
        Assert.Equal(["vm/1"], Assert.Single(changes.Barriers).Changed);
        Assert.Equal(["task/1", "vm/1"], changes.Changed);
        Assert.Equal(updates.LastId, changes.Next);
        Assert.Single((await updates.GetAsync(0, TimeSpan.Zero, None)).Barriers);
        updates.RemoveBarrier(7);
        Assert.Empty((await updates.GetAsync(0, TimeSpan.Zero, None)).Barriers);
    }

    [Fact]
    public async Task Whoever_waits_for_a_change_gets_it_and_on_a_timeout_the_number_it_came_with()
    {
        ManualTime time = new();
        Updates<string> updates = new(time);
        Task<Changes<string>> waiting = updates.GetAsync(0, TimeSpan.FromSeconds(30), None);
        updates.Add("a");
        Assert.Equal(["a"], (await waiting).Changed);
        waiting = updates.GetAsync(1, TimeSpan.FromSeconds(30), None);
        Assert.False(waiting.IsCompleted);
        time.Advance(TimeSpan.FromSeconds(30));
        Assert.Equal(1, (await waiting).Next);
    }

    [Fact]
    public async Task An_operation_can_be_cancelled_at_each_point_that_was_counted_and_not_behind_the_last()
    {
        CancellationPoints counted = new("task");
        Assert.Equal("done", await RunAsync(counted));
        Assert.Equal(4, counted.Seen);
        for (int point = 1; point <= 3; point++)
            Assert.Equal("Cancelled", (await Assert.ThrowsAsync<XenopsException>(() => RunAsync(new CancellationPoints("task", point)))).Tag);
        Assert.Equal("done", await RunAsync(new CancellationPoints("task", 4)));
    }

    [Fact]
    public async Task What_a_task_waits_for_is_told_of_the_cancellation()
    {
        CancellationPoints points = new("task");
        TaskCompletionSource<int> wait = new();
        Task<int> waiting = points.WithCancelAsync(() => wait.TrySetException(XenopsException.Cancelled("task")), () => wait.Task);
        points.Cancel();
        await Assert.ThrowsAsync<XenopsException>(() => waiting);
        Assert.Throws<XenopsException>(points.Check);
    }

    private static async Task<string> RunAsync(CancellationPoints points)
    {
        points.Check();
        await points.WithCancelAsync(static () => { }, static () => Task.FromResult(0));
        points.Prohibit();
        points.Cancel();
        points.Check();
        return "done";
    }

    private List<string> Drain()
    {
        List<string> items = [];
        while (queues.TryTake(out string tag, out string item))
        {
            items.Add(item);
            queues.Finished(tag);
        }

        return items;
    }
}
