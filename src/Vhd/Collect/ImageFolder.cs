// The files of one SR folder: <key>.vhd images, .fork-<key> and .gc-<key> journals (docs/formats/sr-folder.md). Every change here is made
// under the folder's lock, which the caller holds; each is one that a crash may cut short and that is finished or undone from its
// journal.
using System.Text;
using Platform;

namespace Vhd.Collect;

public sealed class ImageFolder
{
    private const string ForkPrefix = ".fork-";
    private const string ImageSuffix = ".vhd";
    private const string HalfMadeSuffix = ".new";
    private const int MaxKeyLength = 64;
    private const int MaxSmallFileBytes = 1 << 20;
    private const int ReadAttempts = 3;

    private readonly IVhdStore store;

    /// <summary>A folder that is there.</summary>
    public ImageFolder(string path)
        : this(PosixStore.Instance, Posix.CanonicalFolder(path))
    {
    }

    internal ImageFolder(IVhdStore store, string path)
    {
        this.store = store;
        Path = path;
    }

    /// <summary>Symbolic links resolved.</summary>
    public string Path { get; }

    internal IVhdStore Store => store;

    public string PathOf(string key) => System.IO.Path.Combine(Path, key + ImageSuffix);

    public static bool IsKey(string key) =>
        key.Length is > 0 and <= MaxKeyLength && key.All(static c => char.IsAsciiLetterOrDigit(c) || c == '-');

    /// <summary>Of all images, hidden or not, by name.</summary>
    public IReadOnlyList<string> Keys() => Named("", ImageSuffix);

    public bool Has(string key) => IsKey(key) && store.Exists(PathOf(key));

    /// <summary>What is in the folder, one broken image not hiding the others.</summary>
    /// <param name="countUpToBytes">What a disk holds is counted up to this, where a last merge may come.</param>
    public ImageForest Scan(FolderUse use, long countUpToBytes)
    {
        List<ImageNode> nodes = [];
        List<UnreadableImage> unreadable = [];
        HashSet<string> tapped = [.. use.Taps.Select(static tap => tap.Key)];
        foreach (string key in Keys())
        {
            try
            {
                nodes.Add(NodeOf(key, ReadInfo(key), use, tapped));
            }
            catch (VhdException e)
            {
                unreadable.Add(new UnreadableImage(key, e.Message));
            }
        }

        ImageForest forest = new(nodes, unreadable);
        return new ImageForest(forest.Nodes.Select(node => Completed(forest, node, countUpToBytes)), unreadable);
    }

    /// <exception cref="VhdException">The image is refused.</exception>
    public VhdInfo ReadInfo(string key)
    {
        for (int attempt = 1; ; attempt++)
        {
            try
            {
                return VhdImage.ReadInfo(store, PathOf(key));
            }
            catch (VhdException) when (attempt < ReadAttempts)
            {
                // Its tapdisk may have made it longer between our look at its length and at its table.
            }
        }
    }

    /// <summary>
    /// What a disk held moves into a hidden base, the disk becomes the base's empty child; and a new disk too, when given. Nobody may have
    /// the image open. At every point a crash leaves the disk with its content.
    /// </summary>
    /// <exception cref="VhdException">TooDeep; what is wrong with the image. Nothing was changed.</exception>
    public void Fork(string key, string baseKey, string? newKey)
    {
        WriteSmall(ForkPrefix + key, Encoding.UTF8.GetBytes(baseKey));
        try
        {
            string temporary = System.IO.Path.Combine(Path, $".{key}{ImageSuffix}{HalfMadeSuffix}");
            store.Link(PathOf(key), PathOf(baseKey));
            VhdImage.CreateSnapshot(store, temporary, PathOf(baseKey), isParentRaw: false, new VhdCreateOptions());
            store.Rename(temporary, PathOf(key));
            store.SyncFolder(Path);
            // The base is hidden only now that a child that needs it is durable.
            VhdImage.SetHidden(store, PathOf(baseKey), true);
            if (newKey is not null)
                VhdImage.CreateSnapshot(store, PathOf(newKey), PathOf(baseKey), isParentRaw: false, new VhdCreateOptions());
        }
        catch (IOException)
        {
            RecoverForks();
            throw;
        }

        RemoveSmall(ForkPrefix + key);
    }

