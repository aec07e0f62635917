// The plan's laws, over every small forest: all parents, hidden flags, leases, uses and sizes. Contents are modelled by what each image
// holds, so that "a disk reads the same" can be asked of every step.
using System.Numerics;
using Vhd.Collect;

namespace Unit.VhdCollectTests;

public sealed class CollectPlanTests(Xunit.Abstractions.ITestOutputHelper output)
{
    private const long Limit = 20 << 20;
    private static readonly Dictionary<string, string> Nobody = [];

    [Fact]
    public void Every_small_forest_ends_without_garbage_and_every_disk_reads_the_same()
    {
        long forests = 0, steps = 0;
        for (int count = 1; count <= 5; count++)
        {
            foreach (int[] parents in ParentsOf(count))
            {
                for (int hidden = 0; hidden < 1 << count; hidden++)
                {
                    foreach ((int leased, int tapped, int other, int large) in UsesOf(count))
                    {
                        forests++;
                        steps += Walk(new Model(parents, hidden, leased, tapped, other, large));
                    }
                }
            }
        }

        output.WriteLine($"{forests} forests, {steps} steps");
        Assert.True(forests > 300_000, $"{forests} forests");
    }

    [Fact]
    public void Nothing_is_done_while_an_image_cannot_be_read()
    {
        ImageNode hidden = new() { Key = "a", Parent = null, IsHidden = true };
        Assert.Equal(new CollectStep(CollectAction.Delete, "a", ""), CollectPlan.Next(new ImageForest([hidden], []), Limit, Nobody));
        ImageForest unsure = new([hidden], [new UnreadableImage("b", "torn")]);
        Assert.Null(CollectPlan.Next(unsure, Limit, Nobody));
        Assert.Contains("b.vhd", CollectPlan.For(unsure, "a", Limit)!.Value.WhyNot);
    }

    [Fact]
    public void The_image_nearest_to_the_root_of_the_tallest_tree_comes_first()
    {
        ImageNode[] nodes =
        [
            Hidden("s0", null), Hidden("s1", "s0"), Disk("s2", "s1"), Disk("s3", "s1"),
            Hidden("t0", null), Hidden("t1", "t0"), Hidden("t2", "t1"), Disk("t3", "t2"), Disk("t4", "t2"),
        ];
        Assert.Equal(new CollectStep(CollectAction.Inner, "t1", "t0"), CollectPlan.Next(new ImageForest(nodes, []), Limit, Nobody));
        Dictionary<string, string> putOff = new() { ["t1"] = "", ["t2"] = "" };
        Assert.Equal(new CollectStep(CollectAction.Inner, "s1", "s0"), CollectPlan.Next(new ImageForest(nodes, []), Limit, putOff));
    }

    [Fact]
    public void A_loop_and_a_missing_parent_are_left_alone()
    {
        ImageNode a = Hidden("a", "b") with { Fault = "loop" }, b = Hidden("b", "a") with { Fault = "loop" };
        Assert.Null(CollectPlan.Next(new ImageForest([a, b], []), Limit, Nobody));
        ImageNode root = Hidden("r", null) with { Fault = "its parent is missing" };
        Assert.Null(CollectPlan.Next(new ImageForest([root, Hidden("m", "r"), Disk("d", "m"), Disk("e", "m")], []), Limit, Nobody));
    }

    private static ImageNode Hidden(string key, string? parent) => new() { Key = key, Parent = parent, IsHidden = true };

    private static ImageNode Disk(string key, string? parent) => new() { Key = key, Parent = parent, IsHidden = false };

    private static int Walk(Model model)
    {
        Dictionary<string, string> before = model.Disks();
        string leasedBefore = model.LeasedChains();
        int steps = 0;
        while (CollectPlan.Next(model.Forest(), Limit, Nobody) is { } step)
        {
            Assert.True(++steps <= 16, $"it does not end: {model}");
            model.Apply(step);
            Assert.Equal(before, model.Disks());
            Assert.Equal(leasedBefore, model.LeasedChains());
        }

        model.CheckEnd();
        return steps;
    }

    private static IEnumerable<int[]> ParentsOf(int count)
    {
        int total = Enumerable.Range(1, count).Aggregate(1, static (product, n) => product * n);
        for (int code = 0; code < total; code++)
        {
            int[] parents = new int[count];
            for (int i = 0, rest = code; i < count; rest /= i + 1, i++)
                parents[i] = rest % (i + 1) - 1; // -1: a root.
            yield return parents;
        }
    }

    /// <summary>
    /// Everything for up to three images; for more, at most two that are leased, one that is open elsewhere, all or none large.
    /// </summary>
    private static IEnumerable<(int Leased, int Tapped, int Other, int Large)> UsesOf(int count)
    {
        int all = (1 << count) - 1;
        for (int leased = 0; leased <= all; leased++)
        {
            for (int other = 0; other <= all; other++)
            {
                for (int large = 0; large <= all; large++)
                {
                    int leases = BitOperations.PopCount((uint)leased), others = BitOperations.PopCount((uint)other);
                    bool isTaken = count <= 3 || (large == 0 && leases <= 2 && others <= 1) || (large == all && leases <= 1 && others == 0);
                    if (isTaken)
                        yield return (leased, all & ~other, other, large);
                }
            }
        }
    }

