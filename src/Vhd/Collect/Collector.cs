// The collector of one SR folder: takes the plan's next step until there is none. Deletes, splits and last merges are made under the
// folder's lock; an inner merge runs without it and takes it again to give the parent its children. One collector at a time is the caller's
// duty. What a death of it leaves is in its journals (CollectJournal.cs).
using System.Diagnostics;
using Platform;

namespace Vhd.Collect;

public sealed record CollectorOptions
{
    /// <summary>For merges that no guest waits for; 0 for none.</summary>
    public long RateBytesPerSecond { get; init; }

    public bool IsOneStep { get; init; }

    /// <summary>What a last merge may have to write while the guest waits, as long as nothing is known of the disk's speed.</summary>
    public long LeafLimitBytes { get; init; } = 20 << 20;

    public TimeProvider Time { get; init; } = TimeProvider.System;
}

/// <param name="Text">What is done, for people.</param>
public readonly record struct CollectProgress(string Text, long DoneBlocks, long TotalBlocks);

/// <param name="Steps">What was done, in its order.</param>
/// <param name="PutOff">Images that could be collected and were not, and why.</param>
public sealed record CollectResult(IReadOnlyList<CollectStep> Steps, IReadOnlyDictionary<string, string> PutOff);

public sealed class Collector
{
    private const int EstimateSeconds = 5;
    private const int MaxSplitsOfADisk = 20;
    private const int MaxSplitsWithoutProgress = 3;
    private static readonly TimeSpan DowntimeLimit = TimeSpan.FromSeconds(10);

    private readonly ImageFolder folder;
    private readonly IFolderUsers users;
    private readonly CollectorOptions options;
    private readonly IProgress<CollectProgress>? progress;
    private readonly List<CollectStep> done = [];
    private readonly Dictionary<string, string> putOff = [];
    private readonly Dictionary<string, (int Splits, int Worse, long LeastBytes)> splits = [];
    private long mergedBytes;
    private double mergeSeconds;

    public Collector(ImageFolder folder, IFolderUsers users, CollectorOptions options, IProgress<CollectProgress>? progress)
    {
        this.folder = folder;
        this.users = users;
        this.options = options;
        this.progress = progress;
    }

    /// <summary>Runs until nothing is left to do. Cancelled, it ends in order after the block it is at; nothing is lost.</summary>
    public async Task<CollectResult> RunAsync(CancellationToken cancellationToken)
    {
        await DropMergesAsync(cancellationToken);
        while (await StepAsync(cancellationToken) && !(options.IsOneStep && done.Count > 0))
            cancellationToken.ThrowIfCancellationRequested();
        return new CollectResult(done, putOff);
    }

    /// <summary>
    /// Merges that a dead collector left: the plan finds again what is worth going on with, and the parent is given its shape.
    /// </summary>
    private async Task DropMergesAsync(CancellationToken cancellationToken)
    {
        using IDisposable held = await CollectRecovery.LockAsync(folder, users, cancellationToken);
        foreach (string key in folder.Journals())
        {
            if (folder.ReadJournal(key) is not { Stage: CollectStage.Merge } journal)
                continue;
            try
            {
                if (folder.Has(journal.Parent))
                    VhdResize.Tidy(folder.Store, folder.PathOf(journal.Parent));
            }
            catch (IOException e)
            {
                putOff[key] = e.Message;
            }

            folder.RemoveJournal(key);
        }
    }

    /// <returns>False: there is nothing to do.</returns>
    private async Task<bool> StepAsync(CancellationToken cancellationToken)
    {
        CollectStep step;
        using (await CollectRecovery.LockAsync(folder, users, cancellationToken))
        {
            if (folder.Journals() is [{ } unfinished, ..])
            {
                putOff[unfinished] = $"its journal {CollectJournal.Prefix}{unfinished} could not be finished; nothing is done until it is";
                return false;
            }

            FolderUse use = await users.LookAsync(cancellationToken);
            ImageForest forest = folder.Scan(use, LimitBytes + 1);
            if (CollectPlan.Next(forest, LimitBytes, putOff) is not { } next)
            {
                TellWhatIsLeft(forest);
                return false;
            }

            step = next;
            if (!await TryAsync(step, () => UnderLockAsync(step, forest, use, cancellationToken)))
                return true;
        }

        if (step.Action != CollectAction.Inner || await MergeInnerAsync(step, cancellationToken))
            done.Add(step);
        return true;
    }

    /// <summary>A change under the folder's lock. One that fails is undone or finished at once, and the image put off.</summary>
    private async Task<bool> TryAsync(CollectStep step, Func<Task> change)
    {
        try
        {
            await change();
            return true;
        }
        catch (IOException e)
        {
            await CollectRecovery.RecoverAsync(folder, users);
            putOff[step.Key] = e.Message;
            return false;
        }
        catch (OperationCanceledException)
        {
            await CollectRecovery.RecoverAsync(folder, users);
            throw;
        }
    }

