// The images of one SR folder as trees: who is whose child, who is hidden, who is in use. Pure data, so that the plan over it can be tested
// for every small tree.
namespace Vhd.Collect;

/// <summary>Who has an image open.</summary>
public enum ImageUse
{
    Nobody,

    /// <summary>Tapdisks, which can be paused.</summary>
    Tapdisk,

    /// <summary>A process that nobody can ask to wait.</summary>
    Other,
}

/// <summary>One image of a folder.</summary>
public sealed record ImageNode
{
    /// <summary>The file's name without <c>.vhd</c>.</summary>
    public required string Key { get; init; }

    /// <summary>Null for an image without a parent in the folder.</summary>
    public required string? Parent { get; init; }

    /// <summary>A base that disks share, which no user sees.</summary>
    public required bool IsHidden { get; init; }

    public long VirtualSizeBytes { get; init; }

    /// <summary>The file's length; holes count.</summary>
    public long FileBytes { get; init; }

    /// <summary>What the image itself holds, counted up to the limit for a last merge; 0 where nobody asks.</summary>
    public long HeldBytes { get; init; }

    /// <summary>Why the chain below cannot be opened (a missing or another parent, a loop); null when it can.</summary>
    public string? Fault { get; init; }

    /// <summary>Somebody copies, mirrors or backs it up.</summary>
    public bool IsLeased { get; init; }

    public ImageUse Use { get; init; }
}

/// <summary>An image that cannot be read; whose child it is nobody knows.</summary>
public sealed record UnreadableImage(string Key, string Why);

public sealed class ImageForest
{
    private readonly SortedDictionary<string, ImageNode> nodes = new(StringComparer.Ordinal);
    private readonly Dictionary<string, List<string>> children = [];

    public ImageForest(IEnumerable<ImageNode> nodes, IReadOnlyList<UnreadableImage> unreadable)
    {
        Unreadable = unreadable;
        foreach (ImageNode node in nodes)
        {
            this.nodes.Add(node.Key, node);
            children.TryAdd(node.Key, []);
        }

        foreach (ImageNode node in this.nodes.Values)
        {
            if (node.Parent is { } parent && children.TryGetValue(parent, out List<string>? siblings))
                siblings.Add(node.Key);
        }
    }

    public IReadOnlyList<UnreadableImage> Unreadable { get; }

    /// <summary>By key.</summary>
    public IReadOnlyCollection<ImageNode> Nodes => nodes.Values;

    public ImageNode? Find(string key) => nodes.GetValueOrDefault(key);

    public IReadOnlyList<string> ChildrenOf(string key) => children.GetValueOrDefault(key) ?? [];

    /// <summary>From the image down to the root; ends where a loop closes.</summary>
    public IReadOnlyList<ImageNode> ChainOf(string key)
    {
        List<ImageNode> chain = [];
        for (ImageNode? at = Find(key); at is not null && !chain.Contains(at); at = at.Parent is null ? null : Find(at.Parent))
            chain.Add(at);
        return chain;
    }

    /// <summary>Images from the root to this one.</summary>
    public int DepthOf(string key) => ChainOf(key).Count;

    /// <summary>The image and everything above it.</summary>
    public IReadOnlyList<ImageNode> SubtreeOf(string key)
    {
        List<ImageNode> found = [];
        HashSet<string> seen = [];
        Stack<string> waiting = new([key]);
        while (waiting.TryPop(out string? next))
        {
            if (!seen.Add(next) || Find(next) is not { } node)
                continue;
            found.Add(node);
            foreach (string child in ChildrenOf(next))
                waiting.Push(child);
        }

        return found;
    }

    /// <summary>Images in the longest chain that begins at this one's root.</summary>
    public int TreeHeightOf(string key) => SubtreeOf(ChainOf(key)[^1].Key).Max(node => DepthOf(node.Key));
}
