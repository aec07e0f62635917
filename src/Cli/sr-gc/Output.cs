// What both verbs print: lines for people, or one JSON value.
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using Vhd;
using Vhd.Collect;

namespace SrGc;

internal static class Output
{
    private static readonly OutputJson Json = new(new JsonSerializerOptions
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        Converters =
        {
            new JsonStringEnumConverter<CollectAction>(JsonNamingPolicy.CamelCase), new JsonStringEnumConverter<VhdSeverity>(JsonNamingPolicy.CamelCase),
            new JsonStringEnumConverter<Mend>(JsonNamingPolicy.CamelCase),
        },
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    });

    public static void WriteJson(Diagnosis diagnosis) => Console.Out.WriteLine(JsonSerializer.Serialize(diagnosis, Json.Diagnosis));

    public static void Tell(IReadOnlyList<CollectStep> steps, IReadOnlyDictionary<string, string> putOff, bool isJson)
    {
        if (isJson)
        {
            Console.Out.WriteLine(JsonSerializer.Serialize(new CollectResult(steps, putOff), Json.CollectResult));
            return;
        }

        foreach (CollectStep step in steps)
            Console.Out.WriteLine(TextOf(step));
        foreach ((string key, string why) in putOff)
            Console.Out.WriteLine($"left {key}: {why}");
        if (steps.Count == 0 && putOff.Count == 0)
            Console.Out.WriteLine("nothing to collect");
    }

    public static string TextOf(CollectStep step) => step.Action switch
    {
        CollectAction.Delete => $"delete {step.Key}",
        CollectAction.Split => $"split {step.Key}, so that what it holds can be merged while it is in use",
        CollectAction.Leaf => $"merge {step.Key} into {step.Parent}, which takes its name",
        _ => $"merge {step.Key} into {step.Parent}",
    };
}

/// <param name="Mended">What --mend did, a line each.</param>
internal sealed record Diagnosis(ChainReport Report, IReadOnlyList<string> Mended);

[JsonSerializable(typeof(CollectResult))]
[JsonSerializable(typeof(Diagnosis))]
internal sealed partial class OutputJson : JsonSerializerContext;

/// <summary>The step that runs: a line that is rewritten on a terminal, a line for each step in a log, nothing elsewhere.</summary>
internal sealed class StepLines(bool isLog) : IProgress<CollectProgress>, IDisposable
{
    private const int MinMillisecondsBetween = 200;

    private readonly bool isTerminal = !Console.IsErrorRedirected;
    private string last = "";
    private long nextAt;

    public void Report(CollectProgress value)
    {
        bool isNew = value.Text != last;
        last = value.Text;
        if (isLog && isNew)
            Console.Error.WriteLine($"{DateTime.UtcNow:u} sr-gc {Environment.ProcessId}: {value.Text}");
        if (!isTerminal || (!isNew && Environment.TickCount64 < nextAt))
            return;
        nextAt = Environment.TickCount64 + MinMillisecondsBetween;
        string share = value.TotalBlocks > 0 ? $" {(double)value.DoneBlocks / value.TotalBlocks:P0}" : "";
        Console.Error.Write($"\r\u001b[K{value.Text}{share}");
    }

    public void Dispose()
    {
        if (isTerminal && last.Length > 0)
            Console.Error.Write("\r\u001b[K");
    }
}