    private async Task UnderLockAsync(CollectStep step, ImageForest forest, FolderUse use, CancellationToken cancellationToken)
    {
        using IDisposable leases = users.TryHold(TouchedKeys(forest, step)) ?? throw new IOException("it is leased");
        Tell(step, 0, 0);
        switch (step.Action)
        {
            case CollectAction.Delete:
                folder.Delete(step.Key);
                break;
            case CollectAction.Split:
                await SplitAsync(step, forest.Find(step.Key)!, use, cancellationToken);
                break;
            case CollectAction.Leaf:
                await MergeLeafAsync(step, use, cancellationToken);
                break;
            case CollectAction.Inner:
                await BeginInnerAsync(step, forest, use, cancellationToken);
                break;
        }
    }

    private async Task BeginInnerAsync(CollectStep step, ImageForest forest, FolderUse use, CancellationToken cancellationToken)
    {
        if (forest.Find(step.Parent)!.VirtualSizeBytes < forest.Find(step.Key)!.VirtualSizeBytes)
        {
            CollectJournal grow = JournalOf(CollectStage.Grow, step, [], TapsAbove(forest, step.Parent, use));
            folder.WriteJournal(grow);
            await PauseAllAsync(grow, cancellationToken);
            await CollectRecovery.FinishAsync(folder, users, grow);
        }

        folder.WriteJournal(JournalOf(CollectStage.Merge, step, [], []));
    }

    /// <summary>Without the folder's lock: what goes on above the parent meanwhile reads the same, and a new lease ends it.</summary>
    private async Task<bool> MergeInnerAsync(CollectStep step, CancellationToken cancellationToken)
    {
        string? failure = Merge(step, cancellationToken);
        using IDisposable held = await CollectRecovery.LockAsync(folder, users, CancellationToken.None);
        FolderUse use = await users.LookAsync(CancellationToken.None);
        ImageForest forest = folder.Scan(use, 0);
        using IDisposable? leases = users.TryHold(TouchedKeys(forest, step));
        (CollectStep Step, string? WhyNot)? now = CollectPlan.For(forest, step.Key, 0);
        failure ??= leases is null ? "it was leased meanwhile" : now?.WhyNot;
        if (failure is null && now?.Step == step)
        {
            CollectJournal relink = JournalOf(
                CollectStage.Relink, step, forest.ChildrenOf(step.Key), TapsAbove(forest, step.Key, use));
            folder.WriteJournal(relink);
            return await TryAsync(step, () => CollectRecovery.FinishAsync(folder, users, relink));
        }

        // The parent holds more than it must, under sectors that the image holds: nobody sees it.
        folder.RemoveJournal(step.Key);
        cancellationToken.ThrowIfCancellationRequested();
        // Without a failure it is a driver that changed what there is to do with the image: the plan looks again.
        if (failure is not null && now is not null)
            putOff[step.Key] = failure;
        return false;
    }

    /// <returns>Why it did not come to its end; null when it did.</returns>
    private string? Merge(CollectStep step, CancellationToken cancellationToken)
    {
        using CancellationTokenSource stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        MergePace pace = new(this, step, stop);
        Stopwatch watch = Stopwatch.StartNew();
        try
        {
            VhdCoalesceResult result = VhdCoalesce.Run(folder.Store, folder.PathOf(step.Key), new VhdCoalesceOptions(), pace, stop.Token);
            mergedBytes += result.WrittenBytes;
            mergeSeconds += watch.Elapsed.TotalSeconds;
            return null;
        }
        catch (OperationCanceledException)
        {
            return "it was leased meanwhile";
        }
        catch (IOException e)
        {
            return e.Message;
        }
    }

    /// <summary>What the disk holds becomes an inner image, which is merged while the guest goes on writing into the empty disk.</summary>
    private async Task SplitAsync(CollectStep step, ImageNode disk, FolderUse use, CancellationToken cancellationToken)
    {
        (int count, int worse, long least) = splits.GetValueOrDefault(step.Key, (0, 0, long.MaxValue));
        worse = disk.HeldBytes < least ? 0 : worse + 1;
        if (count == MaxSplitsOfADisk || worse == MaxSplitsWithoutProgress)
            throw new IOException($"it is written faster than it is merged ({count} times tried)");
        splits[step.Key] = (count + 1, worse, Math.Min(least, disk.HeldBytes));
        CollectJournal hold = JournalOf(CollectStage.Hold, step, [], TapsOf(step.Key, use));
        folder.WriteJournal(hold);
        await PauseAllAsync(hold, cancellationToken);
        folder.Fork(step.Key, Guid.NewGuid().ToString(), newKey: null);
        await CollectRecovery.FinishAsync(folder, users, hold);
    }

