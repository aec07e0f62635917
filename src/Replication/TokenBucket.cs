namespace Replication;

/// <summary>A rate limit that can be changed while somebody waits for it. 0 is no limit. One waiter at a time (the copy pass).</summary>
public sealed class TokenBucket(TimeProvider time, long bytesPerSecond)
{
    /// <summary>A waiter looks again at least this often, so that a changed rate is felt soon.</summary>
    private static readonly TimeSpan LongestNap = TimeSpan.FromMilliseconds(250);

    private readonly Lock gate = new();
    private long rate = bytesPerSecond;
    private double tokens;
    private long lastTimestamp = time.GetTimestamp();

    public void SetRate(long bytesPerSecond)
    {
        lock (gate)
        {
            Refill();
            rate = bytesPerSecond;
        }
    }

    /// <summary>What was sent. It may overdraw the bucket: the debt is what the next one waits for.</summary>
    public void Charge(int bytes)
    {
        lock (gate)
        {
            Refill();
            tokens -= bytes;
        }
    }

    /// <summary>Completes when there is no debt.</summary>
    public async ValueTask WaitAsync(CancellationToken cancellationToken)
    {
        while (true)
        {
            TimeSpan nap;
            lock (gate)
            {
                Refill();
                if (rate == 0 || tokens >= 0)
                    return;
                nap = TimeSpan.FromSeconds(-tokens / rate);
            }

            nap = nap < LongestNap ? nap + TimeSpan.FromMilliseconds(1) : LongestNap;
            await Task.Delay(nap, time, cancellationToken);
        }
    }

    private void Refill()
    {
        long now = time.GetTimestamp();
        double seconds = time.GetElapsedTime(lastTimestamp, now).TotalSeconds;
        lastTimestamp = now;
        // A tenth of a second of burst; without a limit no debt is kept.
        tokens = rate == 0 ? 0 : Math.Min(tokens + (seconds * rate), rate * 0.1);
    }
}
