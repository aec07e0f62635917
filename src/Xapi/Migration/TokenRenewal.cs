using Migration;

namespace Xapi.Migration;

/// <summary>Keeps a token good while its job waits for its turn: renewed at once, then each time half of what is left has passed.</summary>
public static class TokenRenewal
{
    private static readonly TimeSpan Shortest = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(20);

    /// <summary>Ends when it is cancelled, or after the limit: then the token runs out, and the migration is refused in words when its turn comes.</summary>
    public static async Task KeepAsync(IPlanPeer peer, TimeSpan limit, TimeProvider time, CancellationToken cancellationToken)
    {
        using (peer)
        {
            DateTimeOffset end = time.GetUtcNow() + limit;
            try
            {
                while (time.GetUtcNow() < end)
                {
                    TimeSpan pause = Shortest;
                    try
                    {
                        TimeSpan half = (await peer.RenewAsync(cancellationToken) - time.GetUtcNow()) / 2;
                        pause = half < Shortest ? Shortest : half > Longest ? Longest : half;
                    }
                    catch (IOException)
                    {
                        // Not reached now; there may be time for another try.
                    }

                    await Task.Delay(pause, time, cancellationToken);
                }
            }
            catch (MigrationException)
            {
                // The destination will say the same again when the job begins.
            }
            catch (OperationCanceledException)
            {
                // Its turn has come, or it left the queue.
            }
        }
    }
}
