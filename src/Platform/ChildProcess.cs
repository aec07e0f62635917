// Running other people's programs: bounded in time and in output, ended with everything they started. A child leads a session of its own
// (setsid, of util-linux), so that what it started is found even when the parent in between has gone; who starts a session itself (a daemon)
// is not ended.
using System.Diagnostics;
using System.Text;
using CliWrap;

namespace Platform;

/// <summary>How a child ended. Output is text, cut at the limit given.</summary>
public sealed record ChildResult(int ExitCode, string StandardOutput, string StandardError);

/// <summary>The child did not end within its deadline, or printed more than its limit; it and its children were killed.</summary>
public sealed class ChildProcessException(string message) : IOException(message);

public static class ChildProcess
{
    private const string SetSid = "/usr/bin/setsid";
    private const string SetSidFailed = "setsid: failed to execute";

    /// <summary>Runs a program to its end. Arguments are passed as they are, never through a shell, and never logged.</summary>
    /// <param name="environment">Added to the child's environment; a null value removes a variable.</param>
    /// <exception cref="ChildProcessException">Deadline or output limit passed, or the program cannot be started.</exception>
    public static async Task<ChildResult> RunAsync(
        string program,
        IReadOnlyList<string> arguments,
        string standardInput,
        IReadOnlyDictionary<string, string?> environment,
        TimeSpan deadline,
        int outputLimitBytes,
        CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(deadline);
        BoundedOutput output = new(outputLimitBytes, limit);
        BoundedOutput error = new(outputLimitBytes, limit);
        Command command = Cli.Wrap(SetSid)
            .WithArguments([program, .. arguments], escape: true)
            .WithEnvironmentVariables(environment)
            .WithStandardInputPipe(PipeSource.FromString(standardInput, new UTF8Encoding(false)))
            .WithStandardOutputPipe(PipeTarget.ToStream(output))
            .WithStandardErrorPipe(PipeTarget.ToStream(error))
            .WithValidation(CommandResultValidation.None);
        try
        {
            CommandResult result = await RunInSessionAsync(command, limit.Token);
            if (result.ExitCode is 126 or 127 && error.Text.StartsWith(SetSidFailed, StringComparison.Ordinal))
                throw new ChildProcessException($"{program} cannot be started: {error.Text[SetSidFailed.Length..].Trim()}");
            return new ChildResult(result.ExitCode, output.Text, error.Text);
        }
        catch (OperationCanceledException) when (output.IsOver || error.IsOver)
        {
            throw new ChildProcessException($"{program} printed more than {outputLimitBytes} bytes and was killed");
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw new ChildProcessException($"{program} did not end within {deadline.TotalSeconds:0.#} s and was killed; it said: {error.Text}");
        }
        catch (System.ComponentModel.Win32Exception e)
        {
            throw new ChildProcessException($"{program} cannot be started: {e.Message}");
        }
    }

    private static async Task<CommandResult> RunInSessionAsync(Command command, CancellationToken limit)
    {
        CommandTask<CommandResult> running = command.ExecuteAsync(limit);
        int session = running.ProcessId;
        // At once: an orphan that holds the output open would make the wait below go on.
        using CancellationTokenRegistration whenOver = limit.Register(() => ProcessTable.KillSession(session));
        try
        {
            return await running;
        }
        finally
        {
            if (limit.IsCancellationRequested)
                ProcessTable.KillSession(session);
        }
    }

    /// <summary>
    /// Starts a daemon that outlives this process (it detaches itself with <see cref="Posix.Detach"/>). Its output goes to
    /// <paramref name="logPath"/>, through a shell's redirection because a pipe would end with us.
    /// </summary>
    public static Process StartDaemon(
        string program, IReadOnlyList<string> arguments, string logPath, IReadOnlyDictionary<string, string?> environment)
    {
        ProcessStartInfo start = new("/bin/sh") { UseShellExecute = false };
        start.ArgumentList.Add("-c");
        start.ArgumentList.Add("log=$1; shift; exec \"$@\" >>\"$log\" 2>&1 </dev/null");
        start.ArgumentList.Add("sh");
        start.ArgumentList.Add(logPath);
        start.ArgumentList.Add(program);
        foreach (string argument in arguments)
            start.ArgumentList.Add(argument);
        foreach ((string name, string? value) in environment)
            start.Environment[name] = value;
        return Process.Start(start) ?? throw new ChildProcessException($"{program} cannot be started");
    }

    private sealed class BoundedOutput(int limitBytes, CancellationTokenSource onOver) : MemoryStream
    {
        public bool IsOver { get; private set; }

        public string Text => Encoding.UTF8.GetString(GetBuffer(), 0, (int)Length);

        public override void Write(ReadOnlySpan<byte> buffer)
        {
            if (Length + buffer.Length > limitBytes)
            {
                IsOver = true;
                onOver.Cancel();
                return;
            }

            // Not the span overload: in a derived class MemoryStream sends it back here, without end.
            base.Write(buffer.ToArray(), 0, buffer.Length);
        }

        public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

        public override Task WriteAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken)
        {
            Write(buffer.AsSpan(offset, count));
            return Task.CompletedTask;
        }

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
        {
            Write(buffer.Span);
            return ValueTask.CompletedTask;
        }
    }
}
