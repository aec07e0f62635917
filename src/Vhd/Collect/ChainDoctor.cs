// What is wrong with the chains of one SR folder, and a plan to mend it that guesses nothing. Looking takes no lock and changes nothing.
// One broken image never hides the rest.
using Platform;

namespace Vhd.Collect;

public sealed class ChainDoctor(ImageFolder folder, IFolderUsers users)
{
    private const int DepthToWarnOf = 25;
    private const long LeafLimitBytes = 20 << 20;

    private readonly List<ChainFinding> findings = [];
    private readonly Dictionary<string, VhdInfo> infos = [];

    public async Task<ChainReport> LookAsync(CancellationToken cancellationToken)
    {
        findings.Clear();
        infos.Clear();
        FolderUse use = await users.LookAsync(cancellationToken);
        ImageForest forest = folder.Scan(use, LeafLimitBytes + 1);
        foreach (ImageNode node in forest.Nodes)
            LookAt(forest, node);
        foreach (UnreadableImage image in forest.Unreadable)
            Add(VhdSeverity.Error, image.Key, $"cannot be read: {image.Why}", Mend.None);
        LookForLeftovers();
        IReadOnlyList<CollectStep> steps = CollectPlan.All(Undisturbed(forest), LeafLimitBytes);
        return new ChainReport(
            folder.Path,
            Images(forest, use),
            [.. findings.OrderByDescending(static finding => finding.Severity)],
            steps,
            PutOff(forest),
            FreedBy(steps));
    }

    /// <summary>Mends what can be mended safely, under the folder's lock.</summary>
    /// <returns>What was done, and what was not and why; a line each.</returns>
    public async Task<IReadOnlyList<string>> MendAsync(CancellationToken cancellationToken)
    {
        List<string> told = [];
        int before = folder.Journals().Count + folder.CutOffForks().Count + folder.HalfMade().Count;
        using IDisposable held = await CollectRecovery.LockAsync(folder, users, cancellationToken);
        int after = folder.Journals().Count + folder.CutOffForks().Count + folder.HalfMade().Count;
        if (after < before)
            told.Add($"finished or undid {before - after} changes that were cut off");
        ChainReport report = await LookAsync(cancellationToken);
        FolderUse use = await users.LookAsync(cancellationToken);
        foreach (ChainFinding finding in report.Findings.Where(static finding => finding.Mend is not (Mend.None or Mend.Finish)))
            told.Add(MendOne(finding, use));
        foreach (ChainFinding finding in report.Findings)
        {
            if (finding is { Mend: Mend.None, Severity: not VhdSeverity.Note })
                told.Add($"not mended: {finding.Key}: {finding.Message}");
        }

        return told;
    }

    private string MendOne(ChainFinding finding, FolderUse use)
    {
        string key = finding.Key;
        if (use.OpenElsewhere.ContainsKey(key) || use.Taps.Any(tap => tap.Key == key))
            return $"not mended: {key}: it is open ({finding.Message})";
        using IDisposable? lease = users.TryHold([key]);
        if (lease is null)
            return $"not mended: {key}: it is leased ({finding.Message})";
        try
        {
            switch (finding.Mend)
            {
                case Mend.Repair:
                    IReadOnlyList<string> done = VhdRepair.Run(folder.Store, folder.PathOf(key));
                    return $"{key}: {string.Join("; ", done.DefaultIfEmpty("nothing was left to mend"))}";
                case Mend.SetParent:
                    ParentChange.Apply(folder.Store, folder.PathOf(key), folder.PathOf(finding.Target), isParentRaw: false);
                    return $"{key}: set its parent to {finding.Target}";
                default:
                    folder.Delete(key);
                    return $"{key}: deleted";
            }
        }
        catch (IOException e)
        {
            return $"not mended: {key}: {e.Message}";
        }
    }

