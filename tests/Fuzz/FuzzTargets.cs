using Fuzz.Targets;

namespace Fuzz;

/// <summary>Every target by its name.</summary>
internal static class FuzzTargets
{
    private static readonly Lazy<IReadOnlyList<FuzzTarget>> All = new(static () =>
        [CanaryTarget.Create(), .. VhdTargets.All(), .. NbdTargets.All(), .. TextTargets.All(), .. StreamTargets.All()]);

    public static IEnumerable<string> Names => All.Value.Select(static target => target.Name);

    public static FuzzTarget? Find(string name) => All.Value.FirstOrDefault(target => target.Name == name);
}
