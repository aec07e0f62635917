// The options of VM.migrate: names and units of the field where it has them; every mistake names its key.
using System.Globalization;
using System.Xml;
using Migration;

namespace Xapi.Migration;

public static class MigrationOptionsReader
{
    private static readonly TimeSpan LongestKept = TimeSpan.FromDays(90);

    /// <summary>The field's own hints, which change nothing here. Any other option would be a typing error, or a wish that is not granted.</summary>
    private static readonly string[] Hints = ["force", "compress", "copy"];

    private static readonly string[] Known =
        ["bandwidth_limit", "keep_source_for", "resume_window", "witness", "downtime_limit_ms", "stall_limit_ms"];

    /// <exception cref="XapiException">
    /// INVALID_VALUE with the key and what was given; NOT_IMPLEMENTED for copy=true: who wants a copy must not lose the original.
    /// </exception>
    public static MigrationOptions Read(Dictionary<string, string> options, Witnesses witnesses)
    {
        foreach ((string key, string text) in options)
        {
            if (key == "copy" && text != "false")
                throw text == "true" ? new XapiException("NOT_IMPLEMENTED", "options:copy=true") : Refuse(key, text);
            if (!Known.Contains(key) && !Hints.Contains(key))
                throw Refuse(key, text);
        }

        MigrationOptions read = new();
        foreach ((string key, string text) in options.Where(static o => Known.Contains(o.Key)))
        {
            read = key switch
            {
                "bandwidth_limit" => read with { BandwidthBytesPerSecond = Number(key, text, 0, long.MaxValue) },
                "downtime_limit_ms" => read with { DowntimeLimit = TimeSpan.FromMilliseconds(Number(key, text, 1, 60_000)) },
                "stall_limit_ms" => read with { StallLimit = TimeSpan.FromMilliseconds(Number(key, text, 10, 60_000)) },
                "keep_source_for" => read with { KeepSourceFor = Duration(key, text, LongestKept) },
                "resume_window" => read with { ResumeWindow = Duration(key, text, LongestKept) },
                _ => read with { Witness = Witness(text, witnesses) },
            };
        }

        return read;
    }

    private static long Number(string key, string text, long least, long most) =>
        long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out long number) && number >= least && number <= most
            ? number
            : throw Refuse(key, text);

    /// <summary>Seconds, or ISO 8601 (P7D, PT12H).</summary>
    private static TimeSpan Duration(string key, string text, TimeSpan longest)
    {
        try
        {
            TimeSpan duration = text.StartsWith('P')
                ? XmlConvert.ToTimeSpan(text)
                : TimeSpan.FromSeconds(Number(key, text, 0, (long)longest.TotalSeconds));
            return duration >= TimeSpan.Zero && duration <= longest ? duration : throw Refuse(key, text);
        }
        catch (Exception e) when (e is FormatException or OverflowException)
        {
            throw Refuse(key, text);
        }
    }

    private static WitnessAddress Witness(string text, Witnesses witnesses)
    {
        try
        {
            return witnesses.Find(text);
        }
        catch (Exception e) when (e is FormatException or IOException)
        {
            throw new XapiException("INVALID_VALUE", "options:witness", e.Message);
        }
    }

    private static XapiException Refuse(string key, string text) => new("INVALID_VALUE", $"options:{key}", text);
}
