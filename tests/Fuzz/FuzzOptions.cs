using System.Globalization;

namespace Fuzz;

/// <summary>The command line.</summary>
internal sealed record FuzzOptions
{
    public const string Help = """
        usage: ./dev fuzz TARGET [SECONDS] [--executions N] [--seed N]     one target; ends at the first of the limits, or with a finding
               ./dev fuzz --all [SECONDS] [--executions N] [--seed N]      every target, each for so long, one per core at a time
               ./dev fuzz TARGET --replay FILE                             one input again
               ./dev fuzz --list                                           the targets
        SECONDS is $STORAGE_FUZZ_SECONDS when it is not given, and 5 without that. A finding is written to fuzz-findings/.
        Example: ./dev fuzz vhd-image 30
        """;

    public string Target { get; private set; } = "";

    public bool IsAll { get; private set; }

    public bool IsList { get; private set; }

    public TimeSpan Limit { get; private set; } = TimeSpan.FromSeconds(5);

    public long Executions { get; private set; } = long.MaxValue;

    public int Seed { get; private set; } = 1;

    public string? ReplayPath { get; private set; }

    /// <summary>For a process that runs one target of all.</summary>
    public IReadOnlyList<string> Forwarded =>
    [
        Limit.TotalSeconds.ToString(CultureInfo.InvariantCulture), "--seed", $"{Seed}", .. Executions == long.MaxValue ? [] : (string[])["--executions", $"{Executions}"],
    ];

    /// <summary>Null when it is not understood.</summary>
    public static FuzzOptions? Parse(string[] arguments)
    {
        FuzzOptions options = new();
        if (!options.TakeSeconds(Environment.GetEnvironmentVariable("STORAGE_FUZZ_SECONDS") is { Length: > 0 } seconds ? seconds : "5"))
            return null;
        for (int i = 0; i < arguments.Length; i++)
        {
            string argument = arguments[i];
            string value = i + 1 < arguments.Length ? arguments[i + 1] : "";
            bool isTaken = argument switch
            {
                "--list" => options.IsList = true,
                "--all" => options.IsAll = true,
                "--replay" => (options.ReplayPath = value).Length > 0,
                "--seed" => int.TryParse(value, NumberStyles.None, CultureInfo.InvariantCulture, out int seed) && (options.Seed = seed) == seed,
                "--executions" => long.TryParse(value, NumberStyles.None, CultureInfo.InvariantCulture, out long n) && (options.Executions = n) > 0,
                _ when argument.StartsWith('-') => false,
                _ when options.Target.Length == 0 && !options.IsAll => (options.Target = argument).Length > 0,
                _ => options.TakeSeconds(argument),
            };
            if (!isTaken)
                return null;
            if (argument is "--replay" or "--seed" or "--executions")
                i++;
        }

        return options.IsList || options.IsAll || options.Target.Length > 0 ? options : null;
    }

    private bool TakeSeconds(string text)
    {
        bool isNumber = double.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double seconds) && seconds < 1e6;
        if (isNumber)
            Limit = TimeSpan.FromSeconds(seconds);
        return isNumber;
    }
}
