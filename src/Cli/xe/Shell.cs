// From words to an exit code: the line is read and its verb found before any pool is asked; then one session, one verb, one answer.
using System.Text.Json.Nodes;
using Platform;
using Xe.Api;
using Xe.Grammar;
using Xe.Output;
using Xe.Verbs;

namespace Xe;

internal sealed class Shell(Func<string, string?> environment, TextWriter output, TextWriter error, Interrupts interrupts)
{
    private const int PasswordFileLimitBytes = 64 << 10;

    public async Task<int> RunAsync(IReadOnlyList<string> arguments)
    {
        bool isJson = arguments.Contains("--json");
        try
        {
            CommandLine line = CommandLine.Parse(arguments, environment, ReadDefaults);
            Reply reply = line.Verb == "help" ? VerbTable.Help(line) : await RunAsync(line);
            if (line.IsJson)
                await output.WriteLineAsync(Reply.JsonText(reply.Json));
            else if (reply.Text.Length > 0 || line.IsMinimal)
                await output.WriteLineAsync(reply.Text);
            return ExitCodes.Done;
        }
        catch (XeException e)
        {
            return await TellAsync(e, isJson);
        }
        catch (OperationCanceledException)
        {
            return await TellAsync(new XeException(ExitCodes.Interrupted, "INTERRUPTED", [], "interrupted before the pool had answered; what was asked for may still happen"), isJson);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return await TellAsync(XeException.BadCommandLine(e.Message), isJson);
        }
    }

    private async Task<Reply> RunAsync(CommandLine line)
    {
        Verb verb = VerbTable.Find(line.Verb);
        if (line.Words.Count > 0)
            throw XeException.BadCommandLine($"\"{line.Words[0]}\" is not understood; {verb.Name} takes key=value: xe {verb.Name} {verb.Usage}");
        Arguments arguments = new(line.Keys);
        arguments.RefuseOthers(verb.Name, [.. verb.Keys, .. verb.Keys.Contains("*") ? [] : (string[])["force", "multiple"]]);
        ConnectionOptions options = line.Connection;
        PoolAddress address = PoolAddress.Parse(
            options.Server ?? throw XeException.BadCommandLine("which pool? Give -s HOST or set XE_SERVER"), options.Port, options.IsPlain);
        await using PoolClient pool = await LoginAsync(
            address, options.User ?? "root", options.Password, options.PasswordFile, options.Fingerprint, options.MayTrustFirstUse, "-pwf FILE or XE_PASSWORD_FILE",
            interrupts.Asked);
        Call call = new(pool, arguments, line.IsMinimal, line.IsJson, interrupts, line.IsMinimal || line.IsJson ? TextWriter.Null : error, ConnectAsync);
        return await verb.RunAsync(call);

        Task<PoolClient> ConnectAsync(FarPool far, CancellationToken cancellationToken) => LoginAsync(
            PoolAddress.Parse(far.Address), far.User, far.Password is null ? null : new Secret(far.Password), far.PasswordFile, far.Fingerprint,
            options.MayTrustFirstUse, "remote-password-file=FILE", cancellationToken);
    }

    private async Task<PoolClient> LoginAsync(
        PoolAddress address, string user, Secret? password, string? passwordFile, string? fingerprint, bool mayTrust, string how, CancellationToken cancellationToken)
    {
        PoolTrust trust = new(fingerprint is null ? null : PoolTrust.Checked(fingerprint), mayTrust, KnownPools.OfUser(environment));
        password ??= passwordFile is null ? null : ReadPassword(passwordFile);
        password ??= address.UnixPath is null ? AskPassword(user, address.Name, how) : new Secret(""); // Its own socket looks at no password.
        return await PoolClient.LoginAsync(address, trust, user, password, cancellationToken);
    }

    private static Secret ReadPassword(string path)
    {
        try
        {
            FileInfo file = new(path);
            if (file.Exists && file.Length > PasswordFileLimitBytes)
                throw new IOException($"it is larger than {PasswordFileLimitBytes} bytes");
            return new Secret(File.ReadAllText(path).TrimEnd('\r', '\n'));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new XeException(ExitCodes.Credentials, "NO_PASSWORD", [path], $"the password file {path} cannot be read: {e.Message}");
        }
    }

    private Secret AskPassword(string user, string pool, string how)
    {
        if (Console.IsInputRedirected || Console.IsErrorRedirected)
            throw new XeException(ExitCodes.Credentials, "NO_PASSWORD", [user, pool], $"no password for {user} at {pool}; give {how}");
        error.Write($"Password for {user} at {pool}: ");
        System.Text.StringBuilder typed = new();
        for (ConsoleKeyInfo key = Console.ReadKey(intercept: true); key.Key != ConsoleKey.Enter; key = Console.ReadKey(intercept: true))
        {
            if (key.Key == ConsoleKey.Backspace)
                typed.Length = Math.Max(0, typed.Length - 1);
            else if (key.KeyChar != '\0')
                typed.Append(key.KeyChar);
        }

        error.WriteLine();
        return new Secret(typed.ToString());
    }

    private IReadOnlyList<string> ReadDefaults()
    {
        string path = Path.Combine(environment("HOME") ?? "/", ".xe");
        return File.Exists(path) ? File.ReadAllLines(path) : [];
    }

    private async Task<int> TellAsync(XeException e, bool isJson)
    {
        await error.WriteLineAsync(ErrorText.Of(e));
        if (isJson)
        {
            await output.WriteLineAsync(Reply.JsonText(new JsonObject
            {
                ["error"] = new JsonObject
                {
                    ["code"] = e.Code,
                    ["parameters"] = new JsonArray([.. e.Parameters.Select(static p => (JsonNode?)p)]),
                    ["message"] = ErrorText.SentenceOf(e),
                    ["exit_code"] = e.ExitCode,
                },
            }));
        }

        return e.ExitCode;
    }
}
