// Fair exclusion by name, as research/storage.md 2.4 wants it, with what the field's locks lack: an order, a bound, and the holder's name.
// A request is granted when no earlier request (granted or waiting) conflicts with it, so nobody starves.
using Platform;

namespace StorageAccess;

/// <summary>A set of named locks, plus one over the whole set. Held until disposed; the wait is bounded.</summary>
internal sealed class Exclusion(string kind, TimeProvider time, TimeSpan waitLimit)
{
    private const int QueueLimit = 1024;
    private readonly LinkedList<Request> requests = [];
    private readonly Lock gate = new();

    /// <summary>Excludes others of the same name, and holders of the whole set.</summary>
    public Task<IDisposable> TakeAsync(string name, string holder, CancellationToken cancellationToken) =>
        TakeAsync(new Request(name, Whole: false, holder, time.GetUtcNow()), cancellationToken);

    /// <summary>Excludes only holders of the whole set.</summary>
    public Task<IDisposable> TakeSharedAsync(string holder, CancellationToken cancellationToken) =>
        TakeAsync(new Request(null, Whole: false, holder, time.GetUtcNow()), cancellationToken);

    /// <summary>Excludes everybody.</summary>
    public Task<IDisposable> TakeWholeAsync(string holder, CancellationToken cancellationToken) =>
        TakeAsync(new Request(null, Whole: true, holder, time.GetUtcNow()), cancellationToken);

    private async Task<IDisposable> TakeAsync(Request request, CancellationToken cancellationToken)
    {
        LinkedListNode<Request> node;
        lock (gate)
        {
            if (requests.Count >= QueueLimit)
                throw Busy(request, requests.First!.Value, $"{QueueLimit} requests are waiting");
            node = requests.AddLast(request);
            Grant();
        }

        try
        {
            await request.Granted.Task.WaitAsync(waitLimit, time, cancellationToken);
            return new Hold(this, node);
        }
        catch (Exception e) when (e is TimeoutException or OperationCanceledException)
        {
            Request? blocker;
            lock (gate)
                blocker = Before(node);
            Remove(node);
            if (e is OperationCanceledException)
                throw;
            throw Busy(request, blocker ?? request, $"waited {waitLimit.TotalSeconds:0.#} s");
        }
    }

    private StorageException Busy(Request wanted, Request holder, string why) =>
        new("OTHER_OPERATION_IN_PROGRESS", kind, wanted.Name ?? "", $"{why}: {holder.Holder} holds it since {holder.Since:yyyyMMddTHH:mm:ssZ}");

    private void Remove(LinkedListNode<Request> node)
    {
        lock (gate)
        {
            Invariant.Holds(node.List == requests, "a lock is given back once");
            requests.Remove(node);
            Grant();
        }
    }

    private void Grant()
    {
        for (LinkedListNode<Request>? node = requests.First; node is not null; node = node.Next)
        {
            if (Before(node) is null)
                node.Value.Granted.TrySetResult();
        }
    }

    private static Request? Before(LinkedListNode<Request> node)
    {
        for (LinkedListNode<Request>? other = node.Previous; other is not null; other = other.Previous)
        {
            if (other.Value.Conflicts(node.Value))
                return other.Value;
        }

        return null;
    }

    private sealed record Request(string? Name, bool Whole, string Holder, DateTimeOffset Since)
    {
        public TaskCompletionSource Granted { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public bool Conflicts(Request other) => Whole || other.Whole || (Name is not null && Name == other.Name);
    }

    private sealed class Hold(Exclusion owner, LinkedListNode<Request> node) : IDisposable
    {
        private int isReleased;

        public void Dispose()
        {
            if (Interlocked.Exchange(ref isReleased, 1) == 0)
                owner.Remove(node);
        }
    }
}