    private void LookAt(ImageForest forest, ImageNode node)
    {
        VhdInfo info;
        IReadOnlyList<VhdProblem> problems;
        try
        {
            info = infos[node.Key] = folder.ReadInfo(node.Key);
            problems = VhdCheck.Run(folder.Store, folder.PathOf(node.Key), new VhdCheckOptions());
        }
        catch (VhdException e)
        {
            Add(VhdSeverity.Error, node.Key, e.Message, Mend.None);
            return;
        }

        bool isWritten = node.Use != ImageUse.Nobody;
        foreach (VhdProblem problem in problems)
        {
            if (problem.Fault == VhdFault.Parent || (isWritten && IsOfWriter(problem.Fault)))
                continue;
            bool isMended = problem.Severity == VhdSeverity.Warning && IsMended(problem.Fault);
            Add(problem.Severity, node.Key, problem.Message, isMended ? Mend.Repair : Mend.None);
        }

        if (node.Fault is { } fault)
            LookForParent(node.Key, fault, info);
        LookAtPlace(forest, node);
    }

    /// <summary>While a writer has an image open its footer is not at the end: nothing is wrong.</summary>
    private static bool IsOfWriter(VhdFault fault) => fault is VhdFault.FooterMissing or VhdFault.NotClosed;

    private static bool IsMended(VhdFault fault) => fault is VhdFault.FooterMissing or VhdFault.FooterCopyDiffers or VhdFault.NotClosed
        or VhdFault.BatmapBad or VhdFault.BeyondEnd or VhdFault.HeaderMoved or VhdFault.NoUuid;

    private void LookForParent(string key, string fault, VhdInfo info)
    {
        if (info.HasRawParent || info.ParentPath is not null)
        {
            Add(VhdSeverity.Note, key, fault + "; a collector leaves it alone", Mend.None);
            return;
        }

        string? other = info.ParentUuid is { } uuid
            ? folder.Keys().FirstOrDefault(candidate => candidate != key && UuidOf(candidate) == uuid)
            : null;
        if (other is null)
            Add(VhdSeverity.Error, key, fault + "; put the parent back into the folder", Mend.None);
        else
            Add(VhdSeverity.Error, key, $"{fault}; {other}.vhd is the image that it was made from", Mend.SetParent, other);
    }

    private void LookAtPlace(ImageForest forest, ImageNode node)
    {
        int depth = forest.DepthOf(node.Key);
        if (depth >= DepthToWarnOf)
            Add(
                depth >= VhdChain.MaxDepth ? VhdSeverity.Error : VhdSeverity.Warning,
                node.Key,
                $"its chain has {depth} images, {VhdChain.MaxDepth} are possible; collect the folder",
                Mend.None);
        if (node.IsHidden && forest.ChildrenOf(node.Key).Count == 0)
            Add(
                VhdSeverity.Warning,
                node.Key,
                "a hidden base that no disk needs",
                forest.Unreadable.Count == 0 && node is { IsLeased: false, Use: ImageUse.Nobody } ? Mend.Delete : Mend.None);
        if (!node.IsHidden && forest.ChildrenOf(node.Key).Count > 0)
            Add(VhdSeverity.Warning, node.Key, "a disk that others are children of: a write to it changes them", Mend.None);
        if (node.Parent is { } parent && forest.Find(parent) is { } below && below.VirtualSizeBytes > node.VirtualSizeBytes)
            Add(
                VhdSeverity.Note,
                node.Key,
                $"it is smaller than its parent ({node.VirtualSizeBytes} and {below.VirtualSizeBytes} bytes)",
                Mend.None);
    }

