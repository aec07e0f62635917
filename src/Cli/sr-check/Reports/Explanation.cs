using SrCheck.Checks;

namespace SrCheck.Reports;

/// <summary>What a check or an error number is about, for a person.</summary>
internal static class Explanation
{
    /// <returns>Null when nothing is known by that name.</returns>
    public static string? Of(string what, RunOptions options)
    {
        foreach (RunOptions side in new[] { options, options with { IsV1 = !options.IsV1 } })
        {
            if (Catalog.All(side).FirstOrDefault(c => c.Id == what) is { } check)
                return Describe(check);
        }

        return ErrorNumbers.Find(what) is { } number ? Describe(number) : null;
    }

    public static string Line(Check check) => $"{check.Id,-48} {check.Level,-8} {check.Severity,-6} {check.Reason}";

    private static string Describe(Check check) =>
        $"""
        {check.Id} ({check.Level}, {check.Severity.ToString().ToLowerInvariant()})
          why:      {check.Reason}
          contract: section {check.Spec}
          fix:      {check.Fix}
          needs:    {(check.Needs.Count == 0 ? "nothing beyond the basics" : string.Join(", ", check.Needs))}
        """;

    private static string Describe(ErrorNumber error) =>
        error.Cause.Length == 0
            ? $"{error.Number} {error.Name} (XenAPI: {error.XenApiName}): its name is all that the field tells; the text says the rest"
            : $"""
               {error.Number} {error.Name} (XenAPI: {error.XenApiName})
                 cause:  {error.Cause}
                 remedy: {error.Remedy}
               """;
}
