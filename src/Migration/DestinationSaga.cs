// The destination's half, as a pure function of its records. It never acts by itself but for one thing: it refuses when it was not granted in time,
// which is safe because a refusal is durable and the source must have one before it runs on (research: xenopsd.md 10.3, I6, I9).
//
//   Reserved (the token was issued) -> Claimed(plan) -> [Making(what) -> Made(what, id)]... -> Prepared
//   -> Loaded(digests) -> Accepting(epoch) -> Running -> Confirmed(receipt)
//   refusing: Refusing(why) -> [Undone(what)]... -> Refused
using System.Text.Json.Serialization;
using Platform;

namespace Migration;

/// <summary>The kinds of things a destination makes for a migration, in the order in which they are made.</summary>
public enum ResourceKind
{
    Disk,
    Datapath,
    Export,
    Vm,
    Domain,
}

/// <summary>A thing made for a migration. The name is chosen before it exists, so that it can be found again after a crash.</summary>
public sealed record Resource(ResourceKind Kind, string Device)
{
    public override string ToString() => Device.Length == 0 ? Kind.ToString() : $"{Kind} {Device}";
}

[JsonPolymorphic(TypeDiscriminatorPropertyName = "type")]
[JsonDerivedType(typeof(Claimed), "claimed")]
[JsonDerivedType(typeof(Making), "making")]
[JsonDerivedType(typeof(Made), "made")]
[JsonDerivedType(typeof(Prepared), "prepared")]
[JsonDerivedType(typeof(Loaded), "loaded")]
[JsonDerivedType(typeof(Accepting), "accepting")]
[JsonDerivedType(typeof(Running), "running")]
[JsonDerivedType(typeof(Confirmed), "confirmed")]
[JsonDerivedType(typeof(Refusing), "refusing")]
[JsonDerivedType(typeof(Undone), "undone")]
[JsonDerivedType(typeof(Refused), "refused")]
public abstract record DestinationRecord
{
    public sealed record Claimed(MigrationPlan Plan, DateTimeOffset At) : DestinationRecord;

    public sealed record Making(Resource Resource) : DestinationRecord;

    /// <param name="Id">What the maker calls it (a disk's location, a port, a reference); enough to find and to destroy it.</param>
    public sealed record Made(Resource Resource, string Id) : DestinationRecord;

    public sealed record Prepared(PreparedDestination Destination) : DestinationRecord;

    public sealed record Loaded(ContentDigests Digests) : DestinationRecord;

    public sealed record Accepting(long Epoch) : DestinationRecord;

    public sealed record Running(DateTimeOffset At) : DestinationRecord;

    public sealed record Confirmed(Receipt Receipt) : DestinationRecord;

    public sealed record Refusing(string Reason) : DestinationRecord;

    public sealed record Undone(Resource Resource, string? Failure) : DestinationRecord;

    public sealed record Refused : DestinationRecord;
}

public sealed record DestinationState(IReadOnlyList<DestinationRecord> Records)
{
    public MigrationPlan Plan => Last<DestinationRecord.Claimed>()!.Plan;

    public bool IsOwner => Has<DestinationRecord.Accepting>();

    public bool IsRunning => Has<DestinationRecord.Running>();

    public bool IsRefusing => Has<DestinationRecord.Refusing>();

    public bool IsClosed => Has<DestinationRecord.Confirmed>() || Has<DestinationRecord.Refused>();

    /// <summary>The word for a peer and a person.</summary>
    public string Name =>
        Has<DestinationRecord.Refused>() || IsRefusing ? "refused"
        : Has<DestinationRecord.Confirmed>() ? "confirmed"
        : IsRunning ? "running"
        : IsOwner ? "accepting"
        : Has<DestinationRecord.Loaded>() ? "loaded"
        : Has<DestinationRecord.Prepared>() ? "prepared"
        : "preparing";

    public bool Has<T>()
        where T : DestinationRecord => Records.Any(static r => r is T);

    public T? Last<T>()
        where T : DestinationRecord => Records.OfType<T>().LastOrDefault();

    /// <summary>The id of a made resource, or null.</summary>
    public string? IdOf(Resource resource) => Records.OfType<DestinationRecord.Made>().LastOrDefault(r => r.Resource == resource)?.Id;

    public DestinationState With(DestinationRecord record) => new([.. Records, record]);
}

public static class DestinationSaga
{
    /// <summary>The next resource to make, or null when all are there.</summary>
    public static Resource? NextToMake(DestinationState state) =>
        Resources(state.Plan).FirstOrDefault(resource => state.IdOf(resource) is null);

    /// <summary>
    /// The next resource to destroy, in reverse order of making: everything whose making was begun, known id or not, and nothing else.
    /// </summary>
    public static Resource? NextToUndo(DestinationState state)
    {
        Invariant.Holds(!state.IsOwner, "an owner never destroys what it runs on");
        return state.Records.OfType<DestinationRecord.Making>()
            .Select(static r => r.Resource)
            .Reverse()
            .FirstOrDefault(resource => !state.Records.OfType<DestinationRecord.Undone>().Any(u => u.Resource == resource));
    }

    /// <summary>Whether a grant may be accepted now; null when it may, otherwise the reason to refuse it.</summary>
    public static string? WhyNotAccept(DestinationState state, long epoch, ContentDigests digests)
    {
        if (state.IsRefusing)
            return $"it was refused before: {state.Last<DestinationRecord.Refusing>()!.Reason}";
        if (epoch != state.Plan.Epoch + 1)
            return $"the grant is for epoch {epoch}, this migration's is {state.Plan.Epoch + 1}";
        if (state.Last<DestinationRecord.Loaded>() is not { } loaded)
            return "the guest's memory was not loaded";
        return loaded.Digests.DifferenceFrom(digests) is { } difference ? $"the two sides differ: {difference}" : null;
    }

    public static IEnumerable<Resource> Resources(MigrationPlan plan)
    {
        foreach (DiskPlan disk in plan.Disks)
        {
            yield return new Resource(ResourceKind.Disk, disk.Device);
            yield return new Resource(ResourceKind.Datapath, disk.Device);
            yield return new Resource(ResourceKind.Export, disk.Device);
        }

        yield return new Resource(ResourceKind.Vm, "");
        yield return new Resource(ResourceKind.Domain, "");
    }
}
