// What a migration is about, in values: agreed in BEGIN and never changed afterwards (research: xenopsd.md 10.2, 10.3).
using System.Text.Json.Nodes;

namespace Migration;

/// <summary>One disk that moves. Ids are opaque here: whoever runs the effects knows what they mean.</summary>
/// <param name="Device">The guest's name for it (xvda); unique in a migration and the disk's name in every record and error.</param>
/// <param name="AllocatedBytes">What the source holds of it when the migration begins; the rest reads as zeros.</param>
public sealed record DiskPlan(
    string Device,
    string SourceStorage,
    string SourceDisk,
    string DestinationStorage,
    string NameLabel,
    string NameDescription,
    long LengthBytes,
    long AllocatedBytes,
    bool IsReadOnly);

/// <summary>Who can be asked, and how his certificate is known.</summary>
public sealed record PeerAddress(string Url, string FingerprintSha256, string Host);

/// <summary>A witness daemon: its certificate's fingerprint, and the key that opens it.</summary>
public sealed record WitnessAddress(string Url, string FingerprintSha256, string Key);

public sealed record MigrationOptions
{
    /// <summary>A limit on the background copy in bytes per second; 0 is none.</summary>
    public long BandwidthBytesPerSecond { get; init; }

    /// <summary>How long a guest write may wait for the destination before the mirror is given up and the guest goes on.</summary>
    public TimeSpan StallLimit { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>The wish for the guest's pause; pre-copy goes on until what is left fits.</summary>
    public TimeSpan DowntimeLimit { get; init; } = TimeSpan.FromMilliseconds(50);

    /// <summary>How long each side keeps what it has while the other cannot be reached.</summary>
    public TimeSpan ResumeWindow { get; init; } = TimeSpan.FromDays(1);

    /// <summary>How long the source's disks are kept, stale and locked, after the VM has moved; zero: they go at once.</summary>
    public TimeSpan KeepSourceFor { get; init; }

    /// <summary>Who decides when the two sides cannot ask each other; null: then the source waits for the destination, or for an operator's word.</summary>
    public WitnessAddress? Witness { get; init; }
}

/// <param name="Epoch">The ownership epoch under which the source runs the VM; the destination will run it under the next one.</param>
/// <param name="Domain">The VM's metadata, as the destination's importer understands it.</param>
public sealed record MigrationPlan(
    string Migration,
    string Vm,
    string VmName,
    long Epoch,
    IReadOnlyList<DiskPlan> Disks,
    PeerAddress Source,
    PeerAddress Destination,
    JsonObject Domain,
    MigrationOptions Options);

/// <summary>Where one disk's bytes go. The name is a capability: whoever has it may write the disk.</summary>
public sealed record DiskTarget(string Device, string Host, int Port, string Name, string FingerprintSha256, string DestinationDisk);

/// <summary>Where the guest's memory goes.</summary>
public sealed record MemoryTarget(string Host, int Port, string Secret, string FingerprintSha256);

/// <summary>What the destination made and answers to PREPARE.</summary>
public sealed record PreparedDestination(IReadOnlyList<DiskTarget> Disks, MemoryTarget Memory, string VmReference);

/// <summary>A disk's content as one hash (the tree of docs/formats/digest.md).</summary>
public sealed record DiskDigest(string Device, string Root, long LengthBytes);

/// <summary>A part of a disk, in whole leaves of <see cref="LeafBytes"/>; only the disk's end may cut the last one.</summary>
public readonly record struct DigestRange(long OffsetBytes, long LengthBytes)
{
    public const int LeafBytes = 64 * 1024;
}

/// <summary>The memory image and device state, as one hash.</summary>
public sealed record MemoryDigest(string Digest, long Bytes);

/// <summary>Everything that both sides must agree on before one of them lets go.</summary>
public sealed record ContentDigests(MemoryDigest Memory, IReadOnlyList<DiskDigest> Disks)
{
    /// <summary>Null when equal, otherwise what differs, by name.</summary>
    public string? DifferenceFrom(ContentDigests other)
    {
        if (Memory.Digest != other.Memory.Digest)
            return $"memory: {Memory.Digest} here, {other.Memory.Digest} there";
        foreach (DiskDigest disk in Disks)
        {
            DiskDigest? theirs = other.Disks.FirstOrDefault(d => d.Device == disk.Device);
            if (theirs is null)
                return $"disk {disk.Device}: not there";
            if (theirs.Root != disk.Root || theirs.LengthBytes != disk.LengthBytes)
                return $"disk {disk.Device}: {disk.Root} ({disk.LengthBytes} bytes) here, {theirs.Root} ({theirs.LengthBytes} bytes) there";
        }

        return other.Disks.Count == Disks.Count ? null : $"{Disks.Count} disks here, {other.Disks.Count} there";
    }
}

/// <summary>
/// The guest's pause on the source's clock, from the order to stop to the destination's answer "it runs" (so never less than what the guest
/// felt), and its parts; what the parts leave of the total is the journal's writing.
/// </summary>
public sealed record Blackout(double TotalMs, double StopMs, double MirrorMs, double DigestMs, double MemoryMs, double HandOverMs);

/// <summary>
/// The proof that a migration was whole: kept by both pools and given to the caller. Until it is written the source's disks are untouched.
/// </summary>
public sealed record Receipt(
    string Migration,
    string Vm,
    string VmName,
    long Epoch,
    PeerAddress Source,
    PeerAddress Destination,
    ContentDigests Digests,
    IReadOnlyDictionary<string, string> DestinationDisks,
    long LogicalBytes,
    long SentBytes,
    DateTimeOffset StartedAt,
    DateTimeOffset StoppedAt,
    DateTimeOffset RunningAt,
    Blackout Blackout);
