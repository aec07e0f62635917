// The field's error numbers, their names, and what to do about them: errors.tsv, one a line (research/storage.md 3.5).
using System.Globalization;

namespace SrCheck;

/// <param name="Cause">Empty where the name says all that is known.</param>
internal sealed record ErrorNumber(int Number, string Name, string Cause, string Remedy)
{
    /// <summary>What a XenAPI client gets of it.</summary>
    public string XenApiName => Number switch
    {
        16 => "SR_DEVICE_IN_USE",
        24 => "VDI_IN_USE",
        38 => "none: another way is taken",
        39 => "SR_NOT_EMPTY",
        144 => "VDI_MISSING",
        _ => $"SR_BACKEND_FAILURE_{Number}",
    };
}

internal static class ErrorNumbers
{
    private static readonly Lazy<IReadOnlyDictionary<int, ErrorNumber>> Table = new(Read);

    public static IReadOnlyDictionary<int, ErrorNumber> All => Table.Value;

    public static bool IsKnown(int number) => All.ContainsKey(number);

    /// <summary><c>24 (VDIInUse)</c>.</summary>
    public static string Describe(int number) => All.TryGetValue(number, out ErrorNumber? e) ? $"{number} ({e.Name})"
        : $"{number} (unknown)";

    /// <summary>By number, by name, or by SR_BACKEND_FAILURE_number; null when there is none.</summary>
    public static ErrorNumber? Find(string text)
    {
        const string prefix = "SR_BACKEND_FAILURE_";
        string key = text.StartsWith(prefix, StringComparison.OrdinalIgnoreCase) ? text[prefix.Length..] : text;
        return int.TryParse(key, NumberStyles.None, CultureInfo.InvariantCulture, out int number)
            ? All.GetValueOrDefault(number)
            : All.Values.FirstOrDefault(e => e.Name.Equals(key, StringComparison.OrdinalIgnoreCase));
    }

    private static Dictionary<int, ErrorNumber> Read()
    {
        Dictionary<int, ErrorNumber> table = [];
        foreach (string line in Templates.Read("errors.tsv").Split('\n').Where(static l => l.Length != 0 && l[0] != '#'))
        {
            string[] fields = line.Split('\t');
            int number = int.Parse(fields[0], CultureInfo.InvariantCulture);
            table[number] = new ErrorNumber(number, fields[1], fields[2], fields[3]);
        }

        return table;
    }
}
