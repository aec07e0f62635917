// UPDATES.get: what has changed since a token, for a client that waits (research/storage.md 1.3, 1.5). Bounded: a client that was away for
// longer than the window is told everything that is still in it.
using System.Globalization;
using System.Text.Json.Nodes;

namespace StorageAccess;

/// <summary>Something of which there is news: a <c>Dynamic.id</c>.</summary>
public sealed record Changed
{
    private Changed(string kind, params IReadOnlyList<string> names) => (Kind, Names) = (kind, names);

    public string Kind { get; }

    public IReadOnlyList<string> Names { get; }

    public static Changed Task(string id) => new("Task", id);

    public static Changed Vdi(SrId sr, VdiId vdi) => new("Vdi", sr.Value, vdi.Value);

    public static Changed Mirror(string id) => new("Mirror", id);

    public static Changed Dp(DatapathId datapath) => new("Dp", datapath.Value);

    internal JsonNode ToJson() =>
        new JsonArray(Kind, Names.Count == 1 ? Names[0] : new JsonArray([.. Names.Select(static n => (JsonNode)JsonValue.Create(n))]));
}

/// <summary>The last changes, each once, in order. Thread-safe.</summary>
public sealed class StorageUpdates(TimeProvider time)
{
    private const int WindowCount = 4096;

    private readonly LinkedList<(long At, Changed What)> window = [];
    private readonly Dictionary<string, LinkedListNode<(long At, Changed What)>> byName = [];
    private readonly Lock gate = new();
    private TaskCompletionSource news = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private long last;

    internal void Add(Changed what)
    {
        TaskCompletionSource told;
        lock (gate)
        {
            string name = what.Kind + "\0" + string.Join('\0', what.Names);
            if (byName.Remove(name, out LinkedListNode<(long At, Changed What)>? earlier))
                window.Remove(earlier);
            byName[name] = window.AddLast((++last, what));
            if (window.Count > WindowCount)
            {
                Changed oldest = window.First!.Value.What;
                byName.Remove(oldest.Kind + "\0" + string.Join('\0', oldest.Names));
                window.RemoveFirst();
            }

            (told, news) = (news, new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously));
        }

        told.SetResult();
    }

    /// <summary>What changed after a token, and the token to ask with next; waits while there is nothing.</summary>
    /// <param name="from">Empty: from the start. A token of an earlier life of the daemon counts as that too.</param>
    internal async Task<(IReadOnlyList<Changed> What, string Next)> GetAsync(string from, TimeSpan timeout, CancellationToken cancellationToken)
    {
        bool isNumber = long.TryParse(from, NumberStyles.None, CultureInfo.InvariantCulture, out long after);
        DateTimeOffset end = time.GetUtcNow() + timeout;
        while (true)
        {
            Task told;
            lock (gate)
            {
                long since = isNumber && after <= last ? after : 0;
                List<Changed> found = [.. window.Where(entry => entry.At > since).Select(static entry => entry.What)];
                if (found.Count != 0 || time.GetUtcNow() >= end)
                    return (found, last.ToString(CultureInfo.InvariantCulture));
                told = news.Task;
            }

            try
            {
                await told.WaitAsync(end - time.GetUtcNow() is { Ticks: > 0 } left ? left : TimeSpan.Zero, time, cancellationToken);
            }
            catch (TimeoutException)
            {
                // Nothing came: the answer is an empty list.
            }
        }
    }
}
