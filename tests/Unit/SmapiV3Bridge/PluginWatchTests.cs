using SmapiV3Bridge;
using Support;

namespace Unit.SmapiV3BridgeTests;

public sealed class PluginWatchTests
{
    [Fact]
    public async Task A_plugin_that_comes_and_one_that_goes_are_each_looked_at_once_when_the_folder_is_quiet()
    {
        using TemporaryDirectory folder = new();
        ArmedTime time = new();
        int looks = 0;
        TaskCompletionSource looked = new();
        await using PluginWatch watch = new(
            folder.Path,
            _ =>
            {
                looks++;
                looked.TrySetResult();
                return Task.CompletedTask;
            },
            time);
        Directory.CreateDirectory(folder.File("volume/org.xen.xapi.storage.new"));
        File.WriteAllText(folder.File("volume/org.xen.xapi.storage.new/Plugin.Query"), "#!/bin/sh\n");
        await time.Armed.Task.WaitAsync(TimeSpan.FromSeconds(30));
        Assert.Equal(0, looks);
        await QuietAsync();
        Assert.Equal(1, looks);

        (time.Armed, looked) = (new TaskCompletionSource(), new TaskCompletionSource());
        Directory.Delete(folder.File("volume"), recursive: true);
        await time.Armed.Task.WaitAsync(TimeSpan.FromSeconds(30));
        await QuietAsync();
        Assert.Equal(2, looks);

        async Task QuietAsync()
        {
            time.Manual.Advance(PluginWatch.Settling);
            await looked.Task.WaitAsync(TimeSpan.FromSeconds(30));
        }
    }

    [Fact]
    public void A_folder_that_is_not_there_is_refused() =>
        Assert.Throws<IOException>(() => new PluginWatch("/nowhere/at/all", static _ => Task.CompletedTask, TimeProvider.System));

    /// <summary>Says when somebody has set a timer.</summary>
    private sealed class ArmedTime : TimeProvider
    {
        public ManualTime Manual { get; } = new();

        public TaskCompletionSource Armed { get; set; } = new();

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period) =>
            new ArmedTimer(this, Manual.CreateTimer(callback, state, dueTime, period));

        private sealed class ArmedTimer(ArmedTime owner, ITimer timer) : ITimer
        {
            public bool Change(TimeSpan dueTime, TimeSpan period)
            {
                bool isSet = timer.Change(dueTime, period);
                owner.Armed.TrySetResult();
                return isSet;
            }

            public void Dispose() => timer.Dispose();

            public ValueTask DisposeAsync() => timer.DisposeAsync();
        }
    }
}
