using System.Text;
using Platform;

namespace SrCheck;

/// <summary>The text files that are part of the program.</summary>
internal static class Templates
{
    public static string Read(string name)
    {
        using Stream? stream = typeof(Templates).Assembly.GetManifestResourceStream(name);
        Invariant.Holds(stream is not null, $"the program has no resource {name}");
        using StreamReader reader = new(stream!, Encoding.UTF8);
        return reader.ReadToEnd();
    }
}
