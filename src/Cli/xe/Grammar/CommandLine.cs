// The field's grammar (research: xapi.md 10): xe VERB key=value ... with options in any place. --x means x=true.
using Platform;

namespace Xe.Grammar;

/// <summary>Where the pool is and who asks; null is "not said".</summary>
internal sealed record ConnectionOptions
{
    public string? Server { get; init; }

    public int? Port { get; init; }

    public bool IsPlain { get; init; }

    public string? User { get; init; }

    public Secret? Password { get; init; }

    public string? PasswordFile { get; init; }

    public string? Fingerprint { get; init; }

    public bool MayTrustFirstUse { get; init; }
}

/// <summary>What was typed. Keys keep their order and may be given more than once.</summary>
internal sealed record CommandLine(
    string Verb, IReadOnlyList<string> Words, IReadOnlyList<KeyValuePair<string, string>> Keys, bool IsMinimal, bool IsJson, ConnectionOptions Connection)
{
    /// <summary>Reads the arguments, and below them what the environment and ~/.xe say.</summary>
    /// <param name="environment">The value of a variable, or null.</param>
    /// <param name="readDefaults">The lines of ~/.xe.</param>
    /// <exception cref="XeException">2: which word was not understood.</exception>
    public static CommandLine Parse(
        IReadOnlyList<string> arguments, Func<string, string?> environment, Func<IReadOnlyList<string>> readDefaults)
    {
        Reader reader = new();
        reader.ReadDefaults(readDefaults());
        reader.ReadEnvironment(environment);
        reader.Read(arguments);
        return reader.Finish();
    }

    private sealed class Reader
    {
        private readonly List<string> words = [];
        private readonly List<KeyValuePair<string, string>> keys = [];
        private ConnectionOptions connection = new();
        private bool isMinimal;
        private bool isJson;

        public void ReadDefaults(IReadOnlyList<string> lines)
        {
            foreach (string line in lines.Select(static l => l.Trim()).Where(static l => l.Length != 0 && l[0] != '#'))
                ReadExtra(line, "~/.xe");
        }

        public void ReadEnvironment(Func<string, string?> environment)
        {
            if (environment("XE_SERVER") is { Length: > 0 } server)
                connection = connection with { Server = server };
            if (environment("XE_PASSWORD_FILE") is { Length: > 0 } file)
                connection = connection with { PasswordFile = file, Password = null };
            if (environment("XE_FINGERPRINT") is { Length: > 0 } fingerprint)
                connection = connection with { Fingerprint = fingerprint };
            foreach (string item in SplitAtCommas(environment("XE_EXTRA_ARGS") ?? ""))
                ReadExtra(item, "XE_EXTRA_ARGS");
        }

        public void Read(IReadOnlyList<string> arguments)
        {
            for (int i = 0; i < arguments.Count; i++)
            {
                string word = arguments[i];
                switch (word)
                {
                    case "-s":
                        connection = connection with { Server = Value(), Port = null };
                        break;
                    case "-p":
                        connection = connection with { Port = ReadPort(Value()) };
                        break;
                    case "-u":
                        connection = connection with { User = Value() };
                        break;
                    case "-pw":
                        connection = connection with { Password = new Secret(Value()), PasswordFile = null };
                        break;
                    case "-pwf":
                        connection = connection with { PasswordFile = Value(), Password = null };
                        break;
                    case "--fingerprint":
                        connection = connection with { Fingerprint = Value() };
                        break;
                    case "--trust-on-first-use":
                        connection = connection with { MayTrustFirstUse = true };
                        break;
                    case "--nossl":
                        connection = connection with { IsPlain = true };
                        break;
                    case "--minimal":
                        isMinimal = true;
                        break;
                    case "--json":
                        isJson = true;
                        break;
                    default:
                        ReadWord(word);
                        break;
                }

                string Value() => ++i < arguments.Count ? arguments[i] : throw XeException.BadCommandLine($"{word} needs a value after it");
            }
        }

        public CommandLine Finish() =>
            new(words.FirstOrDefault("help"), [.. words.Skip(1)], keys, isMinimal, isJson, connection);

        private void ReadWord(string word)
        {
            int equals = word.IndexOf('=', StringComparison.Ordinal);
            if (word.StartsWith("--", StringComparison.Ordinal) && word.Length > 2)
                keys.Add(equals < 0 ? KeyValuePair.Create(word[2..], "true") : KeyValuePair.Create(word[2..equals], word[(equals + 1)..]));
            else if (equals > 0 && words.Count > 0)
                keys.Add(KeyValuePair.Create(word[..equals], word[(equals + 1)..]));
            else if (word.Length == 0 || word[0] == '-' || equals >= 0)
                throw XeException.BadCommandLine($"\"{word}\" is not understood; the form is xe VERB key=value ...");
            else
                words.Add(word);
        }

        /// <summary>The names that XE_EXTRA_ARGS and ~/.xe have in the field.</summary>
        private void ReadExtra(string item, string where)
        {
            int equals = item.IndexOf('=', StringComparison.Ordinal);
            string key = (equals < 0 ? item : item[..equals]).TrimStart('-');
            string value = equals < 0 ? "true" : item[(equals + 1)..];
            switch (key)
            {
                case "server":
                    connection = connection with { Server = value, Port = null };
                    break;
                case "port":
                    connection = connection with { Port = ReadPort(value) };
                    break;
                case "username":
                    connection = connection with { User = value };
                    break;
                case "password":
                    connection = connection with { Password = new Secret(value), PasswordFile = null };
                    break;
                case "passwordfile":
                    connection = connection with { PasswordFile = value, Password = null };
                    break;
                case "fingerprint":
                    connection = connection with { Fingerprint = value };
                    break;
                case "nossl":
                    connection = connection with { IsPlain = value == "true" };
                    break;
                case "minimal":
                    isMinimal = value == "true";
                    break;
                default:
                    throw XeException.BadCommandLine(
                        $"{where} holds \"{key}\"; it may hold server, port, username, password, passwordfile, fingerprint, nossl, minimal");
            }
        }

        private static int ReadPort(string text) => int.TryParse(text, out int port) && port is > 0 and < 65536
            ? port
            : throw XeException.BadCommandLine($"\"{text}\" is no port; it is a number from 1 to 65535");

        /// <summary>A comma that belongs to a value is written <c>\,</c>.</summary>
        private static IEnumerable<string> SplitAtCommas(string text) =>
            text.Replace("\\,", "\0", StringComparison.Ordinal)
                .Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries)
                .Select(static part => part.Replace('\0', ','));
    }
}
