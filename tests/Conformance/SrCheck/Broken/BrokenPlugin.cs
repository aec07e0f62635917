using SrCheck;

namespace Conformance.SrCheckTests;

/// <summary>One fault in a good plugin: text that is replaced, and the check whose business it is.</summary>
/// <param name="Edits">Find and replace; each must be found exactly once.</param>
public sealed record BrokenPlugin(string Name, string CaughtBy, params (string Find, string Replace)[] Edits)
{
    /// <summary>The program's mode, for the faults that are not in the text.</summary>
    public UnixFileMode? Mode { get; init; }

    public string Text(bool isV1)
    {
        string text = NewPlugin.Text("broken", isV1);
        foreach ((string find, string replace) in Edits)
        {
            int at = text.IndexOf(find, StringComparison.Ordinal);
            Assert.True(at >= 0 && text.IndexOf(find, at + 1, StringComparison.Ordinal) < 0,
                $"{Name}: \"{find}\" is not there exactly once");
            text = text.Replace(find, replace, StringComparison.Ordinal);
        }

        return text;
    }

    public override string ToString() => Name;
}
