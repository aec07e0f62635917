// What is wrong with an SR's chains, and who has a disk: the two questions behind "VDI not available".
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Xe.Grammar;
using Xe.Objects;
using Xe.Output;

namespace Xe.Verbs;

internal static class DoctorVerbs
{
    public static IEnumerable<Verb> All() =>
    [
        new("sr-doctor", ["uuid"], "uuid=", "The chains of an SR, what is wrong with them, and what collecting would free.", DoctorAsync)
        {
            IsCommon = true,
            Example = "xe sr-doctor uuid=UUID",
        },
        new("vdi-who-holds", ["uuid"], "uuid=", "Which host, VM and process has a disk, and since when.", HoldersAsync)
        {
            IsCommon = true,
            Example = "xe vdi-who-holds uuid=UUID",
        },
    ];

    private static async Task<Reply> DoctorAsync(Call call)
    {
        string sr = await Selector.ByUuidAsync(call.Pool, ObjectClass.Of("sr"), call.Arguments.Get("uuid"), call.Cancel);
        string told = await call.Pool.TextAsync("SR.doctor", call.Cancel, sr);
        try
        {
            JsonObject answer = JsonNode.Parse(told)!.AsObject();
            return new Reply(Lines(answer["report"]!.AsObject()), answer);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or NullReferenceException or FormatException)
        {
            throw XeException.Unreachable(call.Pool.Name, $"the answer to SR.doctor is no report ({e.Message})");
        }
    }

    private static string Lines(JsonObject report)
    {
        List<string> lines = [];
        int deepest = 0;
        foreach (JsonObject image in report["images"]!.AsArray().OfType<JsonObject>())
        {
            int depth = (int)image["depth"]!;
            deepest = Math.Max(deepest, depth);
            string[] openBy = [.. image["openBy"]!.AsArray().Select(RecordView.Text)];
            lines.Add($"{new string(' ', 2 * (depth - 1))}{image["key"]}  {Size(image["virtualSizeBytes"])}, {Size(image["allocatedBytes"])} allocated"
                + $"{((bool)image["isHidden"]! ? ", hidden" : "")}{((bool)image["isLeased"]! ? ", leased" : "")}"
                + $"{(openBy.Length == 0 ? "" : $", open by {string.Join(" and ", openBy)}")}");
        }

        JsonArray findings = report["findings"]!.AsArray();
        foreach (JsonObject finding in findings.OfType<JsonObject>())
            lines.Add($"{finding["severity"]}: {finding["key"]}: {finding["message"]}".Replace(": :", ":", StringComparison.Ordinal));
        foreach (JsonObject step in report["steps"]!.AsArray().OfType<JsonObject>())
        {
            string parent = RecordView.Text(step["parent"]);
            lines.Add($"a collector would {step["action"]} {step["key"]}{(parent.Length == 0 ? "" : $" ({parent})")}");
        }

        foreach ((string key, JsonNode? why) in report["putOff"]!.AsObject())
            lines.Add($"but not now: {key}: {RecordView.Text(why)}");
        int errors = findings.Count(static f => (string?)f!["severity"] == "error");
        lines.Add($"{report["images"]!.AsArray().Count} images, deepest {deepest}, {errors} errors; collecting frees about {Size(report["freesBytes"])}");
        return string.Join('\n', lines);
    }

    private static async Task<Reply> HoldersAsync(Call call)
    {
        string vdi = await Selector.ByUuidAsync(call.Pool, ObjectClass.Of("vdi"), call.Arguments.Get("uuid"), call.Cancel);
        JsonNode? answer = await call.Pool.CallAsync("VDI.get_holders", call.Cancel, vdi);
        if (answer is JsonObject { Count: 0 })
            return new Reply(call.IsMinimal ? "" : "nobody has it", answer);
        return call.IsMinimal && answer is JsonObject holders ? Reply.OfMany([.. holders.Select(static h => h.Key)], isMinimal: true) : Reply.OfNode(answer);
    }

    private static string Size(JsonNode? bytes) =>
        string.Create(CultureInfo.InvariantCulture, $"{((long)bytes! + (1 << 20) - 1) >> 20} MiB");
}
