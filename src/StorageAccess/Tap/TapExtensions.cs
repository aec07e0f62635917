// What our tapdisk answers beyond the field's protocol (docs/formats/tapdisk-control.md, "Extension"): export over TLS, mirror, digest.
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;

namespace StorageAccess.Tap;

/// <summary>Where a mirror stands; the words of the wire are these in lower case.</summary>
public enum MirrorPhase
{
    None,
    Copying,
    Synced,

    /// <summary>The target has not answered for a second; the guest waits, at most until the stall limit.</summary>
    Stalled,

    /// <summary>The target is out; the guest goes on; what differs is remembered and can be resumed.</summary>
    Failed,
    Finished,
}

/// <summary>A mirror's progress. <paramref name="Error"/> is empty unless failed.</summary>
public sealed record MirrorStatus(MirrorPhase Phase, long TotalBytes, long CopiedBytes, long SentBytes, int DirtyChunks, string Error)
{
    /// <summary>What may differ of what was copied or written before.</summary>
    public long DirtyBytes { get; init; }

    /// <summary>It failed with the connection or the far process, not by an error of a disk: behind a new export it may go on.</summary>
    public bool IsLost { get; init; }

    /// <summary>Which export it goes to, as <see cref="TargetId"/> tells it; empty when unknown.</summary>
    public string Target { get; init; } = "";

    /// <summary>An export's name as it may be told: it opens nothing.</summary>
    public static string TargetId(Secret name) => Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(name.Reveal())))[..16];
}

/// <summary>The far end of a mirror: NBD over TLS, the export's name a secret, the certificate pinned by its SHA-256 in hex.</summary>
public sealed record MirrorTarget(string Uri, Secret Name, string Fingerprint, TimeSpan StallLimit, long RateLimitBytesPerSecond)
{
    /// <summary>A server on this machine, without TLS: who may open its socket is who may have the disk. The name only tells attempts apart.</summary>
    /// <param name="uri"><c>nbd+unix:///EXPORT?socket=PATH</c>.</param>
    public static MirrorTarget OnSocket(string uri, TimeSpan stallLimit) => new(uri, Secret.Create(), "", stallLimit, 0);
}

/// <summary>A disk's content digest: the root over SHA-256 digests of its blocks.</summary>
public sealed record DiskDigest(string Root, long LengthBytes, int BlockBytes, int RehashedBlocks);

/// <summary>
/// The typed verbs of our tapdisk's extension. The original one answers ENOTSUP (<see cref="CapabilitiesAsync"/>: an empty list).
/// </summary>
public sealed class TapExtensions(TapControl control)
{
    private static readonly TimeSpan ShortDeadline = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan ConnectDeadline = TimeSpan.FromSeconds(60);

    /// <summary>Hashing reads the disk: hours for terabytes. The caller's token ends it earlier.</summary>
    private static readonly TimeSpan DigestDeadline = TimeSpan.FromHours(24);

    public async Task<IReadOnlyList<string>> CapabilitiesAsync(int processId, CancellationToken cancellationToken)
    {
        try
        {
            using JsonDocument answer = await CallAsync(processId, 0, "capabilities", [], ShortDeadline, cancellationToken);
            return [.. answer.RootElement.GetProperty("capabilities").EnumerateArray().Select(static name => name.GetString()!)];
        }
        catch (TapException e) when (e.ErrnoNumber == TapException.NotSupported)
        {
            return [];
        }
    }

    /// <summary>
    /// Holds the disk's I/O and closes its image until what is answered is disposed or this process ends, however it ends. A resume ends it too.
    /// </summary>
    public async Task<IDisposable> PauseAsync(int processId, int minor, TimeSpan deadline, CancellationToken cancellationToken)
    {
        JsonObject fields = new() { ["verb"] = "pause", ["minor"] = minor };
        (JsonDocument answer, IDisposable connection) = await control.OpenExtensionAsync(
            processId, minor, Encoding.UTF8.GetBytes(fields.ToJsonString()), deadline, cancellationToken);
        answer.Dispose();
        return connection;
    }

    /// <summary>Serves the disk over TLS under a secret name, and under that name only.</summary>
    /// <param name="listen"><c>address:port</c>; port 0 picks a free one.</param>
    /// <returns>The port.</returns>
    public async Task<int> ExportAsync(
        int processId, int minor, string listen, string certificatePath, string keyPath, Secret name, CancellationToken cancellationToken)
    {
        JsonObject fields = new() { ["listen"] = listen, ["certificate"] = certificatePath, ["key"] = keyPath, ["name"] = name.Reveal() };
        using JsonDocument answer = await CallAsync(processId, minor, "export", fields, ShortDeadline, cancellationToken);
        return answer.RootElement.GetProperty("port").GetInt32();
    }

    /// <summary>
    /// Ends an export: when this returns, no request of it is in flight and none can come. Ending one that is not there is not an
    /// error.
    /// </summary>
    public Task UnexportAsync(int processId, int minor, Secret name, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "unexport", new() { ["name"] = name.Reveal() }, ConnectDeadline, cancellationToken);

