// What the collector does next, from what is in the folder and nothing else (research/storage.md 8.7). The rules, in their order:
//
//   delete   a hidden image that nobody is a child of
//   inner    a hidden image whose parent is hidden and has no other child: its content goes into the parent, which takes its children
//   split    a disk over a hidden parent that has no other child, too large to be merged while a guest waits: what it holds becomes a
//            hidden image, which an inner merge takes while the disk goes on
//   leaf     the same, small enough: its content goes into the parent, which takes its name
//
// Left alone: everything while one image cannot be read (it may be anybody's child); a tree's branch with a lease in it; an image that
// somebody has open who cannot be asked to wait; a chain that cannot be opened.
namespace Vhd.Collect;

public enum CollectAction
{
    Delete,
    Inner,
    Split,
    Leaf,
}

/// <param name="Key">The image that goes, or for a split the disk that is split.</param>
/// <param name="Parent">What takes its content; empty for a delete.</param>
public sealed record CollectStep(CollectAction Action, string Key, string Parent);

public static class CollectPlan
{
    /// <summary>Null when there is nothing (more) to do.</summary>
    /// <param name="leafLimitBytes">The most that a last merge, with the guest waiting, may have to write.</param>
    /// <param name="putOff">Images that are left alone this time, and why.</param>
    public static CollectStep? Next(ImageForest forest, long leafLimitBytes, IReadOnlyDictionary<string, string> putOff)
    {
        if (forest.Unreadable.Count > 0)
            return null;
        CollectStep? best = null;
        int bestRank = int.MinValue;
        foreach (ImageNode node in forest.Nodes)
        {
            if (putOff.ContainsKey(node.Key) || StepOf(forest, node, leafLimitBytes) is not { } step || WhyNot(forest, step) is not null)
                continue;
            int rank = RankOf(forest, step);
            if (rank > bestRank)
                (best, bestRank) = (step, rank);
        }

        return best;
    }

    /// <summary>Everything that would be done, each step on what the ones before it leave; names of split-off images are made up.</summary>
    public static IReadOnlyList<CollectStep> All(ImageForest forest, long leafLimitBytes)
    {
        List<CollectStep> steps = [];
        while (Next(forest, leafLimitBytes, new Dictionary<string, string>()) is { } step)
        {
            steps.Add(step);
            forest = After(forest, step);
        }

        return steps;
    }

    private static ImageForest After(ImageForest forest, CollectStep step)
    {
        ImageNode node = forest.Find(step.Key)!;
        IEnumerable<ImageNode> others = forest.Nodes.Where(each => each.Key != step.Key);
        string half = step.Key + "-split";
        return new ImageForest(
            step.Action switch
            {
                CollectAction.Delete => others,
                CollectAction.Inner => others.Select(each => each.Parent == step.Key ? each with { Parent = step.Parent } : each),
                CollectAction.Split => others.Append(node with { Key = half, IsHidden = true, Use = ImageUse.Nobody })
                    .Append(node with { Parent = half, HeldBytes = 0 }),
                _ => others.Where(each => each.Key != step.Parent).Append(node with { Parent = forest.Find(step.Parent)!.Parent }),
            },
            forest.Unreadable);
    }

    /// <summary>What would be done with an image were nobody in the way, and why it is not; null for an image that stays.</summary>
    public static (CollectStep Step, string? WhyNot)? For(ImageForest forest, string key, long leafLimitBytes) =>
        forest.Find(key) is { } node && StepOf(forest, node, leafLimitBytes) is { } step
            ? (step, forest.Unreadable.Count > 0
                ? $"{forest.Unreadable[0].Key}.vhd cannot be read and may be its child" : WhyNot(forest, step))
            : null;

    private static CollectStep? StepOf(ImageForest forest, ImageNode node, long leafLimitBytes)
    {
        IReadOnlyList<string> children = forest.ChildrenOf(node.Key);
        if (node.IsHidden && children.Count == 0)
            return new CollectStep(CollectAction.Delete, node.Key, "");
        bool isOnlyChild = node.Parent is { } parent && forest.Find(parent) is { IsHidden: true } && forest.ChildrenOf(parent).Count == 1;
        if (!isOnlyChild || node.Parent == node.Key)
            return null;
        if (node.IsHidden)
            return new CollectStep(CollectAction.Inner, node.Key, node.Parent!);
        if (children.Count > 0)
            return null;
        return new CollectStep(node.HeldBytes > leafLimitBytes ? CollectAction.Split : CollectAction.Leaf, node.Key, node.Parent!);
    }

    private static string? WhyNot(ImageForest forest, CollectStep step)
    {
        ImageNode node = forest.Find(step.Key)!;
        if (step.Action == CollectAction.Delete)
            return node.IsLeased ? $"{node.Key} is leased" : node.Use != ImageUse.Nobody ? $"{node.Key} is open" : null;
        foreach (ImageNode below in forest.ChainOf(step.Key))
        {
            if (below.Fault is { } fault)
                return $"{below.Key}: {fault}";
        }

        // Every leaf above the parent has the parent in its chain.
        if (forest.SubtreeOf(step.Parent).FirstOrDefault(static above => above.IsLeased) is { } leased)
            return $"{leased.Key} is leased";
        IEnumerable<string> touched = forest.ChildrenOf(step.Key).Prepend(step.Key).Prepend(step.Parent);
        if (touched.FirstOrDefault(key => forest.Find(key)!.Use == ImageUse.Other) is { } open)
            return $"{open} is open in another process than a tapdisk";
        return step.Action == CollectAction.Split && forest.DepthOf(step.Key) >= VhdChain.MaxDepth
            ? $"the chain of {step.Key} has {VhdChain.MaxDepth} images, so it cannot be split"
            : null;
    }

    /// <summary>
    /// What frees space for nothing comes first; then the tallest tree, and in it what is nearest to the root, so that nothing is copied
    /// twice; disks last.
    /// </summary>
    private static int RankOf(ImageForest forest, CollectStep step) => step.Action switch
    {
        CollectAction.Delete => int.MaxValue,
        CollectAction.Inner => forest.TreeHeightOf(step.Key) * 1000 - forest.DepthOf(step.Key),
        CollectAction.Split => -2,
        _ => -1,
    };
}
