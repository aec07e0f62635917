// Every verb, and help about them.
using Xe.Grammar;
using Xe.Output;

namespace Xe.Verbs;

internal static class VerbTable
{
    private const string Head = """
        xe VERB key=value ...            the field's command line, to any XenAPI pool

        -s POOL [-p PORT]                HOST, https://HOST:PORT, http://127.0.0.1:PORT or unix:PATH (XE_SERVER)
        -u USER -pwf FILE                the password comes from a file (XE_PASSWORD_FILE), or is asked for on a terminal
        --fingerprint SHA256             the pool's certificate (XE_FINGERPRINT); --trust-on-first-use keeps the one that is shown
        --minimal | --json               for scripts
        XE_EXTRA_ARGS, ~/.xe             server=,port=,username=,passwordfile=,...

        Exit codes: 0 done, 1 refused or failed, 2 bad command line, 3 cannot reach the pool, 4 credentials, 130 interrupted
        """;

    public static IReadOnlyList<Verb> Verbs { get; } =
    [
        .. MigrateVerb.All(), .. MigrationVerbs.All(), .. DoctorVerbs.All(), .. VmVerbs.All(), .. StorageVerbs.All(), .. GenericVerbs.All(),
    ];

    /// <exception cref="XeException">2: there is no such verb.</exception>
    public static Verb Find(string name) => Verbs.FirstOrDefault(v => v.Name == name)
        ?? throw XeException.BadCommandLine(
            $"there is no verb {name}{(Arguments.Nearest(name, Verbs.Select(static v => v.Name)) is { } near ? $"; {near} was probably meant" : "")}. xe help --all lists them");

    /// <summary>help, help VERB, help --all; with --minimal the names alone, for completion.</summary>
    public static Reply Help(CommandLine line)
    {
        if (line.Words.Count > 0)
        {
            Verb verb = Find(line.Words[0]);
            string example = verb.Example.Length == 0 ? "" : $"\n\nExample:\n  {verb.Example}";
            return Reply.Of($"xe {verb.Name} {verb.Usage}".TrimEnd() + $"\n\n{verb.Summary}{example}");
        }

        bool isAll = line.Keys.Any(static k => k is { Key: "all", Value: "true" });
        List<Verb> shown = [.. Verbs.Where(v => isAll || v.IsCommon).OrderBy(static v => v.Name, StringComparer.Ordinal)];
        if (line.IsMinimal || line.IsJson)
            return Reply.OfMany([.. shown.Select(static v => v.Name)], line.IsMinimal);
        string verbs = string.Join('\n', shown.Select(static v => $"  {v.Name,-30} {v.Summary}"));
        return Reply.Of($"{Head}\n\n{verbs}{(isAll ? "" : "\n\nxe help VERB for one of them, xe help --all for every verb")}");
    }
}
