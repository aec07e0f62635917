// How far and how wide the way to the destination is, in about a second: five pings, then uploads that grow until they fill a second or the limit.
using System.Security.Cryptography;

namespace Xapi.Migration;

/// <param name="RoundTripMs">The median of five.</param>
/// <param name="BytesPerSecond">Of the largest upload that came through; null when not even the smallest did within a second.</param>
public sealed record LinkProbe(double RoundTripMs, double? BytesPerSecond)
{
    private const int Pings = 5;
    private const string Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    private static readonly TimeSpan UploadLimit = TimeSpan.FromSeconds(1);

    /// <summary>Less than the limit of a request, with room for what is around the payload.</summary>
    private static readonly int[] UploadBytes = [64 * 1024, 512 * 1024, PeerProtocol.BodyLimitBytes - 64 * 1024 - 64 * 1024 - 512 * 1024];

    /// <exception cref="IOException">The destination cannot be reached.</exception>
    public static async Task<LinkProbe> MeasureAsync(IPlanPeer peer, TimeProvider time, CancellationToken cancellationToken)
    {
        List<TimeSpan> pings = [];
        for (int i = 0; i < Pings; i++)
        {
            long began = time.GetTimestamp();
            await peer.PingAsync(cancellationToken);
            pings.Add(time.GetElapsedTime(began));
        }

        pings.Sort();
        TimeSpan roundTrip = pings[Pings / 2];
        using CancellationTokenSource second = new(UploadLimit, time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(second.Token, cancellationToken);
        double? rate = null;
        foreach (int bytes in UploadBytes)
        {
            string payload = RandomNumberGenerator.GetString(Alphabet, bytes); // What a link that compresses cannot make small.
            long began = time.GetTimestamp();
            try
            {
                await peer.ProbeLinkAsync(payload, either.Token);
            }
            catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
            {
                break;
            }

            // The way there and back is not the link's width; a clock's step keeps a short one from being infinitely wide.
            TimeSpan took = time.GetElapsedTime(began) - roundTrip;
            rate = bytes / Math.Max(took.TotalSeconds, 0.0001);
        }

        return new LinkProbe(roundTrip.TotalMilliseconds, rate);
    }
}
