// The destination's half, as a pure function of its records. It never acts by itself but for one thing: it refuses when it was not granted in time,
// which is safe because a refusal is durable and the source must have one before it runs on (research: xenopsd.md 10.3, I6, I9).
//
//   Reserved (the token was issued) -> Claimed(plan) -> [Making(what) -> Made(what, id)]... -> Prepared
//   -> Loaded(digests) [-> Promoted] -> Accepting(epoch) -> Running -> Confirmed(receipt) [-> Relinquished(epoch)]
//   again:    Reattempt(n) -> [Undone(what)]... -> [Making(what) -> Made(what, id)]... -> Prepared: new exports and a new domain over the same disks
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
[JsonDerivedType(typeof(Engaged), "engaged")]
[JsonDerivedType(typeof(Reattempt), "reattempt")]
[JsonDerivedType(typeof(Promoted), "promoted")]
[JsonDerivedType(typeof(Accepting), "accepting")]
[JsonDerivedType(typeof(Running), "running")]
[JsonDerivedType(typeof(Confirmed), "confirmed")]
[JsonDerivedType(typeof(Relinquished), "relinquished")]
[JsonDerivedType(typeof(Refusing), "refusing")]
[JsonDerivedType(typeof(Undone), "undone")]
[JsonDerivedType(typeof(Refused), "refused")]
public abstract record DestinationRecord
{
    public sealed record Claimed(MigrationPlan Plan, DateTimeOffset At) : DestinationRecord;

    public sealed record Making(Resource Resource) : DestinationRecord;

    /// <param name="Id">What the maker calls it (a disk's location, a port, a reference); enough to find and to destroy it.</param>
    public sealed record Made(Resource Resource, string Id) : DestinationRecord;

    /// <param name="Attempt">The source's, from 0.</param>
    public sealed record Prepared(PreparedDestination Destination, int Attempt) : DestinationRecord;

    /// <summary>The source was heard after it was prepared: from now on it is waited for as long as the plan says.</summary>
    public sealed record Engaged : DestinationRecord;

    /// <summary>The source begins again: what belongs to a connection is made anew, what was loaded does not count.</summary>
    public sealed record Reattempt(int Attempt) : DestinationRecord;

    public sealed record Loaded(ContentDigests Digests) : DestinationRecord;

    /// <summary>An operator's word in place of the grant: the source is fenced and will never run this VM again.</summary>
    public sealed record Promoted(string Operator, string Evidence) : DestinationRecord;

    public sealed record Accepting(long Epoch) : DestinationRecord;

    /// <param name="IsRebooted">Its memory was lost after the hand-over; it started anew from its disks.</param>
    public sealed record Running(DateTimeOffset At, bool IsRebooted = false) : DestinationRecord;

    public sealed record Confirmed(Receipt Receipt) : DestinationRecord;

    /// <summary>The VM is the source's again; this side will never run it.</summary>
    public sealed record Relinquished(long Epoch) : DestinationRecord;

    public sealed record Refusing(string Reason) : DestinationRecord;

    public sealed record Undone(Resource Resource, string? Failure) : DestinationRecord;

    public sealed record Refused : DestinationRecord;
}

public sealed record DestinationState(IReadOnlyList<DestinationRecord> Records)
{
    public MigrationPlan Plan => ((DestinationRecord.Claimed)Records[0]).Plan;

    /// <summary>It accepted; that it gave the VM back later is another matter.</summary>
    public bool IsOwner => Has<DestinationRecord.Accepting>();

    public bool IsRunning => Has<DestinationRecord.Running>();

    public bool IsRefusing => Has<DestinationRecord.Refusing>();

    public bool IsClosed => Has<DestinationRecord.Confirmed>() || Has<DestinationRecord.Relinquished>() || Has<DestinationRecord.Refused>();

    /// <summary>The word for a peer and a person.</summary>
    public string Name =>
        Has<DestinationRecord.Relinquished>() ? "relinquished"
        : Has<DestinationRecord.Refused>() || IsRefusing ? "refused"
        : Has<DestinationRecord.Confirmed>() ? "confirmed"
        : IsRunning ? "running"
        : IsOwner ? "accepting"
        : Loaded is not null ? "loaded"
        : Has<DestinationRecord.Prepared>() ? "prepared"
        : "preparing";