    /// <summary>Starts the synchronous mirror and its background copy; the answer comes when the target is connected.</summary>
    public Task MirrorStartAsync(int processId, int minor, MirrorTarget target, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "mirror-start", FieldsOf(target), ConnectDeadline, cancellationToken);

    /// <summary>After Failed or Finished: connects again and sends only what may differ; without a mirror, which knows that, everything.</summary>
    public Task MirrorResumeAsync(int processId, int minor, MirrorTarget target, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "mirror-resume", FieldsOf(target), ConnectDeadline, cancellationToken);

    /// <param name="bytesPerSecond">0 for no limit.</param>
    public Task MirrorRateAsync(int processId, int minor, long bytesPerSecond, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "mirror-rate", new() { ["rate_limit"] = bytesPerSecond }, ShortDeadline, cancellationToken);

    /// <summary>Never waits for the target.</summary>
    public async Task<MirrorStatus> MirrorStatusAsync(int processId, int minor, CancellationToken cancellationToken)
    {
        using JsonDocument answer = await CallAsync(processId, minor, "mirror-status", [], ShortDeadline, cancellationToken);
        JsonElement root = answer.RootElement;
        return new MirrorStatus(
            Enum.Parse<MirrorPhase>(root.GetProperty("state").GetString()!, ignoreCase: true),
            root.GetProperty("total_bytes").GetInt64(),
            root.GetProperty("copied_bytes").GetInt64(),
            root.GetProperty("sent_bytes").GetInt64(),
            root.GetProperty("dirty_chunks").GetInt32(),
            root.GetProperty("error").GetString() ?? "")
        {
            DirtyBytes = root.TryGetProperty("dirty_bytes", out JsonElement dirty) ? dirty.GetInt64() : 0,
            IsLost = root.TryGetProperty("lost", out JsonElement lost) && lost.GetBoolean(),
            Target = root.TryGetProperty("target", out JsonElement target) ? target.GetString() ?? "" : "",
        };
    }

    /// <summary>Leaves the target behind as if it had failed: the guest goes on, what differs is remembered.</summary>
    public Task MirrorGiveUpAsync(int processId, int minor, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "mirror-give-up", [], ShortDeadline, cancellationToken);

    /// <summary>
    /// The switch-over, with the guest paused: drains, flushes both sides, requires that they hold the same, and lets go of the target.
    /// On an error (EBUSY: not in sync) nothing changed.
    /// </summary>
    public Task MirrorFinishAsync(int processId, int minor, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "mirror-finish", [], ConnectDeadline, cancellationToken);

    /// <summary>Cancels: back to the plain disk, whatever state the mirror is in.</summary>
    public Task MirrorStopAsync(int processId, int minor, CancellationToken cancellationToken) =>
        SendAsync(processId, minor, "mirror-stop", [], ConnectDeadline, cancellationToken);

    /// <summary>The disk's content digest; only blocks written since the last time are read again.</summary>
    public async Task<DiskDigest> DigestAsync(int processId, int minor, CancellationToken cancellationToken)
    {
        using JsonDocument answer = await CallAsync(processId, minor, "digest", [], DigestDeadline, cancellationToken);
        JsonElement root = answer.RootElement;
        return new DiskDigest(
            root.GetProperty("root").GetString()!,
            root.GetProperty("length_bytes").GetInt64(),
            root.GetProperty("block_bytes").GetInt32(),
            root.GetProperty("rehashed_blocks").GetInt32());
    }

    /// <summary>The digest of a part of the disk, in whole leaves (docs/formats/digest.md, "Range"), in hex.</summary>
    public async Task<string> DigestRangeAsync(int processId, int minor, long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        JsonObject fields = new() { ["offset"] = offsetBytes, ["length"] = lengthBytes };
        using JsonDocument answer = await CallAsync(processId, minor, "digest-range", fields, DigestDeadline, cancellationToken);
        return answer.RootElement.GetProperty("digest").GetString()!;
    }

    private static JsonObject FieldsOf(MirrorTarget target) => new()
    {
        ["uri"] = target.Uri,
        ["name"] = target.Name.Reveal(),
        ["fingerprint"] = target.Fingerprint,
        ["stall_limit_ms"] = (long)target.StallLimit.TotalMilliseconds,
        ["rate_limit"] = target.RateLimitBytesPerSecond,
    };

    private async Task SendAsync(
        int processId, int minor, string verb, JsonObject fields, TimeSpan deadline, CancellationToken cancellationToken)
    {
        using JsonDocument answer = await CallAsync(processId, minor, verb, fields, deadline, cancellationToken);
    }

    private Task<JsonDocument> CallAsync(
        int processId, int minor, string verb, JsonObject fields, TimeSpan deadline, CancellationToken cancellationToken)
    {
        fields["verb"] = verb;
        fields["minor"] = minor;
        return control.ExtensionAsync(processId, minor, Encoding.UTF8.GetBytes(fields.ToJsonString()), deadline, cancellationToken);
    }
}
