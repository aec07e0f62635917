// Where a task looks whether it is to end (research: xenopsd.md 1.6, 2.7): at the start of every atomic and at every wait. The points are
// counted, so that a test runs an operation once to count them and then again, cancelled at each.
namespace Xenops.Queues;

/// <param name="task">For the error.</param>
/// <param name="cancelAt">A test's: the point at which it is cancelled, counted from 1; 0 is none.</param>
public sealed class CancellationPoints(string task, int cancelAt = 0)
{
    private readonly Lock gate = new();
    private readonly Stack<Action> onCancel = new();
    private bool isCancelling;

    /// <summary>False from where it can only go forward: a domain that suspends.</summary>
    public bool IsCancellable { get; private set; } = true;

    public int Seen { get; private set; }

    /// <summary>Asks it to end; whatever it waits for is told. Nothing happens when it cannot be cancelled (any more).</summary>
    public void Cancel()
    {
        Action[] told;
        lock (gate)
        {
            if (!IsCancellable || isCancelling)
                return;
            isCancelling = true;
            told = [.. onCancel];
        }

        foreach (Action tell in told)
        {
            try
            {
                tell();
            }
            catch (Exception)
            {
                // One that cannot be told must not keep the others from it; the next point ends the task all the same.
            }
        }
    }

    /// <exception cref="XenopsException">Cancelled.</exception>
    public void Check()
    {
        lock (gate)
        {
            Seen++;
            if (IsCancellable && (isCancelling || Seen == cancelAt))
                throw XenopsException.Cancelled(task);
        }
    }

    /// <summary>Runs something that <paramref name="tell"/> makes end early.</summary>
    public async Task<T> WithCancelAsync<T>(Action tell, Func<Task<T>> body)
    {
        Check();
        lock (gate)
            onCancel.Push(tell);
        try
        {
            return await body();
        }
        finally
        {
            lock (gate)
                onCancel.Pop();
        }
    }

    /// <summary>The last point: behind it the task goes to its end.</summary>
    public void Prohibit()
    {
        Check();
        lock (gate)
        {
            if (isCancelling)
                throw XenopsException.Cancelled(task);
            IsCancellable = false;
        }
    }
}
