// What every verb prints the same way: facts as text or, with --json, as one JSON value; progress on a terminal only.
using System.Diagnostics;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using Vhd;

namespace VhdUtil;

internal static class Output
{
    private static readonly JsonSerializerOptions Json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.CamelCase) },
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    public static void WriteJson<T>(T value) => Console.Out.WriteLine(JsonOf(value));

    public static string JsonOf<T>(T value) => JsonSerializer.Serialize(value, Json);
}

/// <summary>A line that is rewritten in place: percent and the time that is left. Silent when standard error is no terminal.</summary>
internal sealed class ProgressLine(string what) : IProgress<VhdCoalesceProgress>, IDisposable
{
    private const int MinMillisecondsBetween = 200;

    private readonly Stopwatch watch = Stopwatch.StartNew();
    private readonly bool isShown = !Console.IsErrorRedirected;
    private long nextMilliseconds = MinMillisecondsBetween;
    private bool hasLine;

    public void Report(VhdCoalesceProgress value)
    {
        if (!isShown || value.DoneBlocks == 0 || watch.ElapsedMilliseconds < nextMilliseconds)
            return;
        nextMilliseconds = watch.ElapsedMilliseconds + MinMillisecondsBetween;
        hasLine = true;
        double share = (double)value.DoneBlocks / value.TotalBlocks;
        TimeSpan left = TimeSpan.FromSeconds(Math.Ceiling(watch.Elapsed.TotalSeconds * (1 - share) / share));
        Console.Error.Write($"\r{what}: {share,4:P0}, {left:c} left ");
    }

    public void Dispose()
    {
        if (hasLine)
            Console.Error.Write("\r\u001b[K");
    }
}
