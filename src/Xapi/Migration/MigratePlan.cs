// VM.migrate_plan and VM.assert_can_migrate: both sides' obstacles at once, the link, and what the migration would take. Nothing is made by asking.
using System.Text.Json.Nodes;
using Migration;

namespace Xapi.Migration;

/// <param name="Now">The obstacles of this moment, beside what the look found.</param>
public sealed class MigratePlan(SourceLook look, IEnumerable<Obstacle> now, MigrationToken token, MigrationOptions options, TimeProvider time)
{
    /// <summary>Clocks that differ more make journals and receipts of the two sides hard to read together.</summary>
    private static readonly TimeSpan ClockTolerance = TimeSpan.FromMinutes(5);

    /// <summary>For all that is asked of a destination: a plan is there in seconds or says why not.</summary>
    private static readonly TimeSpan PeerLimit = TimeSpan.FromSeconds(15);

    /// <summary>Exchanges between the order to stop and the answer that it runs.</summary>
    private const int HandOverRoundTrips = 4;

    /// <summary>Digests of what was written last and durable records of both sides, on a busy machine (docs/journeys/vm-migrate.md).</summary>
    private const double HandOverMs = 250;

    private readonly List<Obstacle> obstacles = [.. now, .. look.Obstacles];
    private PlanAnswer? answer;
    private LinkProbe? link;

    public IReadOnlyList<Obstacle> Obstacles => obstacles;

    /// <summary>The first thing for which VM.migrate would be refused; null: it would begin.</summary>
    public Obstacle? FirstError => obstacles.FirstOrDefault(static o => o.Severity == ObstacleSeverity.Error);

    /// <summary>Asks the destination; that it cannot be asked is an obstacle like others.</summary>
    /// <param name="measuresLink">Not when only a yes or no is wanted.</param>
    public async Task AskAsync(IPlanPeer peer, bool measuresLink, CancellationToken cancellationToken)
    {
        using CancellationTokenSource deadline = new(PeerLimit, time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(deadline.Token, cancellationToken);
        try
        {
            long began = time.GetTimestamp();
            DateTimeOffset asked = time.GetUtcNow();
            answer = await peer.PlanAsync(look.Question, either.Token);
            obstacles.AddRange(answer.Obstacles);
            if (answer.Version != PeerProtocol.Version)
            {
                obstacles.Add(new Obstacle(
                    "VM_HOST_INCOMPATIBLE_VERSION_MIGRATE", [token.Destination.Host, look.Question.Vm], MigrationSide.Destination,
                    $"the destination speaks version {answer.Version} of the migration protocol, this pool {PeerProtocol.Version}", ObstacleSeverity.Error));
            }

            if (answer.At is { } theirs)
                CompareClocks(theirs - (asked + (time.GetElapsedTime(began) / 2)));
            if (measuresLink)
                link = await LinkProbe.MeasureAsync(peer, time, either.Token);
        }
        catch (MigrationException e)
        {
            obstacles.Add(Obstacle.Of(e));
        }
        catch (IOException e)
        {
            obstacles.Add(Unreachable(e.Message));
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            obstacles.Add(Unreachable($"{token.Destination.Url} did not answer a plan's questions within {PeerLimit.TotalSeconds:0} s"));
        }
    }

    public JsonObject ToJson() => new()
    {
        ["can_migrate"] = FirstError is null,
        ["vm"] = look.Question.Vm,
        ["vm_name"] = look.Question.VmName,
        ["destination"] = token.Destination.Url,
        ["token_expires_at"] = PeerProtocol.Node(answer?.TokenExpiresAt ?? token.ExpiresAt),
        ["obstacles"] = PeerProtocol.Node(obstacles),
        ["disks"] = new JsonArray([.. look.Question.Disks.Select(DiskNode)]),
        ["link"] = PeerProtocol.Node(link),
        ["estimate"] = Estimate(),
    };

    private JsonNode DiskNode(DiskPlan disk) => new JsonObject
    {
        ["device"] = disk.Device,
        ["name"] = disk.NameLabel,
        ["length_bytes"] = disk.LengthBytes,
        ["allocated_bytes"] = disk.AllocatedBytes,
        ["destination_storage"] = answer?.Storages.GetValueOrDefault(disk.Device),
        ["chain_depth"] = look.ChainDepths.TryGetValue(disk.Device, out int depth) ? depth : null,
    };

    /// <summary>
    /// The link may give all that the probe saw, or half of it when others use it too; a limit is never exceeded. What the guest writes meanwhile is
    /// not known and not counted. Null where the link was not measured.
    /// </summary>
    private JsonObject Estimate()
    {
        long copyBytes = look.Question.Disks.Sum(static d => d.AllocatedBytes);
        JsonObject estimate = new() { ["copy_bytes"] = copyBytes, ["memory_bytes"] = look.Question.MemoryBytes };
        if (link is null)
            return estimate;
        estimate["blackout_ms_least"] = Math.Round(HandOverRoundTrips * link.RoundTripMs, 1);
        estimate["blackout_ms_most"] = Math.Round((HandOverRoundTrips * link.RoundTripMs) + options.DowntimeLimit.TotalMilliseconds + HandOverMs, 1);
        if (link.BytesPerSecond is not { } rate)
            return estimate;
        estimate["seconds_least"] = Seconds(rate);
        estimate["seconds_most"] = Seconds(rate / 2);
        return estimate;

        // The limit is for the copy of the disks; memory goes at the link's rate.
        double Seconds(double rate)
        {
            double copyRate = options.BandwidthBytesPerSecond > 0 ? Math.Min(rate, options.BandwidthBytesPerSecond) : rate;
            return Math.Round((copyBytes / copyRate) + (look.Question.MemoryBytes / rate), 1);
        }
    }

    private void CompareClocks(TimeSpan difference)
    {
        if (difference.Duration() <= ClockTolerance)
            return;
        obstacles.Add(new Obstacle(
            "CLOCKS_DIFFER", [$"{difference.TotalSeconds:0}"], MigrationSide.Destination,
            $"the destination's clock is {difference.Duration().TotalSeconds:0} s {(difference > TimeSpan.Zero ? "ahead of" : "behind")} this pool's",
            ObstacleSeverity.Warning));
    }

    private Obstacle Unreachable(string message) =>
        new("CANNOT_CONTACT_HOST", [token.Destination.Url], MigrationSide.Destination, message, ObstacleSeverity.Error);
}