    /// <summary>
    /// A fork that was cut off is finished when the disk is the base's child already, and undone otherwise: the disk still is the content
    /// itself. Half-made files go; nobody else makes any while the lock is held.
    /// </summary>
    public void RecoverForks()
    {
        foreach (string key in CutOffForks())
        {
            try
            {
                RecoverFork(key, Encoding.UTF8.GetString(ReadSmall(ForkPrefix + key)));
            }
            catch (VhdException)
            {
                // The disk or its base is damaged: what is there stays, journal and all, for the chain doctor to tell.
            }
        }

        foreach (string halfMade in HalfMade())
            store.Delete(System.IO.Path.Combine(Path, halfMade));
    }

    /// <summary>
    /// What the hidden flags of images say wrongly while a change is under way: bases of forks that are not hidden yet, and disks being
    /// swapped that still are.
    /// </summary>
    public (IReadOnlySet<string> NotDisks, IReadOnlySet<string> Disks) BetweenStates()
    {
        HashSet<string> bases = [.. CutOffForks().Select(key => SafeText(ForkPrefix + key)).OfType<string>()];
        return (bases, new HashSet<string>(Journals().Where(key => ReadJournal(key) is { Stage: CollectStage.Swap })));
    }

    internal IReadOnlyList<string> HalfMade() =>
        [.. store.NamesIn(Path).Where(static name => name.EndsWith(HalfMadeSuffix, StringComparison.Ordinal))];

    internal IReadOnlyList<string> CutOffForks() => Named(ForkPrefix, "");

    /// <summary>Keys that have a journal, readable or not.</summary>
    public IReadOnlyList<string> Journals() => Named(CollectJournal.Prefix, "");

    /// <summary>Null when there is none, or one that is not ours.</summary>
    public CollectJournal? ReadJournal(string key) =>
        SafeText(CollectJournal.Prefix + key) is { } text ? CollectJournal.Read(Encoding.UTF8.GetBytes(text), key) : null;

    internal void WriteJournal(CollectJournal journal) => WriteSmall(CollectJournal.Prefix + journal.Key, journal.ToBytes());

    internal void RemoveJournal(string key) => RemoveSmall(CollectJournal.Prefix + key);

    /// <summary>Durable at return.</summary>
    public void Delete(string key)
    {
        store.Delete(PathOf(key));
        store.SyncFolder(Path);
    }

    /// <summary>Bytes that an image itself holds, counted up to a limit.</summary>
    internal long HeldBytes(string key, long upToBytes)
    {
        using VhdLayer layer = VhdLayer.OpenImage(store, PathOf(key), isWritable: false, VhdLayer.StripeCount);
        long held = 0;
        for (long at = 0; at < layer.SizeBytes && held <= upToBytes;)
        {
            LayerRun run = layer.Find(at, layer.SizeBytes);
            held += run.IsPresent ? run.EndBytes - at : 0;
            at = run.EndBytes;
        }

        return held;
    }

    /// <summary>Bytes of blocks that both images have: what a merge of the one into the other frees.</summary>
    internal long SharedBytes(string key, string otherKey)
    {
        using VhdLayer image = VhdLayer.OpenImage(store, PathOf(key), isWritable: false, VhdLayer.StripeCount);
        using VhdLayer other = VhdLayer.OpenImage(store, PathOf(otherKey), isWritable: false, VhdLayer.StripeCount);
        if (image.IsFlat || other.IsFlat)
            return 0;
        int shared = Enumerable.Range(0, Math.Min(image.BlockCount, other.BlockCount))
            .Count(block => image.IsAllocated(block) && other.IsAllocated(block));
        return shared * (long)image.BlockBytes;
    }