    private async Task MergeLeafAsync(CollectStep step, FolderUse use, CancellationToken cancellationToken)
    {
        CollectJournal hold = JournalOf(CollectStage.Hold, step, [], TapsOf(step.Key, use));
        folder.WriteJournal(hold);
        using CancellationTokenSource downtime = new(hold.Taps.Count > 0 ? DowntimeLimit : Timeout.InfiniteTimeSpan, options.Time);
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, downtime.Token);
        try
        {
            await PauseAllAsync(hold, limit.Token);

            VhdCoalesce.Run(folder.Store, folder.PathOf(step.Key), new VhdCoalesceOptions(), null, limit.Token);
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw new IOException($"its last merge did not end within {DowntimeLimit.TotalSeconds:0} s; the guest goes on as before");
        }

        CollectJournal swap = hold with { Stage = CollectStage.Swap };
        folder.WriteJournal(swap);
        await CollectRecovery.FinishAsync(folder, users, swap);
    }

    private async Task PauseAllAsync(CollectJournal journal, CancellationToken cancellationToken)
    {
        foreach (TapReference tap in journal.Taps)
            await users.PauseAsync(tap, cancellationToken);
    }

    /// <summary>5 s at the speed of the merges of this run.</summary>
    private long LimitBytes => options.RateBytesPerSecond == 0 && mergeSeconds > 0.1 && mergedBytes > options.LeafLimitBytes
        ? (long)(mergedBytes / mergeSeconds * EstimateSeconds)
        : options.LeafLimitBytes;

    private static CollectJournal JournalOf(
        CollectStage stage, CollectStep step, IReadOnlyList<string> children, IReadOnlyList<TapReference> taps) =>
        new(stage, step.Key, step.Parent, children, taps);

    private static List<TapReference> TapsOf(string key, FolderUse use) => [.. use.Taps.Where(tap => tap.Key == key)];

    private static List<TapReference> TapsAbove(ImageForest forest, string key, FolderUse use)
    {
        HashSet<string> above = [.. forest.SubtreeOf(key).Select(static node => node.Key)];
        return [.. use.Taps.Where(tap => above.Contains(tap.Key))];
    }

    private static List<string> TouchedKeys(ImageForest forest, CollectStep step) =>
        [.. forest.SubtreeOf(step.Parent.Length == 0 ? step.Key : step.Parent).Select(static node => node.Key)];

    private void TellWhatIsLeft(ImageForest forest)
    {
        foreach (ImageNode node in forest.Nodes)
        {
            if (CollectPlan.For(forest, node.Key, LimitBytes) is { WhyNot: { } why })
                putOff.TryAdd(node.Key, why);
        }
    }

    private void Tell(CollectStep step, long doneBlocks, long totalBlocks)
    {
        string text = step.Action switch
        {
            CollectAction.Delete => $"delete {step.Key}",
            CollectAction.Split => $"split {step.Key}",
            _ => $"merge {step.Key} into {step.Parent}",
        };
        progress?.Report(new CollectProgress(text, doneBlocks, totalBlocks));
    }

    /// <summary>Keeps an inner merge to its rate, and ends it when somebody takes a lease of what is above.</summary>
    private sealed class MergePace(Collector collector, CollectStep step, CancellationTokenSource stop) : IProgress<VhdCoalesceProgress>
    {
        private static readonly TimeSpan LeaseLook = TimeSpan.FromMilliseconds(500);
        private readonly long started = collector.options.Time.GetTimestamp();
        private readonly HashSet<string> above = [];
        private TimeSpan nextLook;

        public void Report(VhdCoalesceProgress value)
        {
            TimeProvider time = collector.options.Time;
            collector.Tell(step, value.DoneBlocks, value.TotalBlocks);
            long rate = collector.options.RateBytesPerSecond;
            if (rate > 0)
                WaitUntil(TimeSpan.FromSeconds((double)value.WrittenBytes / rate));
            if (time.GetElapsedTime(started) < nextLook)
                return;
            nextLook = time.GetElapsedTime(started) + LeaseLook;
            if (IsLeased())
                stop.Cancel();
        }

        private void WaitUntil(TimeSpan due)
        {
            // In slices, so that a lease is seen while a slow merge waits.
            while (!stop.IsCancellationRequested && due - collector.options.Time.GetElapsedTime(started) is { Ticks: > 0 } left)
            {
                stop.Token.WaitHandle.WaitOne(left < LeaseLook ? left : LeaseLook);
                if (IsLeased())
                    stop.Cancel();
            }
        }

        private bool IsLeased()
        {
            IReadOnlySet<string> leased = collector.users.Leased();
            if (leased.Count == 0)
                return false;
            if (above.Count == 0)
                above.UnionWith(TouchedKeys(collector.folder.Scan(FolderUse.None, 0), step));
            return above.Overlaps(leased);
        }
    }
}
