using Platform;
using Support;
using Vhd;
using Vhd.Collect;

namespace Unit.VhdCollectTests;

public sealed class CollectDowntimeTests
{
    private static readonly CancellationToken None = CancellationToken.None;

    [Fact]
    public async Task A_guest_waits_for_a_last_merge_for_ten_seconds_and_goes_on_as_before()
    {
        SimulatedDisk disk = new();
        ImageFolder folder = new(disk, "/sr");
        VhdImage.CreateDynamic(disk, folder.PathOf("d1"), 1 << 20, new VhdCreateOptions());
        folder.Fork("d1", "base", newKey: null);
        ManualTime time = new();
        TaskCompletionSource asked = new();
        SimulatedUsers users = new(disk)
        {
            Pausing = token =>
            {
                asked.TrySetResult();
                return Task.Delay(Timeout.InfiniteTimeSpan, token);
            },
        };
        users.Taps.Add(new TapReference(1, 0, "d1"));
        Task<CollectResult> collecting = new Collector(folder, users, new CollectorOptions { Time = time }, progress: null).RunAsync(None);
        await asked.Task;
        time.Advance(TimeSpan.FromSeconds(9.9));
        Assert.False(collecting.IsCompleted);
        time.Advance(TimeSpan.FromSeconds(0.2));
        CollectResult result = await collecting.WaitAsync(TimeSpan.FromSeconds(30));
        Assert.Empty(result.Steps);
        Assert.Contains("within 10 s", result.PutOff["d1"], StringComparison.Ordinal);
        Assert.Empty(users.Paused);
        Assert.Equal(["base", "d1"], folder.Keys());
        Assert.Empty(folder.Journals());
    }

    [Fact]
    public async Task A_rate_is_kept_by_waiting_and_a_lease_taken_meanwhile_ends_the_merge()
    {
        SimulatedDisk disk = new();
        ImageFolder folder = new(disk, "/sr");
        VhdImage.CreateDynamic(disk, folder.PathOf("d1"), 8 << 20, new VhdCreateOptions());
        folder.Fork("d1", "base1", newKey: null);
        VhdChain chain = VhdChain.Open(disk, folder.PathOf("d1"), new VhdOpenOptions());
        byte[] data = new byte[1 << 20];
        data.AsSpan().Fill(7);
        chain.Writer.PutData(0, data);
        chain.Writer.SyncNow();
        chain.Writer.Claim(0, data.Length);
        chain.Close();
        folder.Fork("d1", "base2", newKey: null);
        SimulatedUsers users = new(disk);
        // A byte a second, and time stands still: without the lease it would never end.
        CollectorOptions options = new() { Time = new ManualTime(), RateBytesPerSecond = 1, LeafLimitBytes = 0 };
        users.Leasing = () => users.LeasedKeys.Add("d1");
        CollectResult result = await Task.Run(() => new Collector(folder, users, options, progress: null).RunAsync(None)).WaitAsync(TimeSpan.FromSeconds(30));
        Assert.Equal("it was leased meanwhile", result.PutOff["base2"]);
        Assert.Equal(["base1", "base2", "d1"], folder.Keys());
    }
}
