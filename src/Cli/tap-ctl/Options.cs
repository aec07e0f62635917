using System.Globalization;
using Platform;
using StorageAccess.Tap;

namespace TapCtl;

/// <summary>Single-letter options as getopt reads them. An unknown or incomplete one is EINVAL.</summary>
internal sealed class Options
{
    private readonly Dictionary<char, string> values = [];

    /// <param name="letters">getopt's: a colon after a letter that takes a value.</param>
    public Options(string verb, ReadOnlySpan<string> arguments, string letters)
    {
        for (int i = 0; i < arguments.Length; i++)
        {
            string argument = arguments[i];
            int at = argument.Length >= 2 && argument[0] == '-' ? letters.IndexOf(argument[1], StringComparison.Ordinal) : -1;
            if (at < 0 || argument[1] == ':')
            {
                string known = string.Join(" -", letters.Where(static letter => letter != ':'));
                throw new TapException((int)Errno.EINVAL, $"{verb}: '{argument}' is not one of its options (-{known})");
            }

            bool takesValue = at + 1 < letters.Length && letters[at + 1] == ':';
            if (!takesValue)
                values[argument[1]] = "";
            else if (argument.Length > 2)
                values[argument[1]] = argument[2..];
            else if (++i < arguments.Length)
                values[argument[1]] = arguments[i];
            else
                throw new TapException((int)Errno.EINVAL, $"{verb}: {argument} needs a value");
        }
    }

    /// <summary>--control-directory, wherever it stands; then the environment; then the field's folder.</summary>
    public static (string Directory, string[] Others) ControlDirectory(string[] arguments)
    {
        int at = Array.IndexOf(arguments, "--control-directory");
        if (at >= 0 && at + 1 < arguments.Length)
            return (arguments[at + 1], [.. arguments[..at], .. arguments[(at + 2)..]]);
        string? fromEnvironment = Environment.GetEnvironmentVariable("BLKTAP_CONTROL_DIRECTORY");
        return (string.IsNullOrEmpty(fromEnvironment) ? TapControl.DefaultDirectory : fromEnvironment, arguments);
    }

    public bool Has(char letter) => values.ContainsKey(letter);

    public string? Text(char letter) => values.GetValueOrDefault(letter);

    public int? Number(char letter)
    {
        if (!values.TryGetValue(letter, out string? text))
            return null;
        return int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number)
            ? number
            : throw new TapException((int)Errno.EINVAL, $"-{letter} takes a number, not '{text}'");
    }

    public int Required(char letter) => Number(letter) ?? throw new TapException((int)Errno.EINVAL, $"-{letter} is required");
}
