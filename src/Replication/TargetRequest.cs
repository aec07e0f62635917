// One request to a mirror's target, while its answer is awaited. It is told once, by whoever is first: the device, or the side that gives the
// target up. Reused: a guest's write must not cost garbage.
using System.Runtime.CompilerServices;
using System.Threading.Tasks.Sources;
using Platform;

namespace Replication;

internal sealed class TargetRequest : IValueTaskSource<bool>
{
    private readonly TargetSide side;
    private readonly Action onAnswered;
    private ManualResetValueTaskSourceCore<bool> told;
    private ValueTaskAwaiter answer;
    private string what = "";
    private int isTold;
    private bool isAnswered;

    public TargetRequest(TargetSide side)
    {
        this.side = side;
        onAnswered = OnAnswered;
    }

    /// <summary>Its place among those that wait; the side's.</summary>
    public int Slot { get; set; }

    public long StartedAt { get; set; }

    public ValueTask<bool> Watch(ValueTask pending, string name)
    {
        what = name;
        ValueTask<bool> outcome = new(this, told.Version);
        answer = pending.GetAwaiter();
        if (answer.IsCompleted)
            OnAnswered();
        else
            answer.UnsafeOnCompleted(onAnswered);
        return outcome;
    }

    /// <summary>The target is given up. The device may still use the request's memory: it is abandoned with the connection.</summary>
    public void Abandon()
    {
        if (Interlocked.Exchange(ref isTold, 1) == 0)
            told.SetResult(false);
    }

    public bool GetResult(short token)
    {
        try
        {
            return told.GetResult(token);
        }
        finally
        {
            if (isAnswered)
            {
                told.Reset();
                isTold = 0;
                isAnswered = false;
                answer = default;
                side.Reuse(this);
            }
        }
    }

    public ValueTaskSourceStatus GetStatus(short token) => told.GetStatus(token);

    public void OnCompleted(Action<object?> continuation, object? state, short token, ValueTaskSourceOnCompletedFlags flags) =>
        told.OnCompleted(continuation, state, token, flags);

    private static bool IsOfDisk(Exception e) => e is BlockIoException { Errno: not (Errno.ESHUTDOWN or Errno.EPIPE or Errno.ETIMEDOUT) };

    private void OnAnswered()
    {
        bool isDone = false;
        Exception? bug = null;
        try
        {
            answer.GetResult();
            isDone = true;
        }
        catch (Exception e) when (e is IOException or OperationCanceledException or ObjectDisposedException)
        {
            side.Lose($"the target's {what} failed: {e.Message}", IsOfDisk(e));
        }
        catch (Exception e)
        {
            bug = e;
        }

        side.Answered(this);
        if (Interlocked.Exchange(ref isTold, 1) != 0)
            return;
        isAnswered = true;
        if (bug is null)
            told.SetResult(isDone);
        else
            told.SetException(bug);
    }
}
