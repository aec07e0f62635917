// Our verbs on the control socket: JSON there, JSON back (docs/formats/tapdisk-control.md, "Extension"). Secrets in a request are never
// logged.
using System.Net;
using System.Text.Json;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess.Tap;

namespace Tapdisk;

internal static class ExtensionVerbs
{
    /// <param name="hold">Stands for the connection, for a pause that ends with it.</param>
    public static async Task<JsonObject> RunAsync(
        DiskTable disks, ReadOnlyMemory<byte> json, object hold, CancellationToken cancellationToken)
    {
        try
        {
            using JsonDocument request = JsonDocument.Parse(json, new JsonDocumentOptions { MaxDepth = 8 });
            string verb = Text(request.RootElement, "verb");
            if (verb == "capabilities")
                return new JsonObject { ["capabilities"] = new JsonArray("export", "mirror", "mirror-give-up", "digest", "digest-range", "pause") };
            Disk disk = disks.Find((int)Number(request.RootElement, "minor", 0, ushort.MaxValue));
            return await RunAsync(disk, verb, request.RootElement, hold, cancellationToken);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException)
        {
            throw Refuse($"the request is not what the verb takes: {e.Message}");
        }
    }

    private static async Task<JsonObject> RunAsync(
        Disk disk, string verb, JsonElement fields, object hold, CancellationToken cancellationToken)
    {
        switch (verb)
        {
            case "export":
                IPEndPoint listen = IPEndPoint.Parse(Text(fields, "listen"));
                Secret name = NameOf(fields);
                return new() { ["port"] = await disk.ExportAsync(listen, Text(fields, "certificate"), Text(fields, "key"), name) };
            case "unexport":
                await disk.UnexportAsync(NameOf(fields));
                return [];
            case "mirror-start":
                await disk.MirrorStartAsync(TargetOf(fields));
                return [];
            case "mirror-resume":
                await disk.MirrorResumeAsync(TargetOf(fields));
                return [];
            case "mirror-give-up":
                disk.GiveUpMirror();
                return [];
            case "mirror-rate":
                disk.SetMirrorRate(Number(fields, "rate_limit", 0, long.MaxValue));
                return [];
            case "mirror-status":
                return StatusOf(disk.MirrorStatus);
            case "mirror-wait":
                return StatusOf(await disk.MirrorOtherThanAsync(PhaseOf(fields), cancellationToken));
            case "mirror-finish":
                await disk.MirrorFinishAsync();
                return [];
            case "mirror-stop":
                await disk.MirrorStopAsync();
                return [];
            case "pause":
                await disk.PauseAsync(hold);
                return [];
            case "digest":
                return DigestOf(await disk.DigestAsync(cancellationToken));
            case "digest-range":
                long offset = Number(fields, "offset", 0, long.MaxValue), length = Number(fields, "length", 1, long.MaxValue);
                return new() { ["digest"] = await disk.DigestRangeAsync(offset, length, cancellationToken) };
            default:
                throw new TapException((int)Errno.ENOTSUP, $"there is no verb '{verb}'");
        }
    }

    private static JsonObject StatusOf(MirrorStatus status) => new()
    {
        ["state"] = status.Phase.ToString().ToLowerInvariant(),
        ["total_bytes"] = status.TotalBytes,
        ["copied_bytes"] = status.CopiedBytes,
        ["sent_bytes"] = status.SentBytes,
        ["dirty_chunks"] = status.DirtyChunks,
        ["dirty_bytes"] = status.DirtyBytes,
        ["error"] = status.Error,
        ["lost"] = status.IsLost,
        ["target"] = status.Target,
    };

    private static JsonObject DigestOf(DiskDigest digest) => new()
    {
        ["root"] = digest.Root,
        ["length_bytes"] = digest.LengthBytes,
        ["block_bytes"] = digest.BlockBytes,
        ["rehashed_blocks"] = digest.RehashedBlocks,
    };

    private static MirrorTarget TargetOf(JsonElement fields) => new(
        Text(fields, "uri"),
        NameOf(fields),
        Text(fields, "fingerprint"),
        TimeSpan.FromMilliseconds(Number(fields, "stall_limit_ms", 10, 60_000)),
        Number(fields, "rate_limit", 0, long.MaxValue));

    private static MirrorPhase PhaseOf(JsonElement fields) =>
        Enum.TryParse(Text(fields, "while"), ignoreCase: true, out MirrorPhase phase) && Enum.IsDefined(phase)
            ? phase
            : throw Refuse("'while' is not a state of a mirror");

    private static Secret NameOf(JsonElement fields)
    {
        string name = Text(fields, "name");
        return name.Length is >= 16 and <= 255 ? new Secret(name) : throw Refuse("an export's secret name has 16 to 255 characters");
    }

    private static string Text(JsonElement fields, string name) =>
        fields.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.String
            ? value.GetString()!
            : throw Refuse($"'{name}' is missing or not text");

    private static long Number(JsonElement fields, string name, long smallest, long largest) =>
        fields.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.Number && value.TryGetInt64(out long number)
            && number >= smallest && number <= largest
            ? number
            : throw Refuse($"'{name}' is missing or not a number from {smallest} to {largest}");

    private static TapException Refuse(string why) => new((int)Errno.EINVAL, $"{why}; nothing was changed");
}