    /// <summary>The key of an image's parent; null when it has none here.</summary>
    internal string? ParentOf(VhdInfo info) =>
        info.ParentPath is { } parent && System.IO.Path.GetDirectoryName(parent) == Path
        && parent.EndsWith(ImageSuffix, StringComparison.Ordinal)
        && IsKey(System.IO.Path.GetFileNameWithoutExtension(parent))
            ? System.IO.Path.GetFileNameWithoutExtension(parent) : null;

    private ImageNode NodeOf(string key, VhdInfo info, FolderUse use, HashSet<string> tapped)
    {
        string? parent = ParentOf(info);
        string? fault = info.HasRawParent ? "it has a raw parent"
            : info.ParentName is null || parent is not null ? null
            : info.ParentPath is { } elsewhere ? $"its parent is not in the folder but at {elsewhere}"
            : $"its parent {info.ParentName} is missing, or another image";
        return new ImageNode
        {
            Key = key,
            Parent = parent,
            IsHidden = info.IsHidden,
            VirtualSizeBytes = info.VirtualSizeBytes,
            FileBytes = info.PhysicalSizeBytes,
            Fault = fault,
            IsLeased = use.Leased.Contains(key),
            Use = use.OpenElsewhere.ContainsKey(key) ? ImageUse.Other : tapped.Contains(key) ? ImageUse.Tapdisk : ImageUse.Nobody,
        };
    }

    /// <summary>With what can be said only when all are known: a loop, and how much a disk holds that may be merged.</summary>
    private ImageNode Completed(ImageForest forest, ImageNode node, long countUpToBytes)
    {
        IReadOnlyList<ImageNode> chain = forest.ChainOf(node.Key);
        if (chain[^1].Parent is { } again && forest.Find(again) is not null)
            return node with { Fault = $"its chain comes back to {again}" };
        bool mayMerge = !node.IsHidden && node.Parent is { } parent && forest.Find(parent) is { IsHidden: true }
            && forest.ChildrenOf(parent).Count == 1 && forest.ChildrenOf(node.Key).Count == 0;
        return mayMerge ? node with { HeldBytes = HeldBytes(node.Key, countUpToBytes) } : node;
    }

    private void RecoverFork(string key, string baseKey)
    {
        if (IsKey(baseKey) && store.Exists(PathOf(baseKey)))
        {
            if (ParentOf(ReadInfo(key)) == baseKey)
                VhdImage.SetHidden(store, PathOf(baseKey), true);
            else
                store.Delete(PathOf(baseKey));
        }

        RemoveSmall(ForkPrefix + key);
    }

    private IReadOnlyList<string> Named(string prefix, string suffix) =>
    [
        .. store.NamesIn(Path)
            .Where(name => name.StartsWith(prefix, StringComparison.Ordinal) && name.EndsWith(suffix, StringComparison.Ordinal))
            .Select(name => name[prefix.Length..^suffix.Length]).Where(IsKey).Order(StringComparer.Ordinal),
    ];

    private void WriteSmall(string name, byte[] content)
    {
        string path = System.IO.Path.Combine(Path, name);
        store.Delete(path + HalfMadeSuffix);
        using (IVhdFile file = store.Create(path + HalfMadeSuffix, 0))
        {
            file.Write(0, content);
            file.Sync();
        }

        store.Rename(path + HalfMadeSuffix, path);
        store.SyncFolder(Path);
    }

    private void RemoveSmall(string name)
    {
        store.Delete(System.IO.Path.Combine(Path, name));
        store.SyncFolder(Path);
    }

    private byte[] ReadSmall(string name)
    {
        using IVhdFile file = store.Open(System.IO.Path.Combine(Path, name), isWritable: false);
        byte[] content = new byte[Math.Min(file.LengthBytes, MaxSmallFileBytes)];
        return content[..file.Read(0, content)];
    }

    private string? SafeText(string name)
    {
        try
        {
            return Encoding.UTF8.GetString(ReadSmall(name));
        }
        catch (BlockIoException)
        {
            return null; // Gone since it was listed, or never there.
        }
    }
}