    /// <summary>A folder in which an image holds letters; a disk reads its chain's letters, the uppermost first.</summary>
    private sealed class Model(int[] parents, int hidden, int leased, int tapped, int other, int large)
    {
        private readonly SortedDictionary<
            string, (string? Parent, bool IsHidden, bool IsLeased, ImageUse Use, bool IsLarge, string Holds)> images =
                new(StringComparer.Ordinal);

        private bool isFilled;

        public ImageForest Forest()
        {
            Fill();
            return new ImageForest(
                images.Select(static image => new ImageNode
                {
                    Key = image.Key,
                    Parent = image.Value.Parent,
                    IsHidden = image.Value.IsHidden,
                    IsLeased = image.Value.IsLeased,
                    Use = image.Value.Use,
                    HeldBytes = image.Value.IsLarge ? Limit + 1 : Limit,
                }),
                []);
        }

        /// <summary>What each disk that users see reads.</summary>
        public Dictionary<string, string> Disks()
        {
            Fill();
            return images.Where(static image => !image.Value.IsHidden).ToDictionary(static image => image.Key, image => Read(image.Key));
        }

        public string LeasedChains()
        {
            Fill();
            return string.Join(";", images.Where(static image => image.Value.IsLeased).Select(image => string.Join("<", Chain(image.Key))));
        }

        public void Apply(CollectStep step)
        {
            var image = images[step.Key];
            Assert.False(image.Use == ImageUse.Other, $"{step} of an image that is open elsewhere: {this}");
            switch (step.Action)
            {
                case CollectAction.Delete:
                    Assert.True(image.IsHidden, $"{step} of a disk: {this}");
                    Assert.DoesNotContain(images.Values, each => each.Parent == step.Key);
                    Assert.Equal(ImageUse.Nobody, image.Use);
                    images.Remove(step.Key);
                    break;
                case CollectAction.Inner:
                    MergeDown(step);
                    foreach (string child in images.Keys.Where(key => images[key].Parent == step.Key).ToArray())
                        images[child] = images[child] with { Parent = step.Parent };
                    images.Remove(step.Key);
                    break;
                case CollectAction.Split:
                    string half = step.Key + "'";
                    images.Add(half, image with { IsHidden = true, Use = ImageUse.Nobody });
                    images[step.Key] = image with { Parent = half, Holds = "", IsLarge = false };
                    break;
                case CollectAction.Leaf:
                    MergeDown(step);
                    Assert.False(image.IsLarge, $"{step} of a large disk: {this}");
                    images[step.Key] = images[step.Parent] with { IsHidden = false, Use = image.Use };
                    images.Remove(step.Parent);
                    break;
            }
        }

        /// <summary>What is left and could be collected has somebody in its way.</summary>
        public void CheckEnd()
        {
            foreach ((string key, var image) in images)
            {
                string[] children = [.. images.Keys.Where(each => images[each].Parent == key)];
                if (image.IsHidden && children.Length == 0)
                    Assert.True(image.IsLeased || image.Use != ImageUse.Nobody, $"{key} is garbage and stays: {this}");
                if (!image.IsHidden || children.Length != 1)
                    continue;
                bool isLeaf = !images.Values.Any(each => each.Parent == children[0]);
                if (images[children[0]].IsHidden != isLeaf)
                    Assert.True(IsInTheWay(key), $"{children[0]} could be merged into {key}: {this}");
            }
        }

        public override string ToString() =>
            string.Join(" ", images.Select(static image => $"{image.Key}<{image.Value.Parent ?? "-"}{(image.Value.IsHidden ? "h" : "")}"
                + $"{(image.Value.IsLeased ? "l" : "")}{image.Value.Use.ToString()[0]}{(image.Value.IsLarge ? "L" : "")}"));

        private bool IsInTheWay(string parent)
        {
            string child = images.Keys.Single(each => images[each].Parent == parent);
            bool isLeased = images.Any(each => each.Value.IsLeased && Chain(each.Key).Contains(parent));
            return isLeased || new[] { parent, child }.Concat(images.Keys.Where(each => images[each].Parent == child))
                .Any(each => images[each].Use == ImageUse.Other);
        }

        private void MergeDown(CollectStep step)
        {
            var parent = images[step.Parent];
            Assert.True(parent.IsHidden, $"{step} into a disk: {this}");
            Assert.Equal(step.Parent, images[step.Key].Parent);
            Assert.Single(images.Values, each => each.Parent == step.Parent);
            images[step.Parent] = parent with { Holds = images[step.Key].Holds + parent.Holds };
        }

        private IEnumerable<string> Chain(string key)
        {
            for (string? at = key; at is not null; at = images[at].Parent)
                yield return at;
        }

        private string Read(string key) => string.Concat(Chain(key).Select(each => images[each].Holds));

        private void Fill()
        {
            if (isFilled)
                return;
            isFilled = true;
            for (int i = 0; i < parents.Length; i++)
            {
                // Only a tapdisk's leaf is open by it; the images below are open for reading only, which is in nobody's way.
                ImageUse use = (other >> i & 1) != 0 ? ImageUse.Other
                    : (tapped >> i & 1) != 0 && (hidden >> i & 1) == 0 ? ImageUse.Tapdisk : ImageUse.Nobody;
                images.Add(
                    Name(i),
                    (parents[i] < 0 ? null : Name(parents[i]),
                        (hidden >> i & 1) != 0, (leased >> i & 1) != 0, use, (large >> i & 1) != 0, Name(i)));
            }
        }

        private static string Name(int index) => ((char)('a' + index)).ToString();
    }
}
