// What a check is: a name that never changes, one promise, where the contract makes it, and what to do when it is not kept. The body drives
// the plugin and throws when the promise is broken; to return is to pass.
namespace SrCheck.Checks;

/// <summary>The badge that needs the check: the contract; data and repetition; crash, concurrency and faults; endurance.</summary>
internal enum Level
{
    Bronze,
    Silver,
    Gold,
    Platinum,
}

/// <summary>A broken <see cref="Must"/> costs the badge, a broken <see cref="Should"/> is told.</summary>
internal enum Severity
{
    Must,
    Should,
}

/// <summary>Which SR a check works on: one that it shares with others, a new one of its own, or one that it makes itself.</summary>
internal enum Stage
{
    Shared,
    Own,
    Bare,
}

/// <param name="Spec">The section of the contract (research/storage.md unless it says otherwise).</param>
/// <param name="Fix">What the plugin's author does about a failure.</param>
/// <param name="Needs">Features without which the check does not apply.</param>
internal sealed record Check(
    string Id, Level Level, Severity Severity, string Reason, string Spec, string Fix, Stage Stage, IReadOnlyList<string> Needs,
    Func<World, Task> Body)
{
    public string Group => Id[..Id.IndexOf('.', StringComparison.Ordinal)];
}

/// <summary>The promise is broken; the message is what was seen.</summary>
internal sealed class CheckFailedException(string seen) : Exception(seen);

/// <summary>The check has nothing to say about this plugin, or not on this machine.</summary>
internal sealed class NotApplicableException(string why) : Exception(why);

internal static class Seen
{
    public static void That(bool isSo, string seenInstead)
    {
        if (!isSo)
            throw new CheckFailedException(seenInstead);
    }

    public static void Equal<T>(T expected, T actual, string what) =>
        That(EqualityComparer<T>.Default.Equals(expected, actual), $"{what} is {Show(actual)}, not {Show(expected)}");

    private static string Show<T>(T value) => value is string text ? $"\"{text}\"" : $"{value}";
}

/// <summary>The checks of one group, as they are written down.</summary>
internal sealed class CheckList(string group, Level level, string spec)
{
    private readonly List<Check> checks = [];

    public IReadOnlyList<Check> All => checks;

    public void Must(string name, string reason, string fix, Func<World, Task> body, params string[] needs) =>
        Add(name, Severity.Must, Stage.Shared, reason, fix, needs, body);

    public void Should(string name, string reason, string fix, Func<World, Task> body, params string[] needs) =>
        Add(name, Severity.Should, Stage.Shared, reason, fix, needs, body);

    /// <summary>On an SR of its own.</summary>
    public void MustAlone(string name, string reason, string fix, Func<World, Task> body, params string[] needs) =>
        Add(name, Severity.Must, Stage.Own, reason, fix, needs, body);

    /// <summary>Nothing is created yet.</summary>
    public void MustBare(string name, string reason, string fix, Func<World, Task> body, params string[] needs) =>
        Add(name, Severity.Must, Stage.Bare, reason, fix, needs, body);

    private void Add(string name, Severity severity, Stage stage, string reason, string fix, string[] needs, Func<World, Task> body) =>
        checks.Add(new Check($"{group}.{name}", level, severity, reason, spec, fix, stage, needs, body));
}
