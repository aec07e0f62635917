// Which work is next: a queue for each tag (a VM's id), first in first out within one, the tags in turn, and never two items of one tag at a
// time (research: xenopsd.md 2.2). Thread-safe; nothing is run here.
namespace Xenops.Queues;

/// <param name="limit">Items that may wait in all.</param>
/// <param name="isCheck">Items that look at what is there and mend it: of equal ones that wait only one is kept.</param>
public sealed class WorkQueues<T>(int limit, Func<T, bool> isCheck)
    where T : notnull
{
    private readonly Lock gate = new();
    private readonly SortedDictionary<string, LinkedList<T>> queues = new(StringComparer.Ordinal);
    private readonly HashSet<string> active = new(StringComparer.Ordinal);
    private readonly Dictionary<string, string> aliases = new(StringComparer.Ordinal);
    private string lastTag = "";
    private int count;

    public int Count
    {
        get
        {
            lock (gate)
                return count;
        }
    }

    /// <exception cref="XenopsException">The limit is reached.</exception>
    public void Push(string tag, T item)
    {
        lock (gate)
        {
            string real = aliases.GetValueOrDefault(tag, tag);
            if (!queues.TryGetValue(real, out LinkedList<T>? queue))
                queues[real] = queue = new LinkedList<T>();
            if (isCheck(item) && queue.Contains(item))
                return;
            if (count == limit)
                throw XenopsException.Internal($"{limit} operations wait already; {item} was not queued");
            queue.AddLast(item);
            count++;
        }
    }

    /// <summary>The next item of a tag that nothing is done for now; the first tag after the one served last.</summary>
    /// <param name="tag">Give it to <see cref="Finished"/>: until then nothing of it is handed out.</param>
    public bool TryTake(out string tag, out T item)
    {
        lock (gate)
        {
            string[] ready = [.. queues.Where(q => q.Value.Count > 0 && !active.Contains(q.Key)).Select(static q => q.Key)];
            if (ready.Length == 0)
            {
                (tag, item) = ("", default!);
                return false;
            }

            tag = ready.FirstOrDefault(t => string.CompareOrdinal(t, lastTag) > 0, ready[0]);
            item = queues[tag].First!.Value;
            queues[tag].RemoveFirst();
            count--;
            active.Add(tag);
            lastTag = tag;
            return true;
        }
    }

    /// <summary>
    /// While something is done for a tag, what is pushed for another name of it waits behind it: a VM that is received runs under the name that
    /// it will have. Nothing happens when nothing is done for the tag.
    /// </summary>
    public void Alias(string tag, string alias)
    {
        lock (gate)
        {
            if (active.Contains(tag))
                aliases[alias] = tag;
        }
    }

    /// <summary>Ends the tag's turn; other names of it mean themselves again. What came under them stays with the tag.</summary>
    public void Finished(string tag)
    {
        lock (gate)
        {
            if (!active.Remove(tag))
                throw new Platform.InvariantException($"nothing is done for {tag}");
            foreach (string alias in aliases.Where(a => a.Value == tag).Select(static a => a.Key).ToArray())
                aliases.Remove(alias);
            if (queues.TryGetValue(tag, out LinkedList<T>? queue) && queue.Count == 0)
                queues.Remove(tag);
        }
    }
}