    public bool Has<T>()
        where T : DestinationRecord => Records.Any(static r => r is T);

    public T? Last<T>()
        where T : DestinationRecord => Records.OfType<T>().LastOrDefault();

    /// <summary>The attempt that was prepared, or is being; the first is 0.</summary>
    public int Attempt => Math.Max(Last<DestinationRecord.Reattempt>()?.Attempt ?? 0, Last<DestinationRecord.Prepared>()?.Attempt ?? 0);

    /// <summary>What was loaded in this attempt.</summary>
    public DestinationRecord.Loaded? Loaded => LastNow<DestinationRecord.Loaded>();

    /// <summary>What was answered in this attempt.</summary>
    public DestinationRecord.Prepared? Prepared => LastNow<DestinationRecord.Prepared>();

    /// <summary>The id of a resource that is there, or null.</summary>
    public string? IdOf(Resource resource)
    {
        for (int i = Records.Count - 1; i >= 0; i--)
        {
            if (Records[i] is DestinationRecord.Made made && made.Resource == resource)
                return made.Id;
            if (Records[i] is DestinationRecord.Undone { Failure: null } undone && undone.Resource == resource)
                return null;
        }

        return null;
    }

    /// <summary>The newest of its records that speak of this resource.</summary>
    public DestinationRecord? LastOf(Resource resource)
    {
        for (int i = Records.Count - 1; i >= 0; i--)
        {
            Resource? of = Records[i] switch
            {
                DestinationRecord.Making r => r.Resource,
                DestinationRecord.Made r => r.Resource,
                DestinationRecord.Undone r => r.Resource,
                _ => null,
            };
            if (of == resource)
                return Records[i];
        }

        return null;
    }

    private T? LastNow<T>()
        where T : DestinationRecord
    {
        for (int i = Records.Count - 1; i >= 0; i--)
        {
            if (Records[i] is T found)
                return found;
            if (Records[i] is DestinationRecord.Reattempt)
                return null;
        }

        return null;
    }

    public DestinationState With(DestinationRecord record) => new([.. Records, record]);
}

public static class DestinationSaga
{
    /// <summary>The next resource to make, or null when all are there.</summary>
    public static Resource? NextToMake(DestinationState state) =>
        Resources(state.Plan).FirstOrDefault(resource => state.IdOf(resource) is null);

    /// <summary>
    /// The next resource to destroy, in reverse order of making: everything whose making was begun, known id or not, and nothing else. What could not be
    /// destroyed was tried, and stands in the journal.
    /// </summary>
    public static Resource? NextToUndo(DestinationState state)
    {
        Invariant.Holds(!state.IsOwner, "an owner never destroys what it runs on");
        return Resources(state.Plan)
            .Reverse()
            .FirstOrDefault(resource => state.LastOf(resource) is DestinationRecord.Making or DestinationRecord.Made);
    }

    /// <summary>What a new attempt makes anew whatever state it is in: the old connections end with it.</summary>
    public static bool BelongsToAttempt(Resource resource) => resource.Kind is ResourceKind.Export or ResourceKind.Domain;

    /// <summary>Whether a grant may be accepted now; null when it may, otherwise the reason to refuse it.</summary>
    public static string? WhyNotAccept(DestinationState state, long epoch, ContentDigests digests)
    {
        if (state.IsRefusing)
            return $"it was refused before: {state.Last<DestinationRecord.Refusing>()!.Reason}";
        if (epoch != state.Plan.Epoch + 1)
            return $"the grant is for epoch {epoch}, this migration's is {state.Plan.Epoch + 1}";
        if (state.Loaded is not { } loaded)
            return "the guest's memory was not loaded";
        return loaded.Digests.DifferenceFrom(digests) is { } difference ? $"the two sides differ: {difference}" : null;
    }

    /// <summary>Why an operator may not make this side the owner without the source's grant; null when he may.</summary>
    public static string? WhyNotPromote(DestinationState state) =>
        state.IsOwner ? "this side owns the VM already"
        : state.IsRefusing ? "this migration was refused, and the source may know it: the VM is the source's"
        : state.Loaded is null ? "the guest was not loaded whole; what is here would not be the VM"
        : null;

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
