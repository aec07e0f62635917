namespace SrCheck.Checks;

/// <summary>All checks, in the order in which they run: cheap and telling ones first.</summary>
internal static class Catalog
{
    public static IReadOnlyList<Check> All(RunOptions options) =>
    [
        .. PluginChecks.All(options.IsV1, options),
        .. WireChecks.All(options.IsV1),
        .. SrChecks.All(options.IsV1),
        .. VdiChecks.All(options.IsV1),
        .. ArgumentChecks.All(options.IsV1),
        .. DatapathChecks.All(options.IsV1),
        .. ErrorChecks.All(options.IsV1),
        .. FeatureChecks.All(options.IsV1),
        .. IdempotencyChecks.All(options.IsV1),
        .. DataChecks.All(options.IsV1),
        .. LeakChecks.All(options.IsV1),
        .. CapacityChecks.All(options.IsV1),
        .. ConcurrencyChecks.All(options.IsV1),
        .. CrashChecks.All(options.IsV1),
        .. FaultChecks.All(options.IsV1),
        .. SoakChecks.All(),
    ];

    /// <summary>Those of the level asked, or those whose ids start as asked, whatever their level.</summary>
    public static IReadOnlyList<Check> Chosen(RunOptions options)
    {
        IEnumerable<Check> all = All(options);
        return options.Only.Count != 0
            ? [.. all.Where(c => options.Only.Any(o => c.Id.StartsWith(o, StringComparison.Ordinal)))]
            : [.. all.Where(c => c.Level <= options.Level || (options.WithFaults && c.Group == "faults"))];
    }
}