    private void LookForLeftovers()
    {
        foreach (string key in folder.Journals())
        {
            if (folder.ReadJournal(key) is { } journal)
                Add(
                    journal.Stage == CollectStage.Merge ? VhdSeverity.Note : VhdSeverity.Warning,
                    key,
                    journal.Stage == CollectStage.Merge
                        ? $"a merge into {journal.Parent} is under way, or was cut off; the next collector goes on with it"
                        : $"a collector's {journal.Stage.ToString().ToLowerInvariant()} is under way, or was cut off",
                    journal.Stage == CollectStage.Merge ? Mend.None : Mend.Finish);
            else
                Add(
                    VhdSeverity.Error,
                    key,
                    $"{CollectJournal.Prefix}{key} is no journal of this collector: nothing is collected while it is there",
                    Mend.None);
        }

        foreach (string key in folder.CutOffForks())
            Add(VhdSeverity.Warning, key, "a fork is under way, or was cut off", Mend.Finish);
        foreach (string name in folder.HalfMade())
            Add(VhdSeverity.Warning, "", $"{name} is being made, or was left half-made", Mend.Finish);
    }

    /// <summary>Parents first, each tree by its root's name; images of a loop, which have no root, at the end.</summary>
    private List<ChainImage> Images(ImageForest forest, FolderUse use)
    {
        List<ChainImage> found = [];
        HashSet<string> seen = [];
        IEnumerable<ImageNode> roots = forest.Nodes.Where(node => node.Parent is null || forest.Find(node.Parent) is null);
        foreach (ImageNode root in roots.Concat(forest.Nodes))
        {
            Stack<string> waiting = new([root.Key]);
            while (waiting.TryPop(out string? key))
            {
                if (!seen.Add(key) || forest.Find(key) is not { } node)
                    continue;
                found.Add(ImageOf(forest, node, use));
                foreach (string child in forest.ChildrenOf(key).Reverse())
                    waiting.Push(child);
            }
        }

        return found;
    }

    private ChainImage ImageOf(ImageForest forest, ImageNode node, FolderUse use)
    {
        VhdInfo? info = infos.GetValueOrDefault(node.Key);
        IEnumerable<TapReference> taps = use.Taps.Where(tap => tap.Key == node.Key);
        List<string> openBy = [.. taps.Select(static tap => $"tapdisk {tap.ProcessId}, minor {tap.Minor}")];
        if (use.OpenElsewhere.TryGetValue(node.Key, out string? elsewhere))
            openBy.Add(elsewhere);
        return new ChainImage(
            node.Key,
            node.Parent,
            forest.DepthOf(node.Key),
            node.VirtualSizeBytes,
            node.FileBytes,
            info is null ? 0 : info.BlockBytes == 0 ? node.FileBytes : info.AllocatedBlocks * (long)info.BlockBytes,
            node.IsHidden,
            node.IsLeased,
            openBy);
    }

    private static ImageForest Undisturbed(ImageForest forest) =>
        new(forest.Nodes.Select(static node => node with { IsLeased = false, Use = ImageUse.Nobody }), forest.Unreadable);

    private static Dictionary<string, string> PutOff(ImageForest forest) => forest.Nodes
        .Select(node => (node.Key, CollectPlan.For(forest, node.Key, LeafLimitBytes)?.WhyNot))
        .Where(static each => each.WhyNot is not null).ToDictionary(static each => each.Key, static each => each.WhyNot!);

    private long FreedBy(IReadOnlyList<CollectStep> steps)
    {
        long freed = 0;
        foreach (CollectStep step in steps.Where(step => folder.Has(step.Key)))
        {
            try
            {
                freed += step.Action == CollectAction.Delete ? infos.GetValueOrDefault(step.Key)?.PhysicalSizeBytes ?? 0
                    : step.Action != CollectAction.Split && folder.Has(step.Parent) ? folder.SharedBytes(step.Key, step.Parent)
                    : 0;
            }
            catch (IOException)
            {
                // It went, or is damaged, which is told elsewhere; the sum is about.
            }
        }

        return freed;
    }

    private Guid UuidOf(string key)
    {
        try
        {
            return folder.ReadInfo(key).Uuid;
        }
        catch (VhdException)
        {
            return Guid.Empty;
        }
    }

    private void Add(VhdSeverity severity, string key, string message, Mend mend, string target = "") =>
        findings.Add(new ChainFinding(severity, key, message, mend, target));
}
