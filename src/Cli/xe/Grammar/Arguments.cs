// The keys of one call, as a verb asks for them. What no verb asks for is refused before a pool is asked anything: a mistyped
// bandwidth= must not become an unlimited migration.
using System.Globalization;
using System.Text.RegularExpressions;
using Platform;

namespace Xe.Grammar;

internal sealed partial class Arguments
{
    private readonly List<KeyValuePair<string, string>> keys;

    public Arguments(IEnumerable<KeyValuePair<string, string>> keys) => this.keys = [.. keys];

    public IReadOnlyList<KeyValuePair<string, string>> All => keys;

    public string? Find(params string[] names) =>
        keys.Where(k => names.Contains(k.Key)).Select(static k => k.Value).LastOrDefault();

    /// <exception cref="XeException">2: the key is missing.</exception>
    public string Get(string name) => Find(name) ?? throw XeException.BadCommandLine($"{name}= is needed");

    public bool Is(string name, bool isDefault = false) => Find(name) is { } text ? ReadBool(name, text) : isDefault;

    /// <summary>Bytes, with KiB, MiB, GiB or TiB after the number if wanted (the field's output has none).</summary>
    public long Bytes(string name) => ReadBytes(name, Get(name));

    /// <summary>The members of a map parameter: device-config:location=/srv is location.</summary>
    public Dictionary<string, string> Map(string name)
    {
        Dictionary<string, string> map = [];
        foreach ((string key, string value) in keys.Where(k => k.Key.StartsWith(name + ":", StringComparison.Ordinal)))
            map[key[(name.Length + 1)..]] = value;
        return map;
    }

    /// <summary>Refuses what is not in <paramref name="known"/>; a name that ends in ":" stands for its whole map, "*" for everything.</summary>
    /// <exception cref="XeException">2: names the key, and the one that was probably meant.</exception>
    public void RefuseOthers(string verb, IReadOnlyList<string> known)
    {
        if (known.Contains("*"))
            return;
        foreach ((string key, _) in keys)
        {
            int colon = key.IndexOf(':', StringComparison.Ordinal);
            if (known.Contains(key) || (colon > 0 && known.Contains(key[..(colon + 1)])))
                continue;
            string near = Nearest(key, known) is { } meant ? $"; {meant}= was probably meant" : "";
            throw XeException.BadCommandLine($"{verb} does not know {key}={near}. It knows: {string.Join(' ', known)}");
        }
    }

    public static bool ReadBool(string name, string text) => text.ToLowerInvariant() switch
    {
        "true" or "t" or "yes" or "1" => true,
        "false" or "f" or "no" or "0" => false,
        _ => throw XeException.BadCommandLine($"{name}={text}: true or false"),
    };

    public static long ReadBytes(string name, string text)
    {
        Match match = Size().Match(text);
        if (!match.Success)
            throw XeException.BadCommandLine($"{name}={text}: a number of bytes, or one with KiB, MiB, GiB or TiB after it");
        int shift = match.Groups["unit"].Value.ToUpperInvariant() switch { "" or "B" => 0, ['K', ..] => 10, ['M', ..] => 20, ['G', ..] => 30, _ => 40 };
        UInt128 bytes = (UInt128)ulong.Parse(match.Groups["number"].ValueSpan, CultureInfo.InvariantCulture) << shift;
        return bytes <= long.MaxValue ? (long)bytes : throw XeException.BadCommandLine($"{name}={text}: too large");
    }

    /// <summary>Seconds, with s, m, h or d after the number if wanted.</summary>
    public static long ReadSeconds(string name, string text)
    {
        Match match = Duration().Match(text);
        if (!match.Success)
            throw XeException.BadCommandLine($"{name}={text}: a number of seconds, or one with s, m, h or d after it");
        long unit = match.Groups["unit"].Value switch { "m" => 60, "h" => 3600, "d" => 86400, _ => 1 };
        return long.Parse(match.Groups["number"].ValueSpan, CultureInfo.InvariantCulture) * unit;
    }

    public static string? Nearest(string name, IEnumerable<string> known) => known
        .Select(candidate => (candidate, distance: Spelling.Distance(name, candidate.TrimEnd(':'))))
        .Where(c => c.distance <= Math.Max(1, name.Length / 3))
        .OrderBy(static c => c.distance)
        .Select(static c => c.candidate)
        .FirstOrDefault();

    [GeneratedRegex("^(?<number>[0-9]{1,19})(?<unit>[KMGT]i?B|B)?$", RegexOptions.IgnoreCase)]
    private static partial Regex Size();

    [GeneratedRegex("^(?<number>[0-9]{1,9})(?<unit>[smhd])?$")]
    private static partial Regex Duration();
}
