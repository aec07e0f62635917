using System.Text.Json.Nodes;
using Migration;
using Platform;

namespace Support;

/// <summary>
/// Two pools in memory for the saga's tests: what exists on each side, who may run the VM, and a counter of every call and every journal record,
/// at any of which a failure or a crash can be ordered. It knows nothing of the saga's states.
/// </summary>
public sealed class MigrationWorld(MigrationOptions? options = null) :
    ISourceStorage, ISourceDomain, IPeer, IDestinationResources, IJournal<SourceRecord>, IJournal<DestinationRecord>
{
    private int calls;
    private int records;
    private readonly List<object> story = [];

    public MigrationPlan Plan { get; } = new(
        "m1", "vm1", "lovely", 7,
        [
            new DiskPlan("xvda", "srA", "d1", "srB", "root", "", 1 << 20, 1 << 19, false),
            new DiskPlan("xvdb", "srA", "d2", "srB", "swap", "", 1 << 20, 1 << 18, false),
        ],
        new PeerAddress("https://a", "aa", "hostA"), new PeerAddress("https://b", "bb", "hostB"), new JsonObject(), options ?? new MigrationOptions());

    public List<SourceRecord> SourceRecords { get; } = [];

    public List<DestinationRecord> DestinationRecords { get; } = [];

    public HashSet<string> AtDestination { get; } = [];

    public HashSet<string> SourceDisks { get; } = ["d1", "d2"];

    public HashSet<string> Mirrors { get; } = [];

    public bool SourceRuns { get; private set; } = true;

    public bool SourceExists { get; private set; } = true;

    public bool DestinationRuns { get; private set; }

    public bool EverRanTwice { get; private set; }

    /// <summary>The call (counted from 1) that fails, before or after it did its work; 0 is none.</summary>
    public int FailCall { get; init; }

    public bool FailAfter { get; init; }

    /// <summary>The ordered failure is one that trying again does not mend.</summary>
    public bool FailForGood { get; init; }

    /// <summary>From this call on (counted from 1) the destination does not answer any more; 0 is never.</summary>
    public int UnreachableFromCall { get; init; }

    public HashSet<string> HeldDisks { get; } = [];

    /// <summary>While set, destroying a source disk fails.</summary>
    public bool SourceDisksStay { get; set; }

    /// <summary>The destination's resource that cannot be destroyed.</summary>
    public string? DestinationKeeps { get; init; }

    /// <summary>The journal record (counted from 1) after which both processes die.</summary>
    public int CrashAtRecord { get; set; }

    public int Calls => calls;

    public int Records => records;

    public DestinationRunner? Destination { get; set; }

    /// <summary>How many records of both sides were written before the first of this kind.</summary>
    public int RecordsBefore<T>() => story.FindIndex(static r => r is T);

    public void StopDestination() => DestinationRuns = false;

    void IJournal<SourceRecord>.Append(string migration, SourceRecord record)
    {
        SourceRecords.Add(record);
        Crash(record);
    }

    void IJournal<DestinationRecord>.Append(string migration, DestinationRecord record)
    {
        DestinationRecords.Add(record);
        Crash(record);
    }

    Task ISourceStorage.StartMirrorAsync(
        DiskPlan disk, DiskTarget target, bool wasMirrored, long bytesPerSecond, MigrationOptions options, CancellationToken cancellationToken) =>
        Do(() => Mirrors.Add(disk.Device));

    Task<MirrorProgress> ISourceStorage.MirrorStatusAsync(DiskPlan disk, CancellationToken cancellationToken) =>
        Do(() => new MirrorProgress(true, false, Mirrors.Contains(disk.Device) ? null : "no mirror", 10, 10, 10));

    Task ISourceStorage.FinishMirrorAsync(DiskPlan disk, CancellationToken cancellationToken) => Do(() => SourceRuns ? throw new IOException("runs") : true);

    Task ISourceStorage.StopMirrorAsync(DiskPlan disk, CancellationToken cancellationToken) => Do(() => Mirrors.Remove(disk.Device));

    Task<DiskDigest> ISourceStorage.DigestAsync(DiskPlan disk, CancellationToken cancellationToken) =>
        Do(() => new DiskDigest(disk.Device, "root" + disk.Device, disk.LengthBytes));

    Task ISourceStorage.SetRateAsync(DiskPlan disk, long bytesPerSecond, CancellationToken cancellationToken) => Do(() => true);

    Task<string> ISourceStorage.RangeDigestAsync(DiskPlan disk, DigestRange range, CancellationToken cancellationToken) => Do(() => "same");

    Task ISourceStorage.HoldAsync(DiskPlan disk, DateTimeOffset until, CancellationToken cancellationToken) => Do(() => HeldDisks.Add(disk.SourceDisk));

    Task ISourceStorage.DestroyAsync(DiskPlan disk, CancellationToken cancellationToken) => Do(() =>
    {
        if (SourceDisksStay)
            throw new IOException("ordered to stay");
        Mirrors.Remove(disk.Device);
        return SourceDisks.Remove(disk.SourceDisk);
    });

    Task ISourceDomain.PrecopyAsync(MigrationPlan plan, MemoryTarget target, CancellationToken cancellationToken) => Do(() => true);

    Task<DateTimeOffset> ISourceDomain.StopAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do(() =>
    {
        SourceRuns = false;
        return DateTimeOffset.UnixEpoch;
    });

    Task<MemoryDigest> ISourceDomain.TransferAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do(() => new MemoryDigest("mem", 5));

    Task ISourceDomain.FreezeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do(() => true);

    Task ISourceDomain.ResumeAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do(() =>
    {
        SourceRuns = true;
        return Watch();
    });

    Task ISourceDomain.ReleaseAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do(() => SourceExists = false);

    Task ISourceDomain.RestoreAsync(MigrationPlan plan, CancellationToken cancellationToken) => Do(() => SourceExists = true);

    async Task<PreparedDestination> IPeer.PrepareAsync(MigrationPlan plan, int attempt, CancellationToken cancellationToken)
    {
        await Reach();
        return await Destination!.PrepareAsync(attempt, cancellationToken);
    }

    async Task IPeer.HeartbeatAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        await Reach();
        Destination!.Heartbeat();
    }

    async Task<IReadOnlyList<DiskDigest>> IPeer.DigestAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        await Reach();
        return await Destination!.DigestAsync(cancellationToken);
    }

    async Task<string> IPeer.RangeDigestAsync(MigrationPlan plan, string device, DigestRange range, CancellationToken cancellationToken)
    {
        await Reach();
        return await Destination!.RangeDigestAsync(device, range, cancellationToken);
    }

    async Task IPeer.RelinquishAsync(MigrationPlan plan, long epoch, CancellationToken cancellationToken)
    {
        await Destination!.RelinquishAsync(epoch, cancellationToken);
        await Reach();
    }

    async Task IPeer.ProbeAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        await Reach();
        await Destination!.ProbeAsync(cancellationToken);
    }

    async Task<ContentDigests> IPeer.LoadedAsync(MigrationPlan plan, CancellationToken cancellationToken)
    {
        ContentDigests digests = await Destination!.LoadedAsync(cancellationToken);
        await Reach();
        return digests;
    }

    async Task<GrantAnswer> IPeer.GrantAsync(MigrationPlan plan, long epoch, ContentDigests digests, CancellationToken cancellationToken)
    {
        GrantAnswer answer = await Destination!.GrantAsync(epoch, digests);
        await Reach();
        return answer;
    }

    async Task IPeer.AbortAsync(MigrationPlan plan, string reason, CancellationToken cancellationToken)
    {
        if (UnreachableFromCall > 0 && calls >= UnreachableFromCall)
            throw new IOException("unreachable");
        if (DestinationRecords.Count > 0 && await Destination!.AbortAsync(reason, cancellationToken) is { } left)
            throw new MigrationException("VM_MIGRATE_FAILED", [], MigrationSide.Destination, left);
        await Reach();
    }

    async Task IPeer.ConfirmAsync(MigrationPlan plan, Receipt receipt, CancellationToken cancellationToken)
    {
        await Destination!.ConfirmAsync(receipt, cancellationToken);
        await Reach();
    }

    Task<string> IDestinationResources.MakeAsync(Resource resource, DestinationState state, CancellationToken cancellationToken) => Do(() =>
    {
        AtDestination.Add(resource.ToString());
        return resource.ToString();
    });

    Task IDestinationResources.DestroyAsync(Resource resource, string? id, DestinationState state, CancellationToken cancellationToken) =>
        Do(() => resource.ToString() == DestinationKeeps ? throw new IOException("ordered to stay") : AtDestination.Remove(resource.ToString()));

    Task<bool> IDestinationResources.IsThereAsync(Resource resource, string id, DestinationState state, CancellationToken cancellationToken) =>
        Do(() => AtDestination.Contains(id));

    Task<string> IDestinationResources.RangeDigestAsync(
        DiskPlan disk, DigestRange range, DestinationState state, CancellationToken cancellationToken) => Do(() => "same");

    Task<DateTimeOffset> IDestinationResources.BootAsync(DestinationState state, CancellationToken cancellationToken) =>
        throw new InvariantException("nothing here loses a loaded guest");

    Task IDestinationResources.CheckStoppedAsync(DestinationState state, CancellationToken cancellationToken) => Do(() =>
        DestinationRuns ? throw new MigrationException("VM_BAD_POWER_STATE", [], MigrationSide.Destination, "it runs") : true);

    PreparedDestination IDestinationResources.Describe(DestinationState state) => new(
        [.. state.Plan.Disks.Select(static d => new DiskTarget(d.Device, "b", 1, "secret", "bb", "new" + d.Device))],
        new MemoryTarget("b", 2, "secret", "bb"), "OpaqueRef:x");

    Task IDestinationResources.ProbeAsync(DestinationState state, CancellationToken cancellationToken) => Do(() => true);

    Task<DiskDigest> IDestinationResources.DigestAsync(DiskPlan disk, DestinationState state, CancellationToken cancellationToken) =>
        Do(() => new DiskDigest(disk.Device, "root" + disk.Device, disk.LengthBytes));

    Task<MemoryDigest> IDestinationResources.LoadedAsync(DestinationState state, CancellationToken cancellationToken) =>
        Do(() => new MemoryDigest("mem", 5));

    Task IDestinationResources.CloseExportsAsync(DestinationState state, CancellationToken cancellationToken) => Do(() => true);

    Task<DateTimeOffset> IDestinationResources.RunAsync(DestinationState state, CancellationToken cancellationToken) => Do(() =>
    {
        DestinationRuns = true;
        Watch();
        return DateTimeOffset.UnixEpoch.AddSeconds(1);
    });

    Task IDestinationResources.ReleaseAsync(DestinationState state, CancellationToken cancellationToken) => Do(() =>
    {
        AtDestination.RemoveWhere(static r => r.StartsWith("Datapath", StringComparison.Ordinal) || r.StartsWith("Export", StringComparison.Ordinal));
        return true;
    });

    private bool Watch() => EverRanTwice |= SourceRuns && DestinationRuns;

    private Task<T> Do<T>(Func<T> work)
    {
        bool fails = ++calls == FailCall;
        if (fails && !FailAfter)
            throw Failure("ordered failure");
        T result = work();
        return fails ? throw Failure("ordered failure after the work was done") : Task.FromResult(result);
    }

    private Exception Failure(string message) => FailForGood
        ? new MigrationException("VM_MIGRATE_FAILED", [], MigrationSide.Destination, message)
        : new IOException(message);

    private Task<bool> Reach() => UnreachableFromCall > 0 && calls >= UnreachableFromCall ? throw new IOException("unreachable") : Do(() => true);

    private void Crash(object record)
    {
        story.Add(record);
        if (++records == CrashAtRecord)
            throw new InvariantException("both processes die here"); // What nobody below the process boundary catches.
    }
}
